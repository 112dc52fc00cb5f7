"""Watching, averaging, accumulating, augmenting, and training by several processes."""

import copy
import itertools
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid import augmentations
from pellucid.attacks.gradient import pgd
from pellucid.balls import L2, Linf
from pellucid.checkpoint import ending
from pellucid.cli import run
from pellucid.data import ImageSet, load
from pellucid.errors import PellucidError
from pellucid.memory import Memory
from pellucid.metrics import correct
from pellucid.models import load_model
from pellucid.network import Network
from pellucid.objectives.adversarial import free
from pellucid.objectives.interpretability import int2
from pellucid.parallel import Team
from pellucid.recipe import Recipe
from pellucid.training import train
from pellucid.watch import Best, averaged, follow, held_out, judge, validate

FULL = Recipe(
    objective="adversarial(attack=pgd(ball=Linf(0.1), steps=2))",
    steps=9,
    batch_size=8,
    accumulate=2,
    augment=("crop", "cutout"),
    ema=0.9,
    validate="pgd(ball=Linf(0.1), steps=2)",
    validate_every=2,
    held_out=20,
    keep="best",
    decay="cosine",
)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    """150 digits."""
    return load("digits", "train").select(range(150))


def curve(run: Path, name: str) -> list[float]:
    return [entry[name] for entry in json.loads((run / "metrics.json").read_text()) if name in entry]


def test_a_watched_run_interrupted_is_the_uninterrupted_one(tmp_path: Path, digits: ImageSet) -> None:
    """Average, best weights, generators and score go through a checkpoint, wherever it is written."""
    train(FULL, digits, tmp_path / "whole")
    for at in (1, 4, 5):

        def stop(step: int, entry: dict[str, float], at: int = at) -> None:
            del entry
            if step == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(FULL, digits, tmp_path / str(at), report=stop)
        train(FULL, digits, tmp_path / str(at), resume=True)
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", str(at))]
        assert files[0] == files[1]
        assert curve(tmp_path / "whole", "validation_robust") == curve(tmp_path / str(at), "validation_robust")


def test_accumulated_batches_are_one_batch(tmp_path: Path, digits: ImageSet) -> None:
    """Two batches of 8 a step are the batch of 16: loss curve and weights, to rounding."""
    one = Recipe(steps=40, batch_size=16)
    images = digits.select(range(144))
    first = train(one, images, tmp_path / "one")
    second = train(replace(one, batch_size=8, accumulate=2), images, tmp_path / "two")
    torch.testing.assert_close(curve(tmp_path / "one", "loss"), curve(tmp_path / "two", "loss"), rtol=1e-4, atol=1e-5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_average_follows_its_formula(noisy: Network, generator: torch.Generator) -> None:
    """`a <- d a + (1 - d) w` with `d = min(decay, (1 + n) / (10 + n))`; batch norm's statistics are the last ones."""
    average = averaged(noisy, 0.5)
    assert average is not None
    naive = None
    for n in range(12):
        with torch.no_grad():
            for tensor in [*noisy.parameters(), *(b for b in noisy.buffers() if b.is_floating_point())]:
                tensor.add_(torch.empty_like(tensor).normal_(0, 0.1, generator=generator).abs())
        follow(average, noisy)
        weights = [p.detach().clone() for p in noisy.parameters()]
        decay = min(0.5, (1 + n) / (10 + n))
        naive = weights if naive is None else [decay * a + (1 - decay) * w for a, w in zip(naive, weights, strict=True)]
    assert naive is not None
    for mine, theirs in zip(average.module.parameters(), naive, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(average.module.buffers(), noisy.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_held_out_images_are_not_trained_on(digits: ImageSet) -> None:
    """They and the rest are the whole; another seed holds out others; too many are refused."""
    rest, watched = held_out(FULL, digits)
    assert watched is not None
    assert len(watched) == 20
    assert len(rest) == 130

    def seen(images: ImageSet) -> list[bytes]:
        return [image.numpy().tobytes() for image in images.batch(range(len(images)))[0]]

    assert sorted(seen(rest) + seen(watched)) == sorted(seen(digits))
    other = held_out(replace(FULL, seed=1), digits)[1]
    assert other is not None
    assert seen(other) != seen(watched)
    with pytest.raises(PellucidError, match="held_out"):
        held_out(replace(FULL, held_out=150), digits)
    assert held_out(Recipe(), digits) == (digits, None)


def test_validation_is_what_it_says(tiny: Network, images: Tensor, digits: ImageSet) -> None:
    """Accuracy, and the share right both clean and attacked, as counted here."""
    del images
    network = nn.Sequential(tiny.double().float()).eval()
    attack = partial(pgd, ball=Linf(0.1), steps=3, random_start=False)
    few = digits.select([row for row in range(len(digits)) if int(digits.labels[row]) < 5][:30])
    found = validate(network, few, attack, torch.device("cpu"), 0)
    x, y = few.batch(range(len(few)))
    attacked = attack(network, x, y)
    right = correct(network(x), y)
    assert found["validation_accuracy"] == float(right.double().mean())
    assert found["validation_robust"] == float((right & correct(network(attacked), y)).double().mean())


def test_the_best_is_kept_and_the_run_stops(tiny: Network, digits: ImageSet) -> None:
    """The weights of the highest score; a stop by patience, by accuracy, and by collapse, each saying why."""
    recipe = replace(FULL, patience=2)
    best, network = Best(), copy.deepcopy(tiny)
    kept: dict[str, Any] = {}
    for step, score in enumerate((0.2, 0.5, 0.4, 0.3)):
        with torch.no_grad():
            network.head.weight.fill_(step)
        judge(best, {"validation_accuracy": 0.9, "validation_robust": score}, network, recipe, step, digits)
        if step == 1:
            kept = {name: value.clone() for name, value in network.state_dict().items()}
        assert bool(best.stopped) == (step == 3)
    assert (best.score, best.step) == (0.5, 1)
    assert best.weights is not None
    assert all(torch.equal(best.weights[name], value) for name, value in kept.items())
    assert "2 validations" in best.stopped
    few = digits.select(torch.cat([(digits.labels == kind).nonzero()[:5, 0] for kind in (0, 1)]))
    for images, scores, step, why in (
        (digits, (0.5, 0.2), 9, "collapsed from 0.500 to 0.200"),
        (digits, (0.15, 0.05), 9, ""),  # hardly above chance: nothing was learned that could be lost
        (digits, (0.5, 0.2), 4, ""),  # the radius still grows
        (few, (0.53, 0.2), 9, ""),  # two classes: half is chance
    ):
        best = Best()
        for score in scores:
            judge(best, {"validation_accuracy": 0.9, "validation_robust": score}, network, FULL, step, images)
        assert (why in best.stopped) if why else not best.stopped
    best = Best()
    judge(best, {"validation_accuracy": 0.9}, network, replace(FULL, validate="", stop_at=0.85), 0, digits)
    assert "reached 0.900" in best.stopped


def test_a_run_that_keeps_its_best_weights_ends_with_their_scores(tmp_path: Path, digits: ImageSet) -> None:
    """Not with the later ones that made it stop."""
    recipe = Recipe(steps=400, batch_size=16, lr=0.3, keep="best", patience=1, validate_every=5, held_out=50)
    train(recipe, digits, tmp_path)
    end = ending(tmp_path, recipe)
    log = [entry for entry in json.loads((tmp_path / "metrics.json").read_text()) if "validation_gradient" in entry]
    (best,) = [entry for entry in log if entry["step"] == end["best_step"]]
    assert end["stopped"] == "1 validation without a better score"
    assert end["best_step"] < end["step"]
    assert end["last"]["validation_gradient"] == best["validation_gradient"] != log[-1]["validation_gradient"]


def test_an_underfit_network_stops_at_its_accuracy(tmp_path: Path, digits: ImageSet) -> None:
    """Long before its last step, and a resumed run has nothing left to do."""
    recipe = Recipe(steps=5000, batch_size=32, lr=3e-3, stop_at=0.3, validate_every=5, held_out=50)
    train(recipe, digits, tmp_path)
    accuracies = curve(tmp_path, "validation_accuracy")
    assert accuracies[-1] >= 0.3
    assert all(accuracy < 0.3 for accuracy in accuracies[:-1])
    content = (tmp_path / "model.safetensors").read_bytes()
    train(recipe, digits, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == content


def test_a_student_without_a_teacher_gets_one(tmp_path: Path, digits: ImageSet) -> None:
    """Trained first, at the student's temperature, by the same recipe; the student comes near its answers."""
    recipe = Recipe(objective="distilled(temperature=5)", steps=150, batch_size=32, lr=3e-3)
    student = train(recipe, digits, tmp_path)
    teacher, facts = load_model(tmp_path / "teacher")
    assert facts["objective"] == "standard(temperature=5)"
    x, _ = digits.batch(range(len(digits)))
    assert float((student(x).argmax(1) == teacher(x).argmax(1)).float().mean()) > 0.8


@pytest.mark.parametrize(
    ("objective", "accumulate"), [("adversarial(attack=fgsm(ball=Linf(0.1)))", 1), ("distilled(temperature=2)", 2)]
)
def test_two_processes_are_one_with_the_joint_batch(tmp_path: Path, objective: str, accumulate: int) -> None:
    """torchrun, two processes over gloo: the loss curve of one process, to 1e-5."""
    common = ["--data", "digits", "--steps", "60", "--batch-size", "16", "--accumulate", str(accumulate)]
    common += ["--objective", objective, "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pellucid"]
    for command, out in (([sys.executable, "-m", "pellucid"], "one"), (launch, "two")):
        done = subprocess.run(
            [*command, "train", *common, "--out", str(tmp_path / out)],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
    one, two = (curve(tmp_path / out, "loss") for out in ("one", "two"))
    assert len(one) == 3
    assert one == pytest.approx(two, abs=1e-5)


DIES = """
import os, sys
from pellucid import training

training.CHECKPOINT_SECONDS, last = 0.0, int(sys.argv.pop(1))
save = training._save

def and_die(state, run, now, *rest):
    save(state, run, now, *rest)
    if state.team.leads and now.step == last:
        os._exit(1)

training._save = and_die
from pellucid.cli import run
sys.exit(run(sys.argv[1:]))
"""


WATCHED = "--arch ross --batch-size 16 --ema 0.5 --validate fgsm(ball=Linf(0.1)) --validate-every 4 --held-out 40 "
NORMED = [*WATCHED.split(), "--keep", "best", "--objective", "adversarial(attack=fgsm(ball=Linf(0.1)), clean=0.5)"]
# Four steps an epoch: an image that one process attacked is the other's in the next. Saved between two replays too.
REMEMBERING = ["--batch-size", "300", "--objective", "int2(ball=Linf(0.1), steps=1, start='persistent')"]
REPLAYING = ["--batch-size", "600", "--replays", "2", "--objective", "free(ball=Linf(0.1))"]


@pytest.mark.parametrize("options", [NORMED, REMEMBERING, REPLAYING], ids=["norms", "memory", "replays"])
def test_two_processes_killed_and_resumed_end_as_if_they_had_not_been(tmp_path: Path, options: list[str]) -> None:
    """With batch norm, dropout, averaged weights and validation, or a memory: the same bits, however often saved."""
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["train", "--data", "digits", "--steps", "9", "--quiet", *options]

    def start(*words: str) -> int:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run([*launch, *words], env=environment, capture_output=True, check=False).returncode

    whole, killed = ["--out", str(tmp_path / "whole")], ["--out", str(tmp_path / "killed")]
    assert start("-m", "pellucid", *command, *whole) == 0
    assert start(str(script), "5", *command, *killed) != 0
    assert not (tmp_path / "killed/model.safetensors").exists()
    assert start(str(script), "0", *command, *killed, "--resume") == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]


LEAVES = """
import atexit, os, sys
from pathlib import Path
import torch.distributed as dist

def gloo():
    return any("gloo" in each.read_text() for each in Path("/proc/self/task").glob("*/comm"))

joined = False
atexit.register(lambda: os._exit(0 if joined and not gloo() else 1))  # first registered, last called
from pellucid.cli import run
code = run(sys.argv[1:])
joined = code == 0 and dist.is_initialized() and gloo()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for threads where Linux shows them")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """One that still ran when the interpreter had ended could abort a process that had done its work."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command = ["train", "--data", "digits", "--steps", "4", "--batch-size", "16", "--quiet", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command, str(tmp_path / "run")], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


SAVES = """
import sys
from pathlib import Path
from pellucid import training

training.CHECKPOINT_SECONDS, save = 1.0, training._save

def noted(state, run, now, *rest):
    save(state, run, now, *rest)
    if state.team.leads:
        with Path(sys.argv[0]).with_suffix(".log").open("a") as file:
            print(now.step, file=file)

training._save = noted
from pellucid.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_several_processes_save_once_when_it_is_due(tmp_path: Path) -> None:
    """What was wished for before a save is not done again after the next step."""
    script = tmp_path / "saves.py"
    script.write_text(SAVES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command = ["train", "--data", "digits", "--arch", "ross", "--steps", "60", "--batch-size", "64", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command, "--out", str(tmp_path / "run")], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    steps = [int(line) for line in (tmp_path / "saves.log").read_text().split()]
    assert len(steps) >= 3, "too fast a machine for this test: more steps"
    assert all(late - early > 1 for early, late in itertools.pairwise(steps[:-1]))


def test_augmented_images_are_parts_of_the_images(generator: torch.Generator) -> None:
    """A crop is a window of the padded image, a flip the image or its mirror, cutout zeroes one square; seeded."""
    x = torch.rand(40, 3, 16, 16, generator=generator) + 0.1
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    cropped = augmentations.crop(x, generator)
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    matches = (windows == cropped[:, None]).flatten(2).all(2)
    assert matches.any(1).all()
    assert len(set(matches.float().argmax(1).tolist())) > 10
    flipped = augmentations.flip(x, generator)
    same, mirrored = ((flipped == other).flatten(1).all(1) for other in (x, x.flip(3)))
    assert (same ^ mirrored).all()
    assert 5 < int(mirrored.sum()) < 35
    cut = augmentations.cutout(x, generator)
    gone = (cut == 0)[:, 0]
    assert (cut == torch.where(gone[:, None], 0, x)).all()
    rows, columns = gone.any(2), gone.any(1)
    assert (gone == (rows[:, :, None] & columns[:, None, :])).all()
    assert gone.flatten(1).sum(1).max() == 64
    one, two = (augmentations.augment(x, augmentations.NAMES, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(PellucidError, match="augment"):
        Recipe(augment=("mixup",))


def test_several_seeds_in_one_command(tmp_path: Path) -> None:
    """A run each, in its own folder; resumed with one more, the finished stay and the new one begins."""
    command = ["train", "--data", "digits", "--steps", "4", "--batch-size", "8", "--out", str(tmp_path), "--quiet"]
    assert run([*command, "--seeds", "2"]) == 0
    before = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("seed-0", "seed-1")]
    assert before[0] != before[1]
    assert run([*command, "--seeds", "3", "--resume"]) == 0
    assert before == [(tmp_path / name / "model.safetensors").read_bytes() for name in ("seed-0", "seed-1")]
    assert (tmp_path / "seed-2" / "model.safetensors").is_file()
    assert run([*command, "--seeds", "0"]) == 2


def test_a_batch_of_more_images_than_there_are_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains on all of them at every step, and says so."""
    command = ["train", "--data", "digits", "--steps", "1", "--quiet"]
    assert run([*command, "--batch-size", "5000", "--out", str(tmp_path / "large")]) == 0
    assert "--batch-size 5000 is more than" in capsys.readouterr().err
    assert run([*command, "--batch-size", "8", "--out", str(tmp_path / "small")]) == 0
    assert "warning" not in capsys.readouterr().err
    held = ["--batch-size", "1200", "--keep", "best", "--validate-every", "1", "--out", str(tmp_path / "held out")]
    assert run([*command, *held]) == 0  # of 1,297 images 500 are held out
    assert "--batch-size 1200 is more than the 797 images to train on" in " ".join(capsys.readouterr().err.split())


def test_a_schedule_that_ends_after_the_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A published ramp with fewer steps than published would train a standard network unsaid."""
    for steps, end, said in (("3", "10", True), ("11", "10", False)):
        attack = f"adversarial(attack=fgsm(ball=Linf(0.3)), eps=Ramp(0, 0.3, 0, {end}))"
        command = ["train", "--data", "digits", "--quiet", "--objective", attack, "--steps", steps]
        assert run([*command, "--out", str(tmp_path / steps)]) == 0
        assert ("eps is 0.06 of 0.3" in capsys.readouterr().err) is said


def test_what_was_finished_before_is_told_from_what_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a model lies there and its checkpoint is lost: then it is trained anew."""
    command = ["train", "--data", "digits", "--steps", "3", "--out", str(tmp_path / "a b")]
    assert run(command) == 0
    assert f"--model '{tmp_path / 'a b'}'" in " ".join(capsys.readouterr().err.split())  # can be pasted
    assert run([*command, "--resume"]) == 0
    assert "nothing was left to do" in capsys.readouterr().err
    (tmp_path / "a b" / "checkpoint.safetensors").unlink()
    assert run([*command, "--resume"]) == 0
    assert "trained in" in capsys.readouterr().err


def test_the_page_of_curves_shows_every_run(tmp_path: Path, digits: ImageSet) -> None:
    """One line per run and quantity, the last values in the table, unfinished runs too; none is an error."""
    recipe = replace(FULL, steps=6, accumulate=1, augment=(), objective="double_backprop(lam=1)")
    train(recipe, digits, tmp_path / "a<b")
    with pytest.raises(KeyboardInterrupt):
        train(replace(recipe, seed=1), digits, tmp_path / "other", report=interrupt)
    page = tmp_path / "curves.html"
    runs = ["--run", str(tmp_path / "a<b"), "--run", str(tmp_path / "other")]
    assert run(["curves", *runs, "--out", str(page)]) == 0
    text = page.read_text()
    assert "a&lt;b" in text
    assert all(f">{step}</text>" in text for step in (0, 2, 4, 6))  # round steps, evenly
    assert "a<b" not in text
    assert text.count("<svg") >= 4
    last = curve(tmp_path / "a<b", "validation_accuracy")[-1]
    assert f"{last:.3g}" in text
    assert run(["curves", *runs, *runs[:2], "--out", str(page)]) == 0
    assert page.read_text() == text  # a run that is named twice is drawn once
    assert run(["curves", "--run", str(tmp_path), "--out", str(page)]) == 2


def interrupt(step: int, entry: dict[str, float]) -> None:
    """After the third step."""
    del entry
    if step == 3:
        raise KeyboardInterrupt


def test_a_memory_gives_back_what_was_kept(generator: torch.Generator) -> None:
    """To 1/254 of the radius, scaled with it, of the images visited alone; a few begin anew; Linf balls only."""
    memory = Memory(40, (1, 6, 6), generator, Team())
    x = torch.rand(30, 1, 6, 6, generator=generator) * 0.2 + 0.4
    before = memory.store.clone()
    rows = torch.arange(5, 35)
    memory.visit(rows)
    attacked = Linf(0.1).sample(x, generator)
    memory.keep(x, attacked, Linf(0.1))
    assert torch.equal(memory.store[:5], before[:5])
    assert torch.equal(memory.store[35:], before[35:])
    same, wider = (memory.start(x, Linf(eps), torch.Generator().manual_seed(1)) for eps in (0.1, 0.2))
    near = ((same - attacked).abs() <= 0.1 / 254 + 1e-6).flatten(1).all(1)
    assert near.sum() >= 24
    assert not near.all()
    torch.testing.assert_close((wider - x)[near], 2 * (same - x)[near], atol=1e-5, rtol=0)
    kept = memory.store.clone()
    memory.keep(x, x, Linf(0.0))
    assert torch.equal(memory.store, kept)
    with pytest.raises(PellucidError, match="Linf"):
        memory.start(x, L2(1.0), generator)


@dataclass(frozen=True)
class Threads(Team):
    """Two that are threads of one process, and meet at a table."""

    table: dict[int, Tensor] = field(default_factory=dict)
    met: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))

    def gather(self, mine: Tensor, device: torch.device) -> list[Tensor]:
        del device
        self.table[self.rank] = mine.clone()
        self.met.wait()
        found = [self.table[rank] for rank in range(self.size)]
        self.met.wait()
        return found


def attack_all(memory: Memory, plan: list[Tensor], exchanged: tuple[int, ...]) -> list[Tensor]:
    """Visit batch after batch, to keep what hangs on image and time alone; what was held of each, before."""
    images, held = torch.full((24, 1, 2, 2), 0.5), []
    for number, batch in enumerate(plan):
        if number in exchanged:  # as when it is saved
            memory.exchange()
        memory.visit(batch)
        held.append(memory.store[memory.rows].clone())
        shift = 0.1 * torch.cos(torch.arange(24.0) + number)[:, None, None, None].expand(24, 1, 2, 2)
        memory.keep(images[memory.rows], images[memory.rows] + shift[memory.rows], Linf(0.1))
    memory.exchange()
    return held


@pytest.mark.parametrize("exchanged", [(), (5,), (6, 9), tuple(range(18))])
def test_two_memories_are_one_with_the_joint_batches(exchanged: tuple[int, ...]) -> None:
    """Whoever attacked an image last, both know where that ended when it comes again, and where all ended at last;
    wherever else they exchange, between the two replays of a batch too."""
    first = Threads(0, 2)
    teams = (Team(), first, replace(first, rank=1))
    alone, *pair = (Memory(24, (1, 2, 2), torch.Generator().manual_seed(0), team) for team in teams)
    batches = [torch.randperm(24, generator=torch.Generator().manual_seed(e)).split(8) for e in range(3)]
    plan = [batch for epoch in batches for batch in epoch for _ in range(2)]
    whole = attack_all(alone, plan, ())
    with ThreadPoolExecutor(2) as threads:
        halves = list(threads.map(lambda memory: attack_all(memory, plan, exchanged), pair))
    for joint, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(joint[0::2], parts[0])
        assert torch.equal(joint[1::2], parts[1])
    assert all(torch.equal(memory.store, alone.store) for memory in pair)


@pytest.mark.parametrize("objective", ["trades", "int", "int2", "free"])
def test_persistent_searches_are_resumed(tmp_path: Path, digits: ImageSet, objective: str) -> None:
    """Interrupted and uninterrupted end alike; augmentation is refused."""
    how = "" if objective == "free" else ", steps=1, start='persistent'"
    recipe = Recipe(objective=f"{objective}(ball=Linf(0.2){how})", steps=12, batch_size=50, replays=2)
    train(recipe, digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, digits, tmp_path / "broken", report=interrupt)
    train(recipe, digits, tmp_path / "broken", resume=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]
    with pytest.raises(PellucidError, match="augment"):
        train(replace(recipe, augment=("crop",)), digits, tmp_path / "cropped")


def test_a_persistent_search_is_stronger_than_one_from_chance(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """After some visits one step from the memory finds more loss than one step from a random point."""
    generator = torch.Generator().manual_seed(0)
    memory = Memory(len(images), tuple(images.shape[1:]), generator, Team())
    memory.visit(torch.arange(len(images)))
    options: dict[str, Any] = {"step": 0, "steps": 1, "adversarial": True, "ball": Linf(0.1)}
    with pytest.raises(PellucidError, match="trainer"):
        int2(tiny, images, labels, start="persistent", **options)
    fresh = float(int2(tiny, images, labels, generator=generator, **options)[1]["adversarial_cross_entropy"])
    terms: dict[str, Tensor] = {}
    for _ in range(30):
        _, terms = int2(tiny, images, labels, generator=generator, start="persistent", memory=memory, **options)
    assert float(terms["adversarial_cross_entropy"]) > fresh


def test_free_training_moves_images_by_the_gradient_of_its_loss(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """After the backward pass memory holds the projection of x' + eps sign(gradient), to 1/254 of the radius."""
    generator = torch.Generator().manual_seed(0)
    memory = Memory(len(images), tuple(images.shape[1:]), generator, Team())
    memory.visit(torch.arange(len(images)))
    x, ball = images * 0.4 + 0.3, Linf(0.1)
    attacked = memory.start(x, ball, torch.Generator().manual_seed(1)).requires_grad_()
    expected = torch.nn.functional.cross_entropy(tiny(attacked), labels)
    (gradient,) = torch.autograd.grad(expected, attacked)
    before = memory.store.clone()
    loss, _ = free(tiny, x, labels, step=0, generator=torch.Generator().manual_seed(1), ball=ball, memory=memory)
    assert torch.equal(loss, expected)
    assert torch.equal(memory.store, before)
    loss.backward()
    moved = (attacked.detach() + 0.1 * gradient.sign()).clamp(x - 0.1, x + 0.1) - x
    torch.testing.assert_close(memory.store / 127 * 0.1, moved, rtol=0, atol=0.1 / 254 + 1e-6)


def test_replays_take_the_same_batches_in_a_row(tmp_path: Path, digits: ImageSet, monkeypatch: Any) -> None:
    """Two batches a step, three steps each; the run without replays sees the same ones once."""
    seen: list[Tensor] = []
    take = ImageSet.batch

    def watched(images: ImageSet, rows: Any) -> tuple[Tensor, Tensor]:
        seen.append(torch.as_tensor(rows))
        return take(images, rows)

    monkeypatch.setattr(ImageSet, "batch", watched)
    recipe = Recipe(steps=6, batch_size=8, accumulate=2)
    train(replace(recipe, steps=2), digits, tmp_path / "once")
    once, seen = seen[-4:], []
    train(replace(recipe, replays=3), digits, tmp_path / "thrice")
    assert [each.tolist() for each in seen[-12:]] == [once[i].tolist() for i in (0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3)]
