"""The papers' own preparations of the data sets: which rows train, which are held out, which channels.

Pixels stay in [0, 1]. What the papers do to values (contrast normalisation per image, x - 0.5) is the network's
first layer here: an attack's radius is in pixels, and an audit compares like with like.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pellucid.data.imageset import ImageSet, Indices, batches, resident
from pellucid.errors import PellucidError

LUMA = (0.2989, 0.5870, 0.1140)
HELD_OUT = 5_000
SVHN_TRAIN, SVHN_TEST = 200_000, 26_032
SVHN_VALID = (400, 200)  # per class, of train and of extra
NOTMNIST = (20_000, 1_000, 1_000)  # per class: train and valid of large, test of small

Read = Callable[..., ImageSet]  # (split, *, skip_unreadable=False) -> the split as stored
Rows = Int64[Tensor, " _"]  # any number: each argument its own


def prepared(name: str, option: str, split: str, read: Read) -> ImageSet:
    """One split of a preparation: a known name and option (see `names.KNOWN`). Raises `PellucidError` where the files
    at hand are not those the paper used."""
    splits = ("train", "test") if (name, option) == ("mnist", "ross") else ("train", "valid", "test")
    if split not in splits:
        raise PellucidError(f"{name}@{option} has no split {split!r}: there are {', '.join(splits)}")
    if (name, option) == ("svhn", "ross"):
        return _svhn_ross(split, read)
    if (name, option) == ("notmnist", "ross"):
        return _notmnist_ross(split, read)
    return _held_out(f"{name}@{option}", split, read, total=60_000 if name == "mnist" else 50_000)


def _held_out(name: str, split: str, read: Read, *, total: int) -> ImageSet:
    """The first 5,000 training images are held out: Boopathy et al. 2020, and Ross & Doshi-Velez 2018 for MNIST."""
    if split == "test":
        return _named(_exactly(read("test"), 10_000, name), name, split, None)
    train = _exactly(read("train"), total, name)
    return _named(train, name, split, range(HELD_OUT) if split == "valid" else range(HELD_OUT, total))


def _svhn_ross(split: str, read: Read) -> ImageSet:
    """Ross & Doshi-Velez 2018 as coded: grey, and of extra followed by train the first 200,000 are trained on."""
    if split == "test":
        test = _exactly(read("test"), SVHN_TEST, "svhn@ross")
        return _grey([(test, torch.arange(len(test)))], split)
    try:
        extra = read("extra")
    except PellucidError as error:
        raise PellucidError(
            f"svhn@ross needs the split 'extra' (531,131 images) of the official SVHN: {error}"
        ) from None
    train = read("train")
    rows = sermanet(train.labels, extra.labels)
    parts = {"valid": [(train, rows["valid", "train"]), (extra, rows["valid", "extra"])]}
    parts["train"] = [(extra, rows["train", "extra"]), (train, rows["train", "train"])]
    return _grey([(part, chosen) for part, chosen in parts[split] if len(chosen)], split)


def sermanet(
    train: Rows, extra: Rows, *, per_class: tuple[int, int] = SVHN_VALID, most: int = SVHN_TRAIN
) -> dict[tuple[str, str], Rows]:
    """Rows of `train` and of `extra` for validation and for training, by `(split, source)`.

    Valid: the first 400 of each class of train and the first 200 of extra (Sermanet et al. 2012). Train: the first
    200,000 of what remains, extra before train.
    """
    valid = {"train": first_per_class(train, per_class[0], "svhn train")}
    valid["extra"] = first_per_class(extra, per_class[1], "svhn extra")
    rest = {"train": _without(len(train), valid["train"]), "extra": _without(len(extra), valid["extra"])}
    n = len(rest["train"]) + len(rest["extra"])
    if n < most:
        raise PellucidError(
            f"svhn@ross trains on {most:,} images, train and extra at hand leave {n:,}: "
            "it needs the official SVHN, 73,257 and 531,131"
        )
    from_extra = rest["extra"][:most]
    return {
        ("valid", "train"): valid["train"],
        ("valid", "extra"): valid["extra"],
        ("train", "extra"): from_extra,
        ("train", "train"): rest["train"][: most - len(from_extra)],
    }


def _notmnist_ross(split: str, read: Read) -> ImageSet:
    """Ross & Doshi-Velez 2018: per class 20,000 and 1,000 of notMNIST_large, 1,000 of notMNIST_small.

    The authors' shuffle had no seed; here generator seed 0. Unreadable files are skipped, as theirs were.
    """
    stored = "small" if split == "test" else "large"
    try:
        found = read(stored, skip_unreadable=True)
    except PellucidError as error:
        raise PellucidError(
            f"notmnist@ross needs notMNIST_{stored}, as $PELLUCID_DATA/notmnist/notMNIST_{stored}/A..J/*.png "
            f"(unpack notMNIST_{stored}.tar.gz of yaroslavvb.blogspot.com there): {error}"
        ) from None
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    train, valid, test = NOTMNIST
    count = test if split == "test" else train + valid
    rows = order[first_per_class(found.labels[order], count, f"notMNIST_{stored}")]
    if split != "test":
        chosen = first_per_class(found.labels[rows], train, "notMNIST_large")
        rows = rows[chosen if split == "train" else _without(len(rows), chosen)]
    return _named(found, "notmnist@ross", split, rows)


def first_per_class(labels: Rows, count: int, what: str) -> Rows:
    """Rows of the first `count` of each of ten classes, in stored order. Raises `PellucidError` for too few."""
    rows = []
    for label in range(10):
        found = (labels == label).nonzero()[:, 0]
        if len(found) < count:
            raise PellucidError(f"{what} has {len(found):,} images of class {label}: the preparation needs {count:,}")
        rows.append(found[:count])
    return torch.cat(rows).sort().values


def _without(n: int, rows: Rows) -> Rows:
    kept = torch.ones(n, dtype=torch.bool)
    kept[rows] = False
    return kept.nonzero()[:, 0]


def _grey(parts: list[tuple[ImageSet, Rows]], split: str) -> ImageSet:
    grey = [luma(x) for images, rows in parts for x, _ in batches(images, 1_000, indices=rows)]
    labels = torch.cat([images.labels[rows] for images, rows in parts])
    first = parts[0][0]
    return resident(
        torch.cat(grey), labels, name="svhn@ross", split=split, class_names=first.class_names, source=first.source
    )


def luma(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """0.2989 R + 0.5870 G + 0.1140 B."""
    return torch.einsum("bchw,c->bhw", x, x.new_tensor(LUMA))[:, None]


def _exactly(images: ImageSet, n: int, name: str) -> ImageSet:
    if len(images) != n:
        raise PellucidError(
            f"{name} is made of the {n:,} images of the official {images.split} split, "
            f"{images.source} has {len(images):,}: get the whole data set"
        )
    return images


def _named(images: ImageSet, name: str, split: str, rows: Indices | None) -> ImageSet:
    return (images if rows is None else images.select(rows)).renamed(name, split)
