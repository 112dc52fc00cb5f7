"""Decoded sets on disk, so that the second load takes no time: `$XDG_CACHE_HOME/pellucid`, written atomically."""

import contextlib
import hashlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pellucid.data.imageset import ImageSet, Resident

VERSION = 2  # of what is decoded and how: a new one makes old entries unused


def cache_folder() -> Path:
    """Where decoded sets are kept; a temporary folder where the home is read-only."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pellucid"
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary()
    return base if os.access(base, os.W_OK) else _temporary()


@cache
def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="pellucid-"))


def identity(files: list[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file: what a decoded set is a copy of."""
    stats = [(file, file.stat()) for file in files]
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def key(*parts: object) -> str:
    """The name of an entry: sha256 of everything that its content hangs on."""
    return hashlib.sha256(json.dumps([VERSION, *parts], default=str).encode()).hexdigest()


def recall(entry: str) -> ImageSet | None:
    """A set stored under a key, or None, also where the file is damaged."""
    file = cache_folder() / f"{entry}.safetensors"
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            facts = json.loads(stored.metadata()["set"])
            pixels, labels = stored.get_tensor("pixels"), stored.get_tensor("labels")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    facts["class_names"] = tuple(facts["class_names"])
    facts["shape"] = tuple(facts["shape"])
    return ImageSet(labels=labels, pixels=Resident(pixels), **facts)


def remember(entry: str, images: ImageSet) -> None:
    """Store a resident set under a key. A full or read-only disk is no error: the next load decodes again."""
    if not isinstance(images.pixels, Resident):
        return
    names = ("name", "split", "class_names", "shape", "source", "digest")
    facts = json.dumps({name: getattr(images, name) for name in names})
    tensors = {"pixels": images.pixels.tensor.contiguous(), "labels": images.labels.contiguous()}
    folder = cache_folder()
    with contextlib.suppress(OSError, SafetensorError), tempfile.TemporaryDirectory(dir=folder) as unfinished:
        file = Path(unfinished) / "entry"
        save_file(tensors, file, metadata={"set": facts})
        file.replace(folder / f"{entry}.safetensors")
