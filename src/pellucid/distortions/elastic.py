"""Flow: images sampled where a field of displacements points, and the smooth fields of the elastic distortion."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid.types import Images

SMOOTHING = 3.0  # pixels

Flow = Float[Tensor, "b h w 2"]  # down and right, in pixels
Field = Float[Tensor, "b 2 h w"]
Positions = Float[Tensor, "b h w"]


def warp(x: Images, flow: Flow, *, outside: str = "edge", transposed: bool = False) -> Images:
    """`x'(i, j) = x(i + flow_0, j + flow_1)` by bilinear interpolation, flow in pixels; zero flow gives x to the bit.

    `outside="edge"` holds positions to the image; `"zeros"` takes what lies beyond it for black. Pixel centres lie at
    whole numbers, corner to corner, as `grid_sample(align_corners=True)` has them. `transposed` starts from the
    transposed grid, `x(j + flow_0, i + flow_1)`, as Zhang & Zhu's (2019) code does.
    """
    h, w = x.shape[2:]
    i, j = (torch.arange(n, dtype=x.dtype, device=x.device) for n in (h, w))
    down, right = torch.broadcast_tensors(i[:, None], j[None, :])
    if transposed:
        down, right = right, down
    rows, columns = flow[..., 0] + down, flow[..., 1] + right
    if outside == "edge":
        rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    top, left = rows.detach().floor(), columns.detach().floor()
    result = torch.zeros_like(x)
    for row, weight_row in ((top, top + 1 - rows), (top + 1, rows - top)):
        for column, weight_column in ((left, left + 1 - columns), (left + 1, columns - left)):
            inside = outside == "edge" or _inside(row, h) & _inside(column, w)
            result = result + (weight_row * weight_column * inside)[:, None] * _look_up(x, row, column)
    return result


def _inside(positions: Positions, size: int) -> Bool[Tensor, "b h w"]:
    return (positions >= 0) & (positions <= size - 1)


def _look_up(x: Images, row: Positions, column: Positions) -> Images:
    """Pixels at whole positions, those beyond the image taken from its edge."""
    b, c, h, w = x.shape
    at = row.clamp(0, h - 1).long() * w + column.clamp(0, w - 1).long()  # [b h w]
    return x.flatten(2).gather(2, at.reshape(b, 1, h * w).expand(b, c, h * w)).reshape(b, c, h, w)


def smooth(field: Field, *, sigma: float = SMOOTHING) -> Field:
    """Gaussian means, `V(p) = Σ_q g(q - p) W(q)` with g of standard deviation sigma px, cut off at 3 sigma, sum 1.

    Beyond the image W counts as zero; so `max |V| <= max |W|`.
    """
    down, across = (_bells(field, n, sigma) for n in field.shape[2:])
    return down @ field @ across


def _bells(like: Tensor, size: int, sigma: float) -> Float[Tensor, "n n"]:
    """The convolution with a Gaussian as a matrix: on small images far quicker than one over a single channel."""
    at = torch.arange(size, dtype=like.dtype, device=like.device)
    reach = torch.arange(-round(3 * sigma), round(3 * sigma) + 1, dtype=like.dtype, device=like.device)
    apart = at[:, None] - at
    bells = (-(apart**2) / (2 * sigma**2)).exp() / (-(reach**2) / (2 * sigma**2)).exp().sum()
    return bells * (apart.abs() <= round(3 * sigma))


def distort(x: Images, field: Field, *, sigma: float = SMOOTHING) -> Images:
    """The image warped along the smoothed field: no pixel is fetched from further than `max |W|` px away per axis.

    Source: Kang et al. 2019, sec. 2, after Xiao et al. 2018.
    """
    return warp(x, smooth(field, sigma=sigma).permute(0, 2, 3, 1))
