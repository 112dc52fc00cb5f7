"""What every training image was last attacked with: a search that goes on there needs few steps.

Source: Zheng et al. 2020, Efficient adversarial training with transferable adversarial examples (ATTA), algorithm 1.
"""

import torch
from jaxtyping import Int8
from torch import Tensor

from pellucid.balls import Ball, Linf, per_image
from pellucid.errors import PellucidError
from pellucid.parallel import Rows, Team
from pellucid.types import Generator, Images

LEVELS = 127  # a perturbation is kept as so many parts of the radius, in one byte a pixel
RESET = 0.05  # the share of images that begin anew at each visit


class Memory:
    """One perturbation per training image. The trainer says which images a batch is of.

    Deviation: theirs is kept through crops and flips of the image, which this is not made for.
    """

    def __init__(self, images: int, shape: tuple[int, ...], generator: torch.Generator, team: Team) -> None:
        """At first every image's is uniform in the ball."""
        size = (images, *shape)
        self.store: Int8[Tensor, "n c h w"] = torch.randint(
            -LEVELS, LEVELS + 1, size, generator=generator, device=generator.device
        ).to(torch.int8)
        self.team = team
        self.rows: Rows = torch.zeros(0, dtype=torch.int64)

    def visit(self, rows: Rows) -> None:
        """The batch to come is of these images."""
        self.rows = rows.to(self.store.device)

    def start(self, x: Images, ball: Ball, generator: Generator) -> Images:
        """Where the last search for each image ended, at this radius; for a few of them anywhere in the ball."""
        held = _linf(ball)
        last = x + per_image(held.eps, x) * self.store[self.rows].to(x) / LEVELS
        fresh = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).uniform_(generator=generator) < RESET
        return torch.where(fresh, held.sample(x, generator), last).clamp(0, 1)

    def keep(self, x: Images, attacked: Images, ball: Ball) -> None:
        """Remember where this search ended, in all processes."""
        eps = per_image(_linf(ball).eps, x)
        if bool((eps == 0).all()):
            return
        found = ((attacked - x) / eps * LEVELS).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        for rows, part in zip(self.team.gather(self.rows, x.device), self.team.gather(found, x.device), strict=True):
            self.store[rows.to(self.store.device)] = part.to(self.store.device)


def _linf(ball: Ball) -> Linf:
    if not isinstance(ball, Linf):
        raise PellucidError(f"start='persistent' remembers perturbations in an Linf ball, not in {ball!r}")
    return ball
