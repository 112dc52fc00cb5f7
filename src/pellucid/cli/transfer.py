"""pellucid transfer"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pellucid.cli.common import (
    DataOption,
    DeviceOption,
    ImagesOption,
    JsonOption,
    MeanOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    WeightsOption,
    checked_call,
    err,
    examples,
    named,
    only_for_others,
    open_images,
    open_subject,
    out,
    print_json,
    progress,
    radii,
)

if TYPE_CHECKING:
    from pellucid.transfer import Transfer

EPILOGUE = examples(
    "pellucid transfer --model runs/a --model runs/b --data digits --eps 0.1,0.2,0.3 --out runs/transfer",
    "pellucid transfer --model runs/a --model runs/b --data mnist --attack \"tgsm(target='next')\" --eps 0.3 --json",
)


def transfer(
    model: Annotated[list[str], typer.Option(help="As for `pellucid attack`; once for each source and target.")],
    data: DataOption,
    attack: Annotated[str, typer.Option(help="Makes the examples; see `pellucid list attacks`.")] = "fgsm",
    eps: Annotated[str, typer.Option(help="Radii, as 0.1,0.2; without, the attack goes as it is given.")] = "",
    images: ImagesOption = None,
    split: SplitOption = None,
    size: SizeOption = None,
    weights: WeightsOption = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="transfer.html, transfer.json, run.json and the examples.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mean: MeanOption = "",
    std: StdOption = "",
    json_: JsonOption = False,
) -> None:
    """Show every model the adversarial examples made on every other: accuracies, and who falls together.

    Each set of examples is made once. Interrupted, or one model more? The same command goes on where it stopped.
    """
    import time
    from datetime import UTC, datetime

    from pellucid import registry
    from pellucid.results import run_facts
    from pellucid.transfer import transfer as run_transfer

    only_for_others(model, weights, mean, std)
    bound = registry.parse(attack, "attacks")
    ladder = radii(eps, bound) or ()
    found, indices = open_images(data, split, images, seed, size)
    subjects = named([open_subject(m, weights, found, device=device, mean=mean, std=std) for m in model])
    models = {subject.name: subject.model for subject in subjects}
    what = {"attack": registry.describe(bound), "eps": list(ladder)}
    call = checked_call(out_folder, "transfer", what, found, indices, [*models.values()], seed=seed, device=device)
    started, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with progress("attacking", len(subjects) * max(1, len(ladder)) * len(indices), quiet=json_) as tick:
        done = run_transfer(
            models,
            found,
            indices,
            bound,
            ladder,
            seed=seed,
            cells=out_folder / "cells" if out_folder else None,
            tick=tick,
        )
    seconds = time.monotonic() - started
    figures = {"attack": registry.describe(bound), "data": data, "seed": seed, **summary(done)}
    if out_folder:
        _write(out_folder, call, figures, run_facts(started=now, seconds=seconds, device=device))
    if json_:
        print_json(figures | {"seconds": round(seconds, 2)})
        return
    _print(done)
    if out_folder:
        err.print(f"[bold]{escape(str(out_folder / 'transfer.html'))}[/]")


def summary(done: "Transfer") -> dict[str, Any]:
    """What the command prints and the page shows."""
    from pellucid.results import rate

    return {
        "models": list(done.names),
        "eps": list(done.eps),
        "n": done.clean.shape[1],
        "clean": {name: rate(right) for name, right in zip(done.names, done.clean, strict=True)},
        "accuracy": done.accuracy(),
        "sizes": done.sizes(),
        "overlaps": done.overlaps(),
    }


def _write(folder: Path, call: dict[str, Any], figures: dict[str, Any], facts: dict[str, Any]) -> None:
    from pellucid.report.transfer_page import transfer_page
    from pellucid.results import write_json
    from pellucid.run_folder import claim_call
    from pellucid.weights import write_atomically

    claim_call(folder, call)
    write_json(folder / "transfer.json", figures)
    write_atomically(folder / "transfer.html", transfer_page(figures).encode())
    write_json(folder / "run.json", facts)


def _print(done: "Transfer") -> None:
    """A table per radius, names by what tells them apart; numbers as heads where names do not fit beside each other."""
    from pellucid.report.words import short_names

    rows = short_names(done.names)
    heads = rows
    if sum(len(name) + 3 for name in [max(rows, key=len), *rows]) > out.width:
        heads = [str(i) for i in range(1, len(rows) + 1)]
        rows = [f"{head} {name}" for head, name in zip(heads, rows, strict=True)]
    for e, radius in enumerate(done.eps or (None,)):
        table = Table(title="accuracy" + ("" if radius is None else f" at eps {radius:g}"), title_justify="left")
        table.add_column("made on", no_wrap=True)
        for head in heads:
            table.add_column(escape(head), justify="right", no_wrap=True)
        table.add_row("(clean)", *(f"{right.mean():.3f}" for right in done.clean))
        for s, name in enumerate(rows):
            table.add_row(escape(name), *(f"{right.mean():.3f}" for right in done.correct[s, e]))
        out.print(table)
    for row, name in zip(rows, done.names, strict=True):
        if row != name:
            out.print(f"{row}: {name}", markup=False, highlight=False, soft_wrap=True)
