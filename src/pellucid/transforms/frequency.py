"""Images without some of their frequencies.

Frequencies are in cycles per image, down and across: of n pixels from -n/2 to n/2. Filters are linear, so what they
return may leave [0, 1]; `clip` cuts it. Images in half precision are filtered in single, and come back in half.
"""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from pellucid.draws import Draws, uniform
from pellucid.errors import PellucidError
from pellucid.inputs import check_images, check_reading
from pellucid.types import Images, Reading


def low_pass(
    x: Images, *, radius: float = 8.0, clip: bool = False, reading: Reading = "as_written", generator: Draws = None
) -> Images:
    """`F⁻¹(1[|k| <= radius] F(x))`: the modes within a radius of zero frequency, k in cycles per image.

    As coded by Zhang & Zhu the spectrum is not shifted and distances, in indices, are measured from the middle one,
    (h/2 - 1, w/2 - 1), about Nyquist's: kept are those *beyond* the radius (at 224 pixels they had 130).
    Source: Zhang & Zhu 2019, app. C, after Jo & Bengio 2017. Raises `PellucidError` for a radius below 0 or beyond the
    highest frequency, where the filter would do nothing, and for a reading that there is not.
    """
    del generator
    return _filtered(x, _disc("low_pass", x, radius, reading, beyond=reading == "as_coded"), clip)


def high_pass(
    x: Images,
    *,
    radius: float = 8.0,
    keep_mean: bool = False,
    clip: bool = False,
    reading: Reading = "as_written",
    generator: Draws = None,
) -> Images:
    """`F⁻¹(1[|k| > radius] F(x))`, what `low_pass` takes: their sum is the image. The mean goes with the low ones.

    So half of the pixels are negative, and black where they are cut; with `keep_mean` each channel keeps its mean.

    As coded (see `low_pass`) kept are the modes within the radius of the middle index, but for those at the radius
    itself, which both leave out.
    Source: Zhang & Zhu 2019, app. C. Raises as `low_pass`.
    """
    del generator
    disc = _disc("high_pass", x, radius, reading, beyond=reading == "as_written")
    if keep_mean:
        disc = disc.clone()
        disc[0, 0] = True
    return _filtered(x, disc, clip)


def random_fourier(
    x: Images, *, p: float = 0.1, clip: bool = False, reading: Reading = "as_written", generator: Draws = None
) -> Images:
    """Every mode of every channel zero with probability p, drawn for each image; a mode and its conjugate together.

    As coded conjugates are drawn apart and the real part is taken, which halves a mode of which one is left.
    Source: Zhang & Zhu 2019, app. C (p not given; 0.1 in their code). Raises `PellucidError` unless 0 <= p <= 1, and
    for a reading that there is not.
    """
    check_reading("random_fourier", reading)
    if not 0 <= p <= 1:
        raise PellucidError(f"random_fourier(p={p!r}) is a probability: from 0, which changes nothing, to 1")
    check_images(x, math.inf)  # another filter's image leaves the box
    if p == 0:
        return x
    b, c, h, w = x.shape
    drawn = uniform(generator, x, c, h, w)
    if reading == "as_written":
        rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        own = rows[:, None] * w + columns
        conjugate = (-rows % h)[:, None] * w + (-columns % w)
        drawn = drawn.flatten(2)[:, :, torch.minimum(own, conjugate).flatten()].view(b, c, h, w)
    return _filtered(x, drawn >= p, clip)


def _disc(name: str, x: Images, radius: float, reading: Reading, *, beyond: bool) -> Bool[Tensor, "h w"]:
    """The modes within a radius, or those beyond it. Checks reading, images and radius."""
    check_reading(name, reading)
    check_images(x, math.inf)  # another filter's image leaves the box
    h, w = x.shape[2:]
    if reading == "as_coded":
        rows, columns = (torch.arange(n, device=x.device, dtype=torch.float64) - (n // 2 - 1) for n in (h, w))
    else:
        rows, columns = (torch.fft.fftfreq(n, 1 / n, device=x.device, dtype=torch.float64) for n in (h, w))
    distance = torch.hypot(rows[:, None], columns[None, :])
    highest = float(distance.max())
    if not 0 <= radius <= highest + 1e-9:
        where = "cycles per image" if reading == "as_written" else "indices"
        raise PellucidError(
            f"{name}(radius={radius!r}) must be from 0 to {math.floor(highest * 100) / 100:g} {where}, the highest of "
            f"images of {h} x {w}"
        )
    if reading == "as_coded":
        return distance > radius if beyond else distance < radius
    return distance > radius if beyond else distance <= radius


def _filtered(x: Images, kept: Bool[Tensor, "..."], clip: bool) -> Images:
    if not len(x):
        return x
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # there is no Fourier transform of halves
    found = torch.fft.ifft2(torch.fft.fft2(wide) * kept).real.to(x.dtype)
    return found.clamp(0, 1) if clip else found
