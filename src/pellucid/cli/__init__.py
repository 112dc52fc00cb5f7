"""The command line: one module per command. Torch is imported when a command runs, so that --help is quick."""

import sys

import typer

from pellucid.cli import attack, audit, demo, evaluate, explain, import_weights, listing, train
from pellucid.cli import data as data_commands
from pellucid.errors import PellucidError

app = typer.Typer(
    name="pellucid",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Can my classifier be fooled, can its explanation be fooled, what does it look at, "
    "and how do I train one that does better?",
)
app.command(epilog=demo.EPILOGUE)(demo.demo)
app.command(epilog=audit.EPILOGUE)(audit.audit)
app.command(epilog=train.EPILOGUE)(train.train)
app.command(epilog=attack.EPILOGUE)(attack.attack)
app.command(epilog=explain.EPILOGUE)(explain.explain)
app.command(epilog=evaluate.EPILOGUE)(evaluate.evaluate)
app.command("import-weights", epilog=import_weights.EPILOGUE)(import_weights.import_weights)
app.add_typer(data_commands.app, name="data")
app.command("list", epilog=listing.EPILOGUE)(listing.listing)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        app(args=arguments, standalone_mode=False)
    except PellucidError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: what was finished is kept; run the command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    return 0
