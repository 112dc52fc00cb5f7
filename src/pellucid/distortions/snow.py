"""Snow: layers of flakes, each blown along its own direction, over a whitened picture."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pellucid.balls import Radius, per_image
from pellucid.types import LUMA, Generator, Images, PerExample

LAYERS = 7
CELL = 4  # pixels: one flake per cell and layer
SIZE = 13  # pixels a side of a streak's kernel
MEAN = 0.2  # of the flakes' intensities, at most
VEIL = 0.25
HALVINGS = 40

Streaks = Float[Tensor, "b layers size size"]
Flakes = Float[Tensor, "b layers hf wf"]


def cells(x: Images) -> tuple[int, int]:
    """How many flakes a layer has, down and across."""
    return -(-x.shape[2] // CELL), -(-x.shape[3] // CELL)


def draw(x: Images, generator: Generator = None) -> Streaks:
    """Per image one wind, any direction downwards within 60° of the vertical; per layer a gust, a length, a shift.

    A streak is 1 along a segment of half-length 1 to 5 px and falls off as a Gaussian of 0.6 px across and beyond it.
    """
    u = torch.empty(5, len(x), LAYERS, 1, 1, dtype=x.dtype, device=x.device).uniform_(generator=generator)
    angle = torch.pi / 3 * (2 * u[0, :, :1] - 1) + torch.pi / 12 * (2 * u[1] - 1)
    reach = torch.arange(SIZE, dtype=x.dtype, device=x.device) - SIZE // 2
    down, right = torch.broadcast_tensors(reach[:, None], reach[None, :])
    down, right = down - CELL * (u[2] - 0.5), right - CELL * (u[3] - 0.5)
    along, across = down * angle.cos() + right * angle.sin(), right * angle.cos() - down * angle.sin()
    beyond = (along.abs() - (1 + 4 * u[4])).clamp_min(0)
    return (-(across**2 + beyond**2) / (2 * 0.6**2)).exp()


def fall(flakes: Flakes, streaks: Streaks, height: int, width: int) -> Float[Tensor, "b 1 h w"]:
    """`Σ_layers streak * flakes⁴`, flakes amid their cells: the fourth power keeps the faint ones unseen."""
    b, layers = flakes.shape[:2]
    flat = (flakes**4).reshape(1, b * layers, *flakes.shape[2:])
    kernels = streaks.reshape(b * layers, 1, SIZE, SIZE)
    snow = F.conv_transpose2d(flat, kernels, stride=CELL, groups=b)
    # A kernel's middle lies SIZE // 2 after its flake's corner; a cell's middle CELL // 2.
    start = SIZE // 2 - CELL // 2
    return snow[..., start : start + height, start : start + width].reshape(b, 1, height, width)


def distort(x: Images, flakes: Flakes, streaks: Streaks, *, eps: float, veil: float) -> Images:
    """`clip((1 - veil) x + veil max(x, 1.5 grey(x) + 0.5) + eps · fall(flakes))`: whitened by the veil, and snowed on.

    Source: Kang et al. 2019, sec. 2; the whitening is that of Hendrycks & Dietterich 2019.
    """
    luma = torch.tensor(LUMA, dtype=x.dtype, device=x.device).reshape(1, 3, 1, 1)
    grey = (luma * x).sum(1, keepdim=True) if x.shape[1] == 3 else x.mean(1, keepdim=True)
    white = (1 - veil) * x + veil * torch.maximum(x, 1.5 * grey + 0.5)
    return (white + eps * fall(flakes, streaks, *x.shape[2:])).clamp(0, 1)


@dataclass(frozen=True)
class Flurry:
    """The flakes that may fall on an image: intensities in [0, 1] of mean at most eps. A `Ball` without centre."""

    eps: Radius = MEAN

    def resized(self, eps: Radius) -> "Flurry":
        return Flurry(eps)

    def norm(self, delta: Images) -> PerExample:
        return delta.flatten(1).abs().mean(1)

    def project(self, x: Images, centre: Images) -> Images:
        """Nearest point: `clip(x - θ, 0, 1)` with the least θ >= 0 that keeps the mean, found by bisection."""
        del centre
        eps, flat = per_image(self.eps, x)[:, :, 0, 0], x.flatten(1)
        low = torch.zeros_like(flat[:, :1])
        high = flat.amax(1, keepdim=True).clamp_min(0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            much = (flat - middle).clamp(0, 1).mean(1, keepdim=True) > eps
            low, high = torch.where(much, middle, low), torch.where(much, high, middle)
        fits = flat.clamp(0, 1).mean(1, keepdim=True) <= eps
        return torch.where(fits, flat, flat - high).clamp(0, 1).view_as(x)

    def sample(self, centre: Images, generator: Generator = None) -> Images:
        """`exp(-U / eps)`, U uniform in [0, 1]: of mean eps, nearly, and few of them bright."""
        u = torch.empty_like(centre).uniform_(generator=generator)
        return self.project((-u / per_image(self.eps, centre)).exp(), centre)

    def steepest(self, gradient: Images) -> Images:
        return gradient.sign()
