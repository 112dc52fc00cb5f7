"""pellucid train"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.common import DeviceOption, JsonOption, SeedOption, err, examples, print_json, progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pellucid.recipe import Recipe

EPILOGUE = examples(
    'pellucid train --data digits --objective "adversarial(attack=pgd(ball=Linf(0.2), steps=5))" --steps 300 '
    "--out runs/a",
    'pellucid train --data mnist --objective "int(ball=Linf(0.3), steps=7)" --steps 10000 --decay linear '
    "--lr 2e-3 --out runs/int",
    "pellucid train --data mnist --steps 10000 --out runs/b --resume",
    'pellucid train --data mnist --objective "fast(ball=Linf(0.2))" --steps 5000 --keep best '
    '--validate "pgd(ball=Linf(0.2), steps=20)" --out runs/fast',
    "torchrun --nproc-per-node 2 -m pellucid train --data mnist --steps 5000 --out runs/two",
)


def train(
    out: Annotated[Path, typer.Option(help="The run's folder: model.safetensors, metrics.json, TensorBoard events.")],
    data: Annotated[str, typer.Option(help="See `pellucid data list`.")] = "digits",
    arch: Annotated[str, typer.Option(help="See `pellucid list architectures`.")] = "small",
    objective: Annotated[str, typer.Option(help="See `pellucid list objectives`.")] = "standard",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    lr: Annotated[
        str, typer.Option(help='Learning rate at the start, or a schedule: "Steps((0.01, 0.001), (4000,))".')
    ] = "0.001",
    decay: Annotated[str, typer.Option(help="How it falls to zero: constant (not), linear, cosine.")] = "constant",
    decay_share: Annotated[float, typer.Option(help="Over which last share of the steps it falls.")] = 1.0,
    ramp: Annotated[
        float, typer.Option(help="First share of the run over which an attack's radius grows from 0.")
    ] = 0.5,
    optimiser: Annotated[str, typer.Option("--optimiser", "--optimizer", help="adam or sgd.")] = "adam",
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="l2 penalty on the weights.")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the parameter gradient.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 (autocast; training only).")] = "fp32",
    accumulate: Annotated[int, typer.Option(help="Batches per optimiser step.")] = 1,
    replays: Annotated[int, typer.Option(help="Steps in a row that take the same batch, for free training.")] = 1,
    augment: Annotated[list[str] | None, typer.Option(help="crop, flip, cutout; may be repeated.")] = None,
    ema: Annotated[
        float, typer.Option(help="Decay of an exponential average of the weights, the result; 0: none.")
    ] = 0.0,
    validate: Annotated[
        str, typer.Option(help="An attack: accuracy under it on held-out images is logged, and is the score.")
    ] = "",
    validate_every: Annotated[int, typer.Option(help="Steps between two validations.")] = 500,
    held_out: Annotated[int, typer.Option(help="Images to validate on, not trained on.")] = 500,
    keep: Annotated[str, typer.Option(help="last, or best: the weights of the best score.")] = "last",
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without a better score.")] = None,
    stop_at: Annotated[float | None, typer.Option(help="Stop at this clean accuracy on held-out images.")] = None,
    split: Annotated[str, typer.Option(help="Which split of the data.")] = "train",
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option(help="So many runs, of seeds --seed, --seed + 1, ..., in OUT/seed-N.")] = 1,
    device: DeviceOption = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No closing words.")] = False,
) -> None:
    """Train a network with any objective. Interrupt it when you like: --resume goes on, to the same bits on a CPU."""
    from pellucid.recipe import Recipe

    recipe = Recipe(
        objective=objective,
        architecture=arch,
        data=data,
        split=split,
        steps=steps,
        batch_size=batch_size,
        optimiser=optimiser,  # pyright: ignore[reportArgumentType]  checked by Recipe
        lr=_rate(lr),
        decay=decay,  # pyright: ignore[reportArgumentType]
        decay_share=decay_share,
        ramp=ramp,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        precision=precision,  # pyright: ignore[reportArgumentType]
        accumulate=accumulate,
        replays=replays,
        augment=augment or (),
        ema=ema,
        validate=validate,
        validate_every=validate_every,
        held_out=held_out,
        keep=keep,  # pyright: ignore[reportArgumentType]
        patience=patience,
        stop_at=stop_at,
        seed=seed,
    )
    _all_runs(recipe, _runs(recipe, out, seeds), resume=resume, device=device, quiet=quiet, json_=json_)


def _rate(lr: str) -> float | str:
    """A number, or the text of a schedule."""
    try:
        return float(lr)
    except ValueError:
        return lr


def _runs(recipe: "Recipe", out: Path, seeds: int) -> "dict[Path, Recipe]":
    """The folder and the recipe of each seed."""
    from dataclasses import replace

    from pellucid.errors import PellucidError

    if seeds < 1:
        raise PellucidError(f"--seeds {seeds}: at least 1")
    numbers = range(recipe.seed, recipe.seed + seeds)
    return {out: recipe} if seeds == 1 else {out / f"seed-{n}": replace(recipe, seed=n) for n in numbers}


def _all_runs(
    recipe: "Recipe", runs: "dict[Path, Recipe]", *, resume: bool, device: str, quiet: bool, json_: bool
) -> None:
    """One after the other; of several resumed, those that have not begun begin."""
    import shlex
    import time

    from pellucid.checkpoint import ending
    from pellucid.data import load
    from pellucid.parallel import leads
    from pellucid.training import train as run

    images, started = load(recipe.data, recipe.split), time.monotonic()
    taken: list[int] = []
    for where, each in runs.items():
        many = len(images) - (each.held_out if each.watches else 0)
        for warning in _warnings(where, each, many, resume=resume, device=device) if leads() else []:
            err.print(f"warning: {warning}", markup=False, soft_wrap=True)
        begun = resume and any((where / name).exists() for name in ("recipe.json", "checkpoint.safetensors"))
        if resume and not begun and leads() and not (quiet or json_):
            err.print(f"{where} holds no run to go on with: it begins", markup=False, soft_wrap=True)
        with progress(f"training {where.name}", each.steps, quiet=json_ or quiet or not leads()) as advance:
            run(each, images, where, resume=begun, device=device, report=_report(advance, each, taken))
    models = [str(where / "model.safetensors") for where in runs]
    seconds = time.monotonic() - started
    ends = [ending(where, recipe) for where in runs] if leads() else []
    if json_ and leads():
        named = {"model": models[0]} if len(models) == 1 else {"models": models}
        print_json(named | {"steps": recipe.steps, "seconds": round(seconds, 1), "ended": ends})
    elif leads() and not quiet:
        how = f"trained in {seconds:.0f} s" if taken else "finished before: nothing was left to do"
        err.print(f"{', '.join(models)} {how}.", markup=False, soft_wrap=True)
        for where, end in zip(runs, ends, strict=True):
            err.print(f"{f'{where.name}: ' if len(runs) > 1 else ''}{_in_words(end)}", markup=False, soft_wrap=True)
        named = " ".join(f"--model {shlex.quote(str(where))}" for where in runs)
        err.print(f"Next: pellucid audit {named} --data {recipe.data} --out audit", markup=False, soft_wrap=True)


def _warnings(where: "Path", recipe: "Recipe", images: int, *, resume: bool, device: str) -> list[str]:
    """What a run will suffer from on this machine."""
    from pellucid.run_folder import other_threads
    from pellucid.training import emulated, short_of_radius

    threads = other_threads(where) if resume and device == "cpu" else None
    large = f"--batch-size {recipe.batch_size} is more than the {images} images to train on: every step takes them all"
    few = large if recipe.batch_size > images else None
    return [each for each in (emulated(recipe.precision, device), threads, few, short_of_radius(recipe)) if each]


def _in_words(end: "Mapping[str, Any]") -> str:
    """Why a run ended, which weights it returns, and the last figures."""
    whole = f"all {end['of']} steps" if end["step"] == end["of"] else f"step {end['step']} of {end['of']}"
    why = f": {end['stopped']}" if end["stopped"] else ""
    kept = f"; the weights of step {end['best_step']} are kept" if end["best_step"] else ""
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in end["last"].items())
    return f"Ended after {whole}{why}{kept}. {'There' if kept else 'At last'}: {figures}."


def _report(advance: Any, recipe: "Recipe", taken: list[int]) -> Any:
    """What stands beside the bar: the loss, the radius, images per second and the last score on held-out images.

    `taken` is filled with the steps that are taken.
    """
    import time

    first, started, score = None, 0.0, ""

    def report(step: int, entry: dict[str, float]) -> None:
        nonlocal first, started, score
        taken.append(step)
        now = time.monotonic()
        if first is None:
            first, started = step, now
        speed = (step - first) * recipe.batch_size * recipe.accumulate / max(1e-9, now - started)
        for name, word in (("validation_robust", "robust"), ("validation_accuracy", "accuracy")):
            if name in entry:
                score = f", held out: {word} {entry[name]:.3f}"
                break
        loss = f"loss {entry['loss']:.4f}, " if "loss" in entry else ""
        eps = f"eps {entry['eps']:.3f}, " if "eps" in entry else ""
        advance(0, note=f"{loss}{eps}{speed:.0f} images/s{score}", at=step)

    return report
