"""Data sets' own layouts, as their archives unpack."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import PellucidError

ARCHIVES = (  # what known archives unpack to, the outer before the inner
    "tiny-imagenet-200",
    "caltech-101",
    "101_ObjectCategories",
    "256_ObjectCategories",
    "style-transfer-preprocessed-512",
)
NUMBERED = re.compile(r"\d{3}\.")
CALTECH_256 = frozenset({"001.ak47", "257.clutter"})  # its first and last class: other sets number theirs too


def inside(path: Path) -> Path:
    """The folder of a known archive, where it lies in the given one: `caltech256/256_ObjectCategories`."""
    for name in ARCHIVES:
        path = path / name if (path / name).is_dir() else path
    return path


def numbered_classes(folders: Sequence[str]) -> tuple[str, ...]:
    """Caltech-256's class names, `ak47` of the folder `001.ak47`; nothing for the folders of another set."""
    own = bool(CALTECH_256 & set(folders)) and all(NUMBERED.match(name) for name in folders)
    return tuple(name[4:] for name in folders) if own else ()


@dataclass(frozen=True)
class TinyImageNet:
    """Its WordNet ids in order, with the first of their words; the validation images with the numbers of their
    classes, where the list that came with them is there; and whether there are training images."""

    classes: tuple[str, ...]
    titles: tuple[str, ...]
    valid: tuple[tuple[Path, int], ...]
    trained: bool


def tiny_imagenet(path: Path) -> TinyImageNet:
    """Read `wnids.txt`, `words.txt` and `val/val_annotations.txt` (Le & Yang 2015, `tiny-imagenet-200.zip`).

    The classes are numbered in the order of their WordNet ids, as ImageNet's and the hub's copies are; `wnids.txt`
    itself is in no order. Named `n01443537 goldfish`, without `words.txt` by the id alone. The 10,000 images of
    `test/` have no labels and are not read. Raises `PellucidError` where a class of `wnids.txt` has no folder in
    `train`, and where validation images and their list do not agree.
    """
    classes = tuple(sorted({line.strip() for line in _lines(path / "wnids.txt") if line.strip()}))
    if (path / "train").is_dir() and (lacking := [name for name in classes if not (path / "train" / name).is_dir()]):
        raise PellucidError(
            f"{path / 'train'} lacks {len(lacking)} of the {len(classes)} classes of wnids.txt, such as {lacking[0]}: "
            "unpack the archive anew"
        )
    lines = _lines(path / "words.txt") if (path / "words.txt").is_file() else []
    words = {wnid: meaning.split(",")[0].strip() for wnid, _, meaning in (line.partition("\t") for line in lines)}
    titles = tuple(f"{name} {words[name]}" if words.get(name) else name for name in classes)
    valid = _annotated(path / "val", classes) if (path / "val" / "images").is_dir() else ()
    return TinyImageNet(classes, titles, valid, (path / "train").is_dir())


def _annotated(folder: Path, classes: tuple[str, ...]) -> tuple[tuple[Path, int], ...]:
    """The images that `val_annotations.txt` lists: name, class, and a box that is not used."""
    listing = folder / "val_annotations.txt"
    if not listing.is_file():
        raise PellucidError(f"{listing} is missing: it says which class each image of {folder / 'images'} has")
    number = {name: i for i, name in enumerate(classes)}
    found: list[tuple[Path, int]] = []
    for row, line in enumerate(filter(str.strip, _lines(listing)), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in number:
            raise PellucidError(f"{listing}, line {row}: {wnid!r} is no class of wnids.txt")
        found.append((folder / "images" / name, number[wnid]))
    there = {file for file in (folder / "images").iterdir() if not file.name.startswith(".")}
    listed = {file for file, _ in found}
    for odd, what in ((listed - there, "listed and not there"), (there - listed, "there and not listed")):
        if odd:
            raise PellucidError(
                f"{folder}: {len(odd)} of {len(listed | there)} images are {what} in val_annotations.txt, such as "
                f"{min(odd).name}: unpack the archive anew"
            )
    return tuple(found)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PellucidError(f"{file} cannot be read: {error}") from None
