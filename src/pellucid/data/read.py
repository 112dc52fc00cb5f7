"""From a table of the `datasets` library to a set of images: in memory where it fits, on demand where it does not."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import UnidentifiedImageError
from torch import Tensor

from pellucid.data import arrays
from pellucid.data.columns import image_column, read_labels
from pellucid.data.decode import GREY, Form, Misfit, Scale, decode, open_image
from pellucid.data.groups import regrouped
from pellucid.data.imageset import ImageSet, Resident, Stored, content_digest
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from datasets import Dataset

STREAM_ABOVE = 2 * 2**30  # bytes decoded: larger sets are decoded on demand
BLOCK = 256  # rows decoded at a time
THREADED = 64 * 64  # pixels: below, Python's own work per image leaves threads nothing to share
BYTES_PER_FLOAT = 4

Failure = tuple[int, str]  # a row, and why its image cannot be read


@dataclass(frozen=True, eq=False)
class Rows:
    """The image column of a table: `form` for encoded images, None for arrays of numbers."""

    table: "Dataset"
    column: str
    source: str
    form: Form | None
    resize: Scale | None = None

    def raw(self, rows: list[int]) -> list[Any]:
        """Encoded images, or arrays, as they lie in the table."""
        return list(self.table[rows][self.column])

    def blocks(self) -> Iterator[list[int]]:
        for first in range(0, len(self.table), BLOCK):
            yield list(range(first, min(first + BLOCK, len(self.table))))

    def read(self, rows: list[int]) -> tuple[Stored, list[Failure]]:
        """Pixels of the rows that can be read, and what is wrong with the others."""
        raw = self.raw(rows)
        if self.form is None:
            return arrays.stack(raw, self.source, self.resize), []
        pixels, failures = [], []
        for row, image in zip(rows, raw, strict=True):
            try:
                pixels.append(decode(image, self.form))
            except Misfit:
                raise
            # Pillow's plugins raise almost anything on a damaged file.
            except Exception as error:
                failures.append(_failure(row, image, error))
        stacked = np.stack(pixels) if pixels else np.zeros((0, *self.form.shape), np.uint8)
        return torch.from_numpy(stacked), failures


@dataclass(frozen=True, eq=False)
class Streamed:
    """Pixels decoded on demand from a memory-mapped table."""

    rows: Rows
    chosen: Int64[Tensor, " n"]

    @property
    def streamed(self) -> bool:
        return True

    def read(self, rows: Int64[Tensor, " b"]) -> Stored:
        wanted = self.chosen[rows].tolist()
        pieces = [wanted[i : i + 16] for i in range(0, len(wanted), 16)] or [[]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(self.rows.read, pieces))
        raise_failures([failure for _, failures in found for failure in failures], len(wanted), self.rows.source)
        return torch.cat([pixels for pixels, _ in found])

    def take(self, rows: Int64[Tensor, " b"]) -> "Streamed":
        return Streamed(self.rows, self.chosen[rows])


def read(
    table: "Dataset",
    *,
    name: str,
    split: str,
    source: str,
    identity: object,
    scale: Scale | None = None,
    skip_unreadable: bool = False,
    groups: Mapping[str, tuple[int, ...]] | None = None,
) -> ImageSet:
    """The labelled images of a table. `identity` tells a streamed set's files from others (for its digest). `groups`
    of ImageNet's classes become the classes: images of no group are left out before any is decoded.

    Raises `PellucidError` for an empty table, columns or labels that cannot be used, images that cannot be read
    (unless `skip_unreadable`), images of several sizes (unless `scale`), and `groups` of labels not ImageNet's.
    """
    if len(table) == 0:
        raise PellucidError(f"{source}: the split {split!r} is empty")
    column, encoded = image_column(table, source)
    labels, class_names = read_labels(table, source)
    if groups is not None:
        chosen, labels = regrouped(labels, class_names, groups, source)
        table, class_names = table.select(chosen.tolist()), tuple(groups)
    rows = _rows(table, column, encoded, source, scale)
    if _decoded_bytes(rows) > STREAM_ABOVE:
        return _streamed(rows, labels, class_names, name, split, source, identity)
    try:
        pixels, labels = _resident(rows, labels, skip_unreadable)
    except Misfit:
        rows = Rows(rows.table, column, source, survey(rows, skip_unreadable), scale)
        pixels, labels = _resident(rows, labels, skip_unreadable)
    digest = content_digest(pixels, labels, class_names)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return ImageSet(name, split, labels, class_names, shape, source, digest, Resident(pixels))


def _rows(table: "Dataset", column: str, encoded: bool, source: str, scale: Scale | None) -> Rows:
    """The image column, its form guessed from the first image that can be read."""
    import datasets

    only = table.select_columns([column])
    if not encoded:
        return Rows(only, column, source, None, scale)
    rows = Rows(only.cast_column(column, datasets.Image(decode=False)), column, source, Form(3, 1, 1, scale), scale)
    for image in rows.raw(list(range(min(len(table), 100)))):
        try:
            with open_image(image) as opened:
                return Rows(rows.table, column, source, _form(opened.mode in GREY, opened.size, scale), scale)
        # As above; every unreadable image is counted later.
        except Exception:
            continue
    return rows


def _form(grey: bool, size: tuple[int, int], resize: Scale | None) -> Form:
    width, height = (resize.crop, resize.crop) if resize else size
    return Form(1 if grey else 3, height, width, resize)


def _decoded_bytes(rows: Rows) -> int:
    if rows.form is not None:
        return len(rows.table) * int(np.prod(rows.form.shape))
    first, _ = rows.read([0])
    return len(rows.table) * first[0].numel() * (BYTES_PER_FLOAT if first.is_floating_point() else 1)


def _resident(rows: Rows, labels: Tensor, skip_unreadable: bool) -> tuple[Stored, Tensor]:
    """Every image that can be read, in one tensor that is filled block by block: a set must not need twice its size."""
    large = rows.form is None or rows.form.height * rows.form.width >= THREADED
    failures: list[Failure] = []
    pixels, filled = torch.zeros(0), 0
    with ThreadPoolExecutor(os.cpu_count() if large else 1) as pool:
        for block, failed in pool.map(rows.read, rows.blocks()):
            if filled == 0:
                pixels = block.new_empty((len(labels), *block.shape[1:]))
            _check_shape(block, pixels, rows.source)
            pixels[filled : filled + len(block)] = block
            filled += len(block)
            failures += failed
    if not skip_unreadable or filled == 0:
        raise_failures(failures, len(labels), rows.source)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[[row for row, _ in failures]] = False
    return pixels[:filled], labels[kept]


def _check_shape(block: Tensor, others: Tensor, source: str) -> None:
    if block.shape[1:] != others.shape[1:]:
        raise PellucidError(
            f"{source}: arrays of shapes {tuple(others.shape[1:])} and {tuple(block.shape[1:])}: "
            "give size=N (--size N) to scale and crop"
        )


def survey(rows: Rows, skip_unreadable: bool = False) -> Form:
    """The one form that suits every image, from all headers. Raises `PellucidError` where there is none."""
    headers, failures = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for block, found in pool.map(
            lambda block: (block, [_header(image) for image in rows.raw(block)]), rows.blocks()
        ):
            headers += [header for header in found if not isinstance(header, Exception)]
            failures += [
                _failure(row, None, e) for row, e in zip(block, found, strict=True) if isinstance(e, Exception)
            ]
    if failures and not skip_unreadable:
        raise_failures(failures, len(rows.table), rows.source)
    sizes = Counter(size for _, size in headers)
    if len(sizes) > 1 and rows.resize is None:
        common = ", ".join(f"{n} of {w}x{h}" for (w, h), n in sizes.most_common(4))
        more = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
        raise PellucidError(
            f"{rows.source}: images of {len(sizes)} sizes: {common}{more}. "
            "Give size=N (--size N): the shorter side is scaled to N and the centre cropped"
        )
    return _form(all(mode in GREY for mode, _ in headers), next(iter(sizes)), rows.resize)


def _header(image: Any) -> tuple[str, tuple[int, int]] | Exception:
    try:
        with open_image(image) as opened:
            return opened.mode, opened.size
    # As above.
    except Exception as error:
        return error


def _failure(row: int, image: Any, error: Exception) -> Failure:
    path = image.get("path") if isinstance(image, dict) else None
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return row, f"{path}: {reason}" if path else reason


def raise_failures(failures: list[Failure], n: int, source: str) -> None:
    """Say how many images cannot be read, and which are the first."""
    if failures:
        first = "\n".join(f"  - row {row}: {reason}" for row, reason in failures[:5])
        raise PellucidError(f"{source}: {len(failures)} of {n} images cannot be read: remove or replace them\n{first}")


def _streamed(
    rows: Rows, labels: Tensor, class_names: tuple[str, ...], name: str, split: str, source: str, identity: object
) -> ImageSet:
    if rows.form is not None:
        rows = Rows(rows.table, rows.column, source, survey(rows), rows.resize)
        shape = rows.form.shape if rows.form else (0, 0, 0)
    else:
        first, _ = rows.read([0])
        for block in rows.blocks():  # every value is checked once, here
            _check_shape(rows.read(block)[0], first, source)
        shape = (first.shape[1], first.shape[2], first.shape[3])
    facts = (identity, class_names, shape)
    if rows.resize is not None and rows.resize.crop != rows.resize.shorter:
        facts = (*facts, rows.resize)  # of the same shape as a plain square, and of other pixels
    found = hashlib.sha256(repr(facts).encode() + labels.numpy().tobytes())
    chosen = torch.arange(len(labels))
    return ImageSet(name, split, labels, class_names, shape, source, found.hexdigest(), Streamed(rows, chosen))
