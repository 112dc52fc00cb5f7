"""What is done to training images at random, each image for itself: crop, flip, cutout."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.types import Generator, Images

NAMES = ("crop", "flip", "cutout")


def augment(x: Images, names: Sequence[str], generator: Generator) -> Images:
    """One after the other; the images keep their size."""
    for name in names:
        x = {"crop": crop, "flip": flip, "cutout": cutout}[name](x, generator)
    return x


def check(names: Sequence[str]) -> None:
    """Raise for a name that there is not."""
    for name in names:
        if name not in NAMES:
            raise PellucidError(f"augment (={name!r}) must be one of {', '.join(NAMES)}")


def crop(x: Images, generator: Generator) -> Images:
    """Padded by an eighth of its size with zeros, and a window of the old size at random (He et al. 2016)."""
    _, _, h, w = x.shape
    pads = max(1, h // 8), max(1, w // 8)
    padded = F.pad(x, (pads[1], pads[1], pads[0], pads[0]))
    rows, columns = (_positions(x, 2 * pad + 1, size, generator) for pad, size in zip(pads, (h, w), strict=True))
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip(x: Images, generator: Generator) -> Images:
    """Left and right exchanged, half the time. Not for digits."""
    half = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(half, x.flip(3), x)


def cutout(x: Images, generator: Generator) -> Images:
    """A square of half the image's side set to zero, its centre anywhere (DeVries & Taylor 2017)."""
    _, _, h, w = x.shape
    inside = []
    for size in (h, w):
        centre = torch.randint(0, size, (len(x), 1), generator=generator, device=x.device)
        first, position = centre - size // 4, torch.arange(size, device=x.device)
        inside.append((position >= first) & (position < first + size // 2))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


def _positions(x: Images, places: int, size: int, generator: Generator) -> Tensor:
    """For each image which rows (or columns) of the padded one it keeps: `[b size]`."""
    first = torch.randint(0, places, (len(x), 1), generator=generator, device=x.device)
    return first + torch.arange(size, device=x.device)
