"""The Square Attack: random search that asks the model for scores only."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.balls import L1, Ball, Linf, per_image, radii
from pellucid.errors import PellucidError
from pellucid.metrics import margin
from pellucid.network import frozen
from pellucid.search import check_counts, select
from pellucid.types import Generator, Images, Labels, Notes, RowNumbers

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries of 10,000 after which the area is halved
SMALLEST_BUMP = 3  # pixels along the side of an L1 or L2 window
TILES = 5  # along each side of the L1 or L2 start

Window = Float[Tensor, "b c side side"]
Corners = Int[Tensor, " b"]
Draw = Callable[..., Tensor]  # of the sizes per image: uniform numbers for the images that are left


def square(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    queries: int = 5000,
    area: float = 0.8,
    start: Images | None = None,
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Square Attack: keep a random change of one square window whenever it lowers the margin `f_y - max_{j≠y} f_j`.

    In the Linf ball the start is vertical stripes of `±eps`, and a window becomes `±eps` per channel: each query tries
    a corner of the ball, cut by the box. In L2 a window gets a bump of two opposite lobes, with the norm that is
    unused or taken from a second window. A window covers at first the share `area` of the image, halved nine times.

    Needs no gradient, so neither saturated logits nor a quantised input stop it. An image that falls leaves at once,
    and one already misclassified comes back unchanged. `queries` is per image, the start included;
    `notes["queries"]` says how many each image took. `start` are images to begin at instead, such as the best of
    another attack: where gradients lead part of the way, that finds what neither finds alone.

    Source: Andriushchenko et al. 2020, algorithms 1 to 3. Deviations: windows are drawn per image, not per batch, and a
    draw that would change nothing is mirrored instead of asked. L1 works as L2 does, with the L1 norm (our choice).
    Raises `PellucidError` unless `queries >= 1`, `0 < area <= 1`, and `start` has the shape of x.
    """
    check_counts(queries=queries)
    if not 0 < area <= 1:
        raise PellucidError(
            f"area (={area}), the first window's share of the image, must be in (0, 1]: leave it at 0.8"
        )
    with frozen(model, x, y), torch.no_grad():
        _check_start(start, x)
        x, eps = x.detach(), radii(ball, x)
        found, count = x.clone(), torch.zeros_like(y)
        rows = (margin(model(x), y) >= 0).nonzero()[:, 0]
        at, here = x[rows], ball.resized(eps[rows])
        best, score = at, torch.full(rows.shape, torch.inf, dtype=x.dtype, device=x.device)
        for query in range(queries):
            if not len(rows):
                break
            if query == 0 and start is not None:
                tried = here.project(start.detach()[rows], at).clamp(0, 1)
            else:
                share = area * 0.5 ** sum(query * 10_000 / queries > limit for limit in HALVINGS)
                draw = partial(_uniform, x, rows, generator)
                tried = _propose(at, best, here, share, query == 0, draw)
            value = margin(model(tried), y[rows])
            better = value < score
            best, score = select(better, tried, best), torch.where(better, value, score)
            stay = score >= 0
            if query == queries - 1 or not bool(stay.all()):
                found[rows], count[rows] = best, query + 1
                rows, best, score = rows[stay], best[stay], score[stay]
                at, here = x[rows], ball.resized(eps[rows])
    if notes is not None:
        notes["queries"] = count
    return found


def _check_start(start: object, x: Images) -> None:
    """A specification can only give what is not a batch of images."""
    if start is not None and (not isinstance(start, Tensor) or start.shape != x.shape):
        given = f"a tensor {tuple(start.shape)}" if isinstance(start, Tensor) else repr(start)
        raise PellucidError(
            f"square(start={given}) must be images to begin at, a tensor {tuple(x.shape)} as x is: leave start out, or "
            "call square from Python with such images"
        )


def _propose(x: Images, best: Images, ball: Ball, share: float, first: bool, draw: Draw) -> Images:
    """One candidate per image."""
    if isinstance(ball, Linf):
        return _stripes(x, ball, draw) if first else _corner(x, best, ball, share, draw)
    delta = _tiles(x, draw) if first else _bump(best - x, ball, share, draw)
    unit = delta / per_image(ball.norm(delta), x).clamp_min(torch.finfo(x.dtype).tiny)
    return ball.project(x + unit * per_image(ball.eps, x), x).clamp(0, 1)


def _uniform(x: Images, rows: RowNumbers, generator: Generator, *sizes: int) -> Tensor:
    """Drawn for the whole batch, so that who has fallen changes no one else's windows: microseconds."""
    return torch.empty((len(x), *sizes), device=x.device).uniform_(generator=generator)[rows]


def _ends(x: Images, ball: Ball, positive: Bool[Tensor, "b c #h #w"]) -> Images:
    """`x ± eps`, cut by the box."""
    return (x + torch.where(positive, 1, -1) * per_image(ball.eps, x)).clamp(0, 1)


def _stripes(x: Images, ball: Ball, draw: Draw) -> Images:
    return _ends(x, ball, draw(x.shape[1], 1, x.shape[3]) < 0.5)


def _corner(x: Images, best: Images, ball: Ball, share: float, draw: Draw) -> Images:
    """A window of `±eps`, never the one that is there."""
    _, c, h, w = x.shape
    side = min(max(round(math.sqrt(share * h * w)), 1), h, w)
    draws = draw(2 + c)
    top, left = (_corners(draws[:, axis], (h, w)[axis] - side) for axis in (0, 1))
    rows, columns = (torch.arange(size, device=x.device) for size in (h, w))
    inside = ((rows >= top[:, None]) & (rows < top[:, None] + side))[:, None, :, None]
    inside = inside & ((columns >= left[:, None]) & (columns < left[:, None] + side))[:, None, None, :]
    positive = draws[:, 2:, None, None] < 0.5
    tried = torch.where(inside, _ends(x, ball, positive), best)
    changed = (tried != best).flatten(1).any(1)[:, None, None, None]
    if bool(changed.all()):
        return tried
    return torch.where(inside, _ends(x, ball, positive == changed), best)


def _corners(u: Float[Tensor, " b"], last: int) -> Corners:
    """0 to `last`, from uniform numbers in [0, 1)."""
    return (u * (last + 1)).long().clamp_max(last)


def _tiles(x: Images, draw: Draw) -> Images:
    """Bumps of random sign, tile by tile: where the search in an L1 or L2 ball begins."""
    _, c, h, w = x.shape
    tall, wide = max(1, h // TILES), max(1, w // TILES)
    signs = _signs(draw(c, h // tall, w // wide))
    tiles = torch.kron(signs.to(x), _rings(tall, wide, x))
    bottom, right = h - tiles.shape[2], w - tiles.shape[3]
    return nn.functional.pad(tiles, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


def _bump(delta: Images, ball: Ball, share: float, draw: Draw) -> Images:
    """Algorithm 3: window two gives its norm to window one, which gets a bump besides what it held."""
    _, c, h, w = delta.shape
    side = max(round(math.sqrt(share * h * w)), SMALLEST_BUMP)
    side = min(side + 1 - side % 2, h, w)
    draws = draw(5 + c)
    one, two = (_window(_corners(draws[:, i], h - side), _corners(draws[:, i + 1], w - side), c, side) for i in (0, 2))
    power = 1 if isinstance(ball, L1) else 2
    unused = (per_image(ball.eps, delta) ** power - per_image(ball.norm(delta), delta) ** power).clamp_min(0)
    held = delta[one]
    left = delta.clone()
    left[one] = 0
    available = _mass(held, power) + _mass(left[two], power) + unused / c
    left[two] = 0
    lobes = _lobes(side, delta)
    lobes = torch.where(draws[:, 4, None, None, None] < 0.5, lobes, lobes.t()) * _signs(draws[:, 5:, None, None])
    tiny = torch.finfo(delta.dtype).tiny
    fresh = lobes / _mass(lobes, power) ** (1 / power) + held / (_mass(held, power) ** (1 / power)).clamp_min(tiny)
    left[one] = fresh * (available / _mass(fresh, power).clamp_min(tiny)) ** (1 / power)
    return left


def _window(top: Corners, left: Corners, channels: int, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What indexes a window of each image: `[b c side side]`."""
    along = torch.arange(side, device=top.device)
    image = torch.arange(len(top), device=top.device)[:, None, None, None]
    channel = torch.arange(channels, device=top.device)[None, :, None, None]
    return image, channel, (top[:, None] + along)[:, None, :, None], (left[:, None] + along)[:, None, None, :]


def _mass(window: Window, power: int) -> Float[Tensor, "b c 1 1"]:
    """`‖·‖_p^p` per channel."""
    return (window.abs() ** power).sum((2, 3), keepdim=True)


def _signs(u: Tensor) -> Tensor:
    return 1 - 2 * (u < 0.5).int()


def _lobes(side: int, like: Tensor) -> Float[Tensor, "side side"]:
    """Two opposite bumps side by side: the paper's η."""
    half = max(1, side // 2)
    return torch.cat([_rings(half, side, like), -_rings(side - half, side, like)])[:side]


def _rings(tall: int, wide: int, like: Tensor) -> Float[Tensor, "tall wide"]:
    """`η_{r,s} = Σ_{k=m}^{n} 1/(k + 1)²`, m the Chebyshev distance from the centre: the paper's eq. 2."""
    rows, columns = ((torch.arange(size, device=like.device) - size // 2).abs() for size in (tall, wide))
    distance = torch.maximum(rows[:, None], columns[None, :])
    falling = (1 / torch.arange(1, int(distance.max()) + 2, device=like.device, dtype=like.dtype) ** 2).flip(0)
    return falling.cumsum(0).flip(0)[distance]
