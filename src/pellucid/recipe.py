"""What a training run is: everything that decides its weights, in one immutable value that is stored with it."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pellucid import augmentations, registry
from pellucid.errors import PellucidError
from pellucid.own_functions import source_digest
from pellucid.schedules import Cosine, Ramp, Schedule, Steps, at
from pellucid.seeds import check_seed


@dataclass(frozen=True)
class Recipe:
    """The same recipe on the same machine gives the same weights, interrupted or not.

    `lr` is the learning rate at the start; `decay` takes it to zero over the last `decay_share` of the run
    (`constant` does not). Instead it can be a schedule, such as `"Steps((0.01, 0.001), (4000,))"`. `clip` bounds the
    norm of the parameter gradient. Each step takes `accumulate` batches, and `replays` steps in a row take the same
    ones. With `ema` the result is the exponential average of the weights.

    `validate`, `keep="best"`, `patience` and `stop_at` watch `held_out` images, which are then not trained on, every
    `validate_every` steps: the score is the accuracy under the attack `validate`, or without one the clean accuracy.
    `keep="best"` returns the weights of the best score, and stops where robust accuracy collapses to half of it;
    `patience` stops after so many validations without a better one, `stop_at` at a clean accuracy.
    """

    objective: str = "standard"
    architecture: str = "small"
    data: str = "digits"
    split: str = "train"
    steps: int = 1000
    batch_size: int = 64
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float | str = 1e-3
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_share: float = 1.0
    ramp: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    replays: int = 1
    augment: Sequence[str] = ()
    ema: float = 0.0
    validate: str = ""
    validate_every: int = 500
    held_out: int = 500
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    stop_at: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        object.__setattr__(self, "augment", tuple(self.augment))  # JSON has lists only
        augmentations.check(self.augment)
        if self.validate:
            registry.parse(self.validate, "attacks")
        rules = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (_usable(self.lr, self.decay), "above 0 and finite, or a schedule that is nowhere below 0"),
            "decay": (self.decay in ("constant", "linear", "cosine"), "constant, linear or cosine"),
            "decay_share": (0 < self.decay_share <= 1, "above 0 and at most 1"),
            "ramp": (0 <= self.ramp <= 1, "between 0 and 1"),
            "optimiser": (self.optimiser in ("adam", "sgd"), "adam or sgd"),
            "precision": (self.precision in ("fp32", "bf16"), "fp32 or bf16"),
            "clip": (self.clip is None or self.clip > 0, "above 0"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "replays": (self.replays >= 1, "at least 1"),
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
            "validate_every": (self.validate_every >= 1, "at least 1"),
            "held_out": (self.held_out >= 1, "at least 1"),
            "keep": (self.keep in ("last", "best"), "last or best"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1"),
            "stop_at": (self.stop_at is None or 0 < self.stop_at <= 1, "an accuracy above 0 and at most 1"),
        }
        for name, (kept, rule) in rules.items():
            if not kept:
                raise PellucidError(f"{name} (={getattr(self, name)!r}) must be {rule}")

    @property
    def watches(self) -> bool:
        """Whether images are held out."""
        return bool(self.validate) or self.keep == "best" or self.patience is not None or self.stop_at is not None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        if isinstance(self.lr, str):
            return at(_schedule(self.lr), step)
        if self.decay == "constant":
            return self.lr
        first = round(self.steps * (1 - self.decay_share))
        shape = Ramp if self.decay == "linear" else Cosine
        return shape(self.lr, 0.0, first, self.steps)(step)


@cache
def _schedule(spec: str) -> Schedule:
    found = registry.value(spec)
    if isinstance(found, float | int | Ramp | Cosine | Steps):
        return found
    raise PellucidError(f"lr {spec!r} is neither a number nor a schedule such as 'Steps((0.01, 0.001), (4000,))'")


def _usable(lr: float | str, decay: str) -> bool:
    if not isinstance(lr, str):
        return 0 < lr < math.inf
    if decay != "constant":
        raise PellucidError(f"lr {lr!r} says how it falls: leave out decay {decay!r}")
    schedule = _schedule(lr)
    ends = schedule.values if isinstance(schedule, Steps) else _ends(schedule)
    return all(rate >= 0 for rate in ends) and any(rate > 0 for rate in ends)


def _ends(schedule: Schedule) -> tuple[float, ...]:
    return (schedule.start, schedule.end) if isinstance(schedule, Ramp | Cosine) else (at(schedule, 0),)


def own_code(recipe: Recipe) -> str:
    """A content hash of the user's own functions among a recipe's, its objective and its validation; empty for none."""
    named = [registry.parse(recipe.objective, "objectives")]
    named += [registry.parse(recipe.validate, "attacks")] if recipe.validate else []
    return "".join(source_digest(function)[:20] for function in registry.own(*named))


def identity(recipe: Recipe, *, data_digest: str, device: str, processes: int = 1, teacher: str = "") -> dict[str, Any]:
    """All that must be the same for a run to go on as itself: recipe, data, type of device, processes, teacher, and the
    code of functions of one's own."""
    known = {"recipe": dataclasses.asdict(recipe), "data_digest": data_digest, "device": device}
    some = {"processes": processes if processes > 1 else None, "teacher": teacher, "code": own_code(recipe)}
    return known | {name: value for name, value in some.items() if value}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two runs' identities differ, in words. Settings that an older version did not have are at their default.

    Raises `KeyError`, `TypeError` or `PellucidError` where `old`, read from a file, is no identity.
    """
    before = {**old, "recipe": dataclasses.asdict(Recipe(**old["recipe"]))}
    pairs = [(name, before["recipe"][name], value) for name, value in new["recipe"].items()]
    pairs += [(name, before[name], new[name]) for name in ("data_digest", "device") if name in before]
    pairs += [("processes", before.get("processes") or 1, new.get("processes") or 1)]
    pairs += [("teacher", before.get("teacher"), new.get("teacher"))]
    changed = [f"{name} was {was!r} and is {now!r}" for name, was, now in pairs if was != now]
    other_code = before.get("code") != new.get("code")
    return changed + (["the file of its own objective or validation was changed"] if other_code else [])
