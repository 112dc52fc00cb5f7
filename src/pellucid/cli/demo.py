"""pellucid demo"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pellucid.cli.audit import audit
from pellucid.cli.common import err, examples
from pellucid.cli.train import train

EPILOGUE = examples("pellucid demo", "pellucid demo --out /tmp/demo")

RADIUS = 0.2
OBJECTIVES = {
    "standard": ("standard", 300),
    "adversarial": (f"adversarial(attack=pgd(ball=Linf({RADIUS}), steps=7, keep_best=False))", 500),
    "int": (f"int(ball=Linf({RADIUS}), steps=7)", 500),
}


def demo(
    out: Annotated[Path, typer.Option(help="Where the networks and the report go.")] = Path("runs/demo"),
) -> None:
    """See it work: train three networks on real handwritten digits, audit them side by side. Under two minutes.

    Nothing is downloaded. Interrupted? The same command goes on where it stopped.
    """
    for name, (objective, steps) in OBJECTIVES.items():
        folder = out / name
        err.print(f"training {name}: {steps} steps of {escape(objective)}")
        train(
            out=folder,
            data="digits",
            objective=objective,
            steps=steps,
            lr="2e-3",
            decay="linear",
            resume=True,
            quiet=True,
        )
    err.print("auditing the three, side by side")
    audit(
        model=[str(out / name) for name in OBJECTIVES],
        data="digits",
        out_folder=out,
        eps="0.04,0.08,0.12,0.16,0.2,0.24",
        worst="ensemble(steps=20, queries=300)",
    )
    err.print("Open it in a browser. Your own classifier next: pellucid audit --help")
