"""The steps of a training run: batches, loss, gradient, optimiser; and what stops it."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid.augmentations import augment
from pellucid.checkpoint import State
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.recipe import Recipe
from pellucid.seeds import derive_seed
from pellucid.tracking import Note
from pellucid.types import Attack, Objective
from pellucid.watch import follow, judge, validate
from pellucid.worst import radius

LOG_EVERY = 20  # steps


class Diverged(PellucidError):
    """A loss, a gradient or weights that are not finite."""


@dataclass
class Progress:
    """How far a run is. `whole` is false within a step, when a checkpoint would hold half of it."""

    step: int = 0
    log: list[dict] = field(default_factory=list)
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    whole: bool = True
    wishes: tuple[bool, bool] = (False, False)  # of this process: to stop, to save
    granted: tuple[bool, ...] = (False, False)  # of any process, as of this step's beginning


@dataclass(frozen=True)
class Course:
    """What a run takes its steps by."""

    objective: Objective
    images: ImageSet
    watched: ImageSet | None
    recipe: Recipe
    checkpoint: Path
    validation: Attack | None = None


def steps(course: Course, state: State, now: Progress, note: Note) -> Iterator[None]:
    """Take one step after another, in place; yields between two of them."""
    recipe, network = course.recipe, state.network
    taken = now.step // recipe.replays * recipe.accumulate
    size = min(recipe.batch_size, len(course.images)) // state.team.size * state.team.size
    batches = _batches(len(course.images), size, recipe.seed, taken)
    taking: list[Tensor] = []
    while now.step < recipe.steps and not state.best.stopped:
        now.whole = False
        for group in state.optimiser.param_groups:
            group["lr"] = recipe.learning_rate(now.step)
        if not taking or now.step % recipe.replays == 0:
            taking = list(itertools.islice(batches, recipe.accumulate))
        loss, terms = _gradients(course, state, taking, now)
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip or math.inf)
        _check_finite(loss, norm, terms, now, course.checkpoint)
        state.optimiser.step()
        state.team.same_buffers(network)
        follow(state.averaged, network)
        now.step += 1
        if now.step % LOG_EVERY == 0 or now.step == recipe.steps:
            now.log.append(_entry(course, now.step, loss, norm, terms))
            note(now.log[-1])
        if course.watched is not None and (now.step % recipe.validate_every == 0 or now.step == recipe.steps):
            _watch(course, state, now, note)
        now.whole = True
        yield


def _gradients(course: Course, state: State, batches: list[Tensor], now: Progress) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of the mean loss over the batches, in `.grad`; the loss and its terms."""
    network, generator, memory = state.network, state.generator, state.memory
    remembering = {} if memory is None else {"memory": memory}
    recipe, device = course.recipe, generator.device
    state.optimiser.zero_grad()
    losses: list[Tensor] = []
    named: list[Mapping[str, Tensor]] = []
    for rows in batches:
        x, y = (part.to(device) for part in course.images.batch(state.team.share(rows)))
        if memory is not None:
            memory.visit(rows)
        x = augment(x, recipe.augment, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss, terms = course.objective(network, x, y, step=now.step, generator=generator, **remembering)
        (loss / len(batches)).backward()
        losses.append(loss.detach())
        named.append(terms)
    loss = torch.stack(losses).mean()
    terms = {name: torch.stack([torch.as_tensor(each[name]) for each in named]).mean() for name in named[0]}
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    now.granted = state.team.average([*gradients, loss, *terms.values()], now.wishes)
    return loss, terms


def _watch(course: Course, state: State, now: Progress, note: Note) -> None:
    """Validate, by the averaged weights if there are any; all processes go by what the leader found."""
    assert course.watched is not None
    model = state.network if state.averaged is None else state.averaged.module
    purpose = derive_seed(course.recipe.seed, "validation", now.step)
    found = validate(model, course.watched, course.validation, state.generator.device, purpose)
    found = state.team.leaders(found, state.generator.device)
    judge(state.best, found, model, course.recipe, now.step, course.watched)
    now.log.append({"step": now.step} | {name: round(value, 6) for name, value in found.items()})
    note(now.log[-1])


def _entry(course: Course, step: int, loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    values = {"loss": loss, **terms, "gradient_norm": norm}
    found = {"step": step, **{name: round(float(value), 6) for name, value in values.items()}}
    found["lr"] = course.recipe.learning_rate(step - 1)
    eps = radius(course.objective, step - 1)
    return found if eps is None else found | {"eps": eps}


def _batches(n: int, batch_size: int, seed: int, first: int) -> Iterator[Tensor]:
    """Rows of each batch from `first` on: every epoch a fresh permutation, its incomplete last batch dropped."""
    size = min(batch_size, n)
    per_epoch = n // size
    for epoch in itertools.count(first // per_epoch):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, "batches", epoch)))
        skip = first % per_epoch if epoch == first // per_epoch else 0
        for batch in range(skip, per_epoch):
            yield order[batch * size : (batch + 1) * size]


def optimiser(network: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's, for what is trained."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(trained, lr=recipe.learning_rate(0), weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        trained, lr=recipe.learning_rate(0), momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def _check_finite(loss: Tensor, norm: Tensor, terms: Mapping[str, Tensor], now: Progress, checkpoint: Path) -> None:
    if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
        parts = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        found = f"loss {float(loss):.4g} ({parts}), gradient norm {float(norm):.4g}. The weights were not touched"
        raise _diverged(found, now, checkpoint)


def check_weights(network: nn.Module, now: Progress, checkpoint: Path) -> None:
    """A step from a finite loss can still end in weights that are not: they must replace no good checkpoint."""
    bad = [name for name, values in network.state_dict().items() if not bool(values.isfinite().all())]
    if bad:
        raise _diverged(f"{', '.join(bad[:4])} not finite. The weights were not saved", now, checkpoint)


def _diverged(found: str, now: Progress, checkpoint: Path) -> Diverged:
    kept = f"the last good checkpoint, {checkpoint}, is of step {now.saved_step}"
    return Diverged(
        f"training diverged at step {now.step}: {found}; {kept if checkpoint.is_file() else 'no checkpoint yet'}. "
        "Start anew with a smaller --lr, --clip 1, a longer --ramp or --precision fp32, and with another --out "
        f"(or remove {checkpoint.parent} first)"
    )
