"""The Jacobian saliency map attack: few pixels, changed a lot."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.network import frozen
from pellucid.targets import Goal, choose
from pellucid.types import Generator, Images, Labels, Notes

Slopes = Float[Tensor, "left d"]
Pixels = Int[Tensor, " left"]
CHUNK = 200  # images at once
PAIRS = 1 << 22  # scores at once


def jsma(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    target: Goal = "next",
    theta: float = 1.0,
    gamma: float = 0.25,
    jacobian: Literal["logits", "softmax"] = "logits",
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Jacobian saliency map attack: towards class t, two pixels at a time are changed by `theta` until `argmax f = t`.

    Each time the pair of largest `-(α_p + α_q)(β_p + β_q)`, with `α = ∂f_t/∂x` and `β = Σ_{j≠t} ∂f_j/∂x`, of those with
    `α_p + α_q > 0` and `β_p + β_q < 0`; with `theta < 0`, which darkens, both signs turned. A pixel (a value of one
    channel, where there are several) is used once, and not at all where the box lets it go no further. At most
    `floor(gamma · d / 2)` pairs of d pixels: `gamma` is the share that may change. `jacobian="softmax"` takes the
    probabilities, for which `β = -α`. Of equal pairs the first is taken, by its first pixel, then its second.

    All images go together, and leave when they reach t or no pair is left that helps (where other implementations go on
    with an arbitrary pair). The search is exact: the best pair is found among the few pixels that at most one other
    beats in both α and -β. Notes `target`, `pairs` (taken) and `reached`. Source: Papernot et al. 2016, algorithm 2 and
    eqs. 8 to 10; the defaults are Ross & Doshi-Velez's 2018. Raises for `theta` 0 and `gamma` outside [0, 1].
    """
    if theta == 0 or not 0 <= gamma <= 1:
        raise PellucidError(f"theta (={theta}) must not be 0, and gamma (={gamma}) a share of the pixels, in [0, 1]")
    goal = choose(target, model, x, y, generator)
    most = int(gamma * x[:1].numel() / 2) if len(x) else 0
    found, pairs = x.detach().clone(), torch.zeros_like(y)
    with frozen(model, x, y):
        for chunk in torch.arange(len(x), device=x.device).split(CHUNK):
            found[chunk], pairs[chunk] = _walk(model, x[chunk], goal[chunk], theta, most, jacobian)
        if notes is not None:
            with torch.no_grad():
                reached = torch.cat([model(part).argmax(1) for part in found.split(CHUNK)]) == goal
            notes["target"], notes["pairs"], notes["reached"] = goal, pairs, reached
    return found


def _walk(model: nn.Module, x: Images, goal: Labels, theta: float, most: int, jacobian: str) -> tuple[Images, Labels]:
    """One chunk, and how many pairs each image took."""
    flat, taken = x.detach().flatten(1).clone(), torch.zeros_like(goal)
    free = flat < 1 if theta > 0 else flat > 0
    rows = torch.arange(len(x), device=x.device)
    for _ in range(most):
        alpha, beta, there = _slopes(model, flat[rows].unflatten(1, x.shape[1:]), goal[rows], jacobian)
        if theta < 0:
            alpha, beta = -alpha, -beta
        open_ = free[rows] & ~there[:, None]
        pair, helps = _best_pair(alpha.masked_fill(~open_, -torch.inf), (-beta).masked_fill(~open_, -torch.inf))
        rows, pair = rows[helps], pair[helps]
        if not len(rows):
            break
        flat[rows[:, None], pair] = (flat[rows[:, None], pair] + theta).clamp(0, 1)
        free[rows[:, None], pair] = False
        taken[rows] += 1
    return flat.view_as(x), taken


def _slopes(
    model: nn.Module, at: Float[Tensor, "left c h w"], goal: Pixels, jacobian: str
) -> tuple[Slopes, Slopes, Bool[Tensor, " left"]]:
    """α, β and who is there already. Two passes back: Σ_{j≠t} is all less t."""
    with torch.enable_grad():
        at = at.requires_grad_()
        logits = model(at)
        there = logits.argmax(1) == goal
        values = logits if jacobian == "logits" else logits.softmax(1)
        (alpha,) = torch.autograd.grad(values.gather(1, goal[:, None]).sum(), at, retain_graph=True)
        # Probabilities sum to one, so that all others' slopes are exactly the target's turned.
        total = torch.autograd.grad(values.sum(), at)[0] if jacobian == "logits" else torch.zeros_like(alpha)
    alpha, beta = alpha.flatten(1), (total - alpha).flatten(1)
    return _scaled(alpha), _scaled(beta), there


def _scaled(slopes: Slopes) -> Slopes:
    """In units of the largest, so that the product of two tiny slopes does not underflow."""
    return slopes / slopes.abs().amax(1, keepdim=True).clamp_min(torch.finfo(slopes.dtype).tiny)


def _best_pair(a: Slopes, b: Slopes) -> tuple[Int[Tensor, "left 2"], Bool[Tensor, " left"]]:
    """`argmax_{p<q} (a_p + a_q)(b_p + b_q)` of the pairs where both sums are positive, the first of equals; if any.

    A pixel that two others beat in both a and b is in no pair better than all others: put in its place the one that is
    not its partner. The best score is therefore that of a pair of candidates, and by the same argument whoever else
    attains it does so beside a candidate of a best pair: ties are settled among all pixels without trying all pairs.
    """
    few, real = _listed(_candidates(a, b))
    size = max(1, PAIRS // max(few.shape[1] ** 2, a.shape[1]))
    parts = [_best_of(*part) for part in zip(*(v.split(size) for v in (a, b, few, real)), strict=True)]
    return torch.cat([pair for pair, _ in parts]), torch.cat([helps for _, helps in parts])


def _best_of(
    a: Slopes, b: Slopes, few: Int[Tensor, "left k"], real: Bool[Tensor, "left k"]
) -> tuple[Int[Tensor, "left 2"], Bool[Tensor, " left"]]:
    every = torch.arange(a.shape[1], device=a.device).expand_as(a)
    among = _scores(a, b, few, few).masked_fill(~(real[:, :, None] & real[:, None, :]), -1)
    best = among.amax((1, 2))[:, None]
    partner, real = _listed((among == best[:, :, None]).any(2))
    partner = few.gather(1, partner)
    tied = _scores(a, b, every, partner).masked_fill(~real[:, None, :], -1) == best[:, :, None]
    first = _lowest(tied.any(2))
    second = _lowest(_scores(a, b, first, every)[:, 0] == best)
    return torch.cat([first, second], 1), best[:, 0] >= 0


def _scores(a: Slopes, b: Slopes, p: Int[Tensor, "left i"], q: Int[Tensor, "left j"]) -> Float[Tensor, "left i j"]:
    """Of every pair of a pixel of p and one of q: the product of the two sums, or -1 where the pair does not help."""
    sums = [v.gather(1, p)[:, :, None] + v.gather(1, q)[:, None, :] for v in (a, b)]
    helps = (sums[0] > 0) & (sums[1] > 0) & (p[:, :, None] != q[:, None, :])
    return torch.where(helps, sums[0] * sums[1], -1)


def _candidates(a: Slopes, b: Slopes) -> Bool[Tensor, "left d"]:
    """Which pixels at most one other beats: no smaller in a nor in b and, of equals, the earlier.

    In descending order of a (then b, then place) only those before can beat; two do where the second largest b
    before is no smaller. The second largest so far is the largest of those that lost against the largest so far.
    """
    by_b = b.argsort(dim=1, descending=True, stable=True)
    order = by_b.gather(1, a.gather(1, by_b).argsort(dim=1, descending=True, stable=True))
    ranked = b.gather(1, order)
    largest = _before(ranked.cummax(1).values)
    runner_up = _before(torch.minimum(ranked, largest).cummax(1).values)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, ranked > runner_up)


def _before(running: Slopes) -> Slopes:
    """Each place's value is that of the place before it."""
    return torch.cat([torch.full_like(running[:, :1], -torch.inf), running[:, :-1]], 1)


def _listed(flags: Bool[Tensor, "left n"]) -> tuple[Int[Tensor, "left k"], Bool[Tensor, "left k"]]:
    """Where the flags are, padded to the longest list; and what of that is no padding."""
    longest = max(1, int(flags.sum(1).max()))
    real, places = flags.to(torch.uint8).topk(longest, dim=1)
    return places, real.bool()


def _lowest(flags: Bool[Tensor, "left d"]) -> Int[Tensor, "left 1"]:
    places = torch.arange(flags.shape[1], device=flags.device)
    return torch.where(flags, places, flags.shape[1] - 1).amin(1, keepdim=True)
