"""Training: one loop that anyone can read. The steps themselves are in `stepping`."""

import copy
import inspect
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid import registry, run_folder
from pellucid.checkpoint import State, load_checkpoint, save_checkpoint
from pellucid.contract import check_contract
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.interrupts import deferred_interrupts
from pellucid.memory import Memory
from pellucid.models import build, load_model, save_model
from pellucid.objectives.standard import distilled
from pellucid.parallel import Team, place, team
from pellucid.recipe import Recipe, identity
from pellucid.results import model_digest
from pellucid.schedules import Ramp
from pellucid.seeds import derive_seed
from pellucid.stepping import Course, Progress, check_weights, optimiser, steps
from pellucid.tracking import events
from pellucid.types import Objective
from pellucid.watch import Best, averaged, held_out
from pellucid.weights import write_atomically
from pellucid.worst import ball_of, radius

CHECKPOINT_SECONDS = 20.0
NEARLY = 0.9  # of the ball's radius: what a run should have come to by its end

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

    Checkpoints are written every 20 seconds, at the end and, once the step is done, on Ctrl-C; a second Ctrl-C stops
    at once, at the last checkpoint. With `resume` an interrupted run goes on, and ends on a CPU (on as many threads)
    with the bits an uninterrupted one would have. A loss or gradient that is not finite stops the run before it
    touches the weights. Raises `PellucidError`, before anything is written, for a recipe, device or data that do not
    fit together, and when `out` holds another run, or one to be resumed, or one that another process works at.

    Under torchrun every process takes its share of each batch, and the first one writes. An objective that asks for a
    teacher and names none trains one first, by the same recipe, in the folder `teacher`.
    """
    objective = _ramped(registry.parse(recipe.objective, "objectives"), recipe)
    where = usable(place(device))
    crew = team(where)
    if _wants_teacher(objective):
        objective = _taught(objective, recipe, images, out, resume=resume, device=device, report=report)
    with _own_global_generators(where, recipe.seed, crew):
        trained, watched = held_out(recipe, images)
        state, architecture = _ready(objective, recipe, trained, where, crew)
        taught_by = registry.option(objective, "teacher")
        digest = model_digest(load_model(taught_by)[0]) if taught_by else ""
        run = identity(recipe, data_digest=images.digest, device=where.type, processes=crew.size, teacher=digest)
        if crew.size > 1:  # every process sees what is wrong before one waits for another
            run_folder.check(out, run, resume=resume)
            crew.wait()
        with run_folder.locked(out) if crew.leads else nullcontext():
            if crew.leads:
                run_folder.check(out, run, resume=resume)
            attack = registry.parse(recipe.validate, "attacks") if recipe.validate else None
            course = Course(objective, trained, watched, recipe, out / run_folder.CHECKPOINT, attack)
            now = _run(course, state, out, run, resume, report)
            network = _result(state, recipe)
            if crew.leads:
                facts = {"objective": recipe.objective, "recipe": recipe.to_json(), "data": recipe.data}
                facts |= {"classes": json.dumps(images.class_names), "data_digest": images.digest}
                write_atomically(out / "metrics.json", json.dumps(now.log, indent=0).encode())
                save_model(network, out / "model.safetensors", architecture=architecture, **facts)  # last: it ends it
            crew.wait()
    return network.eval()


def fits(recipe: Recipe, images: ImageSet) -> None:
    """Raise `PellucidError` where `train` would before its first step; an objective's teacher is not trained for it."""
    objective = _ramped(registry.parse(recipe.objective, "objectives"), recipe)
    if not _wants_teacher(objective):
        with _own_global_generators(torch.device("cpu"), recipe.seed, Team()):
            _ready(objective, recipe, held_out(recipe, images)[0], torch.device("cpu"), Team())


def _ready(
    objective: Objective, recipe: Recipe, images: ImageSet, device: torch.device, crew: Team
) -> tuple[State, str]:
    """The state before the first step, when all that can be seen to be wrong by then was looked for."""
    _check_shares(objective, recipe, images, crew)
    state, architecture = _fresh(recipe, images, device, crew)
    state = state._replace(memory=_memory(objective, recipe, images, device, crew))
    _try(objective, state, images, recipe)
    return state, architecture


def emulated(precision: str, device: str) -> str | None:
    """A warning where bf16 is slower than fp32: on x86 processors without AVX-512 software stands in for it."""
    has = torch.backends.cpu.get_cpu_capability()
    if precision != "bf16" or device != "cpu" or platform.machine() != "x86_64" or has.startswith("AVX512"):
        return None
    return f"this processor ({has}) has no bfloat16, and software is some ten times slower than fp32: --precision fp32"


def short_of_radius(recipe: Recipe) -> str | None:
    """A warning where a run ends before the radius that it trains at is the ball's."""
    objective = _ramped(registry.parse(recipe.objective, "objectives"), recipe)
    ball, last = ball_of(objective), radius(objective, recipe.steps - 1)
    if last is None or ball is None or not isinstance(ball.eps, float | int) or last >= NEARLY * ball.eps:
        return None
    return (
        f"at the last step, {recipe.steps}, eps is {last:g} of {ball.eps:g}: give more --steps, or an earlier end to "
        f"{registry.describe(registry.option(objective, 'eps'))}"
    )


def _check_shares(objective: Objective, recipe: Recipe, images: ImageSet, crew: Team) -> None:
    """What each process, or each part of a step's batch, is given must add up to the loss of the whole."""
    if recipe.batch_size % crew.size or len(images) < crew.size:
        raise PellucidError(
            f"batch_size (={recipe.batch_size}) must be a multiple of the {crew.size} processes that share it, and of "
            f"the {len(images)} images each must get one"
        )
    by_batch = registry.option(objective, "reading") == "as_coded" and registry.option(objective, "lam") is not None
    if by_batch and (recipe.accumulate > 1 or crew.size > 1):
        raise PellucidError(
            f"{recipe.objective}: reading='as_coded' divides lam by the size of the batch, of which each process and "
            "each of --accumulate sees a part: use one process and one batch, or reading='as_written'"
        )


def _try(objective: Objective, state: State, images: ImageSet, recipe: Recipe) -> None:
    """The last two steps' losses on two images, by a copy: options that do not fit are said before anything is written.

    Of alternating steps the one has no attack.
    """
    device = state.generator.device
    rows = torch.arange(2) % len(images)
    x, y = (part.to(device) for part in images.batch(rows))
    generator = torch.Generator(device).manual_seed(0)
    remembering: dict[str, Any] = {}
    if state.memory is not None:
        remembering["memory"] = Memory(2, images.shape, generator, Team())
        remembering["memory"].visit(torch.arange(2))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = copy.deepcopy(state.network)
        with registry.telling(objective, name=recipe.objective):
            for step in range(max(0, recipe.steps - 2), recipe.steps):
                _check_returned(recipe, objective(network, x, y, step=step, generator=generator, **remembering))


def _check_returned(recipe: Recipe, given: object) -> None:
    match given:
        case (Tensor() as loss, Mapping() as terms) if loss.ndim == 0 and loss.requires_grad:
            if all(
                isinstance(term, Tensor | float | int) and torch.as_tensor(term).numel() == 1 for term in terms.values()
            ):
                return
    raise PellucidError(
        f"{recipe.objective} returned {_shown(given)}: it must return (loss, terms), the loss a tensor of one number "
        "with a gradient, the terms a dictionary of numbers to log"
    )


def _shown(given: object) -> str:
    """What an objective returned, part by part."""
    if isinstance(given, tuple):
        return f"({', '.join(_shown(part) for part in given)})"
    if isinstance(given, Mapping):
        return f"{{{', '.join(f'{name}: {_shown(part)}' for name, part in given.items())}}}"
    if isinstance(given, Tensor):
        return f"a tensor {tuple(given.shape)}{'' if given.requires_grad else ' without gradient'}"
    return f"a {type(given).__name__}"


def _memory(objective: Objective, recipe: Recipe, images: ImageSet, device: torch.device, crew: Team) -> Memory | None:
    """Room for every image's perturbation, where the objective goes on from the last one."""
    parameters = inspect.signature(objective).parameters
    if "memory" not in parameters or ("start" in parameters and parameters["start"].default != "persistent"):
        return None
    if recipe.augment:
        raise PellucidError(f"{recipe.objective} remembers perturbations of images as they are: leave out --augment")
    generator = torch.Generator(device).manual_seed(derive_seed(recipe.seed, "memory"))
    return Memory(len(images), images.shape, generator, crew)


def _result(state: State, recipe: Recipe) -> nn.Module:
    """The network of the run: the last one, its average, or the best."""
    network = state.network if state.averaged is None else state.averaged.module
    if recipe.keep == "best" and state.best.weights is not None:
        network.load_state_dict(state.best.weights)
    return network


def _wants_teacher(objective: Objective) -> bool:
    named = objective.func if isinstance(objective, partial) else objective
    asks = named is distilled or registry.option(objective, "of") == "distilled"
    return asks and registry.option(objective, "teacher") is None


def _taught(objective: Objective, recipe: Recipe, images: ImageSet, out: Path, **how: Any) -> Objective:
    """The objective with a teacher trained at its temperature, in `out/teacher`, unless that is done."""
    temperature = float(registry.option(objective, "temperature"))
    where = out / "teacher"
    theirs = replace(recipe, objective=f"standard(temperature={temperature:g})")
    if not run_folder.finished(where, theirs):
        train(theirs, images, where, **{**how, "resume": (where / run_folder.RECIPE).exists() and how["resume"]})
    taught: Objective = partial(objective, **{"teacher": str(where)})
    return taught


def usable(device: str) -> torch.device:
    """The device; raises `PellucidError` where there is none such."""
    try:
        torch.Generator(device)
        torch.zeros(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition(". ")[0]
        raise PellucidError(f"device {device!r} cannot be used ({said}): --device cpu always can") from None


def _fresh(recipe: Recipe, images: ImageSet, device: torch.device, crew: Team) -> tuple[State, str]:
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
        if device.type == "cuda":  # a step of ResNet-18 took 5.2 ms so, and 7.4 otherwise (32 px, batch 128, an H200)
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        check_contract(network, example.to(device), classes=classes)
    except (PellucidError, RuntimeError) as error:
        raise PellucidError(f"architecture {recipe.architecture!r} on {images!r}: {error}") from None
    purpose = ("attacks", crew.rank) if crew.rank else ("attacks",)
    generator = torch.Generator(device).manual_seed(derive_seed(recipe.seed, *purpose))
    network.train()
    return State(
        network, optimiser(network, recipe), generator, averaged(network, recipe.ema), Best(), crew
    ), architecture


@contextmanager
def _own_global_generators(device: torch.device, seed: int, crew: Team) -> Iterator[None]:
    """Global generators, which dropout draws from, of the process's own: afterwards they are as they were."""
    own = derive_seed(seed, "dropout", *([crew.rank] if crew.rank else []))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(own)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield


def _run(
    course: Course, state: State, out: Path, run: Mapping[str, Any], resume: bool, report: Report | None
) -> Progress:
    """Claim the folder and take all steps that are left."""
    now = Progress()
    if course.checkpoint.is_file():
        now.step, now.log = load_checkpoint(course.checkpoint, state, run)
        now.saved_step = now.step
    state.team.wait()
    if state.team.leads:
        run_folder.claim(out, run)
    folder = out if state.team.leads else None
    with events(folder, now.step + 1 if resume else None) as (note, flush):
        save = partial(_save, state, run, now, course.checkpoint, flush)
        _go_through(steps(course, state, now, note), now, save, report, state.team)
    return now


def _go_through(
    taken: Iterator[None],
    now: Progress,
    save: Callable[[], None],
    report: Report | None,
    crew: Team,
) -> None:
    """All steps, with what is to be done between two of them: by all processes at the same step.

    What one of several processes wishes goes out with the gradients of the next step, and is done after it.
    """
    with deferred_interrupts() as interrupted:
        try:
            for _ in taken:
                if report is not None and crew.leads:
                    report(now.step, now.log[-1] if now.log else {})
                _between(now, interrupted, save, crew)
        except KeyboardInterrupt:
            if now.whole:
                save()
            raise
        save()
        if interrupted():
            raise KeyboardInterrupt


def _between(now: Progress, interrupted: Callable[[], bool], save: Callable[[], None], crew: Team) -> None:
    """Stop or save, as all agreed in this step, or as one alone wishes now; then wish."""
    stop, due = _wishes(now, interrupted(), crew) if crew.size == 1 else now.granted
    if stop:
        raise KeyboardInterrupt
    if due:
        save()
    now.wishes = _wishes(now, interrupted(), crew)  # a save that was just made is not wished for again


def _wishes(now: Progress, interrupted: bool, crew: Team) -> tuple[bool, bool]:
    """Of this process: to stop, to save."""
    return interrupted, crew.leads and time.monotonic() - now.saved_at > CHECKPOINT_SECONDS


def _save(state: State, run: Mapping[str, Any], now: Progress, checkpoint: Path, flush: Callable[[], None]) -> None:
    check_weights(state.network, now, checkpoint)
    flush()
    save_checkpoint(checkpoint, state, run, step=now.step, log=now.log)
    now.saved_step, now.saved_at = now.step, time.monotonic()


def _ramped(objective: Objective, recipe: Recipe) -> Objective:
    """The objective with its radius growing from 0 over the first share of the run, where it sets no `eps` itself."""
    ball, last = ball_of(objective), round(recipe.ramp * recipe.steps)
    if ball is None or registry.option(objective, "eps") is not None or not last:
        return objective
    ramped: Objective = partial(objective, **{"eps": Ramp(0.0, float(ball.eps), 0, last)})
    return ramped
