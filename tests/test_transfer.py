"""Transfer matrices: each set made once, judged by every model, and the overlap sets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pellucid.attacks.gradient import pgd
from pellucid.balls import Linf
from pellucid.data import ImageSet, load
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.report.transfer_page import transfer_page
from pellucid.transfer import Transfer, transfer

Seeded = Callable[[int], torch.Generator]
ATTACK = partial(pgd, ball=Linf(0.1), steps=3)


def linear(seed: int) -> nn.Module:
    """A linear classifier of digits, random."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def digits() -> ImageSet:
    """The embedded set's test split."""
    return load("digits", "test")


def test_the_diagonal_is_what_evaluate_finds(digits: ImageSet) -> None:
    """The same chunks, seeds and examples: a model judged on its own examples is the ordinary evaluation."""
    models = {"a": linear(0), "b": linear(1)}
    indices = torch.arange(130)  # two chunks
    found = transfer(models, digits, indices, ATTACK, (0.05, 0.1), seed=3)
    for s, (name, model) in enumerate(models.items()):
        clean = evaluate(model, digits, indices, Measurement())
        np.testing.assert_array_equal(found.clean[s], clean["correct"])
        for e, eps in enumerate((0.05, 0.1)):
            attack = partial(pgd, ball=Linf(eps), steps=3)
            own = evaluate(model, digits, indices, Measurement(attack), seed=3)
            np.testing.assert_array_equal(found.correct[s, e, s], own["correct"], err_msg=name)


def test_each_set_is_made_once_and_kept(digits: ImageSet, tmp_path: Path) -> None:
    """A second matrix with one model more attacks that model only, and has the same figures for the others."""
    calls: list[int] = []

    def counted(model: nn.Module, x: Tensor, y: Tensor, *, ball: Any = Linf(0.1), generator: Any = None) -> Tensor:
        calls.append(len(x))
        return pgd(model, x, y, ball=ball, steps=2, generator=generator)

    models = {"a": linear(0), "b": linear(1)}
    indices = torch.arange(20)
    first = transfer(models, digits, indices, counted, (0.1,), cells=tmp_path)
    assert calls == [20, 20]
    second = transfer(models | {"c": linear(2)}, digits, indices, counted, (0.1,), cells=tmp_path)
    assert calls == [20, 20, 20]
    np.testing.assert_array_equal(second.correct[:2, :, :2], first.correct)
    for stored in tmp_path.rglob("*.safetensors"):
        stored.write_bytes(b"no tensors")
    third = transfer(models, digits, indices, counted, (0.1,), cells=tmp_path)
    assert len(calls) == 5
    np.testing.assert_array_equal(third.correct, first.correct)


def test_overlaps_count_every_image_once() -> None:
    """Each image lies in exactly one area of the Venn diagram; by hand for three models."""
    right = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 0, 0, 0]], bool)
    found = Transfer(("a", "b", "c"), (0.1,), right, right[None, None].repeat(3, 0))
    areas = [entry for entry in found.overlaps() if entry["source"] == "a"]
    assert {tuple(e["wrong"]): e["count"] for e in areas} == {
        (): 1,
        ("b",): 1,
        ("a", "c"): 1,
        ("a", "b", "c"): 2,
    }
    assert areas[0]["wrong"] == ["a", "b", "c"]  # most frequent first
    accuracy = next(e for e in found.accuracy() if e["source"] == "b" and e["target"] == "b")
    assert accuracy["value"] == pytest.approx(2 / 5)
    assert accuracy["n"] == 5


def test_no_model_and_no_image(digits: ImageSet) -> None:
    """Nothing to attack is an error; no image is an empty table."""
    with pytest.raises(PellucidError, match="at least one model"):
        transfer({}, digits, torch.arange(3), ATTACK)
    empty = transfer({"a": linear(0)}, digits, torch.arange(0), ATTACK, (0.1,))
    assert empty.correct.shape == (1, 1, 1, 0)


def test_the_page_shows_every_model_and_escapes_names() -> None:
    """One figure and one table per source; a hostile name stays text."""
    right = np.ones((2, 4), bool)
    names = ("<script>alert(1)</script>", "b")
    found = Transfer(names, (0.1, 0.2), right, right[None, None].repeat(2, 0).repeat(2, 1))
    page = transfer_page(
        {
            "models": list(names),
            "eps": [0.1, 0.2],
            "n": 4,
            "data": "digits",
            "attack": "fgsm",
            "seed": 0,
            "clean": {n: {"value": 1.0, "low": 0.5, "high": 1.0, "count": 4, "n": 4} for n in names},
            "accuracy": found.accuracy(),
            "overlaps": found.overlaps(),
        }
    )
    assert "<script>alert" not in page
    assert page.count("Who falls together at ε") == 2
    assert page.count("<svg") >= 2
