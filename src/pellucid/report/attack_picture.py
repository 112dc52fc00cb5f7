"""One picture of an attack: each image, its perturbation, and the attacked image, with what the model says."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from pellucid.report.images import drawable, perturbation_pixels, photograph_pixels
from pellucid.report.words import shorten

_SIDE, _GAP, _LINE, _HEAD = 112, 10, 18, 30
_RED, _GREEN, _GREY = (178, 24, 43), (27, 120, 55), (90, 90, 90)
COLUMNS = 8


def attack_picture(
    title: str,
    images: Float[np.ndarray, "b c h w"],
    attacked: Float[np.ndarray, "b c h w"],
    before: Sequence[str],
    after: Sequence[str],
    fooled: Sequence[bool],
) -> bytes:
    """A PNG of at most eight columns: image, perturbation and attacked image, captioned with the predictions.

    Mid-grey is no change; the perturbations share one scale, named at the left. A prediction that the attack has made
    wrong is red.
    """
    count = min(COLUMNS, len(images))
    largest = float(np.abs(attacked[:count] - images[:count]).max(initial=0.0))
    page = Image.new("RGB", (_GAP + count * (_SIDE + _GAP), _HEAD + 3 * (_SIDE + _GAP) + 2 * _LINE), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    room = page.width // 7
    scale = f"perturbation: white is +{largest:.3g}, black -{largest:.3g}"
    draw.text((_GAP, 4), shorten(drawable(title), room), fill="black", font=ImageFont.load_default(size=13))
    for i in range(count):
        left = _GAP + i * (_SIDE + _GAP)
        tiles = (
            photograph_pixels(images[i]),
            perturbation_pixels(images[i], attacked[i], largest),
            photograph_pixels(attacked[i]),
        )
        tops = (_HEAD, _HEAD + _SIDE + _LINE + _GAP // 2, _HEAD + 2 * _SIDE + _LINE + _GAP)
        for top, pixels in zip(tops, tiles, strict=True):
            enlarge = Image.Resampling.NEAREST if max(pixels.shape[:2]) <= _SIDE else Image.Resampling.LANCZOS
            page.paste(Image.fromarray(pixels).convert("RGB").resize((_SIDE, _SIDE), enlarge), (left, top))
        for top, words, tone in (
            (_HEAD + _SIDE + 2, before[i], _GREY),
            (tops[2] + _SIDE + 2, after[i], _RED if fooled[i] else _GREEN),
        ):
            draw.text((left, top), shorten(drawable(words), _SIDE // 7), fill=tone, font=font)
    draw.text((_GAP, page.height - _LINE + 2), shorten(scale, room), fill=_GREY, font=ImageFont.load_default(size=11))
    memory = io.BytesIO()
    page.save(memory, "png", optimize=True)
    return memory.getvalue()
