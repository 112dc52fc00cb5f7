"""A sweep over one number of an objective, and the choice among its runs by held-out images alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pellucid import registry, run_folder
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement
from pellucid.models import load_model
from pellucid.recipe import Recipe
from pellucid.results import write_json
from pellucid.stepping import Diverged
from pellucid.training import Report, fits, train
from pellucid.transfer import adversarial_set, judged
from pellucid.types import Attack
from pellucid.watch import held_out

FLOOR = 0.97  # of the baseline's clean accuracy
HOLDS_OUT = "fgsm(ball=Linf(0.3))"  # so that images are held out: what the logged score is of, and nothing else
PLACE = "{}"  # where the number goes in the objective


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, on the held-out images: clean accuracy, and on the baseline's adversarial examples.

    Of a run that diverged neither, and `diverged` says where.
    """

    value: float
    folder: str
    clean: float | None = None
    black_box: float | None = None
    diverged: str = ""


def sweep(
    recipe: Recipe,
    values: Sequence[float],
    images: ImageSet,
    out: Path,
    *,
    attack: str = "fgsm(ball=Linf(0.3))",
    floor: float = FLOOR,
    say: Callable[[str], Report] | None = None,
) -> dict[str, Any]:
    """Train the recipe at every value (`{}` in its objective) and a standard baseline; choose by the paper's rule.

    The rule: the value of highest accuracy on the examples made on the baseline, among those at least `floor` times
    as accurate as it on clean images; all on the same held-out images, which no run trains on. Finished runs are
    kept, whatever attack they are judged by; a value at which training diverges is not chosen. Returns, and writes to
    `sweep.json`, the trials and the choice (None where no value is accurate enough).
    Source: Ross & Doshi-Velez 2018, sec. 4, whose code used test images.
    """
    _check(recipe, values, floor)
    made_by: Attack = registry.parse(attack, "attacks")
    recipe = replace(recipe, validate=recipe.validate or HOLDS_OUT)
    runs = {"baseline": replace(recipe, objective="standard")}
    runs |= {
        _written(value): replace(recipe, objective=recipe.objective.replace(PLACE, _written(value))) for value in values
    }
    for name, each in runs.items():
        fits(each, images)
        run_folder.finished(out / name, each)  # raises where the folder is another's
    diverged = _trained(runs, images, out, say)
    watched = held_out(recipe, images)[1]
    assert watched is not None
    ended = {name: load_model(out / name)[0] for name in runs if name not in diverged}
    figures = _judged(ended, watched, made_by, recipe.seed)
    trials = [
        Trial(value, name, diverged=diverged[name]) if name in diverged else Trial(value, name, *figures[name])
        for value, name in zip(values, map(_written, values), strict=True)
    ]
    base = Trial(0.0, "baseline", *figures["baseline"])
    least = floor * figures["baseline"][0]
    fit = [trial for trial in trials if trial.folder in figures and figures[trial.folder][0] >= least]
    chosen = max(fit, key=lambda trial: figures[trial.folder][1], default=None)
    found = {
        "objective": recipe.objective,
        "attack": attack,
        "floor": floor,
        "n": len(watched),
        "baseline": vars(base),
        "trials": [vars(trial) for trial in trials],
        "chosen": None if chosen is None else chosen.value,
    }
    write_json(out / "sweep.json", found)
    return json.loads((out / "sweep.json").read_text())


def _check(recipe: Recipe, values: Sequence[float], floor: float) -> None:
    if PLACE not in recipe.objective:
        raise PellucidError(f"objective (={recipe.objective!r}) must hold {PLACE} where the number goes")
    if not values:
        raise PellucidError("values must not be empty: 0.1,1,10, say")
    if not 0 < floor <= 1:
        raise PellucidError(f"floor (={floor}) is a share of the baseline's clean accuracy: above 0, at most 1")
    if len(set(values)) < len(values):
        raise PellucidError(f"values (={list(values)}) must differ from each other")


def _trained(
    runs: Mapping[str, Recipe], images: ImageSet, out: Path, say: Callable[[str], Report] | None
) -> dict[str, str]:
    """Train what is not finished; returns which diverged, and where."""
    diverged: dict[str, str] = {}
    for name, each in runs.items():
        report = say(name) if say else None
        if run_folder.finished(out / name, each):
            if report is not None:
                report(each.steps, {})
            continue
        begun = (out / name / run_folder.RECIPE).is_file()
        try:
            train(each, images, out / name, resume=begun, report=report)
        except Diverged as error:
            if name == "baseline":
                raise
            diverged[name] = str(error).partition(":")[0]
    return diverged


def _written(value: float) -> str:
    return f"{value:.15g}"


def _judged(
    models: dict[str, torch.nn.Module], images: ImageSet, attack: Attack, seed: int
) -> dict[str, tuple[float, float]]:
    """Of each model clean accuracy, and accuracy on the examples made on the baseline."""
    counts = {name: [0, 0] for name in models}
    rows = torch.arange(len(images))
    for x, y, attacked in adversarial_set(models["baseline"], images, rows, Measurement(attack), seed=seed):
        for i, at in enumerate((x, attacked)):
            for name, right in judged(models, at, y).items():
                counts[name][i] += int(right.sum())
    return {name: (clean / len(images), black_box / len(images)) for name, (clean, black_box) in counts.items()}
