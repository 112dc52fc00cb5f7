"""A sweep chooses by its rule, on images that no run has seen, and goes on where it stopped."""

from pathlib import Path

import pytest

from pellucid import sweep as sweeping
from pellucid.cli import run
from pellucid.data import load
from pellucid.errors import PellucidError
from pellucid.recipe import Recipe
from pellucid.sweep import sweep

RECIPE = Recipe(objective="double_backprop(lam={})", steps=20, batch_size=16, held_out=60)


@pytest.mark.parametrize(
    ("figures", "floor", "chosen"),
    [
        ({"baseline": (1.0, 0.1), "1": (0.98, 0.3), "2": (0.97, 0.5), "3": (0.9, 0.8)}, 0.97, 2.0),
        ({"baseline": (1.0, 0.1), "1": (0.98, 0.3), "2": (0.97, 0.5), "3": (0.9, 0.8)}, 0.9, 3.0),
        ({"baseline": (1.0, 0.1), "1": (0.5, 0.3), "2": (0.4, 0.5), "3": (0.3, 0.8)}, 0.97, None),
    ],
)
def test_the_paper_rule(
    figures: dict[str, tuple[float, float]],
    floor: float,
    chosen: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most accurate on black-box examples, of those at least `floor` times as accurate on clean images."""
    monkeypatch.setattr(sweeping, "_judged", lambda *_: figures)
    images = load("digits", "train").select(range(200))
    found = sweep(RECIPE, (1, 2, 3), images, tmp_path, floor=floor)
    assert found["chosen"] == chosen
    assert [trial["black_box"] for trial in found["trials"]] == [0.3, 0.5, 0.8]
    assert found["n"] == 60


def test_finished_runs_are_kept_and_mistakes_named(tmp_path: Path) -> None:
    """Given again, nothing is trained anew; an objective without a place for the number is refused."""
    command = [
        "sweep",
        "--data",
        "digits",
        "--steps",
        "5",
        "--batch-size",
        "8",
        "--images",
        "50",
        "--out",
        str(tmp_path),
    ]
    assert run([*command, "--objective", "double_backprop(lam={})", "--values", "0.1,1"]) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert len(times) == 3
    assert run([*command, "--objective", "double_backprop(lam={})", "--values", "0.1,1", "--json"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    other = [*command, "--objective", "double_backprop(lam={})", "--values", "0.1,1", "--lr", "0.01"]
    assert run(other) == 2
    images = load("digits", "train").select(range(200))
    with pytest.raises(PellucidError, match="must hold"):
        sweep(Recipe(objective="standard"), (1.0,), images, tmp_path / "other")
