"""What an attack did, in figures and in one picture."""

import io

import numpy as np
import pytest
from PIL import Image

from pellucid.outcome import outcome
from pellucid.report.attack_picture import COLUMNS, attack_picture


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 12])
def test_the_picture_holds_three_rows(channels: int, count: int, generator: object) -> None:
    """Image, perturbation and attacked image; at most eight columns; unchanged pixels are mid-grey."""
    del generator
    x = np.random.default_rng(0).random((count, channels, 20, 20)).astype(np.float32)
    attacked = x.copy()
    attacked[:, :, 10:] = 1 - attacked[:, :, 10:]
    words = ["7 0.99"] * count
    png = attack_picture("fgsm(ball=Linf(0.3))", x, attacked, words, words, [True] * count)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    assert picture.width == 10 + min(count, COLUMNS) * 122
    assert picture.getpixel((10 + 56, 30 + 112 + 18 + 5 + 20)) in ((127,) * 3, (128,) * 3)
