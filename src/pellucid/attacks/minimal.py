"""Attacks that look for the smallest perturbation that fools, and say how large it is."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pellucid import registry
from pellucid.attacks.gradient import pgd
from pellucid.balls import L2, Ball, Linf, radii
from pellucid.boxes import blocked
from pellucid.errors import PellucidError
from pellucid.metrics import log_odds, margin
from pellucid.network import frozen
from pellucid.search import check_counts, move_back, select
from pellucid.targets import Goal, choose
from pellucid.types import Attack, Generator, Images, Labels, Mask, Notes, PerExample

Rows = Bool[Tensor, " left"]
Values = Float[Tensor, " left"]
Gap = Callable[[Images, Labels], PerExample]  # of images and which class each has or aims at: negative where it fools
ESCAPE = 7.0  # how far w is from 0 for a black pixel, atanh(1 - 1e-6): Adam goes about learning_rate a step
HALVINGS = 10  # of the way back to the image: a radius along that way to 1 part in 1000


def smallest(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    attack: Attack = partial(pgd, stop_when_fooled=True),
    ball: Ball = Linf(1.0),
    search: int = 10,
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """`min ‖δ‖ : f(x + δ) ≠ y` by bisection of eps, per image, of any attack that takes a ball: `attack(ball=eps_i)`.

    Each image is attacked at its own radius, first at `ball.eps`, then `search` times halfway between the largest that
    failed and the norm of the smallest success. Each success is moved back towards x as far as it fools (10 halvings
    of the way, forward passes only), which is what makes the radius finer than `ball.eps / 2^search`. Success is
    `f_y < max_{j≠y} f_j`, judged here. A small perturbation that the attack missed may exist: an upper bound.

    Notes `found`, and `eps`: the norm of the perturbation in the ball's norm, 0 where x is misclassified already and
    infinite where nothing was found (then x comes back). Raises where the attack takes no ball. Source: this is how
    Carlini & Wagner 2017, sec. VI, compare a fixed-radius attack with theirs, done per image.
    """
    check_counts(0, search=search)
    if not isinstance(registry.option(attack, "ball"), Ball):
        raise PellucidError(f"{registry.describe(attack)} takes no ball to bisect: choose one that does, such as pgd")
    with frozen(model, x, y):
        fooled = partial(_fooled, partial(_gap, model), y)
        best, size = _unmoved(x, fooled)
        low = torch.zeros_like(size)
        high = torch.minimum(size, radii(ball, x))
        for turn in range(search + 1):
            eps = (low + high) / 2 if turn else high
            tried = attack(model, x, y, generator=generator, **{"ball": ball.resized(eps)})
            success = fooled(tried)
            best, size = _closer(move_back(x, tried, fooled, halvings=HALVINGS), success, best, size, x, ball)
            low = torch.where(success, low, eps) if turn else low
            high = torch.where(success, torch.minimum(eps, size), high)
        return _noted(notes, best, size)


def fmn(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(1.0),
    target: Goal | None = None,
    steps: int = 100,
    alpha: float = 3.0,
    gamma: float = 0.05,
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Fast minimum-norm attack: descend the gap `f_y - max_{j≠y} f_j` in a ball whose radius follows the boundary.

    `x' <- clip(Π_eps(x' - α_k · d))` in the norm of `ball`, whose own radius is the largest allowed. Per image, eps
    becomes `min((1 - γ_k) eps, ‖δ*‖)` where x' fools, δ* being the smallest found; elsewhere `(1 + γ_k) eps`, and
    before the first success `(1 + γ_k) (‖δ‖ + gap / ‖g‖_dual)`, just beyond the linearised boundary. α_k falls from
    `alpha` (an L2 length in pixels) and γ_k from `gamma` along a half cosine to 1/100 of it. With `target` (a rule or a
    class) the gap is `max_{j≠t} f_j - f_t`. Source: Pintor et al. 2021, algorithm 1. Ours, measured to find smaller
    ones and to fail less: g is the gradient of a smooth gap (log-sum-exp for the maximum, sharper from step to step),
    without the pixels that the box stops; in the Linf ball d is its sign scaled to length 1 (in the others, as there,
    `g / ‖g‖_2`); the schedules' ends; and the smallest success is moved back towards x as far as it fools.

    Notes `found` and `eps`, as `smallest`; where nothing was found x comes back. One pass and gradient per step.
    """
    check_counts(steps=steps)
    with frozen(model, x, y):
        goal, gap = _aim(model, x, y, target, generator)
        fooled = partial(_fooled, gap, goal)
        best, size = _unmoved(x, fooled)
        limit = radii(ball, x)
        at, eps = x.detach(), torch.full_like(limit, torch.inf)
        unit = ball if isinstance(ball, Linf) else L2(1.0)
        for k in range(steps + 1):
            fade = 0.01 + 0.99 * (1 + math.cos(math.pi * k / max(1, steps))) / 2
            value, gradient = _slope(model, at, goal, towards=target is not None, sharpness=1 / fade)
            best, size = _closer(at, value < 0, best, size, x, ball)
            if k == steps:
                break
            dual = (gradient * ball.steepest(gradient)).flatten(1).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            base = torch.where(size < torch.inf, eps, ball.norm(at - x) + value.abs() / dual)
            smaller = torch.minimum(eps * (1 - gamma * fade), size)
            eps = torch.where(value < 0, smaller, base * (1 + gamma * fade)).minimum(limit)
            direction = L2(1.0).steepest(unit.steepest(gradient))
            at = ball.resized(eps).project(at - alpha * fade * direction, x).clamp(0, 1)
        best, size = _closer(move_back(x, best, fooled, halvings=HALVINGS), size < torch.inf, best, size, x, ball)
        return _noted(notes, best, size)


def cw(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    target: Goal | None = None,
    kappa: float = 0.0,
    c: float = 1e-3,
    search: int = 9,
    iterations: int = 500,
    learning_rate: float = 0.05,
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Carlini & Wagner's L2 attack: `min_w ‖x' - x‖_2² + c · max(gap(x') + κ, 0)` with `x' = (tanh w + 1) / 2`.

    `gap = f_y - max_{j≠y} f_j`, or with `target` (a rule or a class) `max_{j≠t} f_j - f_t`; κ in logits is by how much
    the goal shall win. Adam on w from the image, up to `iterations` times; an image whose loss has not fallen for as
    long as Adam may need to leave a black or white pixel, `7 / learning_rate` steps, leaves. `c` is searched per image,
    `search` times: tenfold until the first success, then bisected. Of all successes the nearest is returned.
    Source: Carlini & Wagner 2017, sec. V and VI.A; their code takes 10,000 iterations at 0.01, of which this rate needs
    far fewer. That the image is then moved back towards x as far as it fools is ours.

    Notes `found`, and `eps`, the L2 norm, infinite where nothing was found (then x comes back) and 0 where x is
    misclassified already. Raises for κ < 0 and c <= 0.
    """
    check_counts(0, iterations=iterations, search=search)
    if kappa < 0 or c <= 0:
        raise PellucidError(f"kappa (={kappa}) must be at least 0 and c (={c}) above 0")
    with frozen(model, x, y):
        goal, gap = _aim(model, x, y, target, generator, kappa)
        fooled = partial(_fooled, gap, goal)
        best, size = _unmoved(x, fooled)
        weight, low, high = torch.full_like(size, c), torch.zeros_like(size), torch.full_like(size, torch.inf)
        for _ in range(search):
            left = (size > 0).nonzero()[:, 0]
            tried, success = x.clone(), torch.zeros_like(size, dtype=torch.bool)
            tried[left], success[left] = _optimised(gap, x[left], goal[left], weight[left], iterations, learning_rate)
            best, size = _closer(tried, success, best, size, x, L2(1.0))
            high, low = torch.where(success, weight, high), torch.where(success, low, weight)
            weight = torch.where(high < torch.inf, (low + high) / 2, 10 * weight)
        best, size = _closer(move_back(x, best, fooled, halvings=HALVINGS), size < torch.inf, best, size, x, L2(1.0))
        return _noted(notes, best, size)


def _optimised(
    gap: Gap, x: Images, goal: Labels, weight: PerExample, iterations: int, learning_rate: float
) -> tuple[Images, Mask]:
    """Adam on w for one constant per image: the nearest success of each, and who had one."""
    found, nearest = x.clone(), torch.full_like(weight, torch.inf)
    rows = torch.arange(len(x), device=x.device)
    w = ((2 * x - 1) * (1 - 1e-6)).atanh()
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    least, before = torch.full_like(weight, torch.inf), torch.full_like(weight, torch.inf)
    patience = max(1, iterations // 10, round(ESCAPE / learning_rate))
    for step in range(1, iterations + 1):
        loss, gradient, at, length, success = _objective(gap, w, x[rows], goal[rows], weight[rows])
        closer = success & (length < nearest[rows])
        found[rows[closer]], nearest[rows[closer]] = at[closer], length[closer]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        ahead = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        w = w - learning_rate * ahead
        least = torch.minimum(least, loss)
        if step % patience == 0:
            falls = least < 0.9999 * before
            w, first, second, rows, least = w[falls], first[falls], second[falls], rows[falls], least[falls]
            before = least
            if not len(rows):
                break
    return found, nearest < torch.inf


def _objective(
    gap: Gap, w: Float[Tensor, "left c h w"], x: Images, goal: Labels, weight: PerExample
) -> tuple[Values, Float[Tensor, "left c h w"], Float[Tensor, "left c h w"], Values, Rows]:
    """The loss, its gradient in w, the images of w, their squared distances, and which of them fool."""
    with torch.enable_grad():
        w = w.detach().requires_grad_()
        at = (w.tanh() + 1) / 2
        value, length = gap(at, goal), (at - x).flatten(1).square().sum(1)
        loss = length + weight * value.clamp_min(0)
        (gradient,) = torch.autograd.grad(loss.sum(), w)
    return loss.detach(), gradient, at.detach(), length.detach(), value.detach() < 0


def _aim(
    model: nn.Module, x: Images, y: Labels, target: Goal | None, generator: Generator, kappa: float = 0.0
) -> tuple[Labels, Gap]:
    goal = y if target is None else choose(target, model, x, y, generator)
    return goal, partial(_gap, model, towards=target is not None, kappa=kappa)


def _gap(model: nn.Module, at: Images, goal: Labels, *, towards: bool = False, kappa: float = 0.0) -> PerExample:
    """By how much the attack has yet to win."""
    won = margin(model(at), goal)
    return (-won if towards else won) + kappa


def _slope(model: nn.Module, at: Images, goal: Labels, *, towards: bool, sharpness: float) -> tuple[PerExample, Images]:
    """The gap, and the gradient of the smooth gap where the box lets the descent follow it."""
    sign = -1 if towards else 1
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        logits = model(at)
        (gradient,) = torch.autograd.grad(sign * log_odds(sharpness * logits, goal).sum() / sharpness, at)
    at = at.detach()
    return sign * margin(logits.detach(), goal), gradient.masked_fill(blocked(at, -gradient), 0)


def _fooled(gap: Gap, goal: Labels, at: Images) -> Mask:
    with torch.no_grad():
        return gap(at, goal) < 0


def _unmoved(x: Images, fooled: Callable[[Images], Mask]) -> tuple[Images, PerExample]:
    """The images themselves, of size 0 where they fool already and infinite elsewhere."""
    return x.detach().clone(), torch.where(fooled(x), 0, torch.full((len(x),), torch.inf).to(x))


def _closer(
    tried: Images, success: Mask, best: Images, size: PerExample, x: Images, ball: Ball
) -> tuple[Images, PerExample]:
    """Per image the nearer of the best so far and of what was tried, where that fools."""
    norm = ball.norm(tried - x)
    closer = success & (norm < size)
    return select(closer, tried, best), torch.where(closer, norm, size)


def _noted(notes: Notes, best: Images, size: PerExample) -> Images:
    if notes is not None:
        notes["found"], notes["eps"] = size < torch.inf, size
    return best
