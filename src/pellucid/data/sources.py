"""From a name to the files of one split: a folder or a Parquet file, `$PELLUCID_DATA`, or the hub."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from pellucid.data.layouts import inside, numbered_classes, tiny_imagenet
from pellucid.data.names import KNOWN, how_to_get, suggestion
from pellucid.errors import PellucidError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
ALIASES = MappingProxyType(
    {
        name: group
        for group in (("valid", "validation", "val"), ("large", "notMNIST_large"), ("small", "notMNIST_small"))
        for name in group
    }
)
SPLITS = frozenset({"train", "test", "extra", *ALIASES})  # subfolders with these names are splits, others are classes


@dataclass(frozen=True)
class Place:
    """Where a split lies: Parquet files, or class folders with the classes in order, or a repository of the hub.

    `titles` are the names of the classes where the folders are called otherwise; `listed` are the files and their
    classes where no folder says them.
    """

    where: str
    split: str
    parquet: tuple[Path, ...] = ()
    folder: Path | None = None
    classes: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    listed: tuple[tuple[Path, int], ...] = ()
    hub: str | None = None
    config: str | None = None
    looked: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.titles or self.classes

    def images(self) -> list[tuple[Path, int]]:
        """Every image file of a folder's split, and the number of its class."""
        if self.listed or self.folder is None:
            return list(self.listed)
        return [(file, i) for i, name in enumerate(self.classes) for file in image_files(self.folder / name)]


def locate(name: str, split: str) -> Place:
    """Where to read a split from. Raises `PellucidError` that lists every place looked, and how to get the data.

    In this order: a path; `$PELLUCID_DATA/NAME`; the hub. A name that Pellucid knows is never taken for a relative
    path: write `./mnist`.
    """
    looked: list[str] = []
    path = Path(name).expanduser()
    if name not in KNOWN and path.exists():
        return _choose(places(path), split, str(path))
    looked += [f"no folder or file {str(path)!r}"] if name not in KNOWN else []
    if _is_path(name):
        raise _missing(name, split, looked)
    root = data_folder()
    if root is None:
        looked.append("PELLUCID_DATA is not set")
    elif (root / name).is_dir():
        return _choose(places(root / name), split, str(root / name))
    else:
        looked.append(f"no folder {str(root / name)!r} (PELLUCID_DATA)")
    hub = KNOWN[name].hub if name in KNOWN else name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None
    if hub is None:
        raise _missing(name, split, looked)
    config = KNOWN[name].config if name in KNOWN else None
    return Place(f"hub: {hub}", split, hub=hub, config=config, looked=tuple(looked))


def data_folder() -> Path | None:
    """`$PELLUCID_DATA`, where it is set. Raises `PellucidError` where it is set and no folder."""
    given = os.environ.get("PELLUCID_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise PellucidError(
            f"PELLUCID_DATA={given!r} is not a folder: unset it, or name a folder with <name>/test.parquet"
        )
    return folder


def places(path: Path) -> Mapping[str, Place]:
    """Every split at a path, by name.

    A file is one split, named by its stem if that is a split's name. A folder holds `<split>.parquet` files (or
    shards as on the hub, also under `data/`), or split folders of class folders, or class folders. What is not
    divided into splits counts as `test`: an image that was trained on must not be tested on by an oversight.
    Tiny ImageNet and Caltech-256 are known by their own layouts, and the folder that a known archive unpacks to may
    stay between.
    """
    if path.is_file():
        if path.suffix != ".parquet":
            raise PellucidError(
                f"{str(path)!r} is not a .parquet file: give a .parquet file or a folder of class folders"
            )
        named = _split_of(path)
        split = named if named in SPLITS else "test"
        return {split: Place(str(path), split, parquet=(path,))}
    found: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        found.setdefault(_split_of(file), []).append(file)
    if found:
        return {split: Place(str(path), split, parquet=tuple(files)) for split, files in found.items()}
    path = inside(path)
    if (path / "wnids.txt").is_file():
        return _tiny_imagenet(path)
    divided = _image_folders(path)
    return {split: replace(place, titles=numbered_classes(place.classes)) for split, place in divided.items()}


def _tiny_imagenet(path: Path) -> dict[str, Place]:
    """Tiny ImageNet's own layout. Its validation images lie in one folder, with a list of their classes."""
    tiny = tiny_imagenet(path)
    place = Place(str(path), "train", folder=path / "train", classes=tiny.classes, titles=tiny.titles)
    found = {"train": place} if tiny.trained else {}
    if tiny.valid:
        found["valid"] = replace(place, split="valid", folder=path / "val", listed=tiny.valid)
    elif (path / "val").is_dir() and subfolders(path / "val"):  # sorted into class folders, as many do
        found["valid"] = replace(place, split="valid", folder=path / "val")
    return found


def _split_of(file: Path) -> str:
    return re.sub(r"-\d+-of-\d+$", "", file.stem)


def subfolders(path: Path) -> list[Path]:
    """Folders in a folder, in order of name, hidden ones apart."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def image_files(path: Path) -> list[Path]:
    """Image files at any depth, in order of path."""
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _image_folders(path: Path) -> dict[str, Place]:
    folders = subfolders(path)
    splits = [p for p in folders if p.name in SPLITS and subfolders(p)]
    if not splits:
        names = tuple(p.name for p in folders if any(image_files(p)))
        return {"test": Place(str(path), "test", folder=path, classes=names)} if names else {}
    classes = {p.name: tuple(c.name for c in subfolders(p)) for p in splits}
    # A class that a small test split happens to lack must not shift the numbers of the others.
    reference = classes.get("train") or tuple(sorted(set().union(*classes.values())))
    for split, names in classes.items():
        if extra := sorted(set(names) - set(reference)):
            raise PellucidError(
                f"{path / split} has classes that {path / 'train'} lacks: {', '.join(extra[:5])}. "
                "Every split needs the same class folders"
            )
    return {p.name: Place(str(path), p.name, folder=p, classes=reference) for p in splits}


def _choose(found: Mapping[str, Place], split: str, where: str) -> Place:
    for name in (split, *ALIASES.get(split, ())):
        if name in found:
            return found[name]
    if not found:
        raise PellucidError(
            f"{where} holds no images: put them at <class>/*.png, or <split>/<class>/*.png, or <split>.parquet"
        )
    only = " (what is not divided into splits counts as test)" if set(found) == {"test"} else ""
    raise PellucidError(
        f"{where} has no split {split!r}: {suggestion(split, found)}there are {', '.join(sorted(found))}{only}"
    )


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith(".parquet") or name.count("/") > 1


def _missing(name: str, split: str, looked: list[str]) -> PellucidError:
    return PellucidError(missing_text(name, split, looked))


def missing_text(name: str, split: str, looked: list[str]) -> str:
    """What to say of data that is nowhere: every place looked, and how to get it, with and without a network."""
    root = data_folder()
    here = sorted(p.name for p in root.iterdir() if p.is_dir()) if root else []
    hint = "" if name in KNOWN else suggestion(name, {*KNOWN, *here})
    lines = [f"cannot find the data set {name!r}, split {split!r}: {hint}looked for"]
    lines += [f"  - {place}" for place in looked]
    target = root or Path("DIR")
    hub = KNOWN[name].hub if name in KNOWN else name if name.count("/") == 1 and not _is_path(name) else None
    if hub:
        config = KNOWN[name].config if name in KNOWN else None
        given = f"{hub!r}, {config!r}" if config else f"{hub!r}"
        lines += [
            "With a network it is downloaded at first use. Without, on a machine that has one:",
            f'  python -c "import datasets; datasets.load_dataset({given}, split={split!r})'
            f'.to_parquet({f"{split}.parquet"!r})"',
            f"then bring the file to {target / name / f'{split}.parquet'} and set PELLUCID_DATA={target}",
        ]
    elif name not in KNOWN:
        lines += [
            "Give a folder of class folders (<class>/*.png or <split>/<class>/*.png), a .parquet file or a hub id",
            f"OWNER/NAME; or set PELLUCID_DATA={target}, with {target}/NAME/<split>.parquet or",
            f"{target}/NAME/<split>/<class>/*.png",
        ]
    if name in KNOWN and KNOWN[name].get:
        ways = how_to_get(name, target / name)
        lines += [f"{'Or' if hub else 'To get it'}: {ways}", f"and set PELLUCID_DATA={target}"]
    return "\n".join(lines)
