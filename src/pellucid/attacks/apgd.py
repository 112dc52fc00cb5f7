"""Auto-PGD: projected gradient ascent that finds its own step size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from pellucid.balls import L1, Ball, Linf, per_image, radii
from pellucid.boxes import blocked, into_l1_ball
from pellucid.metrics import log_odds, margin
from pellucid.network import frozen
from pellucid.search import LEAVE, Batched, check_counts, select
from pellucid.targets import nearest
from pellucid.types import Generator, Images, Labels, Logits, Mask, PerExample, RowNumbers

MOMENTUM, RHO = 0.75, 0.75
SPARSE, SPARSER, SETTLED, CHECK_L1 = 0.2, 1.5, 0.95, 0.04  # L1: pixels per step at first, divisor, ...

Name = Literal["ce", "dlr", "dlr_targeted"]


def apgd(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 100,
    restarts: int = 1,
    loss: Name = "ce",
    targets: int = 9,
    generator: Generator = None,
) -> Images:
    """Auto-PGD: `z = Π(x_k + η s(∇))`, `x_{k+1} = Π(x_k + ¾ (z - x_k) + ¼ (x_k - x_{k-1}))`, η falling from 2 eps.

    At checkpoints η is halved, and the search returns to its best point, where fewer than ¾ of the steps rose or where
    neither η nor the best value changed since the last one. Starts at random in the ball, `restarts` times, those still
    standing only; the result is per image the iterate of smallest margin. An image already misclassified comes back
    unchanged.

    - `ce` ascends the log-odds `log Σ_{j≠y} e^{f_j} - f_y`: a monotone function of the cross entropy with the same
      iterates, but its gradient does not underflow where a confident model's cross entropy does.
    - `dlr` ascends `-(f_y - max_{j≠y} f_j) / (f_π1 - f_π3)`, π the descending order of the logits.
    - `dlr_targeted` ascends `-(f_y - f_t) / (f_π1 - (f_π3 + f_π4)/2)` for each of the `targets` nearest classes t in
      turn. With three classes it divides by `f_π1 - f_π3`; with two, both DLR losses are the plain margin.

    Source: Croce & Hein 2020 (Reliable evaluation), algorithm 1. In L1: Croce & Hein 2021, algorithm 1, with sparse
    steps that adapt, the exact projection onto ball and box, and one radius throughout (theirs shrinks from 3 eps).
    Raises `PellucidError` for fewer than two classes, one target, or one restart.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)
    with frozen(model, x, y):
        x = x.detach()
        eps = radii(ball, x)
        with torch.no_grad():
            logits = model(x)
        best, score = x.clone(), -margin(logits, y)
        goals = nearest(logits, y, targets if loss == "dlr_targeted" else 1)
        for goal in goals.unbind(1):
            for _ in range(restarts):
                rows = (score <= 0).nonzero()[:, 0]
                if not len(rows):
                    return best
                start = ball.sample(x, generator)[rows]  # for all, so that who has fallen changes no one's start
                walk = _begin(x[rows], start, y[rows], goal[rows], ball.resized(eps[rows]))
                tried, value = _climb(partial(_measured, model, loss), walk, ball, steps)
                better = value > score[rows]
                best[rows[better]], score[rows[better]] = tried[better], value[better]
    return best


@dataclass
class _Walk(Batched):
    """Where a search is, one row per image still standing; `best` is of highest loss, `strongest` of least margin."""

    rows: RowNumbers
    x: Images
    y: Labels
    aim: Labels
    eps: PerExample
    at: Images
    before: Images
    gradient: Images
    loss: PerExample
    best: Images
    best_gradient: Images
    best_loss: PerExample
    strongest: Images
    score: PerExample
    step: PerExample  # η
    sparsity: PerExample  # L1: pixels moved per step
    moved: PerExample  # L1: pixels in which the best differed from x at the last checkpoint; before the first, all
    rises: PerExample  # steps since the last checkpoint that raised the loss
    checked_loss: PerExample  # the best at the last checkpoint
    reduced: Mask  # whether that one reduced the step


def _begin(x: Images, start: Images, y: Labels, aim: Labels, ball: Ball) -> _Walk:
    at = _project(start, x, ball)
    eps = radii(ball, x)
    lowest = torch.full_like(eps, -torch.inf)
    no = torch.zeros_like(eps)
    l1 = isinstance(ball, L1)
    return _Walk(
        rows=torch.arange(len(x), device=x.device),
        x=x,
        y=y,
        aim=aim,
        eps=eps,
        at=at,
        before=at,
        gradient=at,
        loss=lowest,
        best=at,
        best_gradient=at,
        best_loss=lowest,
        strongest=at,
        score=lowest,
        step=eps if l1 else 2 * eps,
        sparsity=no + SPARSE * x[0:1].numel(),
        moved=no + x[0:1].numel(),
        rises=no,
        checked_loss=lowest,
        reduced=no > 0,
    )


def _climb(measured: Callable[[_Walk], None], walk: _Walk, ball: Ball, steps: int) -> tuple[Images, PerExample]:
    """The strongest iterate of every image, and its score. Images that fall leave every few steps."""
    found, score = walk.at.clone(), walk.score.clone()
    last, checks = 0, _checkpoints(steps, isinstance(ball, L1))
    measured(walk)
    walk.checked_loss, walk.rises = walk.best_loss, torch.zeros_like(walk.rises)
    for k in range(steps):
        _move(walk, ball.resized(walk.eps), 1.0 if k == 0 or isinstance(ball, L1) else MOMENTUM)
        measured(walk)
        if k + 1 in checks:
            _sparsify(walk) if isinstance(ball, L1) else _halve(walk, k + 1 - last)
            last = k + 1
        if (k + 1) % LEAVE == 0:
            found[walk.rows], score[walk.rows] = walk.strongest, walk.score
            walk.keep(walk.score <= 0)
            if not len(walk.rows):
                break
    found[walk.rows], score[walk.rows] = walk.strongest, walk.score
    return found, score


def _measured(model: nn.Module, name: Name, walk: _Walk) -> None:
    """Loss and gradient where the walk is; and what is best so far."""
    with torch.enable_grad():
        at = walk.at.detach().requires_grad_()
        logits = model(at)
        value = _loss(name, logits, walk.y, walk.aim)
        (walk.gradient,) = torch.autograd.grad(value.sum(), at)
    loss, score = value.detach(), -margin(logits.detach(), walk.y)
    walk.rises = walk.rises + (loss > walk.loss).to(loss)
    walk.loss = loss
    higher, stronger = loss > walk.best_loss, score > walk.score
    walk.best, walk.best_loss = select(higher, walk.at, walk.best), torch.where(higher, loss, walk.best_loss)
    walk.best_gradient = select(higher, walk.gradient, walk.best_gradient)
    walk.strongest, walk.score = select(stronger, walk.at, walk.strongest), torch.where(stronger, score, walk.score)


def _loss(name: Name, logits: Logits, y: Labels, aim: Labels) -> PerExample:
    """What is ascended; its sign is that of success, or of reaching the aim."""
    if name == "ce":
        return -log_odds(logits, y)
    if name == "dlr":
        gap, rank = margin(logits, y), 3
    else:
        gap, rank = (logits.gather(1, y[:, None]) - logits.gather(1, aim[:, None]))[:, 0], 4
    top = logits.topk(min(rank, logits.shape[1])).values
    if top.shape[1] < 3:
        return -gap
    return -gap / (top[:, 0] - top[:, 2:].mean(1)).clamp_min(torch.finfo(logits.dtype).tiny)


def _move(walk: _Walk, ball: Ball, share: float) -> None:
    direction = _sparse(walk) if isinstance(ball, L1) else ball.steepest(walk.gradient)
    z = _project(walk.at + per_image(walk.step, walk.x) * direction, walk.x, ball)
    inertia = walk.at - walk.before
    walk.before = walk.at
    if share < 1:
        z = _project(walk.at + share * (z - walk.at) + (1 - share) * inertia, walk.x, ball)
    walk.at = z


def _project(target: Images, x: Images, ball: Ball) -> Images:
    """Into ball and box; onto the nearest point of both where that is worth it."""
    if isinstance(ball, L1):
        return into_l1_ball(x.flatten(1), target.flatten(1), radii(ball, x)).view_as(x)
    return ball.project(target, x).clamp(0, 1)


def _checkpoints(steps: int, l1: bool) -> set[int]:
    """`w_j = ceil(p_j N)`, `p_1 = 0.22`, each gap 0.03 shorter than the last, down to 0.06."""
    if l1:
        return set(range(0, steps + 1, max(1, math.ceil(CHECK_L1 * steps))))
    found, p, gap = set[int](), 0.0, 0.22
    while p + gap <= 1:
        p, gap = p + gap, max(gap - 0.03, 0.06)
        found.add(math.ceil(round(p * steps, 6)))
    return found


def _halve(walk: _Walk, since: int) -> None:
    """Where too few steps rose, or nothing changed since the last checkpoint: half the step, from the best point."""
    stuck = ~walk.reduced & (walk.best_loss <= walk.checked_loss)
    reduce = (walk.rises < RHO * since) | stuck
    walk.step = torch.where(reduce, walk.step / 2, walk.step)
    _return(walk, reduce)
    walk.reduced, walk.checked_loss, walk.rises = reduce, walk.best_loss, torch.zeros_like(walk.rises)


def _return(walk: _Walk, back: Mask) -> None:
    """These images go on from their best point."""
    walk.at, walk.gradient = select(back, walk.best, walk.at), select(back, walk.best_gradient, walk.gradient)
    walk.loss = torch.where(back, walk.best_loss, walk.loss)


def _sparsify(walk: _Walk) -> None:
    """L1: step over fewer pixels, from the best point, while it moves ever fewer; once that settles, by less."""
    moved = (walk.best != walk.x).flatten(1).sum(1).to(walk.eps)
    fewer = moved < SETTLED * walk.moved
    walk.step = torch.where(fewer, walk.eps, torch.maximum(walk.step / SPARSER, walk.eps / 10))
    walk.moved, walk.sparsity = moved, (moved / SPARSER).clamp_min(1)
    _return(walk, fewer)


def _sparse(walk: _Walk) -> Images:
    """L1: `sign(∇)` on the pixels of largest |∇| that the box lets move, scaled to norm 1."""
    size = walk.gradient.masked_fill(blocked(walk.at, walk.gradient), 0).flatten(1)
    rank = size.abs().argsort(dim=1, descending=True).argsort(dim=1)
    direction = size.sign() * (rank < walk.sparsity.floor().clamp_min(1)[:, None])
    return (direction / direction.abs().sum(1, keepdim=True).clamp_min(1)).view_as(walk.x)
