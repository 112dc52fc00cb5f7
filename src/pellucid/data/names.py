"""The data sets that Pellucid knows by name: where the hub keeps them, and the papers' preparations of them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from pellucid.errors import PellucidError


@dataclass(frozen=True)
class Known:
    """A name: its repository (and configuration) on the Hugging Face hub, its preparations with what they are, and how
    to get it where the hub has none, or another way; `{folder}` is where it goes."""

    about: str
    hub: str | None = None
    config: str | None = None
    get: str = ""
    options: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))


KNOWN: MappingProxyType[str, Known] = MappingProxyType(
    {
        "digits": Known("1,797 handwritten digits, embedded: nothing to download"),
        "mnist": Known(
            "handwritten digits, 28x28 grey",
            hub="ylecun/mnist",
            options=MappingProxyType(
                {
                    "boopathy": "train 55,000 (rows 5,000 and on), valid the first 5,000, test 10,000",
                    "ross": "train 55,000 (rows 5,000 and on), no valid, test 10,000",
                }
            ),
        ),
        "cifar10": Known(
            "ten kinds of things, 32x32 colour",
            hub="uoft-cs/cifar10",
            options=MappingProxyType(
                {"boopathy": "train 45,000 (rows 5,000 and on), valid the first 5,000, test 10,000"}
            ),
        ),
        "svhn": Known(
            "house numbers, 32x32 colour",
            hub="ufldl-stanford/svhn",
            config="cropped_digits",
            options=MappingProxyType(
                {"ross": "grey; valid 6,000 of train and extra, train 200,000 of extra, test 26,032"}
            ),
        ),
        "notmnist": Known(
            "letters A to J in many fonts, 28x28 grey",
            hub="anubhavmaity/notMNIST",
            get="unpack notMNIST_large.tar.gz and notMNIST_small.tar.gz of yaroslavvb.blogspot.com in {folder}",
            options=MappingProxyType(
                {"ross": "per class: train 20,000 and valid 1,000 of notMNIST_large, test 1,000 of notMNIST_small"}
            ),
        ),
        "tiny-imagenet": Known(
            "200 of ImageNet's classes, 64x64 colour; train 100,000, valid 10,000; the test labels are not published",
            hub="zh-plus/tiny-imagenet",
            get="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in {folder}",
        ),
        "caltech256": Known(
            "30,607 photographs of 256 kinds of things and of clutter, of many sizes, not divided: all count as test",
            get="unpack 256_ObjectCategories.tar of https://data.caltech.edu/records/nyy15-4j048 in {folder}",
            options=MappingProxyType(
                {"zhang": "257 classes; of each, a fifth drawn at random is valid and test; 224 px: train the rest"}
            ),
        ),
        "caltech101": Known(
            "9,144 photographs of 101 kinds of things and of background, of many sizes, not divided: all count as test",
            get=(
                "unpack caltech-101.zip of https://data.caltech.edu/records/mzrjq-6wc02, and the "
                "101_ObjectCategories.tar.gz that is in it, in {folder}"
            ),
        ),
        "imagenet": Known(
            "ILSVRC 2012: 1,000 classes, of many sizes; train 1,281,167, valid 50,000",
            get=(
                "accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and run: hf download "
                "ILSVRC/imagenet-1k --repo-type dataset --local-dir {folder}; or unpack ILSVRC2012_img_train.tar and "
                "ILSVRC2012_img_val.tar of https://image-net.org as {folder}/train/<WordNet id>/*.JPEG and "
                "{folder}/val/<WordNet id>/*.JPEG"
            ),
            options=MappingProxyType(
                {"restricted": "nine classes made of 203 of ImageNet's by their numbers; test is valid; 224 px"}
            ),
        ),
        "imagenet-sample": Known(
            "one photograph of each of ImageNet's 1,000 classes, of its training set",
            get=(
                "git clone https://github.com/EliSchwartz/imagenet-sample-images, and move each of its n*_*.JPEG to "
                "{folder}/train/<what its name has before the first _>/"
            ),
            options=MappingProxyType({"restricted": "nine classes made of 203 of ImageNet's by their numbers"}),
        ),
        "cue-conflict": Known(
            "1,280 images of one thing's shape in another's texture, 224x224 colour, 16 classes; labelled by shape",
            get=(
                "git clone https://github.com/rgeirhos/texture-vs-shape, and move its folder "
                "stimuli/style-transfer-preprocessed-512 to {folder}"
            ),
        ),
    }
)


def how_to_get(name: str, folder: Path | str) -> str:
    """What to do for a data set to lie in the folder; empty where the hub is the one way."""
    return KNOWN[name].get.format(folder=folder)


def suggestion(word: str, words: Iterable[str]) -> str:
    """`did you mean ...? ` or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def check_option(name: str, option: str) -> None:
    """Raise `PellucidError` unless the data set has this preparation."""
    options = KNOWN[name].options if name in KNOWN else {}
    if option in options:
        return
    if not options:
        having = ", ".join(f"{known}@{o}" for known, entry in KNOWN.items() for o in entry.options)
        raise PellucidError(f"the data set {name!r} has no preparations, so no {option!r}: there are {having}")
    there = "; ".join(f"{name}@{key}: {text}" for key, text in options.items())
    raise PellucidError(f"no preparation {option!r} of {name}: {suggestion(option, options)}there are {there}")
