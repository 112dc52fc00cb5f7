"""pellucid evaluate"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.common import (
    DataOption,
    DeviceOption,
    ImagesOption,
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
    only_for_others,
    open_images,
    open_subject,
    out,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from pellucid.results import Rows
    from pellucid.types import Transform

EPILOGUE = examples(
    "pellucid evaluate --model runs/a --data digits",
    "pellucid evaluate --model small --weights mine.safetensors --data mnist --images first:1000 --json",
    'pellucid evaluate --model runs/a --data digits --transform "patch_shuffle(k=4)" --json',
    "pellucid evaluate --model nets.py:build --weights mine.safetensors --data photos/ --mean .5,.5,.5 --std .2,.2,.2",
)


def evaluate(
    model: ModelOption,
    data: DataOption,
    images: ImagesOption = "all",
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
    that were right before it.
    """
    import time

    from pellucid import registry
    from pellucid.evaluation import Measurement
    from pellucid.evaluation import evaluate as run
    from pellucid.results import long_table, write_rows
    from pellucid.run_folder import claim_call

    only_for_others([model], weights, mean, std)
    change = registry.parse(transform, "transforms") if transform else None
    found, indices = open_images(data, split, images, seed, size)
    subject = open_subject(model, weights, found, device=device, mean=mean, std=std)
    call = checked_call(
        out_folder,
        "evaluate",
        {"transform": transform} if transform else {},
        found,
        indices,
        [subject.model],
        seed=seed,
        device=device,
    )
    started = time.monotonic()
    with progress("evaluating", len(indices) * (2 if change else 1), quiet=json_) as tick:
        measurement = Measurement(gradient_norm=True, transform=change)
        rows = run(subject.model, found, indices, measurement, seed=seed, tick=tick)
        clean = run(subject.model, found, indices, Measurement(), seed=seed, tick=tick) if change else rows
    summary = {"model": model, "data": data, "split": found.split} | _figures(rows, clean, change)
    summary["seconds"] = round(time.monotonic() - started, 2)
    if out_folder:
        claim_call(out_folder, call)
        parts = [("", clean)] if change is None else [("", clean), (registry.describe(change), rows)]
        write_rows(out_folder / "rows.parquet", long_table([({"transform": name}, part) for name, part in parts]))
    if json_:
        print_json(summary)
    else:
        _print(summary)


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
        out.print(f"{among} {kept:.4f}  (95 %: {low:.4f} to {high:.4f})", highlight=False)
    out.print(f"median input-gradient norm {summary['input_gradient_norm_median']:.3g}")
