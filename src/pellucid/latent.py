"""The search over a distortion's latent variables, which live in [0, 1] so that `pellucid.search` climbs them too."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.balls import L1, Ball, Linf
from pellucid.metrics import log_odds, margin
from pellucid.network import frozen
from pellucid.search import Loss, ascend, ascend_survivors, gradient_and_score, select
from pellucid.targets import Goal, choose
from pellucid.types import Generator, Images, Labels, PerExample, RowNumbers

Latents = Float[Tensor, "b lc lh lw"]
Render = Callable[[Latents, RowNumbers], Images]  # latent variables of some rows -> those rows, distorted
LossOf = Callable[[RowNumbers], Loss]


def _losses(
    model: nn.Module, x: Images, y: Labels, render: Render, target: Goal | None, generator: Generator
) -> LossOf:
    """Of some rows, the loss of latent variables and the score: positive where any wrong class wins."""
    aim = y if target is None else choose(target, model, x, y, generator)
    sign = -1 if target is None else 1

    def loss_of(rows: RowNumbers) -> Loss:
        def loss(z: Latents) -> tuple[PerExample, PerExample]:
            logits = model(render(z, rows))
            return sign * log_odds(logits, aim[rows]), -margin(logits.detach(), y[rows])

        return loss

    return loss_of


def climb(
    model: nn.Module,
    x: Images,
    y: Labels,
    render: Render,
    start: Latents,
    ball: Ball,
    *,
    target: Goal | None,
    steps: int,
    step_size: float,
    coded: bool,
    random_start: bool = True,
    free_last: bool = False,
    generator: Generator = None,
) -> Images:
    """The images of the latent variables that `search` finds: all of them for all steps if as coded, else survivors."""
    losses_of = _losses(model, x, y, render, target, generator)
    rows = torch.arange(len(start), device=start.device)
    with frozen(model, x, y):
        if not coded:
            found = ascend_survivors(
                losses_of, start, ball, steps=steps, step_size=step_size, random_start=random_start, generator=generator
            )
        else:
            found = ascend(
                losses_of(rows),
                start,
                ball,
                steps=steps - free_last if steps else 0,
                step_size=step_size,
                random_start=random_start,
                keep_best=False,
                generator=generator,
            )
            if free_last and steps:
                found = ascend(losses_of(rows), found, Linf(1.0), steps=1, step_size=step_size, keep_best=False)
        with torch.no_grad():
            return render(found, rows)


def frank_wolfe(
    model: nn.Module,
    x: Images,
    y: Labels,
    render: Render,
    start: Latents,
    eps: float,
    *,
    target: Goal | None,
    steps: int,
    coded: bool,
    random_start: bool,
    generator: Generator,
) -> Images:
    """`z <- z + (s - z) / k` with `s = argmax <∇, s>` over the L1 ball cut by the box; the best iterate.

    Coded: the last; and s lies as far from the start as z, not the start, from its wall: a coordinate at the wall is
    sent back to the start, and the L1 norm is spread over more of them.
    """
    rows = torch.arange(len(start), device=start.device)
    loss = _losses(model, x, y, render, target, generator)(rows)
    at = best = (L1(eps).sample(start, generator) if random_start else start).clamp(0, 1)
    highest = start.new_full((len(start),), -torch.inf)
    with frozen(model, x, y):
        for k in range(1, steps + 1):
            gradient, score = gradient_and_score(loss, at)
            better = score > highest
            best, highest = select(better, at, best), torch.where(better, score, highest)
            room = torch.where(gradient > 0, 1 - at, at) if coded else torch.full_like(at, 0.5)
            at = at + (vertex(gradient, start, eps, room) - at) / k
        with torch.no_grad():
            better = loss(at)[1] > highest
            return render(at if coded else select(better, at, best), rows)


def vertex(gradient: Latents, start: Latents, eps: float, room: Latents) -> Latents:
    """`start` plus `room`, along the gradient's sign, on the coordinates of its largest sizes, until eps is spent."""
    flat = gradient.flatten(1)
    order = flat.abs().argsort(1, descending=True)
    rooms = room.flatten(1).gather(1, order)
    left = eps - (rooms.cumsum(1) - rooms)
    amounts = torch.where(left > 0, torch.minimum(rooms, left), 0)
    return start + (torch.zeros_like(flat).scatter(1, order, amounts) * flat.sign()).view_as(start)
