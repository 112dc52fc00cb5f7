"""A trained network on disk: one safetensors file that also says which architecture it is and where it came from."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from pellucid import registry
from pellucid.errors import PellucidError
from pellucid.network import Network

FORMAT = "pellucid-1"


def save_model(network: nn.Module, path: Path, *, architecture: str, **facts: str) -> None:
    """Write weights atomically, with the specification that rebuilds the network and any further facts as text."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(path, save(tensors, {"format": FORMAT, "architecture": architecture, **facts}))


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
    finally:
        neighbour.unlink(missing_ok=True)


def load_model(where: str | Path, *, weights: Path | None = None) -> tuple[Network, Mapping[str, str]]:
    """A network and the facts stored with it, from a file, a run's folder, or an architecture's specification.

    `where` is a `.safetensors` file, a folder that holds `model.safetensors`, or a specification such as
    `small(channels=1)` together with a file of weights.
    """
    path = Path(where)
    path = path / "model.safetensors" if path.is_dir() else path
    if path.is_file():
        return _from_file(path, weights)
    if str(where).partition("(")[0] in registry.public("architectures"):
        if weights is None:
            raise PellucidError(
                f"{where!s} is an architecture without weights: give a file of weights, or a trained model"
            )
        return _from_spec(str(where), weights, {}), {"architecture": str(where)}
    raise PellucidError(
        f"no model at {str(where)!r}: give a .safetensors file, a folder holding model.safetensors (a finished "
        f"training run), or an architecture ({', '.join(registry.public('architectures'))}) with its weights"
    )


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file, or an error that names it."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PellucidError(f"cannot read weights from {path}: {error}") from None


def _from_file(path: Path, weights: Path | None) -> tuple[Network, Mapping[str, str]]:
    if weights is not None:
        raise PellucidError(f"{path} already holds weights: leave out {weights}, or name an architecture")
    _, facts = read_safetensors(path)
    if facts.get("format") != FORMAT or "architecture" not in facts:
        raise PellucidError(
            f"{path} does not say which architecture it holds (found metadata {json.dumps(facts)}): "
            "name the architecture as the model and this file as its weights"
        )
    return _from_spec(facts["architecture"], path, facts), facts


def _from_spec(spec: str, path: Path, facts: Mapping[str, str]) -> Network:
    del facts
    build = registry.parse(spec, "architectures")
    network = build()
    tensors, _ = read_safetensors(path)
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        differ = [
            f"{n}: {found.get(n)} for {expected.get(n)}"
            for n in {**expected, **found}
            if found.get(n) != expected.get(n)
        ]
        raise PellucidError(f"{path} holds the weights of another network than {spec}: {'; '.join(differ[:4])}")
    network.load_state_dict(tensors)
    return network.eval()


def build(spec: str, *, channels: int, size: int, classes: int, generator: torch.Generator) -> tuple[Network, str]:
    """A fresh network for data of a shape, and the full specification that rebuilds it."""
    named = registry.parse(spec, "architectures")
    given = named.keywords if isinstance(named, partial) else {}
    fitting = {"channels": channels, "size": size, "classes": classes}
    options = {k: v for k, v in fitting.items() if registry.option(named, k) is not None} | given
    function = named.func if isinstance(named, partial) else named
    return function(**options, generator=generator), registry.describe(partial(function, **options))
