"""Tensors on disk: read with errors that name the file, written so that no reader sees half a file."""

import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pellucid.errors import PellucidError

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
    """Load a state dict into a module, in place; wrappers' prefixes are stripped, all else must fit."""
    tensors = read_state_dict(path)
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    for prefix in PREFIXES:
        if not expected.keys() & tensors.keys() and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        differ = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        shown = "; ".join(f"{name}: {found.get(name)} for {expected.get(name)}" for name in differ[:4])
        raise PellucidError(f"{path} holds the weights of another network ({len(differ)} differ: {shown})")
    module.load_state_dict(tensors)
