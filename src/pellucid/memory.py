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
        self.rows: Rows = torch.zeros(0, dtype=torch.int64)  # of this process, in the batch at hand
        self._batch: Rows = self.rows  # of all processes
        self._unsent: list[Rows] = []
        self._changed = torch.zeros(images if team.size > 1 else 0, dtype=torch.bool)  # in any process, since exchanged

    def visit(self, batch: Rows) -> None:
        """The batch to come, of which this process takes its share, is of these images."""
        if self.team.size > 1:
            again = torch.equal(batch, self._batch)  # a replay: the same images, shared alike
            if not again and bool(self._changed[batch].any()):  # perhaps by another process than needs it now
                self.exchange()
            self._changed[batch] = True
        self._batch = batch
        self.rows = self.team.share(batch).to(self.store.device)

    def start(self, x: Images, ball: Ball, generator: Generator) -> Images:
        """Where the last search for each image ended, at this radius; for a few of them anywhere in the ball."""
        held = _linf(ball)
        last = x + per_image(held.eps, x) * self.store[self.rows].to(x) / LEVELS
        fresh = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).uniform_(generator=generator) < RESET
        return torch.where(fresh, held.sample(x, generator), last).clamp(0, 1)

    def keep(self, x: Images, attacked: Images, ball: Ball) -> None:
        """Remember where this search ended: in this process, until memories are exchanged."""
        eps = per_image(_linf(ball).eps, x)
        if bool((eps == 0).all()):
            return
        found = ((attacked - x) / eps * LEVELS).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        self.store[self.rows] = found.to(self.store.device)
        if self.team.size > 1:
            self._unsent.append(self.rows)

    def exchange(self) -> None:
        """All processes remember what each of them does: once an epoch, and before it is saved."""
        if not self._unsent:
            return
        mine, device = torch.cat(self._unsent).unique(), self.store.device
        sent = zip(self.team.gather(mine, device), self.team.gather(self.store[mine], device), strict=True)
        for rows, part in sent:
            self.store[rows.to(device)] = part.to(device)
        self._unsent = []
        self._changed.zero_()


def _linf(ball: Ball) -> Linf:
    if not isinstance(ball, Linf):
        raise PellucidError(f"start='persistent' remembers perturbations in an Linf ball, not in {ball!r}")
    return ball
