"""pellucid attack"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

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
    examples,
    only_for_others,
    open_images,
    open_subject,
    out,
    print_json,
    progress,
)

EPILOGUE = examples(
    'pellucid attack --model runs/a --data digits --attack "pgd(ball=Linf(0.2), steps=40)"',
    "pellucid attack --model nets/mnist_smallgap_int_100.safetensors --data mnist --images boopathy200 --attack "
    '"pgd(ball=Linf(0.3), steps=200, step_size=0.01, random_start=False)" --json',
    "pellucid attack --model runs/a --data digits --attack \"aai(ball=Linf(0.2), reading='as_coded')\" --json",
)


def attack(
    model: ModelOption,
    data: DataOption,
    attack: Annotated[str, typer.Option(help="See `pellucid list attacks`.")] = "pgd",
    images: ImagesOption = None,
    split: SplitOption = "test",
    size: SizeOption = None,
    weights: WeightsOption = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Keep the rows (Parquet) and run.json here.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mean: MeanOption = "",
    std: StdOption = "",
    json_: JsonOption = False,
) -> None:
    """Attack a classifier, and judge the returned images anew: robust accuracy, or Kendall's tau of its maps."""
    import time
    from datetime import UTC, datetime

    from pellucid import registry
    from pellucid.evaluation import Measurement, evaluate
    from pellucid.results import run_facts, write_json, write_rows

    bound = registry.parse(attack, "attacks")
    interpreter = registry.option(bound, "interpreter")
    only_for_others([model], weights, mean, std)
    found, indices = open_images(data, split, images, seed, size)
    subject = open_subject(model, weights, found, device=device, mean=mean, std=std)
    started, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    cells = out_folder / "cells" if out_folder else None
    with progress("attacking", 2 * len(indices), quiet=json_) as tick:
        clean = evaluate(subject.model, found, indices, Measurement(), seed=seed, cells=cells, tick=tick)
        measurement = Measurement(bound, interpreter, top_k=registry.option(bound, "k") or 8)
        rows = evaluate(subject.model, found, indices, measurement, seed=seed, cells=cells, tick=tick)
    seconds = time.monotonic() - started
    summary = {
        "model": model,
        "attack": registry.describe(bound),
        "data": data,
        "images": images or f"{len(indices)} at random",
    }
    summary |= _figures(clean, rows) | {"seconds": round(seconds, 2)}
    if out_folder:
        write_rows(out_folder / "rows.parquet", rows)
        write_json(out_folder / "run.json", summary | run_facts(started=now, seconds=seconds, device=device))
    if json_:
        print_json(summary)
    else:
        _print(summary)


def _figures(clean: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from pellucid.results import rate

    robust = rate(clean["correct"] & rows["correct"])
    found = {
        "robust_accuracy": robust["value"],
        "clean_accuracy": float(clean["correct"].mean()),
        "n": robust["n"],
        "interval": [robust["low"], robust["high"]],
    }
    if "tau" in rows:
        kept = rows["unchanged"] & np.isfinite(rows["tau"])
        finite = rows["tau"][np.isfinite(rows["tau"])]
        found |= {
            "kendall_tau": float(rows["tau"][kept].mean()) if kept.any() else None,
            "survivors": int(rows["unchanged"].sum()),
            "n_tau": int(kept.sum()),
            "kendall_tau_all": float(finite.mean()) if len(finite) else None,
            "top_k_intersection": float(rows["top_k_overlap"][kept].mean()) if kept.any() else None,
        }
    return found


def _print(summary: dict[str, Any]) -> None:
    low, high = summary["interval"]
    on = f"on {summary['n']} images of {escape(summary['data'])}, {summary['seconds']} s"
    out.print(f"[bold]{escape(summary['attack'])}[/] {on}")
    out.print(f"  clean accuracy   {summary['clean_accuracy']:.3f}")
    out.print(f"  robust accuracy  {summary['robust_accuracy']:.3f}  (95 %: {low:.3f} to {high:.3f}; an upper bound)")
    if summary.get("kendall_tau") is not None:
        out.print(
            f"  Kendall tau      {summary['kendall_tau']:.3f}  over {summary['n_tau']} images that keep their class"
        )
        out.print(
            f"                   {summary['kendall_tau_all']:.3f}  over all; top-k {summary['top_k_intersection']:.3f}"
        )
    elif "survivors" in summary:
        kept = summary["survivors"]
        why = f"the map is constant, for {kept} images that keep their class" if kept else "no image kept its class"
        out.print(f"  Kendall tau      none: {why}")
