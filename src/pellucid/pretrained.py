"""The zoo: a classifier of every training objective, from one table of recipes, each with a card of what it withstands.

`zoo` brings one by name; `build` trains and measures them, resumably: training goes on from its checkpoint, and
finished measurements are kept.
"""

import json
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pellucid import data as data_sets
from pellucid import run_folder
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.models import load_model
from pellucid.recipe import Recipe
from pellucid.results import commit, model_digest, read_object, write_json
from pellucid.training import train, usable
from pellucid.transfer import Transfer
from pellucid.weights import write_atomically
from pellucid.zoo_card import (
    Effort,
    Say,
    Wanted,
    asked,
    bits,
    effort_for,
    how_measured,
    measured,
    measured_so,
    packed,
    planned,
)
from pellucid.zoo_recipes import recipes

CLOCK = "seconds.json"
KEPT = ("model.safetensors", "card.json", CLOCK, "recipe.json")  # of a network; the recipe comes last
SHOWN = "transfer.json"  # of a zoo: one network's images shown to the others
REMEDY = "remove it, and it is made anew"
WAIT = 5.0  # seconds between two looks at what other processes work at


def zoo(name: str, folder: Path | str | None = None) -> nn.Module:
    """A classifier of the zoo by name: of a folder that `pellucid zoo --build` filled, else of the package.

    Raises `PellucidError` where there is no such folder, or in neither the network's weights.
    """
    if folder is not None and not Path(folder).is_dir():
        raise PellucidError(f"no folder {folder}: `pellucid zoo --folder {folder} --build --only {name}` makes it")
    places = _places(Path(folder) if folder else None)
    for place in places:
        where = place / name
        if (where / "model.safetensors").is_file():
            return load_model(where)[0]
    if any(name in _names(place) for place in places):
        there, (base, _, seed) = str(folder or "zoo"), name.partition("@")
        only = f"--only {base} --seeds {int(seed) + 1} --fresh" if seed else f"--only {base}"
        raise PellucidError(
            f"of {name!r} there is the card alone: "
            f"`pellucid zoo --folder {there} --build {only}` trains it, for pe.zoo({name!r}, {there!r})"
        )
    here = [each for place in places for each in _names(place) if loadable(each, place)]
    raise PellucidError(
        f"no {name!r} in the zoo: there are {', '.join(sorted(here)) or 'none'}; "
        f"`pellucid zoo --folder zoo --build --only {name}` trains it, for pe.zoo({name!r}, 'zoo')"
        if name in recipes()
        else f"no {name!r} in the zoo: there are recipes for {', '.join(recipes())}"
    )


def loadable(name: str, folder: Path | None = None) -> bool:
    """Whether `zoo` would find weights."""
    return any((place / name / "model.safetensors").is_file() for place in _places(folder))


def cards(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """`{name: card}` of a folder that was built, or without one of what the package brings."""
    found: dict[str, dict[str, Any]] = {}
    for place in [folder] if folder else _places(None):
        for name in _names(place):
            if name not in found:
                found[name] = _card(place / name)
                if not {"n", "clean", "pgd"} <= found[name].keys():
                    raise PellucidError(f"{place / name / 'card.json'} is no card of a network: {REMEDY}")
    return found


def build(
    names: Iterable[str],
    out: Path,
    *,
    seeds: int = 1,
    images: int = 1000,
    effort: Effort | None = None,
    adopt: bool = True,
    device: str = "cpu",
    say: Say | None = None,
) -> dict[str, dict[str, Any]]:
    """Train and measure classifiers in `out/NAME` (further seeds in `out/NAME@SEED`); what is finished is kept.

    `effort` is by default `effort_for` each recipe, on the first `images` of the test set; a card of more is kept. With
    `adopt` networks that the package brings, of the same recipe and training images, are not trained again. First seeds
    come first. Several processes may share the work: each takes what no other is at, and at the end waits. On another
    `device` than the CPU training is as good and not the same to the bit; the card says which it was.
    """
    usable(device)
    made: dict[str, dict[str, Any]] = {}
    data: dict[str, tuple[ImageSet, ImageSet]] = {}
    wanted, passed_over = in_order(list(names), seeds), 0
    while wanted:
        full, recipe, seed = wanted.popleft()
        if recipe.data not in data:
            data[recipe.data] = data_sets.load(recipe.data, recipe.split), data_sets.load(recipe.data, "test")
        try:
            with run_folder.locked(out / full / "cells"):
                mine, measuring = replace(recipe, seed=seed), effort or effort_for(recipe, images)
                made[full] = _made(full, mine, *data[recipe.data], out / full, measuring, adopt, device, say)
            passed_over = 0
        except run_folder.Busy:
            wanted.append((full, recipe, seed))
            passed_over += 1
            if passed_over >= len(wanted):
                if say is not None:
                    say(f"{full}: another process is at it", 0, 1)
                time.sleep(WAIT)
    return {full: made[full] for full in sorted(made)}


def in_order(names: list[str], seeds: int) -> deque[tuple[str, Recipe, int]]:
    """Name, recipe and seed of every network, first seeds first."""
    known = recipes()
    for name in names:
        if name not in known:
            raise PellucidError(f"no recipe {name!r}: there are {', '.join(known)}")
    if seeds < 1:
        raise PellucidError(f"seeds (={seeds}) must be at least 1: networks of a recipe")
    return deque((f"{name}@{seed}" if seed else name, known[name], seed) for seed in range(seeds) for name in names)


def _made(
    name: str,
    recipe: Recipe,
    trained: ImageSet,
    test: ImageSet,
    out: Path,
    effort: Effort,
    adopt: bool,
    device: str,
    say: Say | None,
) -> dict[str, Any]:
    n = min(effort.images, len(test))
    wanted = Wanted(recipe, trained.digest, asked(effort), test.digest, n)
    if adopt and (alone := _adopt(name, wanted, out)):
        return alone
    if not run_folder.finished(out, recipe):
        _train(name, recipe, trained, out, device, say)
    model, clock = load_model(out)[0].to(device), _clock(out)
    facts = {"model_digest": model_digest(model), "data_digest": trained.digest, "test_digest": test.digest}
    old, plan = _card(out), planned(model, test, effort)
    if all(old.get(name) == value for name, value in facts.items()) and measured_so(old, plan, test.digest, n):
        return old
    facts |= {"how_measured": how_measured(plan, test.digest, n)}
    card = measured(model, test, effort, cells=out / "cells", say=say, name=name)
    card |= {"name": name, "recipe": asdict(recipe), "commit": clock["commit"], "train_seconds": clock["seconds"]}
    card |= {"device": clock["device"], "measured_on": device} | facts
    write_json(out / "card.json", card)
    return card


def _train(name: str, recipe: Recipe, trained: ImageSet, out: Path, device: str, say: Say | None) -> None:
    """Begin, or go on; the clock adds up what interrupted calls took."""
    resume = (out / run_folder.RECIPE).is_file()
    before = _clock(out) if resume else {}
    started, commits = time.monotonic(), [*filter(None, [before.get("commit")]), commit()]
    clock = {"commit": "+".join(dict.fromkeys("+".join(commits).split("+"))), "device": device}

    def note() -> None:
        seconds = (before.get("seconds") or 0.0) + time.monotonic() - started
        write_atomically(out / CLOCK, json.dumps({"seconds": round(seconds, 1)} | clock).encode())

    def report(step: int, entry: dict[str, float]) -> None:
        del entry
        if step % 100 == 0:
            note()
        if say is not None:
            say(f"{name}: training", step, recipe.steps)

    try:
        train(recipe, trained, out, resume=resume, device=device, report=report)
    finally:
        note()


def _adopt(name: str, wanted: Wanted, out: Path) -> dict[str, Any]:
    """Take over what the package brings of this recipe, weights and card, so that it is not trained again.

    Of further seeds it brings the card alone, and that is all that a table or a claim needs of them: it is returned.
    """
    for theirs in (place / name for place in _places(None)):
        whole = all((theirs / file).is_file() for file in KEPT)
        ours = (out / run_folder.RECIPE).is_file() or (whole and run_folder.other_recipe(theirs, wanted.recipe) != [])
        if whole and not ours and load_model(theirs)[1].get("data_digest") == wanted.data_digest:
            for file in KEPT:
                write_atomically(out / file, (theirs / file).read_bytes())
        if not whole and not ours and wanted.recipe.seed and wanted.is_of(_card(theirs)):
            write_atomically(out / "card.json", (theirs / "card.json").read_bytes())
    return _card_alone(out, wanted)


def _card(folder: Path) -> dict[str, Any]:
    return read_object(folder / "card.json", REMEDY)


def _card_alone(out: Path, wanted: Wanted) -> dict[str, Any]:
    """The card, where no weights lie beside it; of a network that is here, or in training, nothing."""
    trained = any((out / name).exists() for name in ("model.safetensors", run_folder.CHECKPOINT))
    card = {} if trained else _card(out)
    return card if wanted.is_of(card) else {}


def _clock(out: Path) -> dict[str, Any]:
    """How long a network was trained, by which commit of this code, and on what."""
    return {"seconds": None, "commit": None, "device": "cpu"} | read_object(out / CLOCK, REMEDY)


def keep_shown(found: Transfer, key: str, folder: Path) -> None:
    """Keep in the zoo which network was right on which images of which other, for those who have cards alone.

    The key is of all that decides it.
    """
    kept = {"key": key, "names": found.names, "eps": found.eps, "n": found.clean.shape[1]}
    kept |= {"clean": [packed(row) for row in found.clean]}
    kept |= {"correct": [packed(row) for row in found.correct.reshape(-1, found.correct.shape[-1])]}
    write_json(folder / SHOWN, kept)


def shown_around(key: str, folder: Path | None, images: int | None = None) -> Transfer | None:
    """What `keep_shown` kept under this key, in the folder or in the package; of the first `images`, if of so many."""
    for place in _places(folder):
        kept = read_object(place / SHOWN, REMEDY)
        if kept.get("key") == key and kept["n"] >= (images or 0):
            clean, correct = (
                np.stack([bits(row, kept["n"])[:images] for row in kept[part]]) for part in ("clean", "correct")
            )
            many = len(kept["names"])
            correct = correct.reshape(many, len(kept["eps"]), many, -1)
            return Transfer(tuple(kept["names"]), tuple(kept["eps"]), clean, correct)
    return None


def _places(folder: Path | None) -> list[Path]:
    package = resources.files("pellucid") / "pretrained_models"
    return ([folder] if folder else []) + ([Path(str(package))] if package.is_dir() else [])


def _names(place: Path) -> list[str]:
    """Of the networks that are finished; one beside which no card lies is somebody's teacher, or in the making."""
    return sorted(str(path.parent.relative_to(place)) for path in place.rglob("card.json"))
