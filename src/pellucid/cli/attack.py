"""pellucid attack"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    checked_call,
    counted,
    counting,
    examples,
    only_for_others,
    open_images,
    open_subject,
    out,
    print_json,
    progress,
)
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from pellucid.data import ImageSet
    from pellucid.evaluation import Look
    from pellucid.results import Rows
    from pellucid.types import Attack, Interpreter

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
    split: SplitOption = None,
    size: SizeOption = None,
    weights: WeightsOption = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Keep the rows (Parquet) and run.json here.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Draw the first images, their perturbations and predictions (of attacks on maps, the maps too) here: "
            ".png, .jpg, .webp. With --out always."
        ),
    ] = None,
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
    from pellucid.results import run_facts, write_json, write_rows
    from pellucid.run_folder import claim_call

    bound = registry.parse(attack, "attacks")
    only_for_others([model], weights, mean, std)
    drawn = _drawn(picture, out_folder)
    found, indices = open_images(data, split, images, seed, size)
    subject = open_subject(model, weights, found, device=device, mean=mean, std=std)
    what = {"attack": registry.describe(bound), "eps": []}
    call = checked_call(out_folder, "attack", what, found, indices, [subject.model], seed=seed, device=device)
    started, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    summary = {
        "model": model,
        "attack": registry.describe(bound),
        "data": data,
        "images": images or f"{len(indices)} at random",
    }
    cells = out_folder / "cells" if out_folder else None
    figures, rows = _run(subject.model, found, indices, bound, seed=seed, cells=cells, drawn=drawn, quiet=json_)
    seconds = time.monotonic() - started
    summary |= figures | {"seconds": round(seconds, 2)}
    if out_folder:
        claim_call(out_folder, call)
        write_rows(out_folder / "rows.parquet", rows)
        write_json(out_folder / "run.json", summary | run_facts(started=now, seconds=seconds, device=device))
    if json_:
        print_json(summary)
    else:
        _print(summary)


def _drawn(picture: Path | None, out_folder: Path | None) -> Path | None:
    from pellucid.report.attack_picture import kind_of

    if picture is None:
        return out_folder / "picture.png" if out_folder else None
    kind_of(picture)  # asked before the work, not after
    above = next(folder for folder in picture.absolute().parents if folder.exists())
    if not above.is_dir():
        raise PellucidError(f"--picture {picture}: {above} is a file, where a folder is wanted")
    return picture


def _run(
    model: "nn.Module",
    found: "ImageSet",
    indices: "Tensor",
    attack: "Attack",
    *,
    seed: int,
    cells: Path | None,
    drawn: Path | None,
    quiet: bool,
) -> tuple[dict[str, Any], "Rows"]:
    """The figures and the rows, with a bar on the way."""
    from pellucid import registry
    from pellucid.evaluation import Measurement, evaluate
    from pellucid.outcome import outcome

    maps = registry.option(attack, "interpreter")
    measurement = Measurement(attack, maps, top_k=registry.option(attack, "k") or 8)
    name = registry.describe(attack).partition("(")[0]
    with progress(f"attacking with {name}", 2 * len(indices), quiet=quiet) as tick, counting(model, tick, quiet=quiet):
        clean = evaluate(model, found, indices, Measurement(), seed=seed, cells=cells, tick=tick)
        look = _picture(drawn, registry.describe(attack), found.class_names, clean, model, maps) if drawn else None
        rows = evaluate(model, found, indices, measurement, seed=seed, cells=cells, tick=tick, look=look)
    figures = outcome(clean, rows, sizes=registry.option(attack, "ball") is None)
    return figures | ({"picture": str(drawn)} if drawn and drawn.is_file() else {}), rows


def _picture(
    path: Path,
    spec: str,
    names: tuple[str, ...],
    clean: "Rows",
    model: "nn.Module",
    interpreter: "Interpreter | None",
) -> "Look":
    """Draws the first images into a file as soon as they are attacked."""

    def look(x: "Tensor", attacked: "Tensor", rows: "Rows") -> None:
        from pellucid.report.attack_picture import COLUMNS, Judged, attack_picture, kind_of
        from pellucid.weights import write_atomically

        x, attacked = x[:COLUMNS], attacked[:COLUMNS]
        before, after = (
            [f"{names[c]} {p:.2f}" for c, p in zip(r["prediction"][: len(x)], r["confidence"][: len(x)], strict=True)]
            for r in (clean, rows)
        )
        judged = [
            Judged(names[rows["label"][i]], before[i], after[i], bool(clean["correct"][i]), bool(rows["correct"][i]))
            for i in range(len(x))
        ]
        maps = None if interpreter is None else _maps(model, interpreter, x, attacked, rows["label"][: len(x)])
        picture = attack_picture(spec, x.numpy(), attacked.numpy(), judged, maps, kind=kind_of(path))
        write_atomically(path, picture)

    return look


def _maps(
    model: "nn.Module", interpreter: "Interpreter", x: "Tensor", attacked: "Tensor", label: "np.ndarray"
) -> tuple["np.ndarray", "np.ndarray"]:
    """The true class's maps before and after, with the same noise; what they have beyond two axes is added up."""
    import torch

    from pellucid.mapping import true_class_maps
    from pellucid.network import device_of

    device = device_of(model)
    y = torch.as_tensor(label, device=device)

    def flat(at: "Tensor") -> "np.ndarray":
        with torch.no_grad():
            maps = true_class_maps(interpreter, model, at.to(device), y, noise=0)[:, 0]
        return (maps.flatten(1, -3).sum(1) if maps.dim() > 3 else maps).float().cpu().numpy()

    return flat(x), flat(attacked)


def _print(summary: dict[str, Any]) -> None:
    low, high = summary["interval"]
    on = f"on {counted(summary['n'])} of {escape(summary['data'])}, {summary['seconds']} s"
    out.print(f"[bold]{escape(summary['attack'])}[/] {on}")
    out.print(f"  clean accuracy   {summary['clean_accuracy']:.3f}")
    spares = summary["attack"].startswith("aai")  # it keeps the class: what is left right says nothing of robustness
    label, bound = ("class kept right", "") if spares else ("robust accuracy ", "; an upper bound")
    out.print(f"  {label} {summary['robust_accuracy']:.3f}  (95 %: {low:.3f} to {high:.3f}{bound})")
    for line in [*_map_lines(summary), *_other_lines(summary)]:
        out.print(f"  {line}", soft_wrap=True)


def _map_lines(summary: dict[str, Any]) -> list[str]:
    goal = summary.get("kendall_tau_target")
    target = [] if goal is None else [f"                 {goal:.3f}  of the maps of the target class"]
    if summary.get("kendall_tau") is not None:
        return [
            f"Kendall tau      {summary['kendall_tau']:.3f}  over {counted(summary['n_tau'])} of unchanged class",
            f"                 {summary['kendall_tau_all']:.3f}  over all; top-k {summary['top_k_intersection']:.3f}",
            *target,
        ]
    if "survivors" not in summary:
        return []
    kept = summary["survivors"]
    why = f"the map is constant, for {counted(kept)} of unchanged class" if kept else "no image kept its class"
    over_all = summary["kendall_tau_all"]
    line = f"Kendall tau      none: {why}"
    return [line + ("" if over_all is None else f"; {over_all:.3f} over the images that changed"), *target]


def _other_lines(summary: dict[str, Any]) -> list[str]:
    lines = []
    if "by_attack" in summary:
        lines.append("broken by        " + ", ".join(f"{name} {n}" for name, n in summary["by_attack"].items()))
    if "fooled" in summary:
        sizes = [f"{norm} {summary[f'median_{norm}']:.4g}" for norm in ("linf", "l2", "l1", "l0") if summary["fooled"]]
        lines.append(f"median size      {', '.join(sizes) or 'none'}  of {summary['fooled']} fooled")
    if summary.get("median_eps") is not None:
        lines.append(f"smallest found   {summary['median_eps']:.4g}  in the median, for {counted(summary['found'])}")
    if "reached_target" in summary:
        lines.append(f"reached target   {summary['reached_target']} of {counted(summary['n'])}")
    if "nds" in summary:
        lines += _sneaking_lines(summary)
        silent = "says nothing of maps that are not complete" if summary["n_isa"] else "not tried: nobody was fooled"
        words = {True: "holds", False: "does not hold", None: silent}
        lines.append(f"Proposition 1    {words[summary['bound_holds']]}")
    if "picture" in summary:
        lines.append(f"picture          {escape(summary['picture'])}")
    return lines


def _sneaking_lines(summary: dict[str, Any]) -> list[str]:
    if not summary["n_isa"]:
        return ["NDS, NSL         none: on no image right before did the target class overtake the true one"]
    nds, nsl, nds_coded, nsl_coded = (
        f"{summary[name]:.4f}" if math.isfinite(summary[name]) else "none"
        for name in ("nds", "nsl", "nds_as_coded", "nsl_as_coded")
    )
    left_out = f"less {summary['never_gave_way']} whose maps never gave way"
    return [
        f"NDS, NSL         {nds}, {nsl}  over {counted(summary['n_isa'])}",
        f"                 {nds_coded}, {nsl_coded}  as coded, {left_out}",
    ]
