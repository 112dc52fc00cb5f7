"""pellucid list"""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pellucid.cli.common import JsonOption, examples, out, print_json
from pellucid.errors import PellucidError

EPILOGUE = examples("pellucid list", "pellucid list attacks", "pellucid list objectives --json")


def listing(
    family: Annotated[
        str | None, typer.Argument(help="attacks, interpreters, objectives, architectures, transforms.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Everything that a specification can name, with its options and their defaults."""
    import inspect

    from pellucid import registry

    if family is not None and family not in registry.FAMILIES:
        raise PellucidError(f"no family {family!r}: there are {', '.join(registry.FAMILIES)}")
    found = {}
    for name in [family] if family else registry.FAMILIES:
        found[name] = {
            function: {"options": _options(f), "summary": (inspect.getdoc(f) or "").split("\n")[0]}
            for function, f in registry.public(name).items()
        }
    if json_:
        print_json(found)
        return
    for name, functions in found.items():
        table = Table(title=name, title_justify="left", show_lines=True)
        for column in ("name", "what it computes", "options"):
            table.add_column(column, overflow="fold")
        for function, facts in functions.items():
            options = ", ".join(f"{k}={v}" for k, v in facts["options"].items())
            table.add_row(function, escape(facts["summary"]), escape(options))
        out.print(table)


def _options(function: object) -> dict[str, str]:
    import inspect

    from pellucid import registry

    parameters = inspect.signature(function).parameters.values()  # pyright: ignore[reportArgumentType]
    return {
        p.name: registry.describe(p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in registry.NOT_OPTIONS
    }
