"""Schedules: values that depend on the training step, as immutable values that know their own specification."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from pellucid.errors import PellucidError

Schedule = float | Callable[[int], float]


def at(schedule: Schedule, step: int) -> float:
    """The value of a schedule, or of a plain number, at a step."""
    return schedule(step) if callable(schedule) else float(schedule)


def weight(name: str, schedule: Schedule, step: int) -> float:
    """The value of a weight at a step. Raises where it is negative: the penalty would be a reward."""
    value = at(schedule, step)
    if not value >= 0:
        raise PellucidError(f"{name} (={value:g}) must be at least 0: the penalty would be a reward")
    return value


def check_share(name: str, value: float) -> None:
    """Raises where a share of the loss is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise PellucidError(f"{name} (={value:g}) is a share of the loss: between 0 and 1")


def _share(step: int, first: int, last: int) -> float:
    """How far a step lies between two others, in [0, 1]."""
    return min(1.0, max(0.0, (step - first) / max(1, last - first)))


def _check_span(schedule: "Ramp | Cosine") -> None:
    name, first, last = type(schedule).__name__, schedule.first, schedule.last
    if not (math.isfinite(schedule.start) and math.isfinite(schedule.end)):
        raise PellucidError(f"{name} goes from {schedule.start} to {schedule.end}: both must be finite")
    if not first <= last:
        raise PellucidError(f"{name} goes from step {first} to step {last}, backwards: give the earlier step first")


@dataclass(frozen=True)
class Ramp:
    """Linear from `start` at step `first` to `end` at step `last`; constant outside.

    Raises `PellucidError`, as all schedules do, for values that are not finite and for steps out of order.
    """

    start: float
    end: float
    first: int
    last: int

    def __post_init__(self) -> None:
        _check_span(self)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * _share(step, self.first, self.last)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from `start` at step `first` to `end` at step `last`; constant outside."""

    start: float
    end: float
    first: int
    last: int

    def __post_init__(self) -> None:
        _check_span(self)

    def __call__(self, step: int) -> float:
        share = (1 - math.cos(math.pi * _share(step, self.first, self.last))) / 2
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class Steps:
    """`values[i]` from step `at[i - 1]` on: `Steps((1e-3, 1e-4), (40_000,))`."""

    values: tuple[float, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.values, tuple | list) and isinstance(self.at, tuple | list)):
            raise PellucidError(f"Steps((0.01, 0.001), (4000,)) takes two tuples, not {self.values} and {self.at}")
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "at", tuple(self.at))
        if len(self.values) != len(self.at) + 1:
            raise PellucidError(f"Steps wants one value more than boundaries, got {self.values} and {self.at}")
        if not all(map(math.isfinite, self.values)):
            raise PellucidError(f"Steps takes the values {self.values}: all must be finite")
        if any(late <= early for early, late in itertools.pairwise((0, *self.at))):
            raise PellucidError(f"Steps changes at steps {self.at}: they must be above 0, each above the one before")

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= boundary for boundary in self.at)]
