"""Arrays -> pictures: photographs, magnified perturbations and signed maps, as data URIs or as one PNG sheet."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from pellucid.report.words import shorten

_PIXELATED_SIDE = 64  # up to here a pixel is worth seeing; beyond, images are reduced and smooth
_LARGEST_SIDE = 128
_MAP_SIDE = 56
_STOPS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
# ColorBrewer's RdBu, which readers with any common colour deficiency can tell apart.
_BLUE_WHITE_RED = np.array([(33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43)], float)


def photograph(image: Float[np.ndarray, "c h w"]) -> str:
    """Pixels in [0, 1] as a data URI; one channel is grey, three are RGB, any other count is averaged to grey."""
    return _data_uri(photograph_pixels(image))


def perturbation(
    image: Float[np.ndarray, "c h w"], changed: Float[np.ndarray, "c h w"], *, eps: float
) -> tuple[str, float]:
    """0.5 + k (changed - image) and the factor k: mid-grey is no change, black and white the largest change allowed.

    k is 0.5 / eps, or smaller where the change exceeds eps (a ball that does not bound single pixels).
    """
    largest = max(float(np.abs(np.nan_to_num(changed - image)).max(initial=0.0)), eps, 1e-6)
    return _data_uri(perturbation_pixels(image, changed, largest)), 0.5 / largest


def signed_map(field: Float[np.ndarray, "h w"], *, scale: float) -> str:
    """A signed map in blue (-scale), white (0) and red (+scale); what is not finite is white.

    Of a map too fine to show, each block of pixels gives its strongest: a mean would cancel the signs to nothing.
    """
    return _data_uri(signed_pixels(field, scale))


def sheet(
    photographs: Float[np.ndarray, "b c h w"], maps: Float[np.ndarray, "b mh mw"], captions: Sequence[str]
) -> bytes:
    """A PNG of pairs, image and map on its own scale, four to a line with their captions."""
    side, gap, line = 112, 8, 20
    columns = min(4, len(photographs))
    width, height = 2 * side + 2 * gap, side + line + gap
    page = Image.new("RGB", (columns * width + gap, -(-len(photographs) // columns) * height + gap), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for i, (photo, field, caption) in enumerate(zip(photographs, maps, captions, strict=True)):
        left, top = gap + i % columns * width, gap + i // columns * height
        for k, pixels in enumerate((photograph_pixels(photo), signed_pixels(field, common_scale(field)))):
            page.paste(framed(pixels, side), (left + k * (side + 2), top))
        draw.text((left, top + side + 3), shorten(drawable(caption), 36), fill="black", font=font)
    memory = io.BytesIO()
    page.save(memory, "png", optimize=True)
    return memory.getvalue()


def framed(pixels: UInt8[np.ndarray, "h w *rgb"], side: int) -> Image.Image:
    """A picture with its longer side of `side`, amid a white square: small ones in squares of pixels."""
    picture = Image.fromarray(pixels).convert("RGB")
    enlarge = Image.Resampling.NEAREST if max(picture.size) <= side else Image.Resampling.LANCZOS
    wide, high = (max(1, round(n * side / max(picture.size))) for n in picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture.resize((wide, high), enlarge), ((side - wide) // 2, (side - high) // 2))
    return square


def common_scale(*fields: np.ndarray | None) -> float:
    """The largest magnitude among the maps given, 0 without any: one scale makes before and after comparable."""
    return max((float(np.abs(np.nan_to_num(f)).max(initial=0.0)) for f in fields if f is not None), default=0.0)


def is_pixelated(array: np.ndarray) -> bool:
    """Whether the picture of `array` [..., h, w] is small enough to show its pixels as squares."""
    return max(array.shape[-2:]) <= _PIXELATED_SIDE


def perturbation_pixels(
    image: Float[np.ndarray, "c h w"], changed: Float[np.ndarray, "c h w"], largest: float
) -> UInt8[np.ndarray, "h w *rgb"]:
    """A perturbation as a picture: mid-grey is no change, black and white a change by `largest`."""
    delta = np.nan_to_num(np.asarray(changed, float) - np.asarray(image, float))
    return photograph_pixels(0.5 + 0.5 / max(largest, 1e-6) * delta)


def photograph_pixels(image: Float[np.ndarray, "c h w"]) -> UInt8[np.ndarray, "h w *rgb"]:
    """Pixels in [0, 1] as bytes: one channel grey, three RGB, any other count averaged to grey."""
    pixels = np.rint(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    if pixels.shape[0] == 3:
        return np.moveaxis(pixels, 0, -1)
    return pixels[0] if pixels.shape[0] == 1 else np.rint(pixels.mean(0)).astype(np.uint8)


def signed_pixels(field: Float[np.ndarray, "h w"], scale: float) -> UInt8[np.ndarray, "mh mw 3"]:
    """A signed map as a picture, see `signed_map`."""
    level = np.clip(_strongest(np.nan_to_num(np.asarray(field, float))) / (scale or 1.0), -1, 1)
    return np.rint(np.stack([np.interp(level, _STOPS, tone) for tone in _BLUE_WHITE_RED.T], -1)).astype(np.uint8)


def drawable(text: str) -> str:
    """`text` without what the built-in font or a single line has no place for."""
    return "".join(c if c.isprintable() else " " for c in text)


def _strongest(field: Float[np.ndarray, "h w"]) -> np.ndarray:
    block = -(-max(field.shape) // _MAP_SIDE) if max(field.shape) > _PIXELATED_SIDE else 1
    if block <= 1:
        return field
    h, w = (-(-side // block) for side in field.shape)
    padded = np.zeros((h * block, w * block))
    padded[: field.shape[0], : field.shape[1]] = field
    blocks = padded.reshape(h, block, w, block).swapaxes(1, 2).reshape(h, w, -1)
    return np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]


def _data_uri(pixels: UInt8[np.ndarray, "h w *rgb"]) -> str:
    picture = Image.fromarray(pixels)
    memory = io.BytesIO()
    if max(picture.size) <= _PIXELATED_SIDE:
        picture.save(memory, "png", optimize=True)
        kind = "png"
    else:  # attacked photographs are noise to PNG: ten times the bytes for nothing a thumbnail shows
        picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(memory, "jpeg", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(memory.getvalue()).decode()}"
