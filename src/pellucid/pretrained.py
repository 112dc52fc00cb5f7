"""The zoo: a classifier of every training objective, from one table of recipes, each with a card of what it withstands.

`zoo` brings one by name; `build` trains and measures them, resumably: training goes on from its checkpoint, and
finished measurements are kept.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import nn

from pellucid import data as data_sets
from pellucid import registry, run_folder
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.interpreters.activations import cam
from pellucid.models import load_model
from pellucid.network import Network, device_of
from pellucid.outcome import outcome
from pellucid.recipe import Recipe
from pellucid.results import commit, fingerprint, model_digest, write_json
from pellucid.training import train, usable
from pellucid.transfer import Transfer
from pellucid.weights import write_atomically

EPS = (0.1, 0.2, 0.3, 0.35, 0.4)
ENSEMBLE_EPS = 0.3
PGD = "pgd(ball=Linf({eps}), steps=200, step_size=0.01, stop_when_fooled=True)"
ENSEMBLE = "ensemble(ball=Linf({eps}))"
SHORT = "ensemble(ball=Linf({eps}), steps=30, targets=2, queries=500)"  # for networks on which ENSEMBLE takes an hour
KEPT = ("model.safetensors", "card.json", "seconds.json", "recipe.json")  # of a network; the recipe comes last
SHOWN = "transfer.json"  # of a zoo: one network's images shown to the others
LAYOUT = 1  # of a card: a higher number has cards made anew
WAIT = 5.0  # seconds between two looks at what other processes work at
AAI = "aai(ball=Linf({eps}), reading='as_coded')"
# The last feature maps of the Ross CNN are one position, and so is its CAM. Its maps are those of GradCAM one layer
# before, 7 x 7, and its attack is shorter: on 128 images it left tau at .795 where AAI's steps left .780.
AAI_ROSS = "aai(ball=Linf({eps}), reading='as_coded', interpreter=gradcam(layer='trunk.7'), steps=25, step_size=0.02)"

Say = Callable[[str, int, int], None]  # what is done, how far, of how much


@dataclass(frozen=True)
class Effort:
    """How thoroughly a card is measured."""

    images: int = 1000
    ensemble: str = ENSEMBLE  # its specification; empty for none
    maps: str = AAI  # of the attack on maps, whose interpreter draws them

    def __post_init__(self) -> None:
        if self.images < 1:
            raise PellucidError(f"images (={self.images}) must be at least 1: test images per measurement")


def effort_for(recipe: Recipe, images: int = 1000) -> Effort:
    """What a card takes: minutes on Small, and elsewhere with the shorter ensemble."""
    maps = AAI_ROSS if recipe.architecture == "ross" else AAI
    return Effort(images, ENSEMBLE if recipe.architecture == "small" else SHORT, maps)


def _small(objective: str, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "objective": objective,
        "architecture": "small",
        "data": "mnist",
        "steps": 12_000,
        "batch_size": 50,
        "lr": 3e-3,
        "decay": "linear",
        "ramp": 0.5,
    }
    return Recipe(**(settings | changes))


_FGSM = "attack=fgsm(ball=Linf(0.3))"
_PGD = "attack=pgd(ball=Linf(0.3), steps=5, keep_best=False)"
_INT = "ball=Linf(0.3), steps=5"
_OBJECTIVES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "standard": ("standard", {"steps": 6000}),
    "distilled": ("distilled(temperature=50)", {"steps": 6000}),
    "fgsm": (f"adversarial({_FGSM}, clean=0.5, labels='predicted')", {}),
    "double-backprop": ("double_backprop(lam=10)", {}),
    "certainty": ("double_backprop(lam=2, of='uniform')", {}),
    "entropy": ("double_backprop(lam=10, of='entropy')", {}),
    "double-backprop-fgsm": (f"double_backprop(lam=10, {_FGSM})", {}),
    "fast": ("fast(ball=Linf(0.3))", {}),
    "n-fgsm": ("fast(ball=Linf(0.3), length=1, noise=2, project=False)", {}),
    "free": ("free(ball=Linf(0.3))", {"replays": 4}),
    "spatial": ("adversarial(attack=spatial(steps=5, step_size=0.5), clean=0.5)", {"steps": 1500}),
    "adversarial": (f"adversarial({_PGD})", {}),
    "adversarial-half": (f"adversarial({_PGD}, alternate=True)", {}),
    "trades": (f"trades({_INT})", {}),
    "ig-norm": (f"ig_norm({_INT}, reading='as_coded')", {"steps": 6000}),
    "ig-norm-1": (f"ig_norm({_INT})", {"steps": 3000}),  # each step takes eight of Int's
    "ig-sum-norm": (f"ig_norm({_INT}, adversarial=True, reading='as_coded')", {"steps": 3000}),
    "int": (f"int({_INT})", {}),
    "int-one-class": (f"int({_INT}, one_class=True)", {}),
    "int-adv": (f"int({_INT}, adversarial=True)", {}),
    "int2": (f"int2({_INT})", {}),
    "int2-adv": (f"int2({_INT}, adversarial=True)", {}),
    # Ours: a larger radius, clean loss too, and searches that remember. Beside int2-adv, what each of these brings.
    "persistent": (
        "int2(ball=Linf(0.41), steps=3, gamma=0, correlation=4, adversarial=True, clean=0.3, start='persistent')",
        {"steps": 35_000, "batch_size": 64, "ramp": 0.35, "lr": 4e-3, "ema": 0.999},
    ),
}


def recipes() -> dict[str, Recipe]:
    """`{name: recipe}` of every classifier of the zoo, such as `mnist/small/int2-adv`."""
    found = {f"mnist/small/{name}": _small(spec, **changes) for name, (spec, changes) in _OBJECTIVES.items()}
    for name, (spec, changes) in _OBJECTIVES.items():
        steps = 1500 if name in ("standard", "distilled") else 1000  # most others' cost two to five of these each
        ross = {"architecture": "ross", "batch_size": 128, "lr": 1e-3, "steps": steps}
        if not name.startswith(("int", "ig", "persistent")):  # they train on CAM, which has one position here
            found[f"mnist/ross/{name}"] = _small(spec, **(dict(changes) | ross))
        if name in ("standard", "adversarial", "int", "int2", "int-adv", "int2-adv", "persistent"):
            found[f"mnist/pool/{name}"] = _small(spec, **(dict(changes) | {"architecture": "pool", "steps": 3000}))
    return found


def zoo(name: str, folder: Path | str | None = None) -> nn.Module:
    """A classifier of the zoo by name: of a folder that `pellucid zoo --build` filled, else of the package."""
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

    `effort` is by default `effort_for` each recipe, on the first `images` of the test set. With `adopt` networks that
    the package brings, of the same recipe and training images, are not trained again. First seeds come first. Several
    processes may share the work: each takes what no other is at, and at the end waits. On another `device` than the
    CPU training is as good and not the same to the bit; the card says which it was.
    """
    usable(device)
    made: dict[str, dict[str, Any]] = {}
    data: dict[str, tuple[ImageSet, ImageSet]] = {}
    wanted, passed_over = _asked(list(names), seeds), 0
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


def _asked(names: list[str], seeds: int) -> deque[tuple[str, Recipe, int]]:
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
    clock_path = out / "seconds.json"
    wanted = _Wanted(recipe, trained.digest, test.digest, effort, min(effort.images, len(test)))
    if adopt and (alone := _adopt(name, wanted, out)):
        return alone
    if not run_folder.finished(out, recipe):
        resume = (out / run_folder.RECIPE).is_file()
        before, was = (_clock(clock_path)[key] for key in ("seconds", "device"))
        before, on = before or 0.0, "+".join(dict.fromkeys([*(was.split("+") if before else []), device]))
        started, by = time.monotonic(), commit()

        def note() -> float:
            seconds = before + time.monotonic() - started
            clock = {"seconds": round(seconds, 1), "commit": by, "device": on}
            write_atomically(clock_path, json.dumps(clock).encode())
            return seconds

        def report(step: int, entry: dict[str, float]) -> None:
            del entry
            if step % 100 == 0:
                note()
            if say is not None:
                say(f"{name}: training", step, recipe.steps)

        train(recipe, trained, out, resume=resume, device=device, report=report)
        note()
    model, clock = load_model(out)[0].to(device), _clock(clock_path)
    digest = model_digest(model)
    plan = [
        [kind, eps, registry.describe(registry.complete(registry.parse(spec.format(eps=eps), "attacks"))), maps]
        for kind, eps, spec, maps in _plan(model, test, effort)
    ]
    key = fingerprint(digest, test.digest, effort.images, plan, LAYOUT)
    if (old := _card(out)).get("key") == key:
        return old
    card = measured(model, test, effort, cells=out / "cells", say=say, name=name)
    card |= {"name": name, "recipe": asdict(recipe), "commit": clock["commit"], "train_seconds": clock["seconds"]}
    card |= {"device": clock["device"], "measured_on": device, "layout": LAYOUT, "model_digest": digest}
    card |= {"data_digest": trained.digest, "test_digest": test.digest}
    write_json(out / "card.json", card | {"key": key})
    return card | {"key": key}


@dataclass(frozen=True)
class _Wanted:
    """What a card must be of, to be taken over without its network."""

    recipe: Recipe
    data_digest: str
    test_digest: str
    effort: Effort
    n: int

    def is_of(self, card: Mapping[str, Any]) -> bool:
        """Whether it was trained, and measured, on these images by these attacks."""
        mine = {"recipe": json.loads(json.dumps(asdict(self.recipe))), "n": self.n, "layout": LAYOUT}
        mine |= {"data_digest": self.data_digest, "test_digest": self.test_digest}
        specs = {"pgd": PGD, "aai": self.effort.maps, "ensemble": self.effort.ensemble}
        attacks = [
            (entry["attack"], specs[kind].format(eps=eps))
            for kind in specs.keys() & card.keys()
            for eps, entry in card[kind].items()
        ]
        return all(card.get(name) == value for name, value in mine.items()) and all(was == is_ for was, is_ in attacks)


def _adopt(name: str, wanted: _Wanted, out: Path) -> dict[str, Any]:
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
    return json.loads((folder / "card.json").read_text()) if (folder / "card.json").is_file() else {}


def _card_alone(out: Path, wanted: _Wanted) -> dict[str, Any]:
    """The card, where no weights lie beside it; of a network that is here, or in training, nothing."""
    trained = any((out / name).exists() for name in ("model.safetensors", run_folder.CHECKPOINT))
    card = {} if trained else _card(out)
    return card if wanted.is_of(card) else {}


def _clock(path: Path) -> dict[str, Any]:
    """How long a network was trained, by which commit of this code, and on what."""
    return {"seconds": None, "commit": None, "device": "cpu"} | (json.loads(path.read_text()) if path.is_file() else {})


def measured(
    model: nn.Module,
    test: ImageSet,
    effort: Effort,
    *,
    cells: Path | None = None,
    say: Say | None = None,
    name: str = "model",
) -> dict[str, Any]:
    """Clean accuracy; at each eps accuracy under PGD-200 and tau under the attack on maps; under the ensemble at 0.3.

    On the first images of the test set. tau is over the images that keep their class and whose maps have an order
    (`n_tau`), and over all.
    """
    indices = range(min(effort.images, len(test)))
    plan = _plan(model, test, effort)
    done, whole = 0, len(indices) * (len(plan) + 1)

    def tick(images: int) -> None:
        nonlocal done
        done += images
        if say is not None:
            say(f"{name}: measuring", done, whole)

    clean = evaluate(model, test, indices, Measurement(), cells=cells, tick=tick)
    found: dict[str, Any] = {"n": len(indices), "clean": float(clean["correct"].mean())}
    for kind, eps, spec, maps in plan:
        attack = registry.parse(spec.format(eps=eps), "attacks")
        measurement = Measurement(attack, interpreter=registry.option(attack, "interpreter") if maps else None)
        rows = evaluate(model, test, indices, measurement, cells=cells, tick=tick)
        figures = outcome(clean, rows)
        if maps:
            names = ("kendall_tau", "kendall_tau_interval", "n_tau", "survivors", "kendall_tau_all")
            kept = {"attack": spec.format(eps=eps)} | {key: figures[key] for key in names}
            found.setdefault(kind, {})[str(eps)] = kept
        else:
            robust = {"attack": spec.format(eps=eps), "robust": figures["robust_accuracy"]}
            robust["interval"] = figures["interval"]
            robust["standing"] = packed(clean["correct"] & rows["correct"])
            found.setdefault(kind, {})[str(eps)] = robust | (
                {"by_attack": figures["by_attack"]} if "by_attack" in figures else {}
            )
    return found


def _plan(model: nn.Module, test: ImageSet, effort: Effort) -> list[tuple[str, float, str, bool]]:
    """What a card measures: kind, radius, specification, and whether maps are compared."""
    plan: list[tuple[str, float, str, bool]] = [("pgd", eps, PGD, False) for eps in EPS]
    plan += [("aai", eps, effort.maps, True) for eps in EPS] if _has_maps(model, test, effort.maps) else []
    return plan + ([("ensemble", ENSEMBLE_EPS, effort.ensemble, False)] if effort.ensemble else [])


def packed(standing: np.ndarray) -> str:
    """Which of the images stand, a bit each, in hexadecimal: so that cards can be compared image by image."""
    return np.packbits(standing).tobytes().hex()


def unpacked(card: Mapping[str, Any], kind: str, eps: float) -> Bool[np.ndarray, " n"]:
    """Which of the card's images stand under an attack."""
    return _bits(card[kind][str(eps)]["standing"], card["n"])


def _bits(text: str, n: int) -> Bool[np.ndarray, " n"]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(bool)


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
        kept = json.loads((place / SHOWN).read_text()) if (place / SHOWN).is_file() else {}
        if kept.get("key") == key and kept["n"] >= (images or 0):
            bits = {
                key: np.stack([_bits(row, kept["n"])[:images] for row in kept[key]]) for key in ("clean", "correct")
            }
            many = len(kept["names"])
            correct = bits["correct"].reshape(many, len(kept["eps"]), many, -1)
            return Transfer(tuple(kept["names"]), tuple(kept["eps"]), bits["clean"], correct)
    return None


def _has_maps(model: nn.Module, test: ImageSet, attack: str) -> bool:
    """Whether the maps of the attack's interpreter have places; CAM has none of what is no `Network`."""
    x, y = test.batch(range(1))
    interpreter = registry.option(registry.parse(attack.format(eps=0.1), "attacks"), "interpreter")
    if interpreter is cam and not isinstance(model, Network):
        return False
    return interpreter(model, x.to(device_of(model)), y[:, None].to(device_of(model)))[0, 0].numel() > 3


def _places(folder: Path | None) -> list[Path]:
    package = resources.files("pellucid") / "pretrained_models"
    return ([folder] if folder else []) + ([Path(str(package))] if package.is_dir() else [])


def _names(place: Path) -> list[str]:
    """Of the networks that are finished; one beside which no card lies is somebody's teacher, or in the making."""
    return sorted(str(path.parent.relative_to(place)) for path in place.rglob("card.json"))
