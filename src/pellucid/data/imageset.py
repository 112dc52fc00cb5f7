"""A labelled set of images: one tensor where it fits, decoded on demand where it does not. One interface for both."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.types import Images, Labels

Stored = UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]  # 0..255, or already in [0, 1]
Indices = Tensor | Sequence[int] | np.ndarray


@runtime_checkable
class Pixels(Protocol):
    """Where the pixels of a set come from: `read` gives rows, `take` a smaller source."""

    @property
    def streamed(self) -> bool: ...

    def read(self, rows: Int64[Tensor, " b"]) -> Stored: ...

    def take(self, rows: Int64[Tensor, " b"]) -> "Pixels": ...


@dataclass(frozen=True, eq=False)
class Resident:
    """All pixels in one tensor."""

    tensor: Stored

    @property
    def streamed(self) -> bool:
        return False

    def read(self, rows: Int64[Tensor, " b"]) -> Stored:
        return self.tensor[rows]

    def take(self, rows: Int64[Tensor, " b"]) -> "Resident":
        return Resident(self.tensor[rows])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one shape `(c, h, w)`. `source` says where they were found.

    `digest` is the sha256 of the content (shape, class names, labels, pixels); of a streamed set, of the identity of
    its files and its labels; of a selection, of its parent's digest and the indices.
    """

    name: str
    split: str
    labels: Labels
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    source: str
    digest: str
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        n, classes = len(self), len(self.class_names)
        return f"ImageSet({self.name!r}, {self.split!r}, n={n}, shape={self.shape}, classes={classes})"

    def batch(self, indices: Indices) -> tuple[Images, Labels]:
        """Images, float32 NCHW in [0, 1], and labels at `indices`. Raises `PellucidError` for an index outside."""
        rows = self._rows(indices)
        return as_images(self.pixels.read(rows)), self.labels[rows]

    def select(self, indices: Indices) -> "ImageSet":
        """The set of these rows, in this order."""
        rows = self._rows(indices)
        digest = hashlib.sha256(self.digest.encode() + rows.numpy().tobytes()).hexdigest()
        return dataclasses.replace(self, labels=self.labels[rows], pixels=self.pixels.take(rows), digest=digest)

    def renamed(self, name: str, split: str) -> "ImageSet":
        """The same images under another name."""
        return dataclasses.replace(self, name=name, split=split)

    def _rows(self, indices: Indices) -> Int64[Tensor, " b"]:
        rows = torch.as_tensor(indices).cpu() if len(indices) else torch.zeros(0, dtype=torch.int64)
        if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise PellucidError(f"indices must be a list of integers, got {rows.dtype} of shape {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise PellucidError(
                f"indices must lie in 0..{len(self) - 1}, got {int(rows.min())}..{int(rows.max())}: "
                f"{self.name} {self.split} holds {len(self)} images"
            )
        return rows.to(torch.int64)


def as_images(stored: Stored) -> Images:
    """Stored pixels as float32 in [0, 1]."""
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()


def content_digest(stored: Stored, labels: Labels, class_names: Sequence[str]) -> str:
    """sha256 of shape, class names, labels and pixels: the same images have the same digest wherever they lie."""
    found = hashlib.sha256(repr((tuple(stored.shape), str(stored.dtype), tuple(class_names))).encode())
    found.update(labels.numpy().tobytes())
    found.update(stored.reshape(-1).numpy().data)
    return found.hexdigest()


def resident(
    stored: Stored, labels: Labels, *, name: str, split: str, class_names: Sequence[str], source: str
) -> ImageSet:
    """A set from tensors in memory: uint8, or float in [0, 1]."""
    c, h, w = stored.shape[1:]
    names = tuple(class_names)
    digest = content_digest(stored, labels, names)
    return ImageSet(name, split, labels, names, (c, h, w), source, digest, Resident(stored))


def batches(images: ImageSet, batch_size: int, *, indices: Indices | None = None) -> Iterator[tuple[Images, Labels]]:
    """Batches in the order of `indices` (default: all rows), the last one smaller. A streamed set decodes ahead."""
    if batch_size < 1:
        raise PellucidError(f"batch_size must be at least 1, got {batch_size}")
    order = torch.arange(len(images)) if indices is None else torch.as_tensor(indices)
    chunks = list(order.split(batch_size)) if len(order) else []
    if not images.pixels.streamed:
        yield from map(images.batch, chunks)
        return
    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(images.batch, chunk) for chunk in chunks[:1]]
        for chunk in [*chunks[1:], None]:
            if waiting:
                ready = waiting.pop().result()
                waiting += [ahead.submit(images.batch, chunk)] if chunk is not None else []
                yield ready
