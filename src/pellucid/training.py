"""Training: one loop that anyone can read."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid import registry, run_folder
from pellucid.balls import Ball
from pellucid.checkpoint import State, load_checkpoint, save_checkpoint
from pellucid.contract import check_contract
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.interrupts import deferred_interrupts
from pellucid.models import build, save_model
from pellucid.recipe import Recipe, identity
from pellucid.schedules import Ramp
from pellucid.seeds import derive_seed
from pellucid.types import Objective
from pellucid.weights import write_atomically

CHECKPOINT_SECONDS = 20.0
LOG_EVERY = 20  # steps

Report = Callable[[int, dict[str, float]], None]
Note = Callable[[dict[str, float]], None]


@dataclass
class Progress:
    """How far a run is. `whole` is false within a step, when a checkpoint would hold half of it."""

    step: int = 0
    log: list[dict] = field(default_factory=list)
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    whole: bool = True


def train(
    recipe: Recipe,
    images: ImageSet,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    report: Report | None = None,
) -> nn.Module:
    """Train a network by a recipe, in `out`: `model.safetensors`, `recipe.json`, `metrics.json`, TensorBoard events.

    Checkpoints are written every 20 seconds, at the end and, once the step is done, on Ctrl-C; a second Ctrl-C stops
    at once, at the last checkpoint. With `resume` an interrupted run goes on, and ends on a CPU (on as many threads)
    with the bits an uninterrupted one would have. A loss or gradient that is not finite stops the run before it
    touches the weights. Raises `PellucidError`, before anything is written, for a recipe, device or data that do not
    fit together, and when `out` holds another run, or one to be resumed, or one that another process works at.
    """
    objective = _ramped(registry.parse(recipe.objective, "objectives"), recipe)
    place = _usable(device)
    run = identity(recipe, data_digest=images.digest, device=place.type)
    with _own_global_generators(place, recipe.seed):
        state, architecture = _fresh(recipe, images, place)
        with run_folder.locked(out):
            run_folder.check(out, run, resume=resume)
            now = _run(recipe, state, objective, images, out, run, resume, report)
            facts = {"objective": recipe.objective, "recipe": recipe.to_json(), "data": recipe.data}
            facts |= {"classes": json.dumps(images.class_names), "data_digest": images.digest}
            save_model(state.network, out / "model.safetensors", architecture=architecture, **facts)
            write_atomically(out / "metrics.json", json.dumps(now.log, indent=0).encode())
    return state.network.eval()


def _usable(device: str) -> torch.device:
    try:
        torch.Generator(device)
        torch.zeros(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition(". ")[0]
        raise PellucidError(f"device {device!r} cannot be used ({said}): --device cpu always can") from None


def _fresh(recipe: Recipe, images: ImageSet, device: torch.device) -> tuple[State, str]:
    """The state before the first step, of a network that was tried on the data, and its full specification."""
    channels, size, _ = images.shape
    classes = len(images.class_names)
    initial = torch.Generator().manual_seed(derive_seed(recipe.seed, "initial weights"))
    example, _ = images.batch(torch.arange(min(2, len(images))))
    try:
        network, architecture = build(
            recipe.architecture, channels=channels, size=size, classes=classes, generator=initial
        )
        network = network.to(device)
        check_contract(network, example.to(device), classes=classes)
    except (PellucidError, RuntimeError) as error:
        raise PellucidError(f"architecture {recipe.architecture!r} on {images!r}: {error}") from None
    generator = torch.Generator(device).manual_seed(derive_seed(recipe.seed, "attacks"))
    return State(network.train(), _optimiser(network, recipe), generator), architecture


@contextmanager
def _own_global_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Global generators, which dropout draws from, of the run's own: afterwards they are as they were."""
    own = derive_seed(seed, "dropout")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(own)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield


def _run(
    recipe: Recipe,
    state: State,
    objective: Objective,
    images: ImageSet,
    out: Path,
    run: Mapping[str, Any],
    resume: bool,
    report: Report | None,
) -> Progress:
    """Claim the folder and take all steps that are left."""
    checkpoint, now = out / run_folder.CHECKPOINT, Progress()
    if checkpoint.is_file():
        now.step, now.log = load_checkpoint(checkpoint, state, run)
        now.saved_step = now.step
    run_folder.claim(out, run)
    with _events(out, now.step + 1 if resume else None) as (note, flush):
        save = partial(_save, state, run, now, checkpoint, flush)
        _go_through(_steps(state, objective, images, recipe, now, checkpoint, note), now, save, report)
    return now


def _go_through(steps: Iterator[None], now: Progress, save: Callable[[], None], report: Report | None) -> None:
    """All steps, with what is to be done between two of them."""
    with deferred_interrupts() as interrupted:
        try:
            for _ in steps:
                if report is not None:
                    report(now.step, now.log[-1] if now.log else {})
                if interrupted():
                    raise KeyboardInterrupt
                if time.monotonic() - now.saved_at > CHECKPOINT_SECONDS:
                    save()
        except KeyboardInterrupt:
            if now.whole:
                save()
            raise
        save()
        if interrupted():
            raise KeyboardInterrupt


def _steps(
    state: State, objective: Objective, images: ImageSet, recipe: Recipe, now: Progress, checkpoint: Path, note: Note
) -> Iterator[None]:
    """Take one step after another, in place; yields between two of them."""
    network, optimiser, generator = state
    batches = _batches(len(images), recipe.batch_size, recipe.seed, now.step)
    for rows in itertools.islice(batches, recipe.steps - now.step):
        now.whole = False
        x, y = (part.to(generator.device) for part in images.batch(rows))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate(now.step)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss, terms = objective(network, x, y, step=now.step, generator=generator)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip or math.inf)
        _check_finite(loss.detach(), norm, terms, now, checkpoint)
        optimiser.step()
        now.step += 1
        if now.step % LOG_EVERY == 0 or now.step == recipe.steps:
            now.log.append(_entry(now.step, recipe.learning_rate(now.step - 1), loss.detach(), norm, terms))
            note(now.log[-1])
        now.whole = True
        yield


def _save(state: State, run: Mapping[str, Any], now: Progress, checkpoint: Path, flush: Callable[[], None]) -> None:
    _check_weights(state.network, now, checkpoint)
    flush()
    save_checkpoint(checkpoint, state, run, step=now.step, log=now.log)
    now.saved_step, now.saved_at = now.step, time.monotonic()


def _entry(step: int, lr: float, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    values = {"loss": loss, **terms, "gradient_norm": norm}
    return {"step": step, **{name: round(float(value), 6) for name, value in values.items()}, "lr": lr}


def _batches(n: int, batch_size: int, seed: int, first: int) -> Iterator[Tensor]:
    """Rows of each step from `first` on: every epoch a fresh permutation, its incomplete last batch dropped."""
    size = min(batch_size, n)
    per_epoch = n // size
    for epoch in itertools.count(first // per_epoch):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, "batches", epoch)))
        skip = first % per_epoch if epoch == first // per_epoch else 0
        for batch in range(skip, per_epoch):
            yield order[batch * size : (batch + 1) * size]


def _ramped(objective: Objective, recipe: Recipe) -> Objective:
    """The objective with its radius growing from 0 over the first share of the run, where it sets no `eps` itself."""
    inner = registry.option(objective, "attack")
    ball = registry.option(inner if inner is not None else objective, "ball")
    last = round(recipe.ramp * recipe.steps)
    if not isinstance(ball, Ball) or registry.option(objective, "eps") is not None or not last:
        return objective
    ramped: Objective = partial(objective, **{"eps": Ramp(0.0, float(ball.eps), 0, last)})
    return ramped


def _optimiser(network: nn.Module, recipe: Recipe) -> Optimizer:
    trained = [p for p in network.parameters() if p.requires_grad]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(trained, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def _check_finite(loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor], now: Progress, checkpoint: Path) -> None:
    if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        found = f"loss {float(loss):.4g} ({parts}), gradient norm {float(norm):.4g}. The weights were not touched"
        raise _diverged(found, now, checkpoint)


def _check_weights(network: nn.Module, now: Progress, checkpoint: Path) -> None:
    """A step from a finite loss can still end in weights that are not: they must replace no good checkpoint."""
    bad = [name for name, values in network.state_dict().items() if not bool(values.isfinite().all())]
    if bad:
        raise _diverged(f"{', '.join(bad[:4])} not finite. The weights were not saved", now, checkpoint)


def _diverged(found: str, now: Progress, checkpoint: Path) -> PellucidError:
    kept = f"the last good checkpoint, {checkpoint}, is of step {now.saved_step}"
    return PellucidError(
        f"training diverged at step {now.step}: {found}; {kept if checkpoint.is_file() else 'no checkpoint yet'}. "
        "Start anew with a smaller --lr, --clip 1, a longer --ramp or --precision fp32, and with another --out "
        f"(or remove {checkpoint.parent} first)"
    )


@contextmanager
def _events(out: Path, purge: int | None) -> Iterator[tuple[Note, Callable[[], None]]]:
    """Functions that write a log entry to TensorBoard, and all so far to disk.

    What an interrupted run wrote of steps from `purge` on is struck out.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(out / "tensorboard"), purge_step=purge) as writer:

        def note(entry: dict[str, float]) -> None:
            for name, value in entry.items():
                if name != "step":
                    writer.add_scalar(f"train/{name}", value, int(entry["step"]))

        yield note, writer.flush
