"""Which columns of a table hold the images and the labels, and what the labels are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pellucid.errors import PellucidError
from pellucid.types import Labels

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "fine_label")
MOST_CLASSES = 100_000


def image_column(table: "Dataset", source: str) -> tuple[str, bool]:
    """The name of the image column, and whether it holds encoded images (as against arrays of numbers)."""
    kinds = {name: _kind(feature) for name, feature in table.features.items()}
    candidates = [name for name in IMAGE_NAMES if kinds.get(name)]
    candidates += [name for name, kind in kinds.items() if kind == "image"]
    if candidates and (candidates[0] in IMAGE_NAMES or len(set(candidates)) == 1):
        return candidates[0], kinds[candidates[0]] == "image"
    arrays = [name for name, kind in kinds.items() if kind == "array"]
    if not candidates and len(arrays) == 1:
        return arrays[0], False
    raise PellucidError(
        f"{source}: cannot tell which column holds the images: there are {', '.join(kinds)}. "
        f"Call it {IMAGE_NAMES[0]!r}: encoded images, or arrays of numbers"
    )


def _kind(feature: Any) -> str | None:
    """`image` for encoded images, `array` for nested numbers, None for anything else."""
    import datasets

    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    if isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary"):
        return "image"
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return "array"
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    return "array" if depth in (2, 3) and isinstance(feature, datasets.Value) else None


def read_labels(table: "Dataset", source: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels and class names. Raises `PellucidError` for labels that are missing, out of range, or not integers."""
    import datasets

    named = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    column = next((name for name in LABEL_NAMES if name in table.features), None)
    column = column or (named[0] if len(named) == 1 else None)
    if column is None:
        raise PellucidError(
            f"{source}: no label column: there are {', '.join(table.column_names)}. "
            "It must be called 'label', or be the only ClassLabel"
        )
    feature = table.features[column]
    if not isinstance(feature, datasets.ClassLabel) and not getattr(feature, "dtype", "").startswith(("int", "uint")):
        raise PellucidError(
            f"{source}: the labels in {column!r} are {getattr(feature, 'dtype', feature)}, not integers: "
            f"save the table after dataset.class_encode_column({column!r})"
        )
    values: Any = table.select_columns([column]).with_format("arrow")[:]
    arrow = values[column]
    if arrow.null_count:
        raise PellucidError(f"{source}: {arrow.null_count} of {len(table)} labels are missing in {column!r}")
    labels = torch.from_numpy(arrow.to_numpy().astype(np.int64))
    names: Sequence[str] = feature.names if isinstance(feature, datasets.ClassLabel) else ()
    _check_range(labels, len(names), source)
    return labels, tuple(names) or tuple(str(i) for i in range(int(labels.max()) + 1))


def _check_range(labels: Labels, classes: int, source: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise PellucidError(
            f"{source}: {int((labels < 0).sum())} of {len(labels)} labels are negative (the least is {low}): "
            "the labels of a hub's test split are often withheld; take another split"
        )
    if high >= (classes or MOST_CLASSES):
        limit = f"the {classes} class names" if classes else f"the {MOST_CLASSES:,} classes there may be"
        raise PellucidError(f"{source}: labels go up to {high}, past {limit}: the greatest label is classes - 1")
