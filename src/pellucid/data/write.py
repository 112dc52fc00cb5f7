"""A set of images to one Parquet file in the hub's layout, which `load` and every reader of Parquet take."""

import io
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.types import Labels


def as_parquet(
    pixels: Iterable[UInt8[Tensor, "b c h w"]], labels: Labels, class_names: Sequence[str], rows: Sequence[int]
) -> bytes:
    """Columns `image` (PNG, so lossless), `label` with its names, and `row`, the number in the set it was made from."""
    import datasets  # takes 2 s to import

    encoded = [{"bytes": _png(image), "path": None} for part in pixels for image in part]
    names = datasets.ClassLabel(names=list(class_names))
    features = {"image": datasets.Image(), "label": names, "row": datasets.Value("int64")}
    columns = {"image": encoded, "label": labels.tolist(), "row": list(rows)}
    file = io.BytesIO()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)
    return file.getvalue()


def _png(image: UInt8[Tensor, "c h w"]) -> bytes:
    if len(image) not in (1, 3):
        raise PellucidError(f"images of {len(image)} channels cannot be written: 1 or 3 can")
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def bytes_of(x: Tensor) -> tuple[Tensor, int]:
    """Pixels in [0, 1] as 8 bits, to the nearest; and how many had to be cut, being further than half a bit beyond."""
    beyond = (x < -0.5 / 255) | (x > 1 + 0.5 / 255)
    return (255 * x.clamp(0, 1)).round().to(torch.uint8), int(beyond.sum())
