"""Transfer matrices: each set made once, judged by every model, and the overlap sets."""

import base64
import hashlib
import re
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
        assert [e["median_linf"] for e in found.sizes() if e["source"] == name] == pytest.approx([0.05, 0.1], abs=1e-6)
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
    assert empty.sizes() == []


def page_of(names: tuple[str, ...], eps: tuple[float, ...], attack: str = "fgsm") -> str:
    """The page of a matrix in which everything is right."""
    n, levels = len(names), len(eps) or 1
    right = np.ones((n, 4), bool)
    shares = right[None, None].repeat(n, 0).repeat(levels, 1)
    found = Transfer(names, eps, right, shares, np.full((n, levels, 4, 4), 0.25))
    return transfer_page(
        {
            "models": list(names),
            "eps": list(eps),
            "n": 4,
            "data": "digits",
            "attack": attack,
            "seed": 0,
            "clean": {n: {"value": 1.0, "low": 0.5, "high": 1.0, "count": 4, "n": 4} for n in names},
            "accuracy": found.accuracy(),
            "sizes": found.sizes(),
            "overlaps": found.overlaps(),
        }
    )


def test_the_page_shows_every_model_and_escapes_names() -> None:
    """One figure and one table per source; a hostile name stays text."""
    page = page_of(("<script>alert(1)</script>", "b"), (0.1, 0.2))
    assert "<script>alert" not in page
    assert page.count("Who falls together at ε") == 2
    assert page.count('<svg class="figure"') == 2


def test_the_summary_has_the_clean_images_too() -> None:
    """As its first row, as on the terminal; every model has one name, in headings, tables, figures and the lead."""
    names = ("mnist_smallgap_normal_100", "mnist_smallgap_adversarial_100")
    page = page_of(names, (0.1, 0.2))
    summary = page.split("<caption>", 1)[1].split("</table>")[0]
    heads = re.findall(r'<th scope="row">(.*?)</th>', summary)
    assert heads == ["clean", "normal", "adversarial"]
    assert "Examples made on normal</h2>" in page
    assert "examples made on normal leave adversarial right" in page
    assert "…" not in page.split("<main")[1]


def test_long_names_are_told_apart_on_the_page() -> None:
    """By the part in which they differ, in tables and figures; the full name is in the key and in every tooltip."""
    names = tuple(f"experiments_mnist_smallgap_{kind}_epochs_100_seed_0" for kind in ("adversarial", "normal"))
    page = page_of(names, (0.1, 0.2))
    assert page.count(">adversarial</text>") == 2
    assert page.count(">normal</span>") > 2
    for name in names:
        assert f"<dd>{name}</dd>" in page
        assert f'title="{name}"' in page


def test_an_attack_without_eps_shows_itself_and_how_far_it_goes() -> None:
    """Neither a curve nor figures behind it: one row of that attack, and the median change."""
    page = page_of(("a", "b"), (), "jsma(gamma=0.1)")
    assert '<svg class="figure"' not in page
    assert "behind the curve" not in page
    assert '<th scope="row">jsma(gamma=0.1)</th>' in page
    assert page.count("Median change: Linf 0.25, L2 0.25, L1 0.25") == 2


def test_both_pages_are_one_shell() -> None:
    """The policy, the theme's button and its script, which the policy lets run only as it was hashed."""
    page = page_of(("a", "b"), (0.1,))
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "asks nothing of any network" in page
