"""The data sets that Pellucid knows by name: where the hub keeps them, and the papers' preparations of them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import MappingProxyType

from pellucid.errors import PellucidError


@dataclass(frozen=True)
class Known:
    """A name: its repository (and configuration) on the Hugging Face hub, and its preparations with what they are."""

    about: str
    hub: str | None = None
    config: str | None = None
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
            options=MappingProxyType(
                {"ross": "per class: train 20,000 and valid 1,000 of notMNIST_large, test 1,000 of notMNIST_small"}
            ),
        ),
    }
)


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
