"""The box of pixels, [0, 1]: nearest points within it, on a hyperplane or in an L1 ball, and where it stops a step."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid.types import Images

Rows = Float[Tensor, "n d"]  # one per image
PerRow = Float[Tensor, " n"]

NEWTON = 100  # steps at most; a handful is usual
HALVINGS = 60  # of the threshold's interval: past the last digit of float64


def blocked(x: Images, direction: Images) -> Bool[Tensor, "b c h w"]:
    """Where a pixel stands at the end of the box that the direction points out of, and so cannot follow it."""
    return ((x <= 0) & (direction < 0)) | ((x >= 1) & (direction > 0))


def onto_hyperplane(x: Rows, w: Rows, value: PerRow, *, p: float) -> Rows:
    """`argmin_δ ‖δ‖_p` subject to `<w, δ> = value` and `x + δ in [0, 1]`, for p in {1, 2, inf}.

    Where the box does not reach the hyperplane, the δ in the box that comes nearest to it: every pixel with a
    weight at its bound. Source: Croce & Hein 2020 (FAB), sec. 2.2 and appendix A.
    """
    size = w.abs()
    room = torch.where(w * value.sign()[:, None] > 0, 1 - x, x) * (size > 0)
    wanted = value.abs()
    length = _fill(size, room, wanted) if p == 1 else _rise(size, room, wanted, torch.ones_like(w) if p > 2 else size)
    return length * w.sign() * value.sign()[:, None]


def _rise(size: Rows, room: Rows, wanted: PerRow, rate: Rows) -> Rows:
    """`min(λ · rate, room)` for the λ at which it gains what is wanted, in the Linf (rate 1) and L2 (rate |w|) norms.

    The gain is concave and piecewise linear in λ, so Newton's method from 0 stays to the left of the answer and ends at
    it after finitely many steps.
    """
    level, length, weight = torch.zeros_like(wanted), torch.zeros_like(room), size * rate
    for _ in range(NEWTON):
        slope = torch.where(length < room, weight, 0).sum(1)
        lacks = wanted - (size * length).sum(1)
        step = torch.where((slope > 0) & (lacks > 0), lacks / slope, 0)
        risen = level + step
        if bool((risen <= level).all()):
            break
        level = risen
        length = torch.minimum(level[:, None] * rate, room)
    # A hyperplane out of reach: what is left of the slope is rounding.
    return torch.where(((size * room).sum(1) <= wanted)[:, None], room, length)


def _fill(size: Rows, room: Rows, wanted: PerRow) -> Rows:
    """The heaviest pixels first, each as far as it goes: the L1 norm."""
    order = size.argsort(dim=1, descending=True)
    gain = (size * room).gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((wanted[:, None] - before) / gain.clamp_min(torch.finfo(gain.dtype).tiny)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share) * room


def into_l1_ball(x: Rows, target: Rows, eps: Float[Tensor, "#n"]) -> Rows:
    """The point of `{x' in [0, 1] : ‖x' - x‖_1 <= eps}` nearest to `target` in the Euclidean norm.

    `δ = sign(u) · clip(|u| - θ, 0, room)` with `u = target - x` and the smallest θ >= 0 that fits.
    Source: Croce & Hein 2021, sec. 3.

    There are two L1 projections because there are two published kinds of search. PGD, Square and FMN project on the
    ball (`balls.L1.project`) and then clip, as they are published: that ends in both sets too, but short of the ball's
    surface wherever the box cuts. APGD's L1 steps are published with this one, which ends on the surface.
    """
    u = target - x
    size, room = u.abs(), torch.where(u > 0, 1 - x, x)
    low = torch.zeros_like(size[:, 0])
    high = size.amax(1)
    fits = torch.minimum(size, room).sum(1) <= eps
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        over = torch.minimum((size - middle[:, None]).clamp_min(0), room).sum(1) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    theta = torch.where(fits, 0, high)[:, None]
    return (x + u.sign() * torch.minimum((size - theta).clamp_min(0), room)).clamp(0, 1)
