"""The command line: one module per command. Torch is imported when a command runs, so that --help is quick."""

import os
import sys
import time

import typer

from pellucid.cli import (
    attack,
    audit,
    curves,
    demo,
    evaluate,
    explain,
    import_weights,
    listing,
    sweep,
    train,
    transfer,
    transform,
    zoo,
)
from pellucid.cli import data as data_commands
from pellucid.errors import PellucidError

ALONE = 2.0  # seconds: torchrun looks ten times a second whether a process has ended, and then ends the others
INTERRUPTED = "interrupted: what was finished by then is kept; give the command again to go on (train: with --resume)"

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
app.command(epilog=sweep.EPILOGUE)(sweep.sweep)
app.command(epilog=curves.EPILOGUE)(curves.curves)
app.command(epilog=attack.EPILOGUE)(attack.attack)
app.command(epilog=explain.EPILOGUE)(explain.explain)
app.command(epilog=evaluate.EPILOGUE)(evaluate.evaluate)
app.command(epilog=transform.EPILOGUE)(transform.transform)
app.command(epilog=transfer.EPILOGUE)(transfer.transfer)
app.command("import-weights", epilog=import_weights.EPILOGUE)(import_weights.import_weights)
app.command(epilog=zoo.EPILOGUE)(zoo.zoo)
app.add_typer(data_commands.app, name="data")
app.command("list", epilog=listing.EPILOGUE)(listing.listing)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _say(INTERRUPTED, 130)
    except PellucidError as error:
        return _say(f"error: {error}", 2)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        return _say(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except Exception as error:
        show, usage_code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or usage_code is None:  # not the option parser's: a bug, and its traceback is wanted
            raise
        show()
        return usage_code
    if code == 130:  # the option parser's own answer to Ctrl-C
        return _say(INTERRUPTED, 130)
    return code if isinstance(code, int) else 0


def _say(words: str, code: int) -> int:
    """Of the processes of torchrun the first one speaks. Another waits: what it alone found it must say itself, and
    where all found the same torchrun ends it before."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(ALONE)
        words = f"process {rank}: {words}"
    print(words, file=sys.stderr)  # noqa: T201
    return code
