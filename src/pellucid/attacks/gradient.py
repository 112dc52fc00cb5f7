"""Gradient attacks on the prediction."""

import torch
from torch import nn
from torch.nn import functional as F

from pellucid.balls import Ball, Linf, Radius
from pellucid.metrics import margin
from pellucid.network import frozen
from pellucid.search import Loss, ascend, select
from pellucid.types import Generator, Images, Labels


def fgsm(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    targeted: bool = False,
    generator: Generator = None,
) -> Images:
    """`x' = clip(x + eps · steepest(∇_x CE(f(x), y)))`; with `targeted`, y is the goal and the sign is minus.

    In the Linf ball `steepest` is the sign. Source: Goodfellow et al. 2015, eq. 3. Where a confident model's
    gradient underflows to zero the image comes back unchanged: the audit counts those.
    """
    del generator  # deterministic
    with frozen(model):
        loss = _cross_entropy(model, y, targeted)
        return ascend(loss, x, ball, steps=1, step_size=ball.eps, keep_best=False)


def pgd(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    keep_best: bool = True,
    targeted: bool = False,
    generator: Generator = None,
) -> Images:
    """Projected gradient descent: steepest ascent of `CE(f(x'), y)` in the ball; with `targeted`, descent to goal y.

    `step_size` is in pixel units, by default `2.5 eps / steps`. `keep_best` returns per image, over all iterates
    and restarts, the one of smallest margin (largest, when targeted); without it the last iterate, as many
    published protocols do. Source: Madry et al. 2018, sec. 2.1.
    """
    size: Radius = 2.5 * ball.eps / max(1, steps) if step_size is None else step_size
    with frozen(model):
        loss = _cross_entropy(model, y, targeted)
        best = None
        for _ in range(max(1, restarts)):
            found = ascend(
                loss,
                x,
                ball,
                steps=steps,
                step_size=size,
                random_start=random_start,
                keep_best=keep_best,
                generator=generator,
            )
            best = found if best is None else _stronger(loss, found, best)
        assert best is not None
        return best


def _cross_entropy(model: nn.Module, y: Labels, targeted: bool) -> Loss:
    sign = -1 if targeted else 1

    def loss(at: Images) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(at)
        return sign * F.cross_entropy(logits, y, reduction="none"), -sign * margin(logits.detach(), y)

    return loss


def _stronger(loss: Loss, challenger: Images, champion: Images) -> Images:
    """Per image, the one of higher score."""
    with torch.no_grad():
        better = torch.as_tensor(loss(challenger)[1] > loss(champion)[1])
    return select(better, challenger, champion)
