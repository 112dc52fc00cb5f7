"""The papers' own preparations of the data sets: which rows train, which are held out, which channels.

Pixels stay in [0, 1]. What the papers do to values (contrast normalisation per image, x - 0.5) is the network's
first layer here: an attack's radius is in pixels, and an audit compares like with like.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pellucid.data.decode import Scale
from pellucid.data.groups import RESTRICTED
from pellucid.data.imageset import ImageSet, Indices, batches, resident
from pellucid.errors import PellucidError

ROSS_LUMA = (0.2989, 0.5870, 0.1140)  # as their code rounds it, not `types.LUMA`: white becomes 0.9999
HELD_OUT = 5_000
SVHN_TRAIN, SVHN_TEST = 200_000, 26_032
SVHN_VALID = (400, 200)  # per class, of train and of extra
NOTMNIST = (20_000, 1_000, 1_000)  # per class: train and valid of large, test of small

CALTECH_CLASSES, CALTECH_LEAST = 257, 80  # and images of each (Griffin et al. 2007)
HELD_OUT_SHARE = 0.2  # of each class of Caltech-256
CENTRE = Scale(256, 224)  # torchvision's Resize(256), CenterCrop(224)

Read = Callable[..., ImageSet]  # (split, *, skip_unreadable, scale (where no size is asked for), groups) -> as stored
Rows = Int64[Tensor, " _"]  # any number: each argument its own


def prepared(name: str, option: str, split: str, read: Read) -> ImageSet:
    """One split of a preparation: a known name and option (see `names.KNOWN`). Raises `PellucidError` where the files
    at hand are not those the paper used."""
    whole = f"{name}@{option}"
    splits = {"mnist@ross": ("train", "test"), "imagenet-sample@restricted": ("train",)}
    there = splits.get(whole, ("train", "valid", "test"))
    if split not in there:
        raise PellucidError(
            f"{whole} has no split {split!r}: there {'is' if len(there) == 1 else 'are'} {', '.join(there)}"
        )
    makers = {
        "svhn@ross": _svhn_ross,
        "notmnist@ross": _notmnist_ross,
        "caltech256@zhang": _caltech256_zhang,
        "imagenet@restricted": _imagenet_restricted,
        "imagenet-sample@restricted": _imagenet_sample_restricted,
    }
    if whole in makers:
        return makers[whole](split, read)
    return _held_out(whole, split, read, total=60_000 if name == "mnist" else 50_000)


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


def _caltech256_zhang(split: str, read: Read) -> ImageSet:
    """Zhang & Zhu 2019 as coded: of each of the 257 classes, clutter among them, `int(0.2 n)` images are held out at
    random, for validation and test alike; the rest trains. Shorter side 256, centre 224.

    Deviations: their draw had no seed, so their split cannot be had again; here generator seed 0, over the classes in
    order. They count two entries of the archive that are no images, `056.dog/greg` and `198.spider/RENAME2`. They train
    on random crops of 224 out of the whole image scaled to 256; here every split is of the centre (`size=256` gives
    the centre square of 256, to crop from). torchvision rounds the longer side and the centre down: by a pixel at most.
    """
    found = read("test", scale=CENTRE)
    if len(found.class_names) != CALTECH_CLASSES:
        raise PellucidError(
            f"caltech256@zhang is made of {CALTECH_CLASSES} classes, clutter among them, {found.source} has "
            f"{len(found.class_names)}: get the whole data set"
        )
    counts = torch.bincount(found.labels, minlength=CALTECH_CLASSES)
    if (least := int(counts.min())) < CALTECH_LEAST:
        raise PellucidError(
            f"{found.source}, for caltech256@zhang must have at least {CALTECH_LEAST} images of each, has {least} of "
            f"{found.class_names[int(counts.argmin())]!r}: get the whole data set, undivided"
        )
    held_out = a_share_of_each(found.labels, HELD_OUT_SHARE, seed=0)
    rows = _without(len(found), held_out) if split == "train" else held_out
    return _named(found, "caltech256@zhang", split, rows)


def a_share_of_each(labels: Rows, share: float, *, seed: int) -> Rows:
    """Rows, in order, of `int(share n)` images of each class of n, drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label in range(int(labels.max()) + 1 if len(labels) else 0):
        own = (labels == label).nonzero()[:, 0]
        drawn.append(own[torch.randperm(len(own), generator=generator)[: int(share * len(own))]])
    return torch.cat(drawn).sort().values if drawn else labels[:0]


def _imagenet_restricted(split: str, read: Read) -> ImageSet:
    """Restricted ImageNet (Tsipras et al. 2019; Engstrom et al. 2019): nine classes, made of ImageNet's by their
    numbers (`groups.RESTRICTED`); the others' images are left out. Shorter side 256, centre 224, as the authors' test.

    `test` is ImageNet's validation split, as in the papers: its own test labels were never published. Deviation:
    Boopathy et al. 2020 scale to 224x224 without keeping the aspect, and use part of the images, it is not known which.
    """
    stored = "train" if split == "train" else "valid"
    return _named(read(stored, scale=CENTRE, groups=RESTRICTED), "imagenet@restricted", split, None)


def _imagenet_sample_restricted(split: str, read: Read) -> ImageSet:
    """The nine classes of Restricted ImageNet of the 1,000 images, 203 of them; of training images, so only `train`."""
    return _named(read(split, groups=RESTRICTED), "imagenet-sample@restricted", split, None)


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
    """0.2989 R + 0.5870 G + 0.1140 B, as in Ross & Doshi-Velez's code."""
    return torch.einsum("bchw,c->bhw", x, x.new_tensor(ROSS_LUMA))[:, None]


def _exactly(images: ImageSet, n: int, name: str) -> ImageSet:
    if len(images) != n:
        raise PellucidError(
            f"{name} is made of the {n:,} images of the official {images.split} split, "
            f"{images.source} has {len(images):,}: get the whole data set"
        )
    return images


def _named(images: ImageSet, name: str, split: str, rows: Indices | None) -> ImageSet:
    return (images if rows is None else images.select(rows)).renamed(name, split)
