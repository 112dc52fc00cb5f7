"""The model contract, checked at the border: what counts as images and as labels."""

import torch
from torch import Tensor

from pellucid.errors import PellucidError

TOLERANCE = 1e-6  # of the pixel range: fp32 rounding


def check_images(x: Tensor) -> None:
    """Raise `PellucidError` unless `x` is float, [b, c, h, w], not empty, finite, and in [0, 1]."""
    if not x.is_floating_point():
        raise PellucidError(f"images must be float in [0, 1], got {x.dtype}: divide 0..255 by 255")
    if x.ndim != 4 or 0 in x.shape:
        raise PellucidError(f"images must have the shape (batch, channels, height, width), got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise PellucidError(f"images must be finite: {int((~torch.isfinite(x)).sum())} of {x.numel()} values are not")
    low, high = float(x.min()), float(x.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise PellucidError(
            f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: normalisation belongs into the network"
        )


def check_labels(y: Tensor, classes: int) -> None:
    """Raise `PellucidError` unless `y` is a vector of integers in 0..classes - 1."""
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise PellucidError(f"labels must be integers, got {y.dtype}")
    if y.ndim != 1:
        raise PellucidError(f"labels must have the shape (batch,), got {tuple(y.shape)}")
    wrong = (y < 0) | (y >= classes)
    if bool(wrong.any()):
        raise PellucidError(
            f"labels must lie in 0..{classes - 1}: {int(wrong.sum())} of {len(y)} do not, such as {int(y[wrong][0])}"
        )
