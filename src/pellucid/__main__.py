"""The entry point: threads are settled before torch is imported, errors become messages."""

import io
import sys

from pellucid.process import settle


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a bug, 2 something the user can put right, 130 interrupted."""
    settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to stop
    from pellucid.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
