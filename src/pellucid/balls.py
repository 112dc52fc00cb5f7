"""The three threat balls: how to project onto one, sample from one, and step steepest within one.

The radius `eps` is in pixel units of images in [0, 1]; it is one number or one per image, `[b]`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.types import Generator, Images, PerExample

TOLERANCE = 1e-6  # x + δ in fp32 may miss eps by 2^-24

Radius = float | Float[Tensor, " b"]


def slack(ball: "Ball", x: Images) -> float:
    """By how much rounding may take an image out of its ball: a norm of many pixels adds up many, Linf has one."""
    return TOLERANCE * (1 if isinstance(ball, Linf) else x[0:1].numel() ** 0.5)


def per_image(value: Radius, x: Images) -> Float[Tensor, "#b 1 1 1"]:
    """One number, or one per image, in a shape that broadcasts against images."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)


def radii(ball: "Ball", x: Images) -> PerExample:
    """The ball's radius for each of the images."""
    return per_image(checked(ball, x).eps, x).flatten().expand(len(x))


@runtime_checkable
class Ball(Protocol):
    """The set `{x' : ‖x' - x‖ <= eps}` around each image x."""

    @property
    def eps(self) -> Radius: ...

    def resized(self, eps: Radius) -> "Ball": ...
    def norm(self, delta: Images) -> PerExample: ...
    def project(self, x: Images, centre: Images) -> Images: ...
    def sample(self, centre: Images, generator: Generator = None) -> Images: ...
    def steepest(self, gradient: Images) -> Images: ...


def checked(ball: Ball, x: Images) -> Ball:
    """The ball, if it is one and its radius one number or one per image; `PellucidError` says what else it is."""
    if not isinstance(ball, Ball):
        raise PellucidError(f"ball (={ball!r}) must be a ball: Linf(0.3), L2(2) or L1(10)")
    if isinstance(ball.eps, Tensor) and ball.eps.numel() != 1 and ball.eps.shape != (len(x),):
        raise PellucidError(
            f"the ball has radii of shape {tuple(ball.eps.shape)} for {len(x)} images: one number, or one per image"
        )
    return ball


def _check(eps: Radius) -> None:
    number = isinstance(eps, int | float) and not isinstance(eps, bool)
    if not number and not isinstance(eps, Tensor):
        raise PellucidError(f"eps (={eps!r}) must be a number >= 0, in pixel units of images in [0, 1]")
    smallest = float(eps.min()) if isinstance(eps, Tensor) and eps.numel() else float(eps) if number else 0.0
    if not 0 <= smallest < float("inf"):
        raise PellucidError(f"eps (={smallest:g}) must be a number >= 0, in pixel units of images in [0, 1]")


@dataclass(frozen=True)
class Linf:
    """`max_i |δ_i| <= eps`."""

    eps: Radius

    def __post_init__(self) -> None:
        _check(self.eps)

    def resized(self, eps: Radius) -> "Linf":
        return Linf(eps)

    def norm(self, delta: Images) -> PerExample:
        return delta.flatten(1).abs().amax(1)

    def project(self, x: Images, centre: Images) -> Images:
        eps = per_image(self.eps, x)
        return torch.minimum(torch.maximum(x, centre - eps), centre + eps)

    def sample(self, centre: Images, generator: Generator = None) -> Images:
        """Uniform in the ball."""
        noise = torch.empty_like(centre).uniform_(-1, 1, generator=generator)
        return centre + per_image(self.eps, centre) * noise

    def steepest(self, gradient: Images) -> Images:
        """`argmax_{‖d‖_inf <= 1} <g, d> = sign(g)`."""
        return gradient.sign()


@dataclass(frozen=True)
class L2:
    """`sqrt(sum_i δ_i²) <= eps`."""

    eps: Radius

    def __post_init__(self) -> None:
        _check(self.eps)

    def resized(self, eps: Radius) -> "L2":
        return L2(eps)

    def norm(self, delta: Images) -> PerExample:
        return delta.flatten(1).norm(dim=1)

    def project(self, x: Images, centre: Images) -> Images:
        """`centre + δ · min(1, eps / ‖δ‖)`: a point inside does not move."""
        delta = x - centre
        norm = per_image(self.norm(delta), x)
        eps = per_image(self.eps, x)
        return torch.where(norm > eps, centre + delta * (eps / norm.clamp_min(torch.finfo(x.dtype).tiny)), x)

    def sample(self, centre: Images, generator: Generator = None) -> Images:
        """Uniform in the ball: a Gaussian direction, a radius `eps · u^(1/d)`."""
        direction = self.steepest(torch.empty_like(centre).normal_(generator=generator))
        u = torch.empty(len(centre), dtype=centre.dtype, device=centre.device).uniform_(generator=generator)
        radius = per_image(self.eps, centre) * per_image(u ** (1 / centre.flatten(1).shape[1]), centre)
        return centre + radius * direction

    def steepest(self, gradient: Images) -> Images:
        """`argmax_{‖d‖_2 <= 1} <g, d> = g / ‖g‖_2`; zero where the gradient is zero."""
        # Scaled by the largest entry first, so that the squares of a tiny gradient do not underflow.
        scaled = gradient / per_image(
            gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny), gradient
        )
        return scaled / per_image(self.norm(scaled).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)


@dataclass(frozen=True)
class L1:
    """`sum_i |δ_i| <= eps`."""

    eps: Radius

    def __post_init__(self) -> None:
        _check(self.eps)

    def resized(self, eps: Radius) -> "L1":
        return L1(eps)

    def norm(self, delta: Images) -> PerExample:
        return delta.flatten(1).abs().sum(1)

    def project(self, x: Images, centre: Images) -> Images:
        """Nearest point by soft-thresholding: `sign(δ) · max(|δ| - θ, 0)` (Duchi et al. 2008, fig. 1)."""
        delta = x - centre
        size = delta.flatten(1).abs()
        eps = per_image(self.eps, x).flatten(1)
        descending = size.sort(dim=1, descending=True).values
        counts = torch.arange(1, size.shape[1] + 1, dtype=x.dtype, device=x.device)
        thresholds = (descending.cumsum(1) - eps) / counts  # [b d]
        active = (descending > thresholds).sum(1, keepdim=True).clamp_min(1)
        theta = thresholds.gather(1, active - 1).clamp_min(0)
        shrunk = delta.sign() * (size - theta).clamp_min(0).view_as(delta)
        inside = per_image(size.sum(1), x) <= per_image(self.eps, x)
        return torch.where(inside, x, centre + shrunk)

    def sample(self, centre: Images, generator: Generator = None) -> Images:
        """Uniform in the ball: exponential spacings with random signs, one spacing left over for the interior."""
        d = centre.flatten(1).shape[1]
        u = torch.empty(len(centre), d + 1, dtype=centre.dtype, device=centre.device)
        spacings = -u.uniform_(generator=generator).clamp_min(torch.finfo(u.dtype).tiny).log()
        shares = (spacings / spacings.sum(1, keepdim=True))[:, :d].view_as(centre)
        signs = torch.empty_like(centre).uniform_(-1, 1, generator=generator).sign()
        return centre + per_image(self.eps, centre) * shares * signs

    def steepest(self, gradient: Images) -> Images:
        """`argmax_{‖d‖_1 <= 1} <g, d>`: all of it on the pixel of largest |g|; zero where the gradient is zero."""
        flat = gradient.flatten(1)
        best = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, best, flat.gather(1, best).sign()).view_as(gradient)

    def sparse(self, gradient: Images, *, spread: float = 1.5) -> Images:
        """The gradient's sign on the `max(1, spread · eps)` pixels of largest |g|, shared out equally: `‖d‖_1 <= 1`.

        `steepest` moves one pixel, which the box stops at once: what ascends in practice moves about as many pixels as
        the radius can pay for. Source: Tramer & Boneh 2019, sec. 3 (SLIDE), who move a fixed share of all pixels.
        """
        flat = gradient.flatten(1)
        count = (spread * per_image(self.eps, gradient)).round().flatten(1).clamp(1, max(1, flat.shape[1]))
        rank = flat.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (flat.sign().masked_fill(rank >= count, 0) / count).view_as(gradient)
