"""A user's own objectives, attacks and interpreters, by where they stand."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid import registry
from pellucid.architectures.small import small
from pellucid.cli import run
from pellucid.data import load
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.models import load_model, save_model
from pellucid.own_functions import source_digest
from pellucid.recipe import Recipe
from pellucid.run_folder import finished
from pellucid.training import train

OBJECTIVE = """
from torch.nn import functional as F

def smoothed(model, x, y, *, step, generator=None, smoothing: float = 0.1):
    loss = F.cross_entropy(model(x), y, label_smoothing=smoothing)
    return loss, {"cross_entropy": loss.detach()}

def broken(model, x, y, *, step, generator=None):
    return model(x).nonsense, {}

def unfinished(model, x, y, *, step, generator=None):
    return model(x), {}
"""
ATTACK = """
import torch

@torch.no_grad()
def shifted(model, x, y, *, generator=None):
    return (x + SHIFT).clamp(0, 1)

def broken(model, x, y, *, generator=None):
    return torch.nn.functional.cross_entropy(x, y.float())

def forgetful(model, x, y):
    return x
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OBJECTIVE)
    return path


def test_a_specification_names_a_function_of_a_file(mine: Path) -> None:
    """Its options are bound and checked as those of Pellucid's own; described, it parses to the same."""
    bound = registry.parse(f"{mine}:smoothed(smoothing=0.2)", "objectives")
    assert registry.option(bound, "smoothing") == 0.2
    assert registry.describe(bound) == f"{mine}:smoothed(smoothing=0.2)"
    again = registry.parse(registry.describe(bound), "objectives")
    assert registry.describe(again) == registry.describe(bound)
    assert registry.describe(registry.parse(f"{mine}:smoothed", "objectives")) == f"{mine}:smoothed"
    assert (
        registry.parse("pellucid.objectives.standard:standard", "objectives")
        is registry.public("objectives")["standard"]
    )
    for wrong, says in (
        (f"{mine}:smoothed(smooth=0.2)", "did you mean 'smoothing'"),
        (f"{mine}:smoothed(smoothing='much')", "wants a number"),
        (f"{mine}:nothing", "no function 'nothing'"),
        (f"{mine.parent}/absent.py:f", "cannot import"),
        (f"{mine}:smoothed(", "cannot read"),
        (f"{mine}:smoothed(smoothing=0.1)(smoothing=0.2)", "names no function"),
        (f"{mine}:smoothed(smoothing=0.1) + (1)", "names no function"),
        (f"{mine}:broken(a=1)", "has none; options stand behind"),
    ):
        with pytest.raises(PellucidError, match=says):
            registry.parse(wrong, "objectives")


def test_an_objective_of_ones_own_trains(mine: Path, tmp_path: Path) -> None:
    """At smoothing 0 to the weights of `standard`; what it raises, or returns instead of a loss, is said before."""
    digits = load("digits", "train").select(range(40))
    weights = []
    for number, spec in enumerate((f"{mine}:smoothed(smoothing=0)", "standard", f"{mine}:smoothed")):
        network = train(Recipe(objective=spec, steps=3, batch_size=8), digits, tmp_path / str(number))
        weights.append(network.state_dict()["head.weight"])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights[0], weights[2], rtol=1e-4, atol=1e-6)
    for name, says in (
        ("broken", r"AttributeError.*mine.py, line 9"),
        ("unfinished", r"returned \(a tensor \(2, 10\), \{\}\)"),
    ):
        with pytest.raises(PellucidError, match=says):
            train(Recipe(objective=f"{mine}:{name}", steps=3), digits, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_run_is_not_resumed_by_other_code(mine: Path, tmp_path: Path) -> None:
    """The objective's file was changed in between: it is another run."""
    digits = load("digits", "train").select(range(40))
    recipe = Recipe(objective=f"{mine}:smoothed", steps=6, batch_size=8)

    def stop(step: int, entry: dict[str, float]) -> None:
        del entry
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, digits, tmp_path / "run", report=stop)
    mine.write_text(OBJECTIVE.replace("0.1", "0.3"))
    with pytest.raises(PellucidError, match="own objective or validation was changed"):
        train(recipe, digits, tmp_path / "run", resume=True)
    mine.write_text(OBJECTIVE)
    train(recipe, digits, tmp_path / "run", resume=True)


def test_rows_of_an_attack_of_ones_own_belong_to_its_code(tmp_path: Path) -> None:
    """The body in the file is changed, beneath a decorator: its rows in the same folder are made anew. Unchanged, they
    are read. What counts is the file as it was when it was imported."""
    path = tmp_path / "attack.py"
    network, digits = small(generator=torch.Generator().manual_seed(0)), load("digits", "test")
    found = []
    for shift in ("0.1", "0.2", "0.1"):
        path.write_text(ATTACK.replace("SHIFT", shift))
        os.utime(path, (10**9, 10**9))  # as two edits within a second: bytecode is kept by time and size
        attack = registry.parse(f"{path}:shifted()", "attacks")
        found.append(evaluate(network, digits, torch.arange(4), Measurement(attack), cells=tmp_path / "cells"))
    assert found[0]["linf"].max() == pytest.approx(0.1, abs=1e-6)
    assert found[1]["linf"].max() == pytest.approx(0.2, abs=1e-6)
    assert (found[0]["linf"] == found[2]["linf"]).all()
    assert len(list((tmp_path / "cells").iterdir())) == 2
    path.write_text(ATTACK.replace("SHIFT", "0.3"))  # after its import: the attack in hand is the old one
    again = evaluate(network, digits, torch.arange(4), Measurement(attack), cells=tmp_path / "cells")
    assert (found[0]["linf"] == again["linf"]).all()
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_what_has_no_file_is_told_apart_by_its_code() -> None:
    """Constants, names and inner functions count: a notebook's functions differ in nothing else."""
    bodies = ("x + 0.1", "x + 0.2", "x - 0.1", "(lambda z: z + 0.1)(x)", "(lambda z: z + 0.2)(x)", "x.abs()", "x.exp()")
    digests = []
    for body in bodies:
        made: dict[str, Any] = {}
        exec(compile(f"def f(x):\n    return {body}", "<cell>", "exec"), made)
        digests.append(source_digest(made["f"]))
    assert len(set(digests)) == len(bodies)


def test_mistakes_of_an_attack_of_ones_own_are_told_with_their_place(tmp_path: Path) -> None:
    """The line in the user's file, not the one in torch; and how it is called."""
    path = tmp_path / "attack.py"
    path.write_text(ATTACK.replace("SHIFT", "0.1"))
    network, digits = small(generator=torch.Generator().manual_seed(0)), load("digits", "test")
    for name, says in (("broken", r"attack.py, line 9\)"), ("forgetful", r"called with \(model, x, y, generator")):
        measurement = Measurement(registry.parse(f"{path}:{name}", "attacks"))
        with pytest.raises(PellucidError, match=says):
            evaluate(network, digits, torch.arange(4), measurement)


def test_a_file_of_weights_runs_no_program(mine: Path, tmp_path: Path) -> None:
    """The architecture that a file names is one of Pellucid's own; a file of code named there is not even imported."""
    mine.write_text("raise SystemExit('it ran')")
    save_model(small(), tmp_path / "innocent.safetensors", architecture=f"{mine}:net")
    with pytest.raises(PellucidError, match="an architecture is one of"):
        load_model(tmp_path / "innocent.safetensors")


def test_a_validation_of_ones_own_is_part_of_the_run(tmp_path: Path) -> None:
    """Changed in between, the run is another; a finished run of changed code is not taken for this one."""
    path, digits = tmp_path / "attack.py", load("digits", "train").select(range(60))
    path.write_text(ATTACK.replace("SHIFT", "0.1"))
    recipe = Recipe(steps=4, batch_size=8, validate=f"{path}:shifted", validate_every=2, held_out=10)
    train(recipe, digits, tmp_path / "run")
    assert finished(tmp_path / "run", recipe)
    path.write_text(ATTACK.replace("SHIFT", "0.2"))
    with pytest.raises(PellucidError, match="own objective or validation was changed"):
        finished(tmp_path / "run", recipe)
    with pytest.raises(PellucidError, match="own objective or validation was changed"):
        train(recipe, digits, tmp_path / "run", resume=True)


def test_only_functions_are_taken(tmp_path: Path) -> None:
    """A class that is called makes an object and trains nothing; an object's state would be in no hash."""
    file = tmp_path / "kinds.py"
    file.write_text(
        "class Loss:\n"
        "    def __call__(self, model, x, y, *, step, generator=None):\n"
        "        return model(x).square().mean(), {}\n\n"
        "loss = Loss()\n"
    )
    with pytest.raises(PellucidError, match=r"kinds\.py:Loss is a class: name a function"):
        registry.parse(f"{file}:Loss", "objectives")
    with pytest.raises(PellucidError, match=r"kinds\.py:loss is an object, of Loss: name a function"):
        registry.parse(f"{file}:loss", "objectives")


def test_a_run_that_is_not_finished_is_told_from_none(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/recipe.json").write_text("{}")
    with pytest.raises(PellucidError, match=r"begun is not finished: .* --resume"):
        load_model(tmp_path / "begun")
    (tmp_path / "begun/card.json").write_text("{}")
    with pytest.raises(PellucidError, match="the card alone is here"):
        load_model(tmp_path / "begun")
    with pytest.raises(PellucidError, match="no model at"):
        load_model(tmp_path / "other")


def test_a_finished_run_is_not_said_to_be_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "digits", "--steps", "3", "--out", str(tmp_path / "run")]
    assert run(command) == 0
    assert "trained in" in capsys.readouterr().err
    assert run([*command, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "trained in" not in said
    assert "finished before" in said
