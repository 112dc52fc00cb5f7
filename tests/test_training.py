"""The training loop: resumed runs end with the same bits, diverging ones stop, folders are not overwritten."""

import dataclasses
import functools
import json
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid import registry, stepping, training
from pellucid.checkpoint import State, load_checkpoint
from pellucid.cli import run
from pellucid.data import ImageSet, load
from pellucid.errors import PellucidError
from pellucid.models import load_model
from pellucid.parallel import Team
from pellucid.recipe import Recipe, identity
from pellucid.run_folder import locked, other_threads
from pellucid.seeds import derive_seed
from pellucid.stepping import _batches
from pellucid.training import emulated, train
from pellucid.watch import Best
from pellucid.weights import write_atomically

RECIPE = Recipe(objective="adversarial(attack=pgd(ball=Linf(0.1), steps=2))", steps=12, batch_size=16, seed=3)
LONG = dataclasses.replace(RECIPE, steps=200)
SHORT = Recipe(steps=2, batch_size=8)


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
    train(LONG, digits, tmp_path / "whole")
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "import pellucid.training as t\n"
        "from pathlib import Path\n"
        "from pellucid.data import load\n"
        "from test_training import LONG\n"
        "t.CHECKPOINT_SECONDS = 0.0\n"
        "t.train(LONG, load('digits', 'train'), Path(sys.argv[1]), resume=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    delays = random.Random(0)
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        running = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], env=environment)
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 0.2))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL  # it was at work: neither finished nor failed
    train(LONG, digits, tmp_path / "killed", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """`disturbed(step, what)` makes every objective do a thing within a step: after its passes, before it returns."""
    parse = registry.parse

    def disturb(at: int, what: Callable[[], object]) -> None:
        def parsed(spec: str, family: str) -> Callable[..., Any]:
            inner = parse(spec, family)
            if family != "objectives":
                return inner

            @functools.wraps(inner)
            def objective(*given: Any, step: int, **options: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
                found = inner(*given, step=step, **options)
                if step == at:
                    what()
                return found

            objective.__module__ = registry.__name__  # the code of one's own would be part of the run
            return objective

        monkeypatch.setattr(registry, "parse", parsed)

    return disturb


def ctrl_c(times: int) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def no_ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "kept"),
    [(lambda: ctrl_c(1), 4), (lambda: ctrl_c(2), None), (no_ctrl_c, None)],
    ids=["once", "twice", "raised"],
)
@pytest.mark.parametrize("objective", ["standard", RECIPE.objective])
def test_interrupted_within_a_step(
    tmp_path: Path,
    digits: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    disturbed: Callable[[int, Callable[[], object]], None],
    what: Callable[[], object],
    kept: int | None,
    objective: str,
) -> None:
    """Ctrl-C lets the step end and saves; twice, or raised elsewhere, it saves nothing: never half a step.

    The network has dropout and BatchNorm, both of which a step changes before the weights.
    """
    recipe = Recipe(objective=objective, architecture="ross", steps=6, batch_size=8)
    train(recipe, digits, tmp_path / "whole")
    disturbed(3, what)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, digits, tmp_path / "broken")
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (tmp_path / "broken" / "checkpoint.safetensors").exists() == (kept is not None)
    steps: list[int] = []
    train(recipe, digits, tmp_path / "broken", resume=True, report=lambda step, _: steps.append(step))
    assert steps[0] == (kept or 0) + 1
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_trains_outside_the_main_thread(tmp_path: Path, digits: ImageSet) -> None:
    """Where no signal handler may be set, none is."""
    thread = threading.Thread(target=train, args=(SHORT, digits, tmp_path))
    thread.start()
    thread.join()
    assert (tmp_path / "model.safetensors").is_file()


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


def test_the_advice_after_divergence_can_be_followed(tmp_path: Path, digits: ImageSet) -> None:
    """The folder holds the diverged recipe: another one needs another folder, and the message says so."""
    with pytest.raises(PellucidError, match=r"another --out \(or remove .*run first\)"):
        train(Recipe(steps=200, batch_size=8, lr=1e18, optimiser="sgd"), digits, tmp_path / "run")


def test_weights_that_are_not_finite_replace_no_checkpoint(
    tmp_path: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step's loss is finite, its weights are not: the run fails and the last good checkpoint stays."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(steps=2, batch_size=8, optimiser="sgd", lr=1e-3, decay="constant")
    step = torch.optim.SGD.step
    taken: list[int] = []

    def poisoned(self: torch.optim.SGD, *given: Any) -> None:
        step(self, *given)
        if taken:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("inf"))
        taken.append(1)

    monkeypatch.setattr(torch.optim.SGD, "step", poisoned)
    with pytest.raises(PellucidError, match=r"diverged at step 2.*trunk.*not finite.*is of step 1"):
        train(recipe, digits, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    train(recipe, digits, tmp_path, resume=True)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path, digits: ImageSet) -> None:
    """A second run in the same folder is refused, and a resumed one must have the same recipe."""
    train(Recipe(steps=1, batch_size=8), digits, tmp_path)
    with pytest.raises(PellucidError, match="--resume"):
        train(Recipe(steps=1, batch_size=8), digits, tmp_path)
    with pytest.raises(PellucidError, match="steps was 1 and is 2"):
        train(Recipe(steps=2, batch_size=8), digits, tmp_path, resume=True)
    train(Recipe(steps=1, batch_size=8), digits, tmp_path, resume=True)


@pytest.fixture
def begun(tmp_path: Path, digits: ImageSet) -> Path:
    """The folder of a finished short run."""
    train(SHORT, digits, tmp_path / "begun")
    return tmp_path / "begun"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state that a checkpoint's metadata hold."""
    from safetensors.torch import save_file

    from pellucid.weights import read_safetensors

    tensors, metadata = read_safetensors(path)
    facts = json.loads(metadata["state"])
    change(facts)
    save_file(tensors, path, {"state": json.dumps(facts)})


def test_a_broken_checkpoint_is_named(begun: Path, digits: ImageSet) -> None:
    """A checkpoint that cannot be read, or is another network's, raises and names the file."""
    network = load_model(begun)[0]
    state = State(network, torch.optim.Adam(network.parameters()), torch.Generator(), None, Best(), Team())
    path = begun / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PellucidError, match="checkpoint"):
        load_checkpoint(path, state, identity(SHORT, data_digest=digits.digest, device="cpu"))


@pytest.mark.parametrize("key", ["step", "groups", "plain", "run", "log"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"x": 1}])
def test_a_checkpoint_of_wrong_content_is_named(begun: Path, digits: ImageSet, key: str, value: object) -> None:
    """Whatever the state holds in place of what it should, the error names the file; nothing else escapes."""
    edit(begun / "checkpoint.safetensors", lambda facts: facts.update({key: value}))
    with pytest.raises(PellucidError, match=r"checkpoint\.safetensors"):
        train(SHORT, digits, begun, resume=True)


def test_a_checkpoint_knows_its_run(begun: Path, digits: ImageSet) -> None:
    """A checkpoint without its recipe.json is still a run: not to be overwritten, nor resumed as another one."""
    for name in ("recipe.json", "run.json"):
        (begun / name).unlink()
    with pytest.raises(PellucidError, match="--resume"):
        train(SHORT, digits, begun)
    with pytest.raises(PellucidError, match=r"checkpoint.*lr was 0.001 and is 0.5"):
        train(dataclasses.replace(SHORT, lr=0.5), digits, begun, resume=True)
    with pytest.raises(PellucidError, match=r"checkpoint.*data_digest was"):
        train(SHORT, digits.select(range(100)), begun, resume=True)
    edit(begun / "checkpoint.safetensors", lambda facts: facts["run"].update(device="cuda"))
    with pytest.raises(PellucidError, match=r"checkpoint.*device was 'cuda' and is 'cpu'"):
        train(SHORT, digits, begun, resume=True)


def test_a_run_without_a_checkpoint_is_resumed_on_the_same_data_and_device(begun: Path, digits: ImageSet) -> None:
    """run.json says what the recipe's words meant when the run began."""
    (begun / "checkpoint.safetensors").unlink()
    with pytest.raises(PellucidError, match="data_digest was"):
        train(SHORT, digits.select(range(100)), begun, resume=True)
    stored = json.loads((begun / "run.json").read_text())
    assert stored == {"data_digest": digits.digest, "device": "cpu", "threads": torch.get_num_threads()}
    (begun / "run.json").write_text(json.dumps(stored | {"device": "cuda"}))
    with pytest.raises(PellucidError, match="device was 'cuda' and is 'cpu'"):
        train(SHORT, digits, begun, resume=True)


@pytest.mark.parametrize(("capability", "told"), [("AVX2", True), ("AVX512", False)])
def test_bfloat16_by_software_is_told(capability: str, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old processor takes ten times as long in bf16 as in fp32."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert ("AVX2" in str(emulated("bf16", "cpu"))) == told
    assert emulated("fp32", "cpu") is emulated("bf16", "cuda") is None


def test_another_number_of_threads_is_told(begun: Path) -> None:
    """A sum in another order has other last bits: a warning, since the weights are as good."""
    assert other_threads(begun) is None
    stored = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(stored | {"threads": 61}))
    assert "OMP_NUM_THREADS=61" in str(other_threads(begun))


@pytest.mark.parametrize("name", ["recipe.json", "run.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"3"])
def test_a_corrupt_file_is_named(begun: Path, digits: ImageSet, name: str, content: bytes) -> None:
    """Half a file, another kind of value, no text: the error names the file."""
    (begun / name).write_bytes(content)
    with pytest.raises(PellucidError, match=name):
        train(SHORT, digits, begun, resume=True)


@pytest.mark.parametrize("content", [{"stepps": 2}, {"steps": "two"}, {"steps": 0}])
def test_a_recipe_that_is_none_is_named(begun: Path, digits: ImageSet, content: dict) -> None:
    """An unknown setting, a wrong kind of value, a value out of range: the error names the file."""
    (begun / "recipe.json").write_text(json.dumps(content))
    with pytest.raises(PellucidError, match=r"recipe\.json"):
        train(SHORT, digits, begun, resume=True)


@pytest.mark.parametrize(
    ("changes", "device", "match"),
    [
        ({"objective": "standart"}, "cpu", "standard"),
        ({"architecture": "small(classes=3)"}, "cpu", r"small\(classes=3\).*10 classes"),
        ({"architecture": "small(channels=3)"}, "cpu", r"small\(channels=3\)"),
        ({"architecture": "small(size=30)"}, "cpu", "30"),
        ({}, "abacus", "device 'abacus'"),
        ({}, "cuda:99", "device 'cuda:99'"),
    ],
)
def test_what_cannot_work_leaves_nothing_behind(
    tmp_path: Path, digits: ImageSet, changes: dict, device: str, match: str
) -> None:
    """A mistake in the recipe or the device is said before the folder is claimed: the corrected command then works."""
    with pytest.raises(PellucidError, match=match):
        train(dataclasses.replace(SHORT, **changes), digits, tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_one_process_at_a_time(tmp_path: Path, digits: ImageSet) -> None:
    """A folder at work is refused by the process that holds it; afterwards it is free again."""
    with locked(tmp_path), pytest.raises(PellucidError, match=f"process {os.getpid()} is at work in"):
        train(SHORT, digits, tmp_path)
    assert not (tmp_path / ".lock").exists()
    train(SHORT, digits, tmp_path)
    assert not (tmp_path / ".lock").exists()


@pytest.fixture
def dead() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_the_dead_left_is_cleared_away(tmp_path: Path, digits: ImageSet, dead: int) -> None:
    """The lock and the unfinished files of a dead process go, those of a living one stay."""
    (tmp_path / ".lock").write_text(str(dead))
    left, living = tmp_path / f".checkpoint.safetensors.{dead}.part", tmp_path / f".x.{os.getppid()}.part"
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    train(SHORT, digits, tmp_path)
    assert (left.exists(), living.exists(), (tmp_path / ".lock").exists()) == (False, True, False)


def logged(folder: Path) -> list[int]:
    """The steps of the loss that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [event.step for event in events.Scalars("train/loss")] if "train/loss" in events.Tags()["scalars"] else []


def test_tensorboard_has_each_step_once(tmp_path: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged after the last checkpoint, or before the first, is logged anew and not twice."""
    monkeypatch.setattr(stepping, "LOG_EVERY", 1)
    recipe = dataclasses.replace(SHORT, steps=5)

    def fail(step: int, entry: dict[str, float]) -> None:
        del entry
        if step == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(recipe, digits, tmp_path, report=fail)
    assert logged(tmp_path) == [1, 2, 3]
    train(recipe, digits, tmp_path, resume=True)
    assert logged(tmp_path) == [1, 2, 3, 4, 5]


def test_tensorboard_is_on_disk_at_every_checkpoint(
    tmp_path: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run's curves reach to its last checkpoint: they are flushed before it is written."""
    from torch.utils.tensorboard.writer import SummaryWriter

    calls: list[str] = []
    flush, save = SummaryWriter.flush, training.save_checkpoint
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(SummaryWriter, "flush", lambda self: (calls.append("flush"), flush(self)))
    monkeypatch.setattr(training, "save_checkpoint", lambda *a, **k: (calls.append("save"), save(*a, **k)))
    train(SHORT, digits, tmp_path)
    assert calls == ["flush", "save"] * 3  # after each step, and at the end


def test_a_model_knows_its_classes_and_data(begun: Path, digits: ImageSet) -> None:
    """What a model is judged on can be compared with what it was trained on."""
    facts = load_model(begun)[1]
    assert json.loads(facts["classes"]) == list(digits.class_names)
    assert facts["data_digest"] == digits.digest


@given(seed=st.integers(), other=st.integers(), epoch=st.integers(0, 10))
def test_seeds_of_purposes_are_their_own(seed: int, other: int, epoch: int) -> None:
    """In [0, 2^63), the same for the same parts, different for different ones, kinds and orders."""
    found = {derive_seed(seed), derive_seed(str(seed)), derive_seed(seed, "a"), derive_seed(seed, "a", epoch)}
    assert len(found) == 4
    assert all(0 <= value < 2**63 for value in found)
    assert derive_seed(seed, "a") == derive_seed(seed, "a")
    assert (derive_seed(seed, "a") == derive_seed(other, "a")) == (seed == other)
    assert derive_seed(1, 2) != derive_seed(12)


def test_a_derived_seed_is_the_same_for_ever() -> None:
    """A change here would change every result that has a seed."""
    assert derive_seed(0, "batches", 0) == 4889820459253446307


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_each_stream_has_a_seed_of_its_own(
    tmp_path: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Initial weights, batches, attacks and dropout draw from generators that begin differently."""
    asked: list[tuple[int | str, ...]] = []
    for module in (training, stepping):
        monkeypatch.setattr(module, "derive_seed", lambda *parts: (asked.append(parts), derive_seed(*parts))[1])
    train(Recipe(steps=1, batch_size=8, seed=seed), digits, tmp_path)
    assert set(asked) == {(seed, "initial weights"), (seed, "batches", 0), (seed, "attacks"), (seed, "dropout")}


def test_the_callers_generator_is_untouched(tmp_path: Path, digits: ImageSet) -> None:
    """Building a network, and dropout, draw from the global generator: from the run's own, not the caller's."""
    before = torch.get_rng_state()
    train(Recipe(architecture="ross", steps=1, batch_size=8), digits, tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_dropout_on_a_gpu_goes_on_where_it_was(tmp_path: Path, digits: ImageSet) -> None:
    """The masks after a resumption are those of the uninterrupted run, and the caller's generator is untouched."""
    recipe = Recipe(architecture="ross", steps=6, batch_size=8)
    before = torch.cuda.get_rng_state()
    train(recipe, digits, tmp_path / "whole", device="cuda")

    def stop(step: int, entry: dict[str, float]) -> None:
        del entry
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, digits, tmp_path / "broken", device="cuda", report=stop)
    train(recipe, digits, tmp_path / "broken", device="cuda", resume=True)
    assert torch.equal(before, torch.cuda.get_rng_state())
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"clip": -1.0},
        {"decay_share": 0.0},
        {"seed": -1},
        {"seed": 2**63},
    ],
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
    stepped = Recipe(steps=10, lr="Steps((0.1, 0.01, 0.001), (4, 8))")
    assert [stepped.learning_rate(step) for step in (0, 3, 4, 7, 8)] == [0.1, 0.1, 0.01, 0.01, 0.001]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": "pgd(steps=3)"}, "neither a number nor a schedule"),
        ({"lr": "Steps((0.1, 0.01), (4,))", "decay": "linear"}, "leave out decay"),
        ({"lr": "Step(3)"}, "Step"),
        ({"lr": "-0.1"}, "must be above 0"),
    ],
)
def test_a_learning_rate_that_is_none_is_refused(settings: dict[str, Any], says: str) -> None:
    """With its value, and what would do."""
    with pytest.raises(PellucidError, match=says):
        Recipe(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"validate": "pgdd"},
        {"objective": "int(ball=L2(1), start='persistent')"},
        {"objective": "double_backprop(lam=-1)"},
        {"objective": "standard(temperature=0)"},
        {"objective": "adversarial(attack=spatial(steps=1), eps=0.1)"},
        {"objective": "int(reading='as_coded', interpreter=gradient)"},
        {"objective": "adversarial(attack=aai(interpreter=gradcam(layer='nope')), alternate=True)"},
        {"objective": "double_backprop(reading='as_coded')", "accumulate": 2},
    ],
)
def test_options_that_do_not_fit_are_said_before_anything_is_written(settings: dict[str, Any], tmp_path: Path) -> None:
    """So that the corrected command is not refused for what the wrong one left."""
    images = load("digits", "train").select(range(40))
    with pytest.raises(PellucidError):
        train(Recipe(steps=3, batch_size=8, **settings), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(Recipe(steps=1, batch_size=8), images, tmp_path / "run")


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("adversarial(attack=fgsm(ball=Linf(0.2)))", [0.19, 0.2]),  # over the first half of the run, by --ramp
        ("int2(ball=Linf(0.2), steps=1, eps=Ramp(0, 0.4, 0, 40))", [0.19, 0.39]),
        ("fast(ball=Linf(0.2), eps=0.1)", [0.1, 0.1]),
        ("standard", None),
    ],
)
def test_the_log_says_the_radius(objective: str, expected: list[float] | None, tmp_path: Path) -> None:
    """That of the step itself."""
    recipe = Recipe(objective=objective, steps=40, batch_size=8, ramp=0.5)
    train(recipe, load("digits", "train").select(range(40)), tmp_path)
    log = json.loads((tmp_path / "metrics.json").read_text())
    found = [entry["eps"] for entry in log if "eps" in entry]
    assert found == ([] if expected is None else pytest.approx(expected))


def test_an_objective_may_name_plain_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms are for the log: a float does."""

    def own(model: Any, x: Any, y: Any, *, step: int, generator: Any = None) -> tuple[Any, dict[str, float]]:
        del step, generator
        loss = torch.nn.functional.cross_entropy(model(x), y)
        return loss, {"fit": loss.item()}

    parse = registry.parse
    monkeypatch.setattr(registry, "parse", lambda spec, family: own if family == "objectives" else parse(spec, family))
    train(Recipe(steps=2, batch_size=8), load("digits", "train").select(range(40)), tmp_path)
    last = json.loads((tmp_path / "metrics.json").read_text())[-1]
    assert last["fit"] == pytest.approx(last["loss"], abs=1e-5)


def test_a_finished_run_says_how_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All steps or why not, which weights are kept, the last figures: in words and in --json."""
    common = ["train", "--data", "digits", "--steps", "6", "--batch-size", "8", "--validate-every", "2"]
    stopped = [*common, "--stop-at", "0.01", "--keep", "best", "--out", str(tmp_path / "stopped")]
    assert run([*stopped, "--resume"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "holds no run to go on with: it begins" in said
    assert "Ended after step 2 of 6: validation accuracy reached" in said
    assert "the weights of step 2 are kept" in said
    assert run([*common, "--out", str(tmp_path / "whole"), "--json"]) == 0
    ended = json.loads(capsys.readouterr().out)["ended"]
    last = json.loads((tmp_path / "whole/metrics.json").read_text())[-1]
    assert ended == [{"step": 6, "of": 6, "stopped": "", "best_step": None, "last": {"loss": last["loss"]}}]


def test_mistakes_under_torchrun_are_said_once(tmp_path: Path) -> None:
    """Two processes find the same; one says it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pellucid"]
    command = [*launch, "train", "--objective", "nonsense", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("no objective is called 'nonsense'") == 1
    assert run(["train", "--steps", "2", "--quiet", "--out", str(tmp_path / "taken")]) == 0
    command = [*launch, "train", "--steps", "2", "--out", str(tmp_path / "taken")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.count("already holds a training run") == 1
    assert "barrier" not in done.stderr  # nobody waits for the one that stopped


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """An error names the file that was asked for, not the neighbour it is first written to."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder") as caught:
        write_atomically(tmp_path / "folder", b"x")
    assert caught.value.filename == str(tmp_path / "folder")
    assert not list(tmp_path.glob(".*part"))
