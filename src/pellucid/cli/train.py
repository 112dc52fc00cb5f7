"""pellucid train"""

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.common import DeviceOption, JsonOption, SeedOption, SplitOption, err, examples, print_json, progress

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
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 1e-3,
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
    split: SplitOption = "train",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")] = False,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No closing words.")] = False,
) -> None:
    """Train a network with any objective. Interrupt it when you like: --resume goes on, to the same bits on a CPU."""
    import time

    from pellucid.data import load
    from pellucid.recipe import Recipe
    from pellucid.run_folder import other_threads
    from pellucid.training import train as run

    recipe = Recipe(
        objective=objective,
        architecture=arch,
        data=data,
        split=split,
        steps=steps,
        batch_size=batch_size,
        optimiser=optimiser,  # pyright: ignore[reportArgumentType]  checked by Recipe
        lr=lr,
        decay=decay,  # pyright: ignore[reportArgumentType]
        decay_share=decay_share,
        ramp=ramp,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        precision=precision,  # pyright: ignore[reportArgumentType]
        accumulate=accumulate,
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
    images = load(data, split)
    if resume and device == "cpu" and (warning := other_threads(out)):
        err.print(f"warning: {warning}", markup=False, soft_wrap=True)
    started = time.monotonic()
    with progress(f"training {out.name}", steps, quiet=json_) as advance:

        def report(step: int, entry: dict[str, float]) -> None:
            advance(0, note=f"loss {entry['loss']:.4f}" if "loss" in entry else "", at=step)

        run(recipe, images, out, resume=resume, device=device, report=report)
    seconds = time.monotonic() - started
    if json_:
        print_json({"model": str(out / "model.safetensors"), "steps": steps, "seconds": round(seconds, 1)})
    elif not quiet:
        err.print(f"[bold]{out / 'model.safetensors'}[/] trained in {seconds:.0f} s.")
        err.print(f"Next: pellucid audit --model {out} --data {data} --out {out}-audit")
