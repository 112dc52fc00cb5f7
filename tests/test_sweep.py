"""A sweep chooses by its rule, on images that no run has seen, and goes on where it stopped."""

from dataclasses import replace
from pathlib import Path

import pytest

from pellucid import sweep as sweeping
from pellucid.attacks.gradient import fgsm
from pellucid.balls import Linf
from pellucid.cli import run
from pellucid.data import load
from pellucid.errors import PellucidError
from pellucid.metrics import correct
from pellucid.models import load_model
from pellucid.recipe import Recipe
from pellucid.sweep import sweep
from pellucid.watch import held_out

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


def test_a_value_that_diverges_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no figures, and says where it ended; given again, the others are kept."""
    images = load("digits", "train").select(range(200))
    found = sweep(RECIPE, (1e-3, 1e38), images, tmp_path)
    fine, bad = found["trials"]
    assert fine["clean"] is not None
    assert (bad["clean"], bad["black_box"]) == (None, None)
    assert bad["diverged"].startswith("training diverged at step")
    assert found["chosen"] in (None, 1e-3)
    before = (tmp_path / "0.001/model.safetensors").stat().st_mtime_ns
    assert sweep(RECIPE, (1e-3, 1e38), images, tmp_path) == found
    assert (tmp_path / "0.001/model.safetensors").stat().st_mtime_ns == before
    command = ["sweep", "--objective", RECIPE.objective, "--values", "0.001,1e38", "--steps", "4", "--batch-size", "8"]
    assert run([*command, "--images", "60", "--out", str(tmp_path / "cli")]) == 0
    assert "diverged at step" in " ".join(capsys.readouterr().out.split())


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
    with pytest.raises(PellucidError, match="values must not be empty"):
        sweep(RECIPE, (), images, tmp_path / "other")
    with pytest.raises(PellucidError, match=r"floor \(=2\)"):
        sweep(RECIPE, (1.0,), images, tmp_path / "other", floor=2)
    with pytest.raises(PellucidError, match="must differ"):
        sweep(RECIPE, (1.0, 1.0), images, tmp_path / "other")


def test_all_values_are_tried_before_one_is_trained(tmp_path: Path) -> None:
    """A mistyped option, a value that is refused, a folder of another recipe: nothing is trained for it."""
    images = load("digits", "train").select(range(200))
    for objective, values, said in (
        ("double_backprop(lem={})", [1.0], "no option 'lem'"),
        ("double_backprop(lam={})", [1.0, -5.0], "lam"),
    ):
        with pytest.raises(PellucidError, match=said):
            sweep(replace(RECIPE, objective=objective), values, images, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    sweep(RECIPE, [2.0], images, tmp_path / "taken")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "taken").rglob("*.safetensors")}
    with pytest.raises(PellucidError, match="another recipe"):
        sweep(replace(RECIPE, steps=21), [3.0, 2.0], images, tmp_path / "taken")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "taken").rglob("*.safetensors")}


def test_a_sweep_that_goes_on_counts_what_is_finished(tmp_path: Path) -> None:
    """So that the time left is of what is left."""
    images = load("digits", "train").select(range(200))
    sweep(RECIPE, [1.0], images, tmp_path)
    said: list[tuple[str, int]] = []
    sweep(RECIPE, [1.0, 2.0], images, tmp_path, say=lambda name: lambda step, _: said.append((name, step)))
    assert said[:2] == [("baseline", 20), ("1", 20)]
    assert [name for name, _ in said[2:]] == ["2"] * 20


def test_trials_are_judged_on_the_baselines_examples_of_held_out_images(tmp_path: Path) -> None:
    """By hand: FGSM on the baseline, shown to each model; values that differ in the eighth digit are two runs."""
    images = load("digits", "train").select(range(300))
    recipe = replace(RECIPE, steps=60)
    found = sweep(recipe, (56234.13, 56234.11, 0.5), images, tmp_path, attack="fgsm(ball=Linf(0.1))")
    assert [trial["folder"] for trial in found["trials"]] == ["56234.13", "56234.11", "0.5"]
    watched = held_out(replace(recipe, patience=1), images)[1]
    assert watched is not None
    x, y = watched.batch(range(len(watched)))
    attacked = fgsm(load_model(tmp_path / "baseline")[0], x, y, ball=Linf(0.1))
    for trial in (found["baseline"], found["trials"][-1]):
        model = load_model(tmp_path / trial["folder"])[0]
        assert trial["clean"] == pytest.approx(correct(model(x), y).double().mean().item())
        assert trial["black_box"] == pytest.approx(correct(model(attacked), y).double().mean().item())
    assert found["baseline"]["black_box"] < found["baseline"]["clean"]
    again = sweep(recipe, (0.5,), images, tmp_path, attack="fgsm(ball=Linf(0.2))")
    assert again["trials"][0]["clean"] == found["trials"][-1]["clean"]
