"""Gabor noise: sparse impulses, each the centre of a wave packet."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from pellucid.balls import per_image
from pellucid.types import Generator, Images, PerExample, RowNumbers

# Pixels a side of the kernel; at the smallest sigma its envelope falls to 1e-16 at the corners; as coded it is cut.
SIZE = 23
SIDES = 10
DENSITY = 1 / 14
FAINT = 1e-3  # as coded: nearer to the mean than this share of the largest deviation, noise stays grey

Kernels = Float[Tensor, "b size size"]


class Packets(NamedTuple):
    """What is drawn once per image: the wave packet, and where impulses may stand."""

    spectra: Complex[Tensor, "b fh fw"]  # of the kernels, of sizes that leave room for them around the image
    places: Bool[Tensor, "b 1 h w"]

    def of(self, rows: RowNumbers) -> "Packets":
        return Packets(self.spectra[rows], self.places[rows])


def draw(x: Images, generator: Generator = None, *, coded: bool = False) -> Packets:
    """Per image: sigma ~ U[.1, .4], wavelength ~ U[3, 5.75] px, angle ~ U[0, π], 1 to 10 sides; places at 1 in 14.

    Coded: the envelope's standard deviation ~ U[.101, .401] of the 22 px between the kernel's outermost pixels, ~
    U[3, 5.75] waves in as many; places at the other 13 in 14 (the mask that should keep the impulses drops them).
    """
    u = torch.empty(4, len(x), dtype=x.dtype, device=x.device).uniform_(generator=generator)
    sides = 1 + (SIDES * u[3]).long().clamp_max(SIDES - 1)
    chance = torch.empty_like(x[:, :1]).uniform_(generator=generator)
    # The least of an image's numbers always counts, so that no image is without an impulse.
    places = chance <= chance.flatten(1).amin(1).clamp_min(DENSITY)[:, None, None, None] if len(x) else chance > 1
    sigma, wavelength = 0.1 + 0.3 * u[0], 3 + 2.75 * u[1]
    if coded:
        places, across = ~places, SIZE - 1
        sigma, wavelength = 1 / ((2 * torch.pi) ** 0.5 * across * (sigma + 1e-3)), across / wavelength
    kernels = kernel(sigma, wavelength, torch.pi * u[2], sides)
    return Packets(torch.fft.rfft2(kernels, s=_room(x)), places)


def _room(x: Images) -> tuple[int, int]:
    h, w = (-(-(n + SIZE - 1) // 8) * 8 for n in x.shape[2:])  # multiples of 8: quick to transform
    return h, w


def kernel(
    sigma: PerExample, wavelength: PerExample, angle: PerExample, sides: Int[Tensor, " b"], *, size: int = SIZE
) -> Kernels:
    """`(1/n) Σ_{k<n} exp(-π σ² (u² + v²)) cos(2π/λ (u cos ω_k + v sin ω_k))`, `ω_k = ω + k π/n`, (u, v) in pixels.

    One wave packet turned n times by π/n. Source: Lagae et al. 2009, eq. 2; Co et al. 2019, sec. 3.
    """
    reach = torch.arange(size, dtype=sigma.dtype, device=sigma.device) - (size - 1) / 2
    v, u = torch.meshgrid(reach, reach, indexing="ij")
    turn = torch.arange(SIDES, dtype=sigma.dtype, device=sigma.device)
    angles = angle[:, None] + turn * (torch.pi / sides[:, None].to(sigma.dtype))  # [b sides]
    across = u * angles.cos()[:, :, None, None] + v * angles.sin()[:, :, None, None]
    waves = (2 * torch.pi / per_image(wavelength, across) * across).cos()
    share = (turn < sides[:, None]).to(sigma.dtype) / sides[:, None]
    envelope = (-torch.pi * sigma[:, None, None] ** 2 * (u**2 + v**2)).exp()
    return envelope * (waves * share[:, :, None, None]).sum(1)


def noise(impulses: Float[Tensor, "b 1 h w"], packets: Packets, *, coded: bool = False) -> Float[Tensor, "b 1 h w"]:
    """Impulses at the packets' places, convolved with each image's kernel, stretched to [0, 1] per image.

    Coded: made even before, and the gradient takes the bounds of the stretch for constants.
    """
    h, w = impulses.shape[2:]
    spectra = torch.fft.rfft2((impulses * packets.places)[:, 0], s=_room(impulses)) * packets.spectra
    waves = torch.fft.irfft2(spectra, s=_room(impulses))[:, SIZE // 2 :, SIZE // 2 :][:, None, :h, :w]
    return stretched(evened(waves), held=True) if coded else stretched(waves)


def evened(maps: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """`d / (FAINT + |d| / max |d|)`, `d = m - mean m` per image: all but black and white.

    The code means to divide by the local spread, but transforms back what it transformed: each pixel is divided by its
    own deviation. Its gradient takes mean and divisor for constants.
    """
    held = maps.detach()
    mean = held.mean((2, 3), keepdim=True)
    size = (held - mean).abs()
    return (maps - mean) / (FAINT + size / size.amax((2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny))


def stretched(maps: Float[Tensor, "b 1 h w"], *, held: bool = False) -> Float[Tensor, "b 1 h w"]:
    """`(m - min m) / (max m - min m)` per image; zero where a map is constant. `held`: bounds without gradient."""
    bounds = maps.detach() if held else maps
    low, high = bounds.amin((2, 3), keepdim=True), bounds.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def distort(
    x: Images, impulses: Float[Tensor, "b 1 h w"], packets: Packets, *, eps: float, coded: bool = False
) -> Images:
    """`clip(x + eps · noise(impulses))`, the same noise in every channel: no pixel moves by more than eps.

    Source: Kang et al. 2019, sec. 2.
    """
    return (x + eps * noise(impulses, packets, coded=coded)).clamp(0, 1)
