"""The training loop: resumed runs end with the same bits, diverging ones stop, folders are not overwritten."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.checkpoint import load_checkpoint
from pellucid.data import ImageSet, load
from pellucid.errors import PellucidError
from pellucid.models import load_model
from pellucid.recipe import Recipe
from pellucid.training import _batches, train

RECIPE = Recipe(objective="adversarial(attack=pgd(ball=Linf(0.1), steps=2))", steps=12, batch_size=16, seed=3)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load("digits", "train")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path)[0].state_dict()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("architecture", "optimiser", "objective"),
    [
        ("small", "adam", RECIPE.objective),
        ("small", "sgd", "int(ball=Linf(0.1), steps=2)"),
        ("ross", "adam", "standard"),  # dropout draws from the global generator, BatchNorm keeps running statistics
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, digits: ImageSet, architecture: str, optimiser: str, objective: str
) -> None:
    """Interrupt after any step, resume: the weights are those of an uninterrupted run, bit by bit."""
    recipe = Recipe(objective=objective, architecture=architecture, steps=6, batch_size=8, decay="cosine")
    recipe = dataclasses.replace(recipe, optimiser=optimiser)
    train(recipe, digits, tmp_path / "whole")

    def stop(step: int, entry: dict[str, float]) -> None:
        del entry
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, digits, tmp_path / "broken", report=stop)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    train(recipe, digits, tmp_path / "broken", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    logs = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_killed_at_any_moment_and_resumed(tmp_path: Path, digits: ImageSet) -> None:
    """`kill -9` while checkpoints are written at every step: resumed, the bits are the uninterrupted run's."""
    train(RECIPE, digits, tmp_path / "whole")
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "import pellucid.training as t\n"
        "from pathlib import Path\n"
        "from pellucid.data import load\n"
        "from test_training import RECIPE\n"
        "t.CHECKPOINT_SECONDS = 0.0\n"
        "t.train(RECIPE, load('digits', 'train'), Path(sys.argv[1]), resume=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    for _ in range(2):
        running = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], env=environment)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
    train(RECIPE, digits, tmp_path / "killed", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_same_seed_same_bits_other_seed_other_weights(tmp_path: Path, digits: ImageSet) -> None:
    """A recipe decides the weights; the seed is part of it."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(Recipe(steps=2, batch_size=8, seed=seed), digits, tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_diverging_run_stops_and_says_what_is_good(tmp_path: Path, digits: ImageSet) -> None:
    """A loss that is not finite raises with the step and advice, and no weights are written."""
    with pytest.raises(PellucidError, match=r"diverged at step \d+.*--lr"):
        train(Recipe(steps=200, batch_size=8, lr=1e18, optimiser="sgd"), digits, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path, digits: ImageSet) -> None:
    """A second run in the same folder is refused, and a resumed one must have the same recipe."""
    train(Recipe(steps=1, batch_size=8), digits, tmp_path)
    with pytest.raises(PellucidError, match="--resume"):
        train(Recipe(steps=1, batch_size=8), digits, tmp_path)
    with pytest.raises(PellucidError, match="steps was 1 and is 2"):
        train(Recipe(steps=2, batch_size=8), digits, tmp_path, resume=True)
    train(Recipe(steps=1, batch_size=8), digits, tmp_path, resume=True)


def test_a_broken_checkpoint_is_named(tmp_path: Path, digits: ImageSet) -> None:
    """A checkpoint that cannot be read, or is another network's, raises and names the file."""
    network = load_model_of(tmp_path, digits)
    optimiser = torch.optim.Adam(network.parameters())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PellucidError, match="checkpoint"):
        load_checkpoint(path, network, optimiser, torch.Generator())


def load_model_of(folder: Path, digits: ImageSet) -> torch.nn.Module:
    return train(Recipe(steps=1, batch_size=8), digits, folder)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"clip": -1.0}, {"decay_share": 0.0}]
)
def test_recipes_out_of_range_are_refused(wrong: dict) -> None:
    """Each setting has a range; the error names the setting and the value."""
    with pytest.raises(PellucidError, match=next(iter(wrong))):
        Recipe(**wrong)


@given(n=st.integers(1, 40), size=st.integers(1, 50), first=st.integers(0, 60))
def test_batches_from_anywhere_are_the_tail_of_all_batches(n: int, size: int, first: int) -> None:
    """Starting at a step gives the batches an uninterrupted run has there; an epoch repeats no image."""
    whole, tail = _batches(n, size, 5, 0), _batches(n, size, 5, first)
    everything = [next(whole) for _ in range(first + 3)]
    assert all(torch.equal(next(tail), everything[first + i]) for i in range(3))
    epoch = torch.cat(everything[: n // min(n, size)]) if first + 3 >= n // min(n, size) else everything[0]
    assert len(epoch.unique()) == len(epoch)


def test_learning_rate_schedules() -> None:
    """Closed forms: constant, linear and cosine over the last share of the run."""
    assert Recipe(steps=10, lr=1.0).learning_rate(9) == 1.0
    assert Recipe(steps=10, lr=1.0, decay="linear").learning_rate(5) == pytest.approx(0.5)
    assert Recipe(steps=10, lr=1.0, decay="cosine").learning_rate(5) == pytest.approx(0.5)
    half = Recipe(steps=10, lr=1.0, decay="linear", decay_share=0.5)
    assert (half.learning_rate(5), half.learning_rate(10)) == (1.0, 0.0)
