"""The two searches behind every attack: projected steepest ascent and per-example bisection."""

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.balls import L1, Ball, Radius, per_image
from pellucid.errors import PellucidError
from pellucid.types import Generator, Images, Mask, PerExample

Loss = Callable[[Images], PerExample | tuple[PerExample, PerExample]]


def select(mask: Mask, yes: Images, no: Images) -> Images:
    """Per image, `yes` where the mask holds and `no` elsewhere."""
    return torch.where(mask[:, None, None, None], yes, no)


def ascend(
    loss: Loss,
    x: Images,
    ball: Ball,
    *,
    steps: int,
    step_size: Radius,
    random_start: bool = False,
    keep_best: bool = True,
    generator: Generator = None,
) -> Images:
    """`x' <- clip(Π_ball(x' + step_size · steepest(∇ loss(x'))))`, `steps` times (Madry et al. 2018, sec. 2.1).

    `loss` maps images to one number per image, to be maximised; or to a pair (loss, score): then the gradient
    is taken of the loss and `keep_best` keeps, per image, the iterate of highest score. Without `keep_best`
    the last iterate is returned. The result lies in the ball around x and in [0, 1], and is detached.

    The gradient is always taken, whatever the caller's grad mode, and only with respect to the images.
    """
    if steps < 0 or float(torch.as_tensor(step_size).min() if len(x) else 1) < 0:
        raise PellucidError(
            f"steps (={steps}) and step_size (={step_size}) must not be negative: that would be descent"
        )
    x = x.detach()
    current = (ball.sample(x, generator) if random_start else x).clamp(0, 1)
    best, best_score = current, None
    for _ in range(steps):
        gradient, score = _gradient(loss, current)
        if keep_best:
            best, best_score = _better(current, score, best, best_score)
        if isinstance(ball, L1):  # its one pixel must be able to move, or the search stands still for ever
            gradient = gradient.masked_fill(_blocked(current, gradient), 0)
        step = per_image(step_size, x) * ball.steepest(gradient)
        current = ball.project(current + step, x).clamp(0, 1)
    if not keep_best:
        return current
    with torch.no_grad():
        score = _split(loss(current))[1]
    return _better(current, score, best, best_score)[0]


def _split(value: PerExample | tuple[PerExample, PerExample]) -> tuple[PerExample, PerExample]:
    return value if isinstance(value, tuple) else (value, value)


def _gradient(loss: Loss, at: Images) -> tuple[Images, PerExample]:
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        value, score = _split(loss(at))
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return gradient.detach(), score.detach()


def _blocked(x: Images, gradient: Images) -> Tensor:
    """Where the box stops a pixel from following its gradient."""
    return ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))


def _better(x: Images, score: PerExample, best: Images, best_score: PerExample | None) -> tuple[Images, PerExample]:
    if best_score is None:
        return x, score
    better = score > best_score
    return select(better, x, best), torch.where(better, score, best_score)


def bisect(
    attempt: Callable[[PerExample], tuple[Images, Mask]],
    low: PerExample,
    high: PerExample,
    *,
    steps: int,
) -> tuple[Images, PerExample, Mask]:
    """Per image, the smallest value in [low, high] at which `attempt` succeeds, to `(high - low) / 2^steps`.

    `attempt(values)` tries every image at its own value and says which succeeded. Returns the images of the
    smallest success (where there was none: of the attempt at `high`), the values, and who succeeded at all.
    Assumes that success is monotone in the value, as it is for radii.
    """
    images, found = attempt(high)
    smallest: Tensor = high.clone()
    low = low.clone()
    for _ in range(steps):
        middle = (low + smallest) / 2
        tried, success = attempt(middle)
        images = select(success & found, tried, images)
        low = torch.where(success, low, middle)
        smallest = torch.where(success & found, middle, smallest)
    return images, smallest, found
