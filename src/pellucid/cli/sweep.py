"""pellucid sweep"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pellucid.cli.common import JsonOption, SeedOption, err, examples, out, print_json, progress

EPILOGUE = examples(
    'pellucid sweep --data digits --objective "double_backprop(lam={})" --values 0.1,1,10 --steps 300 --out runs/sweep',
    "pellucid curves --run runs/sweep/0.1 --run runs/sweep/1 --run runs/sweep/10 --out sweep.html",
)


def sweep(
    objective: Annotated[str, typer.Option(help="With {} where the number goes: double_backprop(lam={}).")],
    values: Annotated[str, typer.Option(help="The numbers: 0.1,1,10.")],
    folder: Annotated[Path, typer.Option("--out", help="A run per value, the baseline, sweep.json; resumable.")],
    data: Annotated[str, typer.Option(help="See `pellucid data list`.")] = "digits",
    arch: Annotated[str, typer.Option(help="See `pellucid list architectures`.")] = "small",
    steps: Annotated[int, typer.Option(help="Optimiser steps of each run.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    attack: Annotated[str, typer.Option(help="Makes the examples, on the baseline.")] = "fgsm(ball=Linf(0.3))",
    floor: Annotated[float, typer.Option(help="Share of the baseline's clean accuracy that a run must keep.")] = 0.97,
    images: Annotated[int, typer.Option(help="Images held out, on which it is chosen.")] = 500,
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> None:
    """Train at several values of one number, and choose by held-out images (Ross & Doshi-Velez 2018, sec. 4).

    The choice: of the runs at least --floor times as accurate as a standard network, the one that is right most often
    on the adversarial examples made on that network.
    """
    from pellucid.cli.common import numbers
    from pellucid.data import load
    from pellucid.recipe import Recipe
    from pellucid.sweep import sweep as run

    recipe = Recipe(
        objective=objective,
        architecture=arch,
        data=data,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        held_out=images,
        validate_every=max(1, steps // 10),
        seed=seed,
    )
    chosen_from = numbers(values) or ()
    with progress("sweep", steps * (len(chosen_from) + 1), quiet=json_) as advance:
        done, loss = -1, ""

        def say(name: str) -> Any:
            nonlocal done, loss
            done, loss = done + 1, ""
            here = done

            def report(step: int, entry: dict[str, float]) -> None:
                nonlocal loss
                loss = f": loss {entry['loss']:.4f}" if "loss" in entry else loss  # validations log none
                advance(0, note=f"{name}{loss}", at=here * steps + step)

            return report

        found = run(recipe, chosen_from, load(data, "train"), folder, attack=attack, floor=floor, say=say)
    if json_:
        print_json(found)
        return
    table = Table(title=f"{found['n']} held-out images; examples by {attack} on the baseline", title_justify="left")
    for column in ("value", "clean", "on the examples", ""):
        table.add_column(column)
    for trial in (found["baseline"], *found["trials"]):
        mark = "chosen" if trial["folder"] != "baseline" and trial["value"] == found["chosen"] else trial["diverged"]
        figures = ["" if trial[name] is None else f"{trial[name]:.3f}" for name in ("clean", "black_box")]
        table.add_row(trial["folder"], *figures, mark)
    out.print(table)
    if found["chosen"] is None:
        err.print(f"No value keeps {floor:g} of the baseline's clean accuracy: try smaller ones, or more --steps.")
