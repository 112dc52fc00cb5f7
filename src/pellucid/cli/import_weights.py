"""pellucid import-weights"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pellucid.cli.common import JsonOption, examples, out, print_json

EPILOGUE = examples(
    "pellucid import-weights Proper-Interpretability/networks --out nets",
    "pellucid import-weights mnist_smallgap_int_100.pkl --json",
)


def import_weights(
    source: Annotated[Path, typer.Argument(help="A published network's .pkl file, or a folder of them.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the networks go; made where it does not exist.")] = Path(
        "nets"
    ),
    json_: JsonOption = False,
) -> None:
    """Bring the networks published by Boopathy et al. 2020 into Pellucid's format.

    The authors' files are Python pickles, which can run programs. Here nothing in them is executed: a file that asks
    for more than NumPy arrays is refused, and where one of a folder is, nothing is written at all.
    """
    import dataclasses

    from pellucid import import_weights as importer

    written = importer.import_weights(source, folder)
    if json_:
        print_json({"written": [dataclasses.asdict(network) | {"path": str(network.path)} for network in written]})
        return
    table = Table("network", "architecture", "parameters", title=f"written to {escape(str(folder))}")
    for network in written:
        table.add_row(escape(network.name), network.architecture, f"{network.parameters:,}")
    out.print(table)
