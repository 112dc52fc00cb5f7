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
    split: SplitOption = "test",
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
    from pellucid.report.transfer_page import transfer_page
    from pellucid.results import run_facts, write_json
    from pellucid.run_folder import claim_call
    from pellucid.transfer import transfer as run_transfer
    from pellucid.weights import write_atomically

    only_for_others(model, weights, mean, std)
    bound = registry.parse(attack, "attacks")
    ladder = radii(eps, bound) or ()
    found, indices = open_images(data, split, images, seed, size)
    subjects = named([open_subject(m, weights, found, device=device, mean=mean, std=std) for m in model])
    call = checked_call(
        out_folder, "transfer", bound, found, indices, [s.model for s in subjects], seed=seed, device=device, eps=ladder
    )
    started, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with progress("attacking", len(subjects) * max(1, len(ladder)) * len(indices), quiet=json_) as tick:
        done = run_transfer(
            {subject.name: subject.model for subject in subjects},
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
        claim_call(out_folder, call)
        write_json(out_folder / "transfer.json", figures)
        write_atomically(out_folder / "transfer.html", transfer_page(figures).encode())
        write_json(out_folder / "run.json", run_facts(started=now, seconds=seconds, device=device))
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


def _print(done: "Transfer") -> None:
    for e, radius in enumerate(done.eps or (None,)):
        table = Table(title="accuracy" + ("" if radius is None else f" at eps {radius:g}"))
        table.add_column("made on", overflow="fold")
        for name in done.names:
            table.add_column(escape(name), justify="right", overflow="fold")
        table.add_row("(clean)", *(f"{right.mean():.3f}" for right in done.clean))
        for s, name in enumerate(done.names):
            table.add_row(escape(name), *(f"{right.mean():.3f}" for right in done.correct[s, e]))
        out.print(table)
