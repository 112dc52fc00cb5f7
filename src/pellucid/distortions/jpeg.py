"""JPEG: the baseline codec without its entropy coding, differentiable in the quantised coefficients."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pellucid.types import LUMA, Images

# ITU-T T.81 (1992), tables K.1 and K.2: what libjpeg calls quality 50.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)
# JFIF 1.02: luma, and the two colour differences, of RGB.
YCBCR = (LUMA, (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))

Rounding = Literal["none", "soft", "straight_through"]
Coefficients = Float[Tensor, "b d"]  # of all 8x8 blocks, in quantisation steps; luminance first
Plane = Float[Tensor, "b ph pw"]


def dct(plane: Plane) -> Plane:
    """The orthonormal DCT-II of each 8x8 block, in place of the block."""
    return _blockwise(plane, _cosines(plane))


def inverse_dct(plane: Plane) -> Plane:
    """The inverse of `dct`."""
    return _blockwise(plane, _cosines(plane).T)


def encode(x: Images, *, quality: int = 50, subsample: bool = True, rounding: Rounding = "none") -> Coefficients:
    """`DCT(255 x - 128) / Q`: the coefficients of every block in quantisation steps, rounded if asked.

    Images of three channels go through YCbCr, its colour differences halved in both directions by means of 2x2
    (4:2:0), unless `subsample` is off; grey ones have luminance only. Sizes that fill no whole block are padded by
    their edge pixels, as JPEG does.
    """
    planes = _planes(255 * x, subsample)
    steps = _tables(x, quality)
    found = [
        dct(plane) / table.repeat(plane.shape[1] // 8, plane.shape[2] // 8)
        for plane, table in zip(planes, steps, strict=False)
    ]
    return rounded(torch.cat([plane.flatten(1) for plane in found], 1), rounding)


def decode(
    coefficients: Coefficients,
    channels: int,
    height: int,
    width: int,
    *,
    quality: int = 50,
    subsample: bool = True,
) -> Images:
    """`clip((IDCT(Q z) + 128) / 255)`: the images of coefficients in [0, 1], halved colour differences repeated 2x2."""
    shapes = _shapes(channels, height, width, subsample)
    planes = coefficients.split([h * w for h, w in shapes], 1)
    found = []
    for flat, table, (h, w) in zip(planes, _tables(coefficients, quality), shapes, strict=False):
        plane = inverse_dct(flat.reshape(-1, h, w) * table.repeat(h // 8, w // 8))
        grown = shapes[0][0] // h
        found.append(plane.repeat_interleave(grown, 1).repeat_interleave(grown, 2) if grown > 1 else plane)
    colours = torch.stack(found, 1)
    if channels == 3:
        colours = torch.einsum("rk,bkhw->brhw", _matrix(colours).inverse(), colours)
    return ((colours + 128) / 255)[..., :height, :width].clamp(0, 1)


def rounded(values: Coefficients, rounding: Rounding) -> Coefficients:
    """To whole steps: by `[v] + (v - [v])³` (soft; Shin & Song 2017), or exactly, with the gradient of no rounding."""
    if rounding == "none":
        return values
    whole = values.detach().round()
    return whole + (values - whole) ** 3 if rounding == "soft" else values + (whole - values.detach())


def _planes(x: Images, subsample: bool) -> list[Plane]:
    block = 16 if subsample and x.shape[1] == 3 else 8
    padded = F.pad(x, (0, -x.shape[3] % block, 0, -x.shape[2] % block), mode="replicate")
    if x.shape[1] == 1:
        return [padded[:, 0] - 128]
    # Cb and Cr are centred on 128 in the file, and 128 is taken off all three.
    y, *differences = torch.einsum("kr,brhw->kbhw", _matrix(x), padded)
    return [y - 128, *(F.avg_pool2d(d, 2) if subsample else d for d in differences)]


def _shapes(channels: int, height: int, width: int, subsample: bool) -> list[tuple[int, int]]:
    block = 16 if subsample and channels == 3 else 8
    h, w = height + -height % block, width + -width % block
    return [(h, w)] if channels == 1 else [(h, w)] + 2 * [(h // 2, w // 2) if subsample else (h, w)]


def _matrix(like: Tensor) -> Float[Tensor, "3 3"]:
    return torch.tensor(YCBCR, dtype=like.dtype, device=like.device)


def _tables(like: Tensor, quality: int) -> list[Float[Tensor, "8 8"]]:
    """The tables scaled as libjpeg scales them, whole numbers from 1 to 255."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (
        ((torch.tensor(t, device=like.device) * percent + 50) // 100).clamp(1, 255).to(like.dtype)
        for t in (LUMINANCE, CHROMINANCE)
    )
    return [luma, chroma, chroma]


def _cosines(like: Tensor) -> Float[Tensor, "8 8"]:
    k = torch.arange(8, dtype=torch.float64)
    cosines = (torch.pi / 8 * k[:, None] * (k + 0.5)).cos() / 2
    cosines[0] /= 2**0.5
    return cosines.to(like.device, like.dtype)


def _blockwise(plane: Plane, matrix: Float[Tensor, "8 8"]) -> Plane:
    b, h, w = plane.shape
    blocks = plane.reshape(b, h // 8, 8, w // 8, 8)
    return torch.einsum("uI,bhIwJ,vJ->bhuwv", matrix, blocks, matrix).reshape(b, h, w)
