"""Training: one loop that anyone can read."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid import registry
from pellucid.balls import Ball
from pellucid.checkpoint import load_checkpoint, save_checkpoint
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.models import build, save_model
from pellucid.recipe import Recipe, differences
from pellucid.schedules import Ramp
from pellucid.types import Objective
from pellucid.weights import write_atomically

CHECKPOINT_SECONDS = 20.0
LOG_EVERY = 20  # steps

Report = Callable[[int, dict[str, float]], None]


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

    Checkpoints are written every 20 seconds, at the end and on Ctrl-C. With `resume` an interrupted run goes on, and
    ends on a CPU with the bits an uninterrupted one would have. A loss or gradient that is not finite stops the run
    before it touches the weights. Raises `PellucidError` when `out` holds another run, or one to be resumed.
    """
    objective = _ramped(registry.parse(recipe.objective, "objectives"), recipe)
    _claim(out, recipe, resume)
    channels, size, _ = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        generator = torch.Generator(device).manual_seed(recipe.seed)
        initial = torch.Generator().manual_seed(recipe.seed)
        network, architecture = build(
            recipe.architecture, channels=channels, size=size, classes=len(images.class_names), generator=initial
        )
        network = network.to(device).train()
        optimiser = _optimiser(network, recipe)
        checkpoint, first, log = out / "checkpoint.safetensors", 0, []
        if checkpoint.is_file():
            first, log = load_checkpoint(checkpoint, network, optimiser, generator)
        with _events(out, first) as note:
            _loop(network, objective, optimiser, images, recipe, checkpoint, first, log, generator, note, report)
    facts = {"objective": recipe.objective, "recipe": recipe.to_json(), "data": recipe.data}
    save_model(network, out / "model.safetensors", architecture=architecture, **facts)
    write_atomically(out / "metrics.json", json.dumps(log, indent=0).encode())
    return network.eval()


def _loop(
    network: nn.Module,
    objective: Objective,
    optimiser: Optimizer,
    images: ImageSet,
    recipe: Recipe,
    checkpoint: Path,
    first: int,
    log: list[dict],
    generator: torch.Generator,
    note: Callable[[dict[str, float]], None],
    report: Report | None,
) -> None:
    device = next(network.parameters()).device
    saved, saved_step, step = time.monotonic(), first, first

    def save() -> None:
        save_checkpoint(checkpoint, network, optimiser, generator, step=step, log=log)

    try:
        batches = _batches(len(images), recipe.batch_size, recipe.seed, first)
        for rows in itertools.islice(batches, recipe.steps - first):
            x, y = images.batch(rows)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss, terms = objective(network, x.to(device), y.to(device), step=step, generator=generator)
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip or math.inf)
            _check_finite(loss.detach(), norm, terms, step, saved_step, checkpoint)
            optimiser.step()
            step += 1
            if step % LOG_EVERY == 0 or step == recipe.steps:
                log.append(_entry(step, recipe.learning_rate(step - 1), loss.detach(), norm, terms))
                note(log[-1])
            if report is not None:
                report(step, log[-1] if log else {})
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved, saved_step = time.monotonic(), step
    except KeyboardInterrupt:
        save()
        raise
    save()


def _entry(step: int, lr: float, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    values = {"loss": loss, **terms, "gradient_norm": norm}
    return {"step": step, **{name: round(float(value), 6) for name, value in values.items()}, "lr": lr}


def _batches(n: int, batch_size: int, seed: int, first: int) -> Iterator[Tensor]:
    """Rows of each step from `first` on: every epoch a fresh permutation, its incomplete last batch dropped."""
    size = min(batch_size, n)
    per_epoch = n // size
    for epoch in itertools.count(first // per_epoch):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
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


def _check_finite(
    loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor], step: int, saved_step: int, checkpoint: Path
) -> None:
    if math.isfinite(float(loss)) and math.isfinite(float(norm)):
        return
    parts = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
    good = (
        f"the last good checkpoint, {checkpoint}, is of step {saved_step}"
        if checkpoint.is_file()
        else "no checkpoint yet"
    )
    raise PellucidError(
        f"training diverged at step {step}: loss {float(loss):.4g} ({parts}), gradient norm {float(norm):.4g}. The "
        f"weights were not touched; {good}. Try a smaller --lr, --clip 1, a longer ramp of eps, or --precision fp32"
    )


def _claim(out: Path, recipe: Recipe, resume: bool) -> None:
    """Make `out` this run's own, or say why not."""
    stored = out / "recipe.json"
    if not stored.is_file():
        write_atomically(stored, recipe.to_json().encode())
        return
    changed = differences(Recipe(**json.loads(stored.read_text())), recipe)
    if not resume:
        raise PellucidError(
            f"{out} already holds a training run: add --resume to go on with it, or choose another --out"
        )
    if changed:
        raise PellucidError(f"{out} holds a run with another recipe ({'; '.join(changed)}): resume it as it was")


@contextmanager
def _events(out: Path, first: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that writes one log entry to TensorBoard; what an interrupted run wrote beyond `first` is purged."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(out / "tensorboard"), purge_step=first + 1 if first else None) as writer:

        def note(entry: dict[str, float]) -> None:
            for name, value in entry.items():
                if name != "step":
                    writer.add_scalar(f"train/{name}", value, int(entry["step"]))

        yield note
