"""Log entries on their way to TensorBoard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Note = Callable[[dict[str, float]], None]


@contextmanager
def events(out: Path | None, purge: int | None) -> Iterator[tuple[Note, Callable[[], None]]]:
    """Functions that write a log entry to TensorBoard, and all so far to disk; without a folder they do nothing.

    What an interrupted run wrote of steps from `purge` on is struck out.
    """
    if out is None:
        yield lambda _: None, lambda: None
        return
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(out / "tensorboard"), purge_step=purge) as writer:

        def note(entry: dict[str, float]) -> None:
            for name, value in entry.items():
                if name != "step":
                    writer.add_scalar(f"train/{name}", value, int(entry["step"]))

        yield note, writer.flush
