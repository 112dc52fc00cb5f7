"""pellucid curves"""

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.common import err, examples

EPILOGUE = examples(
    "pellucid curves --run runs/a --run runs/b --out curves.html",
    "pellucid curves --run runs/lam-1 --run runs/lam-10 --run runs/lam-100 --out sweep.html",
)


def curves(
    run: Annotated[list[Path], typer.Option(help="A training run's folder; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The page: one HTML file.")],
) -> None:
    """Draw training curves: losses, gradient norms, held-out accuracies, one line per run, finished or not."""
    from pellucid.checkpoint import read_log
    from pellucid.cli.common import subject_name
    from pellucid.errors import PellucidError
    from pellucid.report.curves_page import curves_page
    from pellucid.results import read_object
    from pellucid.weights import write_atomically

    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise PellucidError(f"--out {out} must be the name of a page, such as curves.html")
    found = {}
    for folder in {each.resolve(): each for each in run}.values():  # each once
        recipe = read_object(folder / "recipe.json", "name another run")
        if not recipe:
            raise PellucidError(f"{folder} holds no training run: name a folder that `pellucid train --out` made")
        name = subject_name(str(folder))
        if name in found:
            name = str(folder)
        found[name] = (recipe, read_log(folder))
    if not any(log for _, log in found.values()):
        raise PellucidError("none of the runs has logged a step yet: wait for its first checkpoint")
    write_atomically(out, curves_page(found).encode())
    err.print(f"{out}", markup=False, soft_wrap=True)
