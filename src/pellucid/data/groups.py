"""Groups of ImageNet's 1,000 classes that papers count as one class, by the number of the class (0 to 999).

The numbers are those of ILSVRC 2012 in the order of their WordNet ids: 0 tench, 999 toilet tissue.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Int64
from torch import Tensor

from pellucid.data.imageset import ImageSet
from pellucid.errors import PellucidError

IMAGENET = 1_000
WNID = re.compile(r"n\d{8}(?![0-9a-zA-Z])")
WORDS: Mapping[int, str] = MappingProxyType(
    {0: "tench", 1: "goldfish", 281: "tabby", 340: "zebra", 404: "airliner", 850: "teddy", 999: "toilet"}
)  # what the names of these begin with, in every list that is in use


def _indices(text: str) -> tuple[int, ...]:
    """`8 10-12` is 8, 10, 11, 12."""
    ends = [part.split("-") for part in text.split()]
    return tuple(i for end in ends for i in range(int(end[0]), int(end[-1]) + 1))


RESTRICTED: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        name: _indices(ends)
        for name, ends in {
            "dog": "151-268",
            "cat": "281-285",
            "frog": "30-32",
            "turtle": "33-37",
            "bird": "80-100",
            "primate": "365-382",
            "fish": "389-397",
            "crab": "118-121",
            "insect": "300-319",
        }.items()
    }
)
"""Restricted ImageNet's nine classes, both ends included (Tsipras et al. 2019; Engstrom et al. 2019, whose library has
the same ranges in the same order). Boopathy et al. 2020 call the primates monkeys."""

SIXTEEN: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        name: _indices(numbers)
        for name, numbers in {
            "airplane": "404",
            "bear": "294-297",
            "bicycle": "444 671",
            "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
            "boat": "472 554 625 814 914",
            "bottle": "440 720 737 898 899 901 907",
            "car": "436 511 817",
            "cat": "281-286",
            "chair": "423 559 765 857",
            "clock": "409 530 892",
            "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
            "elephant": "385 386",
            "keyboard": "508 878",
            "knife": "499",
            "oven": "766",
            "truck": "555 569 656 675 717 734 864 867",
        }.items()
    }
)
"""The 16 classes of Geirhos et al. 2019 (16-class-ImageNet, of Geirhos et al. 2018) and the ImageNet classes that count
as each, in the alphabetical order of the cue-conflict stimuli. A network decides for the class with the greatest
*mean* probability over its ImageNet classes."""


def regrouped(
    labels: Int64[Tensor, " n"], class_names: Sequence[str], groups: Mapping[str, tuple[int, ...]], source: str
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """The rows whose ImageNet class is in a group, in their order, and their group's number.

    Raises `PellucidError` unless the classes are ImageNet's 1,000 in their order, by the rule of `is_imagenet`, and
    where none of the images is of any group.
    """
    if len(class_names) != IMAGENET:
        raise PellucidError(
            f"{source} has {len(class_names):,} classes: {', '.join(groups)} are made of ImageNet's by their numbers, "
            f"0 to {IMAGENET - 1}: bring all {IMAGENET:,} class folders (some may be empty), or labels with as many "
            "names"
        )
    ids = _wordnet_ids(class_names)
    if ids and ids != sorted(set(ids)):
        raise PellucidError(
            f"{source}: its classes are not in the order of their WordNet ids, as ImageNet's numbers are"
        )
    if not _are_imagenets(class_names):
        wrong = next(i for i, word in WORDS.items() if not _begins(class_names[i], word))
        raise PellucidError(
            f"{source}: its {IMAGENET:,} classes are not ImageNet's in their order: class {wrong} is named "
            f"{class_names[wrong]!r}, which in ImageNet begins with {WORDS[wrong]!r}. Name all by WordNet ids, such as "
            "'n01440764 tench', or by ImageNet's words"
        )
    group = torch.full((IMAGENET,), -1, dtype=torch.int64)
    for number, classes in enumerate(groups.values()):
        group[list(classes)] = number
    found = group[labels]
    rows = (found >= 0).nonzero()[:, 0]
    if len(rows) == 0:
        raise PellucidError(f"{source}: none of its {len(labels):,} images is of the classes {', '.join(groups)}")
    return rows, found[rows]


def is_imagenet(images: ImageSet) -> bool:
    """Whether the classes of a set are the 1,000 of ImageNet, in their order. Only their names are asked.

    They are if there are 1,000, named by distinct WordNet ids in ascending order (`n01440764`, `n01440764 tench`), or
    by words, as in the hub's `ILSVRC/imagenet-1k` (`tench, Tinca tinca`): then a few of them tell, whatever their case.
    Any other 1,000 of WordNet's classes in that order count as ImageNet's too; names that are numbers never do.
    """
    return _are_imagenets(images.class_names)


def _are_imagenets(names: Sequence[str]) -> bool:
    if len(names) != IMAGENET:
        return False
    if ids := _wordnet_ids(names):
        return ids == sorted(set(ids))
    return all(_begins(names[i], word) for i, word in WORDS.items())


def _wordnet_ids(names: Sequence[str]) -> list[str]:
    """The id that each name begins with; none where any has none."""
    ids = [found[0] for name in names if (found := WNID.match(name))]
    return ids if len(ids) == len(names) else []


def _begins(name: str, word: str) -> bool:
    return re.match(rf"\s*{word}(?![a-z])", name, re.IGNORECASE) is not None
