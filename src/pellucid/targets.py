"""Which class a targeted attack aims at."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.network import frozen
from pellucid.types import Generator, Images, Labels, Logits

Goal = Literal["next", "random", "runner_up", "least_likely"] | int
RULES = ("next", "random", "runner_up", "least_likely")


def nearest(logits: Logits, y: Labels, count: int) -> Int[Tensor, "b goals"]:
    """The classes of largest logits but the own, nearest first: `count` of them, or as many as there are."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, _others(logits)), dim=1).indices


def _others(logits: Logits) -> int:
    """How many classes there are but the own."""
    classes = logits.shape[1]
    if classes < 2:
        raise PellucidError(f"a model of {classes} class has no other class to aim at")
    return classes - 1


def choose(goal: Goal, model: nn.Module, x: Images, y: Labels, generator: Generator = None) -> Labels:
    """One class per image, never its own: by a rule, or the class of that number.

    `next`: `(y + 1) mod C` (Ross & Doshi-Velez 2018). `random`: uniform over the C - 1 others (Boopathy et al. 2020).
    `runner_up`: `argmax_{j≠y} f_j(x)`, the nearest in logits. `least_likely`: `argmin_{j≠y} f_j(x)` (Kurakin et al.
    2017). A number aims every image at that class; an image that has it already is aimed at its runner-up.
    """
    number = isinstance(goal, int) and not isinstance(goal, bool)
    if not number and goal not in RULES:
        raise PellucidError(f"target (={goal!r}) must be a class number or one of {', '.join(map(repr, RULES))}")
    with frozen(model, x, y), torch.no_grad():
        logits = model(x)
    classes = _others(logits) + 1
    if goal == "next":
        return (y + 1) % classes
    if goal == "random":
        hop: Tensor = torch.randint(1, classes, y.shape, generator=generator, device=y.device)
        return (y + hop) % classes
    if goal == "least_likely":
        return logits.scatter(1, y[:, None], torch.inf).argmin(1)
    if goal == "runner_up":
        return nearest(logits, y, 1)[:, 0]
    if not 0 <= goal < classes:
        raise PellucidError(f"target (={goal}) must be a class number from 0 to {classes - 1}")
    return torch.where(y == goal, nearest(logits, y, 1)[:, 0], goal)
