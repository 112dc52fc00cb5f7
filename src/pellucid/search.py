"""The two searches behind every attack: projected steepest ascent and per-example bisection."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor

from pellucid.balls import L1, Ball, Radius, checked, per_image
from pellucid.boxes import blocked
from pellucid.errors import PellucidError
from pellucid.types import Generator, Images, Mask, PerExample, RowNumbers

Loss = Callable[[Images], PerExample | tuple[PerExample, PerExample]]
Judge = Callable[[Images], PerExample]  # the score that counts, where that of the loss is only an estimate
LEAVE = 5  # every so many steps the images that have fallen leave: asking at each step costs more than it saves


def select(mask: Mask, yes: Images, no: Images) -> Images:
    """Per image, `yes` where the mask holds and `no` elsewhere."""
    return torch.where(mask[:, None, None, None], yes, no)


def check_counts(least: int = 1, /, **counts: object) -> None:
    """Raise `PellucidError` unless every count, given by its name, is a whole number of at least `least`."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
            why = ": images that nobody searches look robust" if isinstance(count, Integral) else ""
            raise PellucidError(f"{name} (={count!r}) must be a whole number of at least {least}{why}")


def check_step_size(step_size: Radius | None) -> None:
    """Raise `PellucidError` for steps that a caller chose, and that lead nowhere. A radius of 0 has such by itself."""
    if step_size is not None and torch.as_tensor(step_size).numel() and float(torch.as_tensor(step_size).max()) <= 0:
        raise PellucidError("step_size must be above 0, in pixel units: images that stay where they start look robust")


def of_rows(value: Radius, rows: Mask | RowNumbers) -> float | Tensor:
    """Of one number that number; of one per image those of the rows."""
    return value[rows] if isinstance(value, Tensor) and value.ndim else value


def ascend(
    loss: Loss,
    x: Images,
    ball: Ball,
    *,
    steps: int,
    step_size: Radius,
    random_start: bool = False,
    start: Images | None = None,
    decay: bool = False,
    keep_best: bool = True,
    judge: Judge | None = None,
    generator: Generator = None,
) -> Images:
    """`x' <- clip(Π_ball(x' + step_size · steepest(∇ loss(x'))))`, `steps` times (Madry et al. 2018, sec. 2.1).

    `loss` maps images to one number per image, to be maximised; or to a pair (loss, score): then the gradient
    is taken of the loss and `keep_best` keeps, per image, the iterate of highest score. Without `keep_best`
    the last iterate is returned. The result lies in the ball around x and in [0, 1], and is detached.

    The search begins at x, at a random point of the ball, or at `start`, images in the ball. With `decay` the steps
    shrink linearly, the first of `step_size` and the last of `step_size / steps`. In the L1 ball a step is shared
    among several pixels (`L1.sparse`): 1.5 eps of them, with `decay` from 4 eps down to 0.5 eps (measured best on MNIST
    and CIFAR-10: wide steps first, then fewer and fewer pixels are improved).

    A `judge` scores anew what the loss scores only roughly, as one in half precision does: every few steps the best by
    the loss's own score since it was last asked (of equals the latest), and the last iterate. The best is of those.

    The gradient is always taken, whatever the caller's grad mode, and only with respect to the images.
    """
    start = start if start is not None else starting(x, ball, random_start, generator)
    walk = _Walk.begin(x, start, ball, steps, step_size, decay, judge)
    for first in range(0, steps, LEAVE):
        walk.go(loss, min(LEAVE, steps - first), remember=keep_best)
    return walk.end(loss) if keep_best else walk.at


def ascend_survivors(
    loss_of: Callable[[RowNumbers], Loss],
    x: Images,
    ball: Ball,
    *,
    steps: int,
    step_size: Radius,
    random_start: bool = False,
    start: Images | None = None,
    decay: bool = False,
    judge_of: Callable[[RowNumbers], Judge] | None = None,
    generator: Generator = None,
) -> Images:
    """As `ascend` with `keep_best`, for searches that only ask *who falls*: an image of positive score is done.

    `loss_of(rows)` is the loss of those rows of x. Every few steps the fallen leave the batch, each as the best it
    was by then: the same images fall as under `ascend`, in less time. Who has fallen the judge says, if there is one.
    """
    start = start if start is not None else starting(x, ball, random_start, generator)
    walk = _Walk.begin(x, start, ball, steps, step_size, decay)
    found, rows = torch.empty_like(walk.x), torch.arange(len(x), device=x.device)
    for first in range(0, steps, LEAVE):
        walk.judge = None if judge_of is None else judge_of(rows)
        walk.go(loss_of(rows), min(LEAVE, steps - first), remember=True)
        assert walk.score is not None
        left = walk.score <= 0
        found[rows[~left]] = walk.best[~left]
        rows = rows[left]
        walk.narrow(left)
        if not len(rows):
            return found
    walk.judge = None if judge_of is None else judge_of(rows)
    found[rows] = walk.end(loss_of(rows))
    return found


class Batched:
    """A search of many images at once, to be derived from by a dataclass whose fields have one row per image."""

    def keep(self, stay: Mask) -> None:
        """Go on with these images only."""
        for field in fields(cast(Any, self)):
            setattr(self, field.name, getattr(self, field.name)[stay])


def starting(x: Images, ball: Ball, random_start: bool, generator: Generator) -> Images:
    """Where a search begins: at random in the ball, or at the images."""
    ball = checked(ball, x)
    return ball.sample(x.detach(), generator) if random_start else x


@dataclass
class _Walk:
    """Where a search is: the iterates, and per image the best of them so far."""

    x: Images
    ball: Ball
    step_size: Radius
    shrink: float  # of the first step's size, by how much each step is smaller than the one before
    at: Images
    best: Images
    judge: Judge | None = None
    score: PerExample | None = None
    taken: int = 0

    @classmethod
    def begin(
        cls,
        x: Images,
        start: Images,
        ball: Ball,
        steps: int,
        step_size: Radius,
        decay: bool,
        judge: Judge | None = None,
    ) -> "_Walk":
        check_counts(0, steps=steps)
        ball = checked(ball, x)
        if len(x) and not float(torch.as_tensor(step_size).min()) >= 0:
            raise PellucidError(f"step_size (={step_size}) must not be negative: that would be descent")
        start = start.detach().clamp(0, 1)
        return cls(x.detach(), ball, step_size, 1 / max(1, steps) if decay else 0.0, start, start, judge)

    def go(self, loss: Loss, steps: int, *, remember: bool) -> None:
        """Some steps; of the iterates they leave, the best counts, by the judge's score if there is one."""
        seen, rank, size = self.at, None, per_image(self.step_size, self.x)
        for _ in range(steps):
            done, self.taken = self.taken * self.shrink, self.taken + 1
            gradient, score = gradient_and_score(loss, self.at)
            if remember:
                seen, rank = _better(self.at, score, seen, rank, latest=self.judge is not None)
            if isinstance(self.ball, L1):  # its few pixels must be able to move, or the search stands still for ever
                spread = 4 - 3.5 * done if self.shrink else 1.5
                direction = self.ball.sparse(gradient.masked_fill(blocked(self.at, gradient), 0), spread=spread)
            else:
                direction = self.ball.steepest(gradient)
            step = (size * (1 - done) if done else size) * direction
            self.at = self.ball.project(self.at + step, self.x).clamp(0, 1)
        if rank is not None:
            self.best, self.score = _better(seen, self._judged(seen, rank), self.best, self.score)

    def end(self, loss: Loss) -> Images:
        with torch.no_grad():
            score = _split(loss(self.at))[1] if self.judge is None else self.judge(self.at)
        return _better(self.at, score, self.best, self.score)[0]

    def _judged(self, seen: Images, rank: PerExample) -> PerExample:
        if self.judge is None:
            return rank
        with torch.no_grad():
            return self.judge(seen)

    def narrow(self, left: Mask) -> None:
        """Go on with these images only."""
        self.x, self.at, self.best = self.x[left], self.at[left], self.best[left]
        self.score = None if self.score is None else self.score[left]
        self.ball, self.step_size = self.ball.resized(of_rows(self.ball.eps, left)), of_rows(self.step_size, left)


def _split(value: PerExample | tuple[PerExample, PerExample]) -> tuple[PerExample, PerExample]:
    return value if isinstance(value, tuple) else (value, value)


def gradient_and_score(loss: Loss, at: Images) -> tuple[Images, PerExample]:
    """The loss's gradient at some images, and their score: plain, and the images as they were."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        value, score = _split(loss(at))
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return gradient.detach(), score.detach()


def _better(
    x: Images, score: PerExample, best: Images, best_score: PerExample | None, *, latest: bool = False
) -> tuple[Images, PerExample]:
    """Per image the one of higher score; of equals the best so far, or the latest."""
    if best_score is None:
        return x, score
    better = score >= best_score if latest else score > best_score
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
    check_counts(0, search=steps)
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


def move_back(x: Images, found: Images, fooled: Callable[[Images], Mask], *, halvings: int) -> Images:
    """The point of the segment from x to what was found that is nearest to x and fools, assuming one boundary.

    To `1 / 2^halvings` of the way. What does not fool stays as it was found.
    """

    def attempt(share: PerExample) -> tuple[Images, Mask]:
        at = torch.where(per_image(share, x) == 1, found, x + per_image(share, x) * (found - x))
        return at, fooled(at)

    one = torch.ones(len(x), dtype=x.dtype, device=x.device)
    return bisect(attempt, torch.zeros_like(one), one, steps=halvings)[0]
