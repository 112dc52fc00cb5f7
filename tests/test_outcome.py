"""What an attack did, in figures and in one picture."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pellucid import registry
from pellucid.balls import L2
from pellucid.errors import PellucidError
from pellucid.network import Network
from pellucid.outcome import outcome
from pellucid.report.attack_picture import COLUMNS, Judged, attack_picture, kind_of


def rows(correct: list[bool], **more: object) -> dict[str, np.ndarray]:
    """Rows of as many images."""
    n = len(correct)
    given = {name: np.asarray(value) for name, value in more.items()}
    return {"correct": np.array(correct), **{k: np.arange(1.0, n + 1) for k in ("linf", "l2", "l1", "l0")}, **given}


def test_a_point_wrong_without_the_attack_is_lost() -> None:
    """Robust accuracy counts an image that is right before and after."""
    found = outcome(rows([True, True, False, False]), rows([True, False, True, False]))
    assert found["robust_accuracy"] == 0.25
    assert found["clean_accuracy"] == 0.5
    assert found["interval"][0] < 0.25 < found["interval"][1]


def test_sizes_are_medians_over_the_images_that_were_fooled() -> None:
    """Images that stand, or were wrong anyway, have no say."""
    found = outcome(rows([True] * 4 + [False]), rows([False, True, False, False, False]), sizes=True)
    assert found["fooled"] == 3
    assert found["median_l2"] == 3  # of 1, 3, 4
    nobody = outcome(rows([True]), rows([True]), sizes=True)
    assert nobody["fooled"] == 0
    assert nobody["median_l2"] is None


def test_maps_are_averaged_over_survivors_and_over_all() -> None:
    """Both averages, because the published one leaves out who changed class; constant maps have no tau."""
    maps = {"tau": [0.8, 0.2, np.nan], "unchanged": [True, False, True], "top_k_overlap": [1.0, 0.5, 0.0]}
    found = outcome(rows([True] * 3), rows([True, False, True], **maps))
    assert found["kendall_tau"] == pytest.approx(0.8)
    assert found["kendall_tau_all"] == pytest.approx(0.5)
    assert found["survivors"] == 2
    assert found["n_tau"] == 1
    assert found["top_k_intersection_all"] == pytest.approx(0.5)


def test_an_ensemble_names_who_broke_what() -> None:
    """Counts by member; those that no member broke stand."""
    found = outcome(rows([True] * 4), rows([False] * 2 + [True] * 2, broken_by=["square", "apgd_ce", "", ""]))
    assert found["by_attack"] == {"square": 1, "apgd_ce": 1, "standing": 2}


def test_the_smallest_found_has_one_median_whoever_found_it() -> None:
    """`found` and `eps`, in the ball or not, of the images that were right without the attack."""
    notes = {"found": [True, True, False, True], "eps": [0.2, 0.4, np.inf, 0.0]}
    found = outcome(rows([True, True, True, False]), rows([False, True, True, False], **notes))
    assert found["found"] == 2
    assert found["median_eps"] == pytest.approx(0.3)
    assert found["fooled"] == 1
    nobody = outcome(rows([True]), rows([True], found=[False], eps=[np.inf]))
    assert nobody["median_eps"] is None


def test_attacks_that_seek_the_smallest_note_it_alike(
    tiny: Network, images: Tensor, labels: Tensor, quick: Callable[[str, str], Callable[..., Any]]
) -> None:
    """Whatever docstring promises `found` and `eps` has these two names, and the norm of what it returns."""
    seeking = [n for n, f in registry.public("attacks").items() if "notes `found`" in (f.__doc__ or "").lower()]
    assert {"smallest", "fmn", "cw", "fab"} <= set(seeking)
    for name in seeking:
        notes: dict[str, Tensor] = {}
        attack = quick("attacks", name)
        moved = attack(tiny, images, labels, notes=notes) - images
        assert set(notes) >= {"found", "eps"}
        ball = registry.option(attack, "ball") or L2(1.0)
        here = notes["found"] & (notes["eps"] <= (ball.eps if name == "fab" else torch.inf))
        torch.testing.assert_close(ball.norm(moved)[here], notes["eps"][here], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_picture_holds_three_rows_and_two_of_maps(channels: int, count: int, mapped: bool) -> None:
    """True class, image, perturbation, attacked image; at most eight columns; unchanged pixels are mid-grey."""
    x = np.random.default_rng(0).random((count, channels, 20, 20)).astype(np.float32)
    attacked = x.copy()
    attacked[:, :, 10:] = 1 - attacked[:, :, 10:]
    judged = [Judged("7", "7 0.99", "1 0.50", True, False)] * count
    maps = (np.ones((count, 5, 5)), -np.ones((count, 5, 5))) if mapped else None
    picture = opened(attack_picture("fgsm(ball=Linf(0.3))", x, attacked, judged, maps))
    assert picture.width == 10 + max(3, min(count, COLUMNS)) * 122
    assert picture.getpixel((10 + 56, 30 + 18 + 112 + 5 + 18 + 20)) in ((127,) * 3, (128,) * 3)
    if mapped:
        first = 30 + 18 + 3 * 117 + 2 * 18 + 18
        assert picture.getpixel((10 + 56, first + 56)) == (178, 24, 43)
        assert picture.getpixel((10 + 56, first + 117 + 18 + 56)) == (33, 102, 172)


def opened(content: bytes) -> Image.Image:
    """A picture from its bytes."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_the_prediction_is_red_green_or_grey() -> None:
    """Red where the attack made it wrong, green where it stands, grey where it was wrong already: its doing or not."""
    tones = {
        (True, False): (178, 24, 43),
        (True, True): (27, 120, 55),
        (False, False): (110, 110, 110),
        (False, True): (110, 110, 110),
    }
    for (before, after), tone in tones.items():
        assert Judged("a", "", "", before, after).tone == tone


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".JPG", b"\xff\xd8"), (".webp", b"RIFF")])
def test_the_picture_is_what_its_name_says(ending: str, magic: bytes, tmp_path: Path) -> None:
    """Endings that cannot be written are refused with those that can, folders with a name to give."""
    x = np.zeros((1, 1, 8, 8), np.float32)
    picture = attack_picture("a", x, x, [Judged("a", "b", "c", True, True)], kind=kind_of(Path(f"p{ending}")))
    assert picture.startswith(magic)
    for wrong in ("p.bmp", "p", "p.svg"):
        with pytest.raises(PellucidError, match=r"must end in \.png, \.jpg"):
            kind_of(Path(wrong))
    with pytest.raises(PellucidError, match="is a folder: name a file, such as"):
        kind_of(tmp_path)
