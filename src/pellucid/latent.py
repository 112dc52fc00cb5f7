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


def losses(model: nn.Module, x: Images, y: Labels, render: Render, target: Goal | None, generator: Generator) -> LossOf:
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
    render: Render,
    losses_of: LossOf,
    start: Latents,
    ball: Ball,
    *,
    steps: int,
    step_size: float,
    coded: bool,
    random_start: bool = True,
    free_last: bool = False,
    generator: Generator = None,
) -> Images:
    """The images of the latent variables that `search` finds: all of them for all steps if as coded, else survivors."""
    rows = torch.arange(len(start), device=start.device)
    with frozen(model):
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
    render: Render,
    losses_of: LossOf,
    start: Latents,
    eps: float,
    *,
    steps: int,
    coded: bool,
    random_start: bool,
    generator: Generator,
) -> Images:
    """`z <- z + (s - z) / k` with `s = argmax <∇, s>` over the L1 ball cut by the box; the best, or the last."""
    rows = torch.arange(len(start), device=start.device)
    loss = losses_of(rows)
    at = best = (L1(eps).sample(start, generator) if random_start else start).clamp(0, 1)
    highest = start.new_full((len(start),), -torch.inf)
    with frozen(model):
        for k in range(1, steps + 1):
            gradient, score = gradient_and_score(loss, at)
            better = score > highest
            best, highest = select(better, at, best), torch.where(better, score, highest)
            at = at + (vertex(gradient, start, eps) - at) / k
        with torch.no_grad():
            better = loss(at)[1] > highest
            return render(at if coded else select(better, at, best), rows)


def vertex(gradient: Latents, start: Latents, eps: float) -> Latents:
    """`start` plus a half, the most the box allows, on the coordinates of largest |gradient|, until eps is spent."""
    flat = gradient.flatten(1)
    order = flat.abs().argsort(1, descending=True)
    spent = torch.arange(flat.shape[1], dtype=flat.dtype, device=flat.device) / 2
    amounts = (eps - spent).clamp(0, 0.5).expand_as(flat)
    return start + (torch.zeros_like(flat).scatter(1, order, amounts) * flat.sign()).view_as(start)
