"""The inner maximum of a training objective: which radius at this step, and the search within it."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from pellucid import registry
from pellucid.balls import Ball, Radius, per_image
from pellucid.errors import PellucidError
from pellucid.memory import Memory
from pellucid.schedules import Schedule, at
from pellucid.search import Loss, ascend
from pellucid.types import Attack, Generator, Images, Objective

Start = Literal["uniform", "gaussian", "blocks", "persistent"]
NEAR = 0.001  # standard deviation of the Gaussian start, as in TRADES
PERSISTENT_STEP = 0.25  # of the radius
LARGEST_BLOCK = 9  # pixels; images of 28 to 32 px


@dataclass(frozen=True)
class Search:
    """Projected steepest ascent at this step's radius: the last iterate. Steps are of `step_size`, or 2.5 eps / steps.

    It starts at random in the ball, near x, half the time at a corner of an Linf ball (`blocks`), or where the last
    search for the same image ended (`persistent`): then it needs few steps, each of about a quarter of the radius.
    """

    ball: Ball
    eps: Schedule | None
    steps: int
    step_size: float | None
    start: Start = "uniform"
    memory: Memory | None = None

    def __call__(self, loss: Loss, x: Images, step: int, generator: Generator) -> Images:
        ball = resized(self.ball, self.eps, step)
        share = PERSISTENT_STEP if self.start == "persistent" else 2.5 / max(1, self.steps)
        size: Radius = share * ball.eps if self.step_size is None else self.step_size
        start = self._start(x, ball, generator)
        found = ascend(loss, x, ball, steps=self.steps, step_size=size, start=start, keep_best=False)
        if self.start == "persistent" and self.memory is not None:
            self.memory.keep(x, found, ball)
        return found

    def _start(self, x: Images, ball: Ball, generator: Generator) -> Images:
        if self.start == "gaussian":
            near = x + NEAR * torch.empty_like(x).normal_(generator=generator)
            return ball.project(near, x)
        if self.start == "persistent":
            if self.memory is None:
                raise PellucidError("start='persistent' needs the trainer's memory: use pellucid train")
            return self.memory.start(x, ball, generator)
        inside = ball.sample(x, generator)
        if self.start == "uniform":
            return inside
        if self.start != "blocks":
            raise PellucidError(f"start (={self.start!r}) must be uniform, gaussian, blocks or persistent")
        corner = ball.project(x + per_image(ball.eps, x) * blocks_of_signs(x, generator), x)
        half = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).uniform_(generator=generator) < 0.5
        return torch.where(half, corner, inside)


def blocks_of_signs(x: Images, generator: Generator) -> Images:
    """-1 or 1, the same within a block: blocks of 1 to 9 pixels, of an image one size, or stripes from top to bottom.

    Where searches without gradients such as Square look (Andriushchenko et al. 2020), and gradients seldom lead.
    """
    b, c, h, w = x.shape

    def draw(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (b, 1), generator=generator, device=x.device)

    size = draw(1, LARGEST_BLOCK + 1)
    rows = (torch.arange(h, device=x.device) + draw(0, LARGEST_BLOCK)) // size
    columns = (torch.arange(w, device=x.device) + draw(0, LARGEST_BLOCK)) // size
    rows = torch.where(draw(0, 3) == 0, 0, rows)
    wide = w + LARGEST_BLOCK
    cells = (rows[:, :, None] * wide + columns[:, None, :]).view(b, 1, h * w).expand(b, c, h * w)
    signs = torch.randint(0, 2, (b, c, (h + LARGEST_BLOCK) * wide), generator=generator, device=x.device)
    return (2 * signs.gather(2, cells) - 1).view_as(x).to(x.dtype)


def ball_of(objective: Objective) -> Ball | None:
    """The ball that an objective, or the attack in it, searches; None where it has none."""
    inner = registry.option(objective, "attack")
    ball = registry.option(objective if inner is None else inner, "ball")
    return ball if isinstance(ball, Ball) else None


def radius(objective: Objective, step: int) -> float | None:
    """The radius that an objective trains at in this step; None where it has no ball."""
    ball = ball_of(objective)
    if ball is None:
        return None
    size = resized(ball, registry.option(objective, "eps"), step).eps
    return float(size) if isinstance(size, float | int) else None


def resized(ball: Ball, eps: Schedule | None, step: int) -> Ball:
    """The ball at the radius of this training step; as it is where that says nothing."""
    return ball if eps is None else ball.resized(at(eps, step))


def within(attack: Attack, eps: Schedule | None, step: int) -> Attack:
    """The attack at the radius of this training step, and in the precision of the training where it has a choice."""
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if autocast and registry.option(attack, "precision") is not None:
        attack = partial(attack, **{"precision": "bf16"})
    if eps is None:
        return attack
    ball = registry.option(attack, "ball")
    if not isinstance(ball, Ball):
        raise PellucidError(
            f"eps={registry.describe(eps)} needs an attack in a ball: {registry.describe(attack)} has none"
        )
    at_step: Attack = partial(attack, **{"ball": resized(ball, eps, step)})
    return at_step
