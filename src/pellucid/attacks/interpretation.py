"""Attacks on the interpretation."""

from typing import Literal

import torch
from torch import Tensor, nn

from pellucid.balls import Ball, Linf, Radius
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.mapping import drawing_from, logits_and_maps
from pellucid.metrics import discrepancy, margin
from pellucid.network import frozen
from pellucid.search import ascend
from pellucid.types import Generator, Images, Interpreter, Labels, PerExample


def aai(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    interpreter: Interpreter = cam,
    steps: int = 200,
    step_size: float | None = None,
    reading: Literal["as_written", "as_coded"] = "as_written",
    hinge: float = 1.0,
    p: int = 1,
    k: int = 8,
    keep_best: bool = True,
    generator: Generator = None,
) -> Images:
    """Attack against interpretability: change the map of class y as far as the ball allows, and keep the class.

    As written (Boopathy et al. 2020, eq. 7), maximise `D_1(x, x') - hinge · max(max_{j≠y} f_j(x') - f_y(x'), 0)`
    with `D_1 = ‖L(x, y) - L(x', y)‖_p`; `keep_best` prefers iterates that keep the class, then the largest D_1.
    As coded (the published tables), maximise `-Σ_{i in top k} L(x', y)_i` over the k largest values of the clean
    map (Ghorbani et al. 2019), with no hinge, step 0.01, and return the last iterate. Both start at random:
    at x the discrepancy has no gradient.
    """
    if k < 1:
        raise PellucidError(f"k (={k}) must be at least 1")
    classes = y[:, None]
    interpreter = drawing_from(interpreter, generator)
    as_coded = reading == "as_coded"
    default: Radius = 0.01 if as_coded else 2.5 * ball.eps / max(1, steps)
    with frozen(model):
        with torch.no_grad():
            clean = interpreter(model, x, classes).detach()
        top = clean.flatten(1).topk(min(k, clean.flatten(1).shape[1]), dim=1).indices

        def push_down(at: Images) -> PerExample:
            return -interpreter(model, at, classes).flatten(1).gather(1, top).sum(1)

        def tear_apart(at: Images) -> tuple[Tensor, Tensor]:
            logits, maps = logits_and_maps(model, at, classes, interpreter)
            distance, keeps = discrepancy(clean, maps, p=p), margin(logits, y)
            score = torch.where(keeps.detach() >= 0, distance.detach(), keeps.detach() - 1)
            return distance - hinge * (-keeps).clamp_min(0), score

        return ascend(
            push_down if as_coded else tear_apart,
            x,
            ball,
            steps=steps,
            step_size=default if step_size is None else step_size,
            random_start=True,
            keep_best=keep_best and not as_coded,
            generator=generator,
        )
