"""pellucid evaluate"""

from pathlib import Path
from typing import Annotated

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

EPILOGUE = examples(
    "pellucid evaluate --model runs/a --data digits",
    "pellucid evaluate --model small --weights mine.safetensors --data mnist --images first:1000 --json",
    "pellucid evaluate --model nets.py:build --weights mine.safetensors --data photos/ --mean .5,.5,.5 --std .2,.2,.2",
)


def evaluate(
    model: ModelOption,
    data: DataOption,
    images: ImagesOption = "all",
    split: SplitOption = "test",
    size: SizeOption = None,
    weights: WeightsOption = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Keep the rows (Parquet) here.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mean: MeanOption = "",
    std: StdOption = "",
    json_: JsonOption = False,
) -> None:
    """Accuracy with its interval, and the input-gradient norm, on clean images."""
    import time

    import numpy as np

    from pellucid.evaluation import Measurement
    from pellucid.evaluation import evaluate as run
    from pellucid.results import rate, write_rows
    from pellucid.run_folder import claim_call

    only_for_others([model], weights, mean, std)
    found, indices = open_images(data, split, images, seed, size)
    subject = open_subject(model, weights, found, device=device, mean=mean, std=std)
    call = checked_call(out_folder, "evaluate", {}, found, indices, [subject.model], seed=seed, device=device)
    started = time.monotonic()
    with progress("evaluating", len(indices), quiet=json_) as tick:
        rows = run(subject.model, found, indices, Measurement(gradient_norm=True), seed=seed, tick=tick)
    accuracy = rate(rows["correct"])
    summary = {
        "model": model,
        "data": data,
        "split": split,
        "accuracy": accuracy["value"],
        "n": accuracy["n"],
        "interval": [accuracy["low"], accuracy["high"]],
        "input_gradient_norm_median": float(np.median(rows["gradient_norm"])),
        "seconds": round(time.monotonic() - started, 2),
    }
    if out_folder:
        claim_call(out_folder, call)
        write_rows(out_folder / "rows.parquet", rows)
    if json_:
        print_json(summary)
    else:
        low, high = accuracy["low"], accuracy["high"]
        out.print(f"accuracy {accuracy['value']:.4f}  (95 %: {low:.4f} to {high:.4f}; n = {accuracy['n']})")
        out.print(f"median input-gradient norm {summary['input_gradient_norm_median']:.3g}")
