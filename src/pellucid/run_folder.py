"""A run's folder: whose it is, who writes in it now, and what a killed process left there."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pellucid.errors import PellucidError
from pellucid.recipe import Recipe, differences, own_code
from pellucid.results import read_object
from pellucid.weights import write_atomically

RECIPE, RUN, CHECKPOINT, LOCK = "recipe.json", "run.json", "checkpoint.safetensors", ".lock"
CALL = "call.json"
REMEDY = "remove the run's folder, or choose another --out"
LEFT = ("cells", "picture.png")  # what an interrupted attack leaves: nobody's results


class Busy(PellucidError):
    """Another process works in the folder."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder; `.lock` there holds the process id. Raises `Busy`, which names it.

    The system drops the lock of a process that dies, however it dies: its `.lock` and `*.part` files are cleared away.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PellucidError(f"{out} is a file, or lies in one: name a folder") from None
    descriptor = _lock(out / LOCK)
    try:
        _remove_leftovers(out)
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)  # before it is unlocked: whoever waits for this file must look again
        os.close(descriptor)


def check(out: Path, run: Mapping[str, Any], *, resume: bool) -> None:
    """Raise `PellucidError` unless `out` is free or, to be resumed, holds this very run (a `recipe.identity`)."""
    if not resume and any((out / name).exists() for name in (RECIPE, CHECKPOINT)):
        raise PellucidError(
            f"{out} already holds a training run: add --resume to go on with it, or choose another --out"
        )
    if not (out / RECIPE).exists():
        return
    changed = _changed(out, _read(out / RUN), run)
    if changed:
        raise PellucidError(f"{out} holds another run ({'; '.join(changed)}): resume it as it was")


def claim(out: Path, run: Mapping[str, Any]) -> None:
    """Make `out` this run's own: the recipe, and the data's digest, the device and the number of threads beside it."""
    if (out / RECIPE).exists():
        return
    facts = {name: value for name, value in run.items() if name != "recipe"} | {"threads": torch.get_num_threads()}
    write_atomically(out / RUN, json.dumps(facts, indent=1).encode())
    write_atomically(out / RECIPE, json.dumps(run["recipe"], indent=1).encode())  # last: it is what claims


def finished(out: Path, recipe: Recipe) -> bool:
    """Whether `out` holds the model that this recipe ends with. Raises `PellucidError` where it is another recipe's."""
    changed = other_recipe(out, recipe)
    if changed:
        raise PellucidError(f"{out} holds the model of another recipe ({'; '.join(changed)}): choose another --out")
    return changed is not None


def other_recipe(out: Path, recipe: Recipe) -> list[str] | None:
    """Where the recipe of the model in `out` differs from this one; None where there is no model."""
    if not (out / "model.safetensors").is_file():
        return None
    facts = {name: value for name, value in _read(out / RUN).items() if name == "code"}
    code = own_code(recipe)
    return _changed(out, facts, {"recipe": dataclasses.asdict(recipe)} | ({"code": code} if code else {}))


def _changed(out: Path, facts: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """Where the run that claimed `out` differs from this one."""
    recipe = _read(out / RECIPE)
    try:
        return differences({**facts, "recipe": recipe}, run)
    except (TypeError, PellucidError) as error:
        raise PellucidError(f"{out / RECIPE} cannot be read ({error}): {REMEDY}") from None


def check_call(out: Path, call: Mapping[str, Any], *, grows: str = "", shared: bool = False) -> None:
    """Raise `PellucidError` unless `out` is free, or holds the results of this very call, which are then replaced.

    `grows` names a list that may be longer than it was: what was there is then made anew, with the rest. In a `shared`
    folder files of no call may lie too, as the demo's networks beside its audit.
    """
    if out.exists() and not out.is_dir():
        raise PellucidError(f"--out {out} is a file: name a folder")
    held = (
        sorted(p.name for p in out.iterdir() if p.name not in LEFT and not p.name.startswith("."))
        if out.exists()
        else []
    )
    if not held or (shared and not (out / CALL).exists()):
        return
    remedy = "choose another --out, or remove that folder"
    if not (out / CALL).exists():
        raise PellucidError(f"{out} already holds other files ({', '.join(held[:3])}): {remedy}")
    before, now = _read(out / CALL), json.loads(json.dumps(call))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if grows in changed and all(entry in now[grows] for entry in before.get(grows) or []):
        changed.remove(grows)
    if changed:
        differ = "; ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in changed)
        raise PellucidError(f"{out} holds the results of another call ({differ}): {remedy}")


def claim_call(out: Path, call: Mapping[str, Any]) -> None:
    """Make `out` the call's own. To be done when the results are there: a call that fails claims nothing."""
    write_atomically(out / CALL, json.dumps(call, indent=1).encode())


def other_threads(out: Path) -> str | None:
    """A warning where a run was started on another number of threads: sums are then added up in another order."""
    before, now = _read(out / RUN).get("threads"), torch.get_num_threads()
    if before is None or before == now:
        return None
    return (
        f"{out} was started on {before} threads and goes on with {now}: the weights will differ in the last bits from "
        f"an uninterrupted run's. To have the same, set OMP_NUM_THREADS={before}"
    )


def _read(path: Path) -> dict[str, Any]:
    return read_object(path, REMEDY)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode() or "unknown"
            os.close(descriptor)
            raise Busy(
                f"process {holder} is at work in {path.parent}: let it finish, or choose another --out"
            ) from None
        except OSError:  # a file system without locks (some network ones): nobody can be kept out
            pass
        if _is(path, descriptor):
            os.truncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its last holder removed the file between the opening and the locking


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_leftovers(out: Path) -> None:
    """What `write_atomically` could not finish, as `.NAME.PID.part`, where that process is no more."""
    for path in out.glob(".*.part"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    with suppress(PermissionError):  # somebody else's, so there is one
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
