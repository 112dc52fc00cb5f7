"""Columns that hold arrays of numbers in place of encoded images: integers in 0..255, or floats in [0, 1]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from pellucid.data.decode import Scale
from pellucid.data.imageset import Stored
from pellucid.errors import PellucidError


def stack(values: Sequence[Any], source: str, resize: Scale | None = None) -> Stored:
    """Arrays [h, w], [h, w, c] or [c, h, w], c = 1 or 3, as one tensor. Raises `PellucidError` for any other."""
    arrays = [_numbers(value, source) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 and resize is None:
        raise PellucidError(
            f"{source}: arrays of {len(shapes)} shapes, such as {sorted(shapes)[:3]}: give size=N (--size N)"
        )
    if resize is None:
        return _channels_first(torch.from_numpy(np.stack(arrays)), source)
    return torch.cat([resized(_channels_first(torch.from_numpy(a)[None], source), resize) for a in arrays])


def _numbers(value: Any, source: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        raise PellucidError(f"{source}: an image is a ragged array: every row must be as long") from None
    if array.dtype.kind not in "biuf":
        raise PellucidError(f"{source}: an image is an array of {array.dtype}, not of numbers, or has missing values")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    most = 1 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):
        what = "floats must lie in [0, 1]" if most == 1 else "integers must lie in 0..255"
        raise PellucidError(f"{source}: {what}, got [{low:.4g}, {high:.4g}]: rescale them before saving")
    return array.astype(np.float32 if most == 1 else np.uint8)


def _channels_first(arrays: Tensor, source: str) -> Stored:
    shape = tuple(arrays.shape[1:])
    if len(shape) == 2:
        return arrays[:, None]
    first, last = shape[0] in (1, 3), shape[-1] in (1, 3)
    if len(shape) != 3 or first == last:
        raise PellucidError(
            f"{source}: arrays of shape {shape}: give (height, width), (height, width, c) or (c, height, width), "
            "with c 1 or 3"
        )
    return arrays if first else arrays.permute(0, 3, 1, 2).contiguous()


def resized(images: Stored, scale: Scale) -> UInt8[Tensor, "b c s s"] | Float[Tensor, "b c s s"]:
    """Bilinear with antialiasing to the shorter side, centre crop; integers are rounded.

    Floats are cut to [0, 1]: rounded weights may add up to a little more than 1.
    """
    height, width = images.shape[2:]
    size, factor = scale.crop, scale.shorter / min(height, width)
    high, wide = max(scale.shorter, round(height * factor)), max(scale.shorter, round(width * factor))
    large = functional.interpolate(images.float(), (high, wide), mode="bilinear", antialias=True)
    top, left = (high - size) // 2, (wide - size) // 2
    crop = large[:, :, top : top + size, left : left + size]
    return crop.clamp(0, 1) if images.is_floating_point() else crop.round().clamp(0, 255).to(torch.uint8)
