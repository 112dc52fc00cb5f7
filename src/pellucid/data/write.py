"""Sets of images to Parquet in the hub's layout or to class folders, both of which `load` takes, part by part."""

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pellucid.data.sources import SPLITS
from pellucid.errors import PellucidError
from pellucid.types import Labels

GROUP = 100  # rows of Parquet that are read, and so written, together

Add = Callable[[UInt8[Tensor, "b c h w"], Labels, Sequence[int]], None]  # pixels, labels, row numbers
Writer = Callable[[Path, str, Sequence[str]], AbstractContextManager[Add]]  # folder, split, class names


@contextmanager
def parquet_writer(folder: Path, split: str, class_names: Sequence[str]) -> Iterator[Add]:
    """FOLDER/SPLIT.parquet, there when the block is done, and whole: what is added to it is written at once.

    Columns `image` (PNG, so lossless), `label` with its names, and `row`, the number in the set it was made from.
    """
    import datasets  # takes 2 s to import

    names = datasets.ClassLabel(names=list(class_names))
    features = {"image": datasets.Image(), "label": names, "row": datasets.Value("int64")}
    schema = datasets.Features(features).arrow_schema  # with the names, as `datasets` looks for them
    waiting: list[dict[str, Any]] = []
    with _whole(folder / f"{split}.parquet") as unfinished, pq.ParquetWriter(unfinished, schema) as file:

        def write(count: int) -> None:
            if waiting[:count]:
                file.write_table(pa.Table.from_pylist(waiting[:count], schema=schema))
                del waiting[:count]

        def add(pixels: UInt8[Tensor, "b c h w"], labels: Labels, rows: Sequence[int]) -> None:
            for image, label, row in zip(pixels, labels.tolist(), rows, strict=True):
                waiting.append({"image": {"bytes": _png(image), "path": None}, "label": label, "row": row})
            while len(waiting) >= GROUP:
                write(GROUP)

        yield add
        write(GROUP)


@contextmanager
def folder_writer(folder: Path, split: str, class_names: Sequence[str]) -> Iterator[Add]:
    """FOLDER/SPLIT/CLASS/ROW.png, there when the block is done, and whole; every class has a folder, if an empty one.

    Raises `PellucidError` where the labels would be others when the folder is loaded, which numbers classes in the
    order of their names, and for names that no folder can have.
    """
    names = list(class_names)
    _check_names(split, names)
    with _whole(folder / split) as unfinished:
        for name in names:
            (unfinished / name).mkdir(parents=True)

        def add(pixels: UInt8[Tensor, "b c h w"], labels: Labels, rows: Sequence[int]) -> None:
            for image, label, row in zip(pixels, labels.tolist(), rows, strict=True):
                (unfinished / names[label] / f"{row:07d}.png").write_bytes(_png(image))

        yield add


WRITERS: MappingProxyType[str, Writer] = MappingProxyType({"parquet": parquet_writer, "folder": folder_writer})


def bytes_of(x: Tensor) -> tuple[Tensor, int]:
    """Pixels in [0, 1] as 8 bits, to the nearest; and how many had to be cut, being further than half a bit beyond."""
    beyond = (x < -0.5 / 255) | (x > 1 + 0.5 / 255)
    return (255 * x.clamp(0, 1)).round().to(torch.uint8), int(beyond.sum())


def _check_names(split: str, names: Sequence[str]) -> None:
    if split not in SPLITS:
        raise PellucidError(f"a folder {split!r} would not be read as a split: write it as Parquet (--format parquet)")
    unfit = [name for name in names if not name or name.startswith((".", "__")) or "/" in name or "\0" in name]
    if unfit:
        raise PellucidError(f"no folder can be called {unfit[0]!r}, as a class is: write Parquet (--format parquet)")
    if sorted(set(names)) != list(names):
        first = next((f"{a!r} is before {b!r}" for a, b in pairwise(names) if a >= b), "")
        raise PellucidError(
            f"class folders are numbered in the order of their names, and here {first}: the labels would be others. "
            "Write Parquet (--format parquet)"
        )


def _png(image: UInt8[Tensor, "c h w"]) -> bytes:
    if len(image) not in (1, 3):
        raise PellucidError(f"images of {len(image)} channels cannot be written: 1 or 3 can")
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A hidden neighbour for a file or a folder, which takes the place of `path` at the end; of a block that fails, or
    is interrupted, nothing is left."""
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        yield neighbour
        _put(neighbour, path, old)
    except OSError as error:  # the user knows the file, not its neighbour; a full disk's error knows neither
        if error.filename is None or str(neighbour) in str(error.filename):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        for rest in (neighbour, old):
            _remove(rest)
        with suppress(OSError):  # those that are not empty stay
            for parent in made:
                parent.rmdir()


def _put(made: Path, path: Path, old: Path) -> None:
    """`made` in the place of `path`; a folder that stood there is `old` meanwhile, and comes back if that fails."""
    if path.is_dir():
        _remove(old)  # an interrupted call left it
        path.rename(old)
    try:
        made.replace(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
