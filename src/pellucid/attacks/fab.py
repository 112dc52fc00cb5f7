"""The targeted Fast Adaptive Boundary attack: small perturbations, by projections onto linearised boundaries."""

from dataclasses import dataclass

import torch
from torch import nn

from pellucid.balls import L1, Ball, Linf, per_image, radii
from pellucid.boxes import onto_hyperplane
from pellucid.metrics import margin
from pellucid.network import frozen
from pellucid.search import LEAVE, Batched, check_counts, move_back, select
from pellucid.targets import nearest
from pellucid.types import Generator, Images, Labels, Mask, Notes, PerExample, RowNumbers

OVERSHOOT, BACKWARD, TOWARDS_X = 1.05, 0.9, 0.1  # η, β and α_max of the paper


def fab(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    search: int = 3,
    smallest: bool = True,
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """FAB-T: the smallest perturbation that fools the model, by steps along the boundary `f_t = f_y` linearised.

    Each step projects the iterate and x onto the hyperplane `f_t - f_y + <∇(f_t - f_y), z - x_k> = 0` within the box
    (δ_k and δ_x, smallest in the ball's norm) and goes to `(1 - α)(x_k + η δ_k) + α (x + η δ_x)` with
    `α = min(‖δ_k‖ / (‖δ_k‖ + ‖δ_x‖), 0.1)` and η = 1.05. From an image that fools the model it goes back towards x,
    to 0.9 of the way. That for each of the `targets` nearest classes t; the first start is x, later ones are random
    within half the distance found so far. `search` halvings of the way to x end it.

    Returns the smallest perturbation found where it lies in the ball, and x elsewhere; an image already misclassified
    comes back unchanged. Notes `found`, and `eps` as `smallest`: its size (0 if misclassified, infinite if there is
    none), whether or not it lies in the ball. With `smallest=False` an image is done with the first one in the ball,
    `search` is left out, and so is `eps`, which would be a bound. The margin that is followed does not saturate.

    Source: Croce & Hein 2020 (Minimally distorted adversarial examples), algorithm 1, and their targeted version. The
    final search bisects the segment to x; theirs interpolates. Raises `PellucidError` for fewer than two classes, no
    targets or no restarts.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)
    with frozen(model, x, y):
        x = x.detach()
        eps = radii(ball, x)
        with torch.no_grad():
            logits = model(x)
        goals = nearest(logits, y, targets)
        best, radius = x.clone(), torch.where(margin(logits, y) < 0, 0, torch.inf).to(x)
        for number in range(restarts * goals.shape[1]):
            aim, again = goals[:, number % goals.shape[1]], number >= goals.shape[1]
            rows = ((radius > 0) if smallest else (radius > eps)).nonzero()[:, 0]
            around = ball.resized(torch.minimum(radius, eps) / 2)
            # Drawn for all, so that who is done with changes no one else's start.
            start = around.sample(x, generator)[rows].clamp(0, 1) if again else x[rows]
            walk = _Walk(rows, x[rows], y[rows], aim[rows], eps[rows], start, best[rows], radius[rows])
            best, radius = _along(model, walk, ball, steps, smallest, best, radius)
        if smallest:
            best = move_back(x, best, lambda at: _fools(model, at, y), halvings=search)
            radius = torch.where(radius < torch.inf, ball.norm(best - x), radius)
    if notes is not None:
        notes["found"] = radius < torch.inf
        if smallest:
            notes["eps"] = radius
    return select(radius <= eps, best, x)


@dataclass
class _Walk(Batched):
    """Where a search is, one row per image still searched."""

    rows: RowNumbers
    x: Images
    y: Labels
    aim: Labels
    eps: PerExample
    at: Images
    best: Images
    radius: PerExample


def _along(
    model: nn.Module, walk: _Walk, ball: Ball, steps: int, smallest: bool, best: Images, radius: PerExample
) -> tuple[Images, PerExample]:
    """Walk along one boundary; the best of every image, and its distance."""
    best, radius = best.clone(), radius.clone()
    for k in range(steps):
        if not len(walk.rows):
            break
        _step(model, walk, ball)
        if (k + 1) % LEAVE == 0 or k == steps - 1:
            best[walk.rows], radius[walk.rows] = walk.best, walk.radius
            if not smallest:
                walk.keep(walk.radius > walk.eps)
    return best, radius


def _step(model: nn.Module, walk: _Walk, ball: Ball) -> None:
    with torch.enable_grad():
        at = walk.at.detach().requires_grad_()
        logits = model(at)
        gap = (logits.gather(1, walk.aim[:, None]) - logits.gather(1, walk.y[:, None]))[:, 0]
        (gradient,) = torch.autograd.grad(gap.sum(), at)
    gap, offset = gap.detach(), (gradient * (walk.x - walk.at)).flatten(1).sum(1)
    near, far = (_nearest(start, gradient, value, ball) for start, value in ((walk.at, -gap), (walk.x, -gap - offset)))
    lengths = ball.norm(near), ball.norm(far)
    tiny = torch.finfo(gap.dtype).tiny
    alpha = per_image((lengths[0] / (lengths[0] + lengths[1]).clamp_min(tiny)).clamp_max(TOWARDS_X), walk.x)
    moved = (1 - alpha) * (walk.at + OVERSHOOT * near) + alpha * (walk.x + OVERSHOOT * far)
    moved = moved.clamp(0, 1)
    fools = _fools(model, moved, walk.y)
    distance = ball.norm(moved - walk.x)
    better = fools & (distance < walk.radius)
    walk.best, walk.radius = select(better, moved, walk.best), torch.where(better, distance, walk.radius)
    walk.at = select(fools, walk.x + BACKWARD * (moved - walk.x), moved)


def _nearest(start: Images, gradient: Images, value: PerExample, ball: Ball) -> Images:
    p = torch.inf if isinstance(ball, Linf) else 1 if isinstance(ball, L1) else 2
    return onto_hyperplane(start.flatten(1), gradient.flatten(1), value, p=p).view_as(start)


def _fools(model: nn.Module, at: Images, y: Labels) -> Mask:
    with torch.no_grad():
        return margin(model(at), y) < 0
