"""Interpretability-aware training: Int and Int2 (Boopathy et al. 2020), with and without the adversarial loss."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.balls import Ball, Linf, Radius
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.mapping import drawing_from, logits_and_all_maps
from pellucid.metrics import weighted_discrepancy
from pellucid.network import frozen
from pellucid.schedules import Schedule, at
from pellucid.search import Loss, ascend
from pellucid.types import Generator, Images, Interpreter, Labels, Logits, Maps, PerExample

Reading = Literal["as_written", "as_coded"]


@dataclass(frozen=True)
class _Discrepancy:
    """D~ of eq. 8 in one of its readings, or its true-class term alone."""

    interpreter: Interpreter
    reading: Reading
    one_class: bool
    detach_weights: bool

    def __post_init__(self) -> None:
        if self.reading == "as_coded" and self.interpreter is not cam:
            raise PellucidError("reading='as_coded' is of class activation maps: other maps were never divided by u")

    def __call__(self, clean: Maps, attacked: Maps, logits_attacked: Logits, y: Labels) -> PerExample:
        if self.one_class:
            own = (clean - attacked).flatten(2).abs().sum(2).gather(1, y[:, None])[:, 0]
            return own * (clean[0, 0].numel() if self.reading == "as_coded" else 0.5)
        return weighted_discrepancy(
            clean, attacked, logits_attacked, y, reading=self.reading, detach_weights=self.detach_weights
        )

    def maps(self, model: nn.Module, x: Images) -> tuple[Logits, Maps]:
        return logits_and_all_maps(model, x, self.interpreter)


@dataclass(frozen=True)
class _Search:
    """Where and how the inner maximum is sought."""

    ball: Ball
    eps: Schedule | None
    steps: int
    step_size: float | None

    def __call__(self, loss: Loss, x: Images, step: int, generator: Generator) -> Images:
        ball = self.ball if self.eps is None else self.ball.resized(at(self.eps, step))
        size: Radius = 2.5 * ball.eps / max(1, self.steps) if self.step_size is None else self.step_size
        return ascend(
            loss,
            x,
            ball,
            steps=self.steps,
            step_size=size,
            random_start=True,  # at x itself the discrepancy has no gradient
            keep_best=False,
            generator=generator,
        )


def int_(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    steps: int = 10,
    step_size: float | None = None,
    gamma: float = 1.0,
    adversarial: bool = False,
    one_class: bool = False,
    reading: Reading = "as_written",
    interpreter: Interpreter = cam,
    detach_weights: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Int: `CE(f(x), y) + gamma · max_{x'} D~(x, x')`, D~ of eq. 8; the maximum by projected steepest ascent.

    `adversarial` (Int-Adv): `max_{x'} [CE(f(x'), y) + gamma D~(x, x')]`, and no clean loss. `one_class` keeps only the
    true class's term (Int-1-class). `eps` is the radius at this training step, a number or a schedule, by default
    the ball's. The published networks come from `reading="as_coded"` and gamma 0.01, about gamma 1 as written.
    Source: Boopathy et al. 2020, eqs. 8 and 9. Deviation: x' is sought on the network in eval mode.
    """
    distance = _Discrepancy(drawing_from(interpreter, generator), reading, one_class, detach_weights)
    search = _Search(ball, eps, steps, step_size)
    with frozen(model):
        with torch.no_grad():
            clean = distance.maps(model, x)[1]

        def worst(at: Images) -> PerExample:
            logits, maps = distance.maps(model, at)
            found = distance(clean, maps, logits, y)
            return gamma * found + F.cross_entropy(logits, y, reduction="none") if adversarial else found

        attacked = search(worst, x, step, generator)
    return _loss(model, x, attacked, y, distance, gamma, adversarial)


def int2(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    steps: int = 10,
    step_size: float | None = None,
    gamma: float = 1.0,
    adversarial: bool = False,
    one_class: bool = False,
    reading: Reading = "as_written",
    interpreter: Interpreter = cam,
    detach_weights: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Int2: `CE(f(x), y) + gamma · D~(x, x')` at `x' = argmax CE(f(x'), y)`: the inner attack is on the prediction.

    `adversarial` (Int2-Adv) replaces the clean loss by `CE(f(x'), y)`. Options as for Int.
    Source: Boopathy et al. 2020 (ICML version), with D~ of eq. 8.
    """
    distance = _Discrepancy(drawing_from(interpreter, generator), reading, one_class, detach_weights)
    search = _Search(ball, eps, steps, step_size)
    with frozen(model):
        attacked = search(lambda at: F.cross_entropy(model(at), y, reduction="none"), x, step, generator)
    return _loss(model, x, attacked, y, distance, gamma, adversarial)


def _loss(
    model: nn.Module,
    x: Images,
    attacked: Images,
    y: Labels,
    distance: _Discrepancy,
    gamma: float,
    adversarial: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    logits, clean = distance.maps(model, x)
    logits_attacked, maps = distance.maps(model, attacked)
    fit = F.cross_entropy(logits_attacked if adversarial else logits, y)
    apart = distance(clean, maps, logits_attacked, y).mean()
    name = "adversarial_cross_entropy" if adversarial else "cross_entropy"
    return fit + gamma * apart, {name: fit.detach(), "discrepancy": apart.detach()}
