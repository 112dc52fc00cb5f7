"""One picture of an attack: each image, its perturbation, and the attacked image, with what the model says."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from pellucid.errors import PellucidError
from pellucid.report.images import common_scale, drawable, perturbation_pixels, photograph_pixels, signed_pixels
from pellucid.report.words import shorten

_SIDE, _GAP, _LINE, _HEAD = 112, 10, 18, 30
_RED, _GREEN, _GREY, _BLACK = (178, 24, 43), (27, 120, 55), (110, 110, 110), (20, 20, 20)
COLUMNS = 8
KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
Maps = Float[np.ndarray, "b mh mw"]


@dataclass(frozen=True)
class Judged:
    """What the model says of an image: in words, before and after the attack, and whether each is right."""

    label: str
    before: str
    after: str
    right_before: bool
    right_after: bool

    @property
    def tone(self) -> tuple[int, int, int]:
        """Red where the attack made it wrong, green where it stands, grey where it was wrong already."""
        return _GREY if not self.right_before else _GREEN if self.right_after else _RED


def kind_of(path: Path) -> str:
    """The format that a picture's name asks for. Raises `PellucidError` for a folder, and for an unknown ending."""
    if path.is_dir():
        raise PellucidError(f"--picture {path} is a folder: name a file, such as {path / 'picture.png'}")
    if path.suffix.lower() not in KINDS:
        raise PellucidError(f"--picture {path}: the name must end in {', '.join(KINDS)}")
    return KINDS[path.suffix.lower()]


def attack_picture(
    title: str,
    images: Float[np.ndarray, "b c h w"],
    attacked: Float[np.ndarray, "b c h w"],
    judged: Sequence[Judged],
    maps: tuple[Maps, Maps] | None = None,
    *,
    kind: str = "png",
) -> bytes:
    """A picture of at most eight columns: true class, image, perturbation, attacked image, and the predictions.

    Mid-grey is no change; the perturbations share one scale, named below. `maps`, those before and after the attack,
    are two more rows; the two of an image share a scale.
    """
    count = min(COLUMNS, len(images))
    largest = float(np.abs(attacked[:count] - images[:count]).max(initial=0.0))
    rows = 3 if maps is None else 5
    height = _HEAD + 3 * _LINE + rows * (_SIDE + _GAP) + (rows - 3) * _LINE + 2 * _LINE
    page = Image.new("RGB", (_GAP + max(count, 3) * (_SIDE + _GAP), height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    room = page.width // 7
    draw.text((_GAP, 4), shorten(drawable(title), room), fill=_BLACK, font=ImageFont.load_default(size=13))
    for i in range(count):
        left, top = _GAP + i * (_SIDE + _GAP), _HEAD
        pair = None if maps is None else (maps[0][i], maps[1][i])
        for part in _column(images[i], attacked[i], largest, judged[i], pair):
            if isinstance(part, np.ndarray):
                enlarge = Image.Resampling.NEAREST if max(part.shape[:2]) <= _SIDE else Image.Resampling.LANCZOS
                page.paste(Image.fromarray(part).convert("RGB").resize((_SIDE, _SIDE), enlarge), (left, top))
                top += _SIDE + _GAP // 2
            else:
                words, tone = part
                draw.text((left, top), shorten(drawable(words), _SIDE // 7), fill=tone, font=font)
                top += _LINE
    small = ImageFont.load_default(size=12)
    for line, words in enumerate(_key(largest, maps is not None)):
        at = (_GAP, page.height - (2 - line) * _LINE + 2)
        draw.text(at, shorten(words, page.width // 6), fill=_GREY, font=small)
    memory = io.BytesIO()
    page.save(memory, kind, **({"quality": 92} if kind == "jpeg" else {"optimize": True} if kind == "png" else {}))
    return memory.getvalue()


def _column(
    image: Float[np.ndarray, "c h w"],
    attacked: Float[np.ndarray, "c h w"],
    largest: float,
    judged: Judged,
    maps: tuple[np.ndarray, np.ndarray] | None,
) -> Iterator[np.ndarray | tuple[str, tuple[int, int, int]]]:
    """From top to bottom: tiles, and lines of words with their tones."""
    yield f"true {judged.label}", _BLACK
    yield photograph_pixels(image)
    yield judged.before, _GREY
    yield perturbation_pixels(image, attacked, largest)
    yield photograph_pixels(attacked)
    yield judged.after, judged.tone
    if maps is not None:
        scale = common_scale(*maps)
        for words, field in zip(("map before", "map after"), maps, strict=True):
            yield words, _GREY
            yield signed_pixels(field, scale)


def _key(largest: float, mapped: bool) -> tuple[str, str]:
    maps = "; maps of the true class: red speaks for it, blue against" if mapped else ""
    return (
        f"perturbation: white is +{largest:.3g}, black -{largest:.3g}{maps}",
        "predictions after the attack: red made wrong, green still right, grey wrong before",
    )
