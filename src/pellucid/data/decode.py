"""Encoded images to pixels of one form: grey or RGB, one size."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

GREY = frozenset({"1", "L"})
WIDE = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})  # Pillow would clip these at 255, silently


@dataclass(frozen=True)
class Scale:
    """The shorter side is scaled to `shorter`, and the centre square of `crop <= shorter` pixels is kept."""

    shorter: int
    crop: int


def square(size: int | None) -> Scale | None:
    """The whole of the shorter side, `size` pixels; None, nothing is scaled."""
    return None if size is None else Scale(size, size)


@dataclass(frozen=True)
class Form:
    """What every image of a set becomes, with `resize` after it was scaled and cropped."""

    channels: int
    height: int
    width: int
    resize: Scale | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)


class Misfit(Exception):
    """An image that a form guessed from the first one does not suit."""


def open_image(raw: Mapping[str, Any] | bytes | None) -> Image.Image:
    """An image, its header read, its pixels not yet. A photograph is turned as its camera was held."""
    if isinstance(raw, bytes):
        raw = {"bytes": raw}
    if raw is None or (raw.get("bytes") is None and raw.get("path") is None):
        raise ValueError("no image")
    image = Image.open(io.BytesIO(raw["bytes"]) if raw.get("bytes") is not None else raw["path"])
    if image.mode in WIDE:
        image.close()
        raise ValueError(f"{image.mode}: more than 8 bits per pixel; convert to 8 bits")
    # Other formats would read the whole file for it.
    if image.format in ("JPEG", "MPO") and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


def decode(raw: Mapping[str, Any] | bytes | None, form: Form) -> UInt8[np.ndarray, "c h w"]:
    """The pixels of one image in the given form; transparency is dropped. Raises `Misfit`, or what Pillow raises."""
    with open_image(raw) as image:
        if form.channels == 1 and image.mode not in GREY:
            raise Misfit
        if form.resize is None and image.size != (form.width, form.height):
            raise Misfit
        wanted = image.convert("L" if form.channels == 1 else "RGB")
    if form.resize is not None:
        wanted = shorter_side(wanted, form.resize)
    pixels = np.asarray(wanted, dtype=np.uint8)
    return pixels[None] if form.channels == 1 else np.moveaxis(pixels, 2, 0)


def shorter_side(image: Image.Image, scale: Scale) -> Image.Image:
    """Scale the shorter side (bilinear, antialiased) and crop the centre square."""
    width, height = image.size
    factor = scale.shorter / min(width, height)
    wide, high = max(scale.shorter, round(width * factor)), max(scale.shorter, round(height * factor))
    if (wide, high) != (width, height):
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - scale.crop) // 2, (high - scale.crop) // 2
    return image.crop((left, top, left + scale.crop, top + scale.crop))
