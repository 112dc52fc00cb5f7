"""Tensors on disk: read with errors that name the file, written so that no reader sees half a file."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pellucid.errors import PellucidError
from pellucid.network import Network

PREFIXES = (
    "module.attacker.",
    "module.model.",
    "module.",
    "model.",
)  # what wrappers leave before the names of a state dict


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a neighbour and rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with neighbour.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    except OSError as error:  # the user knows the file, not its neighbour; a full disk's error knows neither
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        neighbour.unlink(missing_ok=True)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file, or an error that names it."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PellucidError(f"cannot read weights from {path}: {error}") from None


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A plain state dict: `.safetensors`, or what `torch.save` wrote, read with `weights_only=True`."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise PellucidError(
            f"{path} holds more than tensors (a whole pickled model?), and such a file may run a program when opened: "
            "save model.state_dict() instead"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise PellucidError(f"cannot read weights from {path}: {error}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise PellucidError(f"{path} holds no state dict: save model.state_dict()")
    return found


def load_into(module: nn.Module, path: Path) -> None:
    """Load a state dict into a module, in place, whatever its precision; all entries must fit.

    Stripped are wrappers' prefixes. The names that others' files give the weights of a `Network` (`published`) become
    its own; such a file brings no normalisation, and the network keeps its own. Nor need a file bring how many batches
    a BatchNorm has seen.
    """
    tensors = read_state_dict(path)
    own = module.state_dict()
    for prefix in PREFIXES:
        if not own.keys() & tensors.keys() and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    kept = (".num_batches_tracked",)
    called = {name: name for name in tensors}  # what the file calls our entries
    if isinstance(module, Network) and module.published and not own.keys() & tensors.keys():
        tensors, called = _renamed(tensors, module.published)
        kept = (*kept, "normalise.mean", "normalise.std")
    tensors |= {name: t for name, t in own.items() if name.endswith(kept) and name not in tensors}
    expected, found = ({name: tuple(t.shape) for name, t in held.items()} for held in (own, tensors))
    if expected != found:
        raise PellucidError(_differences(module, path, expected, found, called))
    module.load_state_dict(tensors)


def _renamed(
    tensors: Mapping[str, torch.Tensor], published: Mapping[str, str | None]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by our names, and their published names by ours; those that are to be left out are."""
    renamed: dict[str, torch.Tensor] = {}
    called: dict[str, str] = {}
    for name, tensor in tensors.items():
        theirs = next((prefix for prefix in published if name.startswith(prefix)), "")
        ours = published.get(theirs, "")
        if ours is not None:
            new = ours + name.removeprefix(theirs)
            renamed[new], called[new] = tensor, name
    return renamed, called


Shapes = Mapping[str, tuple[int, ...]]


def _differences(module: nn.Module, path: Path, expected: Shapes, found: Shapes, called: Mapping[str, str]) -> str:
    """Which entries of a file and of the module differ, by the file's names where it has them."""
    differ = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    pairs = [(called.get(name, name), found.get(name, "not there"), expected.get(name, "none")) for name in differ[:4]]
    shown = "; ".join(f"{name}: {theirs} for {ours}" for name, theirs, ours in pairs)
    remedy = ""
    if isinstance(module, Network) and (classes := _other_classes(differ, expected, found, module.head.out_features)):
        remedy = (
            f": it has {classes} classes and the network {module.head.out_features}; build it with classes={classes}"
        )
    return f"{path} holds the weights of another network ({len(differ)} differ: {shown}){remedy}"


def _other_classes(differ: list[str], expected: Shapes, found: Shapes, classes: int) -> int | None:
    """The number of classes of a file, where it differs from the network in nothing else."""
    counts: set[int] = set()
    for name in differ:
        ours, theirs = expected.get(name, ()), found.get(name, ())
        if ours[:1] != (classes,) or not theirs or ours[1:] != theirs[1:]:
            return None
        counts.add(theirs[0])
    return counts.pop() if len(counts) == 1 else None
