"""pellucid evaluate"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.common import (
    AnyImagesOption,
    DataOption,
    DeviceOption,
    JsonOption,
    MeanOption,
    ModelOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    WeightsOption,
    checked_call,
    examples,
    is_stored,
    numbers,
    only_for_others,
    open_images,
    open_subject,
    out,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.data import ImageSet
    from pellucid.data.cues import CueConflict
    from pellucid.results import Rows
    from pellucid.types import Transform

EPILOGUE = examples(
    "pellucid evaluate --model runs/a --data digits",
    "pellucid evaluate --model small --weights mine.safetensors --data mnist --images first:1000 --json",
    'pellucid evaluate --model runs/a --data digits --transform "patch_shuffle(k=4)" --json',
    "pellucid evaluate --model squeezenet1_1 --weights squeezenet.safetensors --data cue-conflict",
    "pellucid evaluate --model nets.py:build --weights mine.safetensors --data photos/ --mean .5,.5,.5 --std .2,.2,.2",
)


def evaluate(
    model: ModelOption,
    data: DataOption,
    images: AnyImagesOption = "all",
    split: SplitOption = None,
    size: SizeOption = None,
    transform: Annotated[
        str, typer.Option(help="Of the images, before the model sees them; see `pellucid list transforms`.")
    ] = "",
    weights: WeightsOption = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Keep the rows (Parquet) here: of the images, and transformed.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mean: MeanOption = "",
    std: StdOption = "",
    json_: JsonOption = False,
) -> None:
    """Accuracy with its interval, and the input-gradient norm; with --transform on transformed images, also among those
    that were right before it. On the cue-conflict stimuli the shape bias, of a model of their 16 classes or of
    ImageNet's 1,000.
    """
    from pellucid import registry
    from pellucid.data.cues import stimuli_of

    only_for_others([model], weights, mean, std)
    change = registry.parse(transform, "transforms") if transform else None
    found, indices = open_images(data, split, images, seed, size)
    stimuli = stimuli_of(found, data, found.split)
    summary = {"model": model, "data": data, "split": found.split}
    how = {"device": device, "mean": mean, "std": std, "quiet": json_}
    if stimuli is None:
        summary |= _accuracy(model, weights, found, indices, change, out_folder, seed=seed, **how)
    else:
        _refuse_for_stimuli(transform, out_folder)
        summary |= _shape_bias(model, weights, stimuli.select(indices), **how)
    if json_:
        print_json(summary)
    elif stimuli is None:
        _print(summary)
    else:
        _print_bias(summary)


def _accuracy(
    model: str,
    weights: Path | None,
    images: "ImageSet",
    indices: "Tensor",
    change: "Transform | None",
    out_folder: Path | None,
    *,
    seed: int,
    device: str,
    mean: str,
    std: str,
    quiet: bool,
) -> dict[str, Any]:
    from pellucid import registry
    from pellucid.evaluation import Measurement
    from pellucid.evaluation import evaluate as run
    from pellucid.results import long_table, write_rows
    from pellucid.run_folder import claim_call

    subject = open_subject(model, weights, images, device=device, mean=mean, std=std)
    what = {} if change is None else {"transform": registry.describe(change)}
    call = checked_call(out_folder, "evaluate", what, images, indices, [subject.model], seed=seed, device=device)
    started = time.monotonic()
    with progress("evaluating", len(indices) * (2 if change else 1), quiet=quiet) as tick:
        measurement = Measurement(gradient_norm=True, transform=change)
        rows = run(subject.model, images, indices, measurement, seed=seed, tick=tick)
        clean = run(subject.model, images, indices, Measurement(), seed=seed, tick=tick) if change else rows
    found = _figures(rows, clean, change) | {"seconds": round(time.monotonic() - started, 2)}
    if out_folder:
        claim_call(out_folder, call)
        parts = [("", clean)] if change is None else [("", clean), (registry.describe(change), rows)]
        write_rows(out_folder / "rows.parquet", long_table([({"transform": name}, part) for name, part in parts]))
    return found


def _figures(rows: "Rows", clean: "Rows", change: "Transform | None") -> dict[str, Any]:
    """Of the images as they were shown; with a transform also among those that were right without it."""
    import numpy as np

    from pellucid import registry
    from pellucid.outcome import on_correct
    from pellucid.results import rate

    accuracy = rate(rows["correct"])
    found = {
        "accuracy": accuracy["value"],
        "n": accuracy["n"],
        "interval": [accuracy["low"], accuracy["high"]],
        "input_gradient_norm_median": float(np.median(rows["gradient_norm"])),
    }
    if change is None:
        return found
    before = {"transform": registry.describe(change), "clean_accuracy": rate(clean["correct"])["value"]}
    return found | before | on_correct(clean, rows)


def _print(summary: dict[str, Any]) -> None:
    low, high = summary["interval"]
    out.print(f"accuracy {summary['accuracy']:.4f}  (95 %: {low:.4f} to {high:.4f}; n = {summary['n']})")
    if "transform" in summary:
        kept, (low, high) = summary["accuracy_on_correct"], summary["interval_on_correct"]
        among = f"among the {summary['n_correct']} that are right without it"
        found = (
            f"{among} {kept:.4f}  (95 %: {low:.4f} to {high:.4f})"
            if summary["n_correct"]
            else "right on none without it"
        )
        out.print(found, highlight=False)
    out.print(f"median input-gradient norm {summary['input_gradient_norm_median']:.3g}")


def _refuse_for_stimuli(transform: str, out_folder: Path | None) -> None:
    from pellucid.errors import PellucidError

    if transform:
        raise PellucidError(
            f"--transform {transform}: the cue-conflict stimuli ask for shape or texture as they are; leave it out, or "
            "take other --data"
        )
    if out_folder is not None:
        raise PellucidError("--out keeps rows, and a shape bias has none: leave it out, and keep what --json prints")


def _shape_bias(
    model: str, weights: Path | None, stimuli: "CueConflict", *, device: str, mean: str, std: str, quiet: bool
) -> dict[str, Any]:
    """Shape bias and its interval, how often shape and texture were named of n images, and what share that is."""
    from pellucid.errors import PellucidError
    from pellucid.shape_bias import shape_bias

    n = int(stimuli.conflicting.sum())
    if n == 0:
        raise PellucidError(f"of the {len(stimuli)} images none has the texture of another class than its shape")
    asked = _as_asked(model, weights, stimuli.images, mean, std)
    subject = open_subject(model, weights, asked, device=device, mean=mean, std=std)
    started = time.monotonic()
    with progress("evaluating", n, quiet=quiet) as tick:
        found = shape_bias(subject.model, stimuli, tick=tick)
    return {
        "shape_bias": found["shape_bias"],
        "interval": [found["low"], found["high"]],
        **{name: found[name] for name in ("shape", "texture", "n")},
        "accuracy_by_shape": found["shape"] / n,
        "accuracy_by_texture": found["texture"] / n,
        "seconds": round(time.monotonic() - started, 2),
    }


def _as_asked(model: str, weights: Path | None, images: "ImageSet", mean: str, std: str) -> "ImageSet":
    """The stimuli, of their own classes or, where the model answers in as many, of ImageNet's 1,000: to check it by."""
    from dataclasses import replace

    import torch

    from pellucid.data.groups import IMAGENET, is_imagenet
    from pellucid.errors import PellucidError
    from pellucid.models import load_model
    from pellucid.network import frozen

    x, _ = images.batch([0])
    options = {} if is_stored(model) else {"weights": weights, "mean": numbers(mean), "std": numbers(std)}
    network, facts = load_model(model, example=x, **options)
    try:
        with frozen(network), torch.no_grad():
            answers = network(x)
    except Exception:  # whatever it is: the check that follows fails too, and says why
        return images
    classes = answers.shape[-1] if isinstance(answers, torch.Tensor) and answers.ndim == 2 else 0
    if classes not in (0, IMAGENET, len(images.class_names)):
        raise PellucidError(
            f"{model} answers in {classes} classes: shape bias is asked of models of the stimuli's "
            f"{len(images.class_names)} or of ImageNet's {IMAGENET:,}"
        )
    if classes != IMAGENET:
        return images
    asked = replace(images, class_names=tuple(json.loads(facts.get("classes", "0")) or map(str, range(IMAGENET))))
    if "classes" in facts and not is_imagenet(asked):
        raise PellucidError(f"{model} was trained on {classes:,} classes that are not ImageNet's, in their order")
    return asked


def _print_bias(summary: dict[str, Any]) -> None:
    shape, texture, n = (summary[name] for name in ("shape", "texture", "n"))
    low, high = summary["interval"]
    if shape + texture:
        bias = f"{summary['shape_bias']:.4f}  (95 %: {low:.4f} to {high:.4f}; n = {shape + texture})"
        out.print(f"shape bias {bias}", highlight=False)
    else:
        out.print("no shape bias: no answer names either")
    by = f"by shape {summary['accuracy_by_shape']:.4f} ({shape}), by texture {summary['accuracy_by_texture']:.4f}"
    out.print(f"right {by} ({texture}), of {n} images whose shape and texture differ", highlight=False, soft_wrap=True)
