"""A contact sheet: images and what transforms make of them, a row an image, a column a transform."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from pellucid.report.images import drawable, framed, photograph_pixels
from pellucid.report.words import shorten

_SIDE, _GAP, _LINE = 112, 8, 18
BLOCKS = 2  # side by side, where a row is short


def contact_sheet(columns: Mapping[str, Float[np.ndarray, "b c h w"]], captions: Sequence[str]) -> bytes:
    """A PNG: under each column's name its images, in the order of the captions, which stand below the first column.

    Pixels beyond [0, 1], which filters leave, are drawn cut, as they are written; images that are not square stand
    amid white.
    """
    names, rows = list(columns), len(captions)
    blocks = BLOCKS if len(names) <= 4 and rows > 4 else 1
    deep = -(-rows // blocks)
    wide, high = len(names) * (_SIDE + 2) + _GAP, _SIDE + _LINE + 2
    page = Image.new("RGB", (_GAP + blocks * (wide + _GAP), _GAP + _LINE + deep * high), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for block in range(blocks):
        for place, name in enumerate(names):
            left = _GAP + block * (wide + _GAP) + place * (_SIDE + 2)
            draw.text((left, 4), shorten(drawable(name), _SIDE // 7), fill="black", font=font)
            for line in range(min(deep, rows - block * deep)):
                top = _GAP + _LINE + line * high
                page.paste(framed(photograph_pixels(columns[name][block * deep + line]), _SIDE), (left, top))
                if place == 0:
                    words = shorten(drawable(captions[block * deep + line]), wide // 7)
                    draw.text((left, top + _SIDE + 1), words, fill=(90, 90, 90), font=font)
    memory = io.BytesIO()
    page.save(memory, "png", optimize=True)
    return memory.getvalue()
