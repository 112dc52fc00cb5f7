"""Images of one thing's shape in another thing's texture: does a classifier decide by the one or by the other?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pellucid.data.decode import square
from pellucid.data.groups import SIXTEEN
from pellucid.data.hub import open_hub
from pellucid.data.imageset import ImageSet, Indices
from pellucid.data.loading import load_split, open_table
from pellucid.data.names import how_to_get
from pellucid.data.sources import Place, locate
from pellucid.errors import PellucidError
from pellucid.types import Labels, Mask

if TYPE_CHECKING:
    from datasets import Dataset

NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")  # cat7-elephant3: the shape of a cat, the texture of an elephant
STIMULI, COLUMN = "cue-conflict", "texture"


@dataclass(frozen=True, eq=False)
class CueConflict:
    """Images labelled by their shape, and the class of each one's texture, a number in the same `class_names`."""

    images: ImageSet
    texture: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Indices) -> "CueConflict":
        """Those of these rows, in this order. Raises `PellucidError` for an index outside."""
        images = self.images.select(indices)
        return CueConflict(images, self.texture[torch.as_tensor(indices, dtype=torch.int64)], self.class_names)

    @property
    def conflicting(self) -> Mask:
        """Where shape and texture differ: only these count for a shape bias."""
        return self.images.labels != self.texture


def cue_conflict(name_or_folder: str | Path, split: str = "test", *, size: int | None = None) -> CueConflict:
    """The cue-conflict stimuli of Geirhos et al. 2019, of 16 classes: 1,280, or part of them.

    Takes what `load` takes: a name (`cue-conflict`), a folder, a Parquet file, a hub id. A folder is as published: one
    folder per shape, in it files such as `cat7-elephant3.png`, of the seventh cat's shape and the third elephant's
    texture. A table has a column `texture` beside `label`, which is the shape. `size` is as in `load`.

    All images are kept. Geirhos et al. leave out the 80 whose shape and texture are of one class: see `conflicting`.
    Raises `PellucidError` where one of the 16 class folders is missing or holds no images, for a folder that is no
    class, for a file name that does not say shape and texture, and where the column `texture` is missing or has other
    names than the 16; and as `load` does.
    """
    images = load_split(str(name_or_folder), split, scale=square(size))
    return CueConflict(images, textures(images, str(name_or_folder), split), images.class_names)


def stimuli_of(images: ImageSet, name: str | Path, split: str) -> CueConflict | None:
    """The stimuli that images are, loaded by this name; None where they are others.

    They are if all their classes are of the 16, more than half of these, and a texture is said too: in a column
    `texture`, or in the name of a file. Raises as `cue_conflict`, where classes are missing too, and for the data set
    `cue-conflict` itself where it has others.
    """
    classes = set(images.class_names)
    alike = classes <= set(SIXTEEN) and len(classes) > len(SIXTEEN) / 2
    if str(name) != STIMULI and not (alike and _say_textures(str(name), split)):
        return None
    return CueConflict(images, textures(images, str(name), split), images.class_names)


def _say_textures(name: str, split: str) -> bool:
    place = locate(name, split)
    if place.folder is not None:
        named = [NAME.fullmatch(file.stem) for file, _ in place.images()]
        return sum(found is not None and {*found.groups()} <= {*SIXTEEN} for found in named) > len(named) / 2
    return COLUMN in (open_hub(name, place) if place.hub else open_table(place)).column_names


def textures(images: ImageSet, name: str, split: str) -> Labels:
    """The class of the texture of every image of a split, in the numbers of the images' own class names. Raises as
    `cue_conflict`."""
    place = locate(name, split)
    if place.folder is not None:
        _check_folders(place)
        found = [_texture_of(file, place.class_names[label]) for file, label in place.images()]
    else:
        found = _texture_column(open_hub(name, place) if place.hub else open_table(place), place.where)
    _check_names(images.class_names, "classes", place.where)
    number = {title: i for i, title in enumerate(images.class_names)}
    return torch.tensor([number[title] for title in found])


def _check_folders(place: Place) -> None:
    held = {place.class_names[label] for _, label in place.images()}
    if lacking := sorted(set(SIXTEEN) - held):
        raise PellucidError(
            f"{place.folder} lacks images of {len(lacking)} of the 16 shapes: {', '.join(lacking)}. Each needs its "
            f"folder. {_remedy()}"
        )
    _check_names(place.class_names, "folders", place.where)


def _check_names(names: Sequence[str], what: str, where: str) -> None:
    if sorted(names) != sorted(SIXTEEN):
        odd = sorted(set(names) - set(SIXTEEN)) or sorted(set(SIXTEEN) - set(names))
        missing = "are none of" if set(names) - set(SIXTEEN) else "are missing of"
        raise PellucidError(
            f"{where}: the {what} {', '.join(odd[:5])} {missing} the 16 of cue conflict: {', '.join(SIXTEEN)}"
        )


def _texture_of(file: Path, shape: str) -> str:
    found = NAME.fullmatch(file.stem)
    if found is None or found[1] != shape or found[2] not in SIXTEEN:
        raise PellucidError(
            f"{file}: its name must be the shape, which is its folder's name, and the texture, each with a number, "
            f"such as {shape}7-elephant3.png; the textures are {', '.join(SIXTEEN)}"
        )
    return found[2]


def _texture_column(table: "Dataset", where: str) -> list[str]:
    """The names of the textures, from class numbers with names, or from names."""
    if COLUMN not in table.column_names:
        raise PellucidError(
            f"{where} has no column {COLUMN!r}: there are {', '.join(table.column_names)}. Cue conflict needs the "
            f"class of each image's texture beside its label, the shape. {_remedy()}"
        )
    feature: Any = table.features[COLUMN]
    stored: Any = table.select_columns([COLUMN]).with_format("arrow")[:]
    values = stored[COLUMN].to_pylist()
    if None in values:
        raise PellucidError(f"{where}: {values.count(None)} of {len(values)} textures are missing")
    names = getattr(feature, "names", None)
    if names is not None:
        if outside := [value for value in values if not 0 <= value < len(names)]:
            raise PellucidError(f"{where}: the texture {outside[0]} is outside of its {len(names)} names")
        values = [names[value] for value in values]
    if odd := sorted({str(value) for value in values} - set(SIXTEEN)):
        raise PellucidError(
            f"{where}: the textures {', '.join(odd[:5])} are none of the 16 classes: {', '.join(SIXTEEN)}. The column "
            f"must be a ClassLabel with these names, or hold the names"
        )
    return values


def _remedy() -> str:
    return f"To get the 1,280 images: {how_to_get('cue-conflict', '$PELLUCID_DATA/cue-conflict')}"
