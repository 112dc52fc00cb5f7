"""A trained network on disk: one safetensors file that also says which architecture it is and where it came from."""

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from pellucid import registry
from pellucid.errors import PellucidError
from pellucid.network import Network
from pellucid.own_code import from_code
from pellucid.run_folder import RECIPE
from pellucid.types import Images
from pellucid.weights import load_into, read_safetensors, write_atomically

FORMAT = "pellucid-1"


def save_model(network: nn.Module, path: Path, *, architecture: str, **facts: str) -> None:
    """Write weights atomically, with the specification that rebuilds the network and any further facts as text."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    stored = {"format": FORMAT, "architecture": architecture, **facts}
    # One key: with more, safetensors writes them in another order each time, and equal networks in unequal files.
    write_atomically(path, save(tensors, {"pellucid": json.dumps(stored, sort_keys=True)}))


def load_model(
    where: str | Path,
    *,
    weights: Path | None = None,
    example: Images | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[nn.Module, Mapping[str, str]]:
    """A classifier and the facts stored with it.

    `where` is a `.safetensors` file, a folder that holds `model.safetensors`, an architecture's specification such as
    `small(channels=1)` together with a file of weights, or your own code, `package.module:function` or
    `file.py:function`, where the function takes nothing and returns a module. Your own module is taken apart into a
    `Network` where that is possible (`example` images are needed to try), and used as it is where it is not;
    `mean` and `std` are what it expects its images normalised by.
    """
    path = Path(where)
    path = path / "model.safetensors" if path.is_dir() else path
    if path.is_file() and path.suffix == ".safetensors":
        if mean or std:
            raise PellucidError(f"{path} normalises its own images: --mean and --std are for your own code")
        return _from_file(path, weights)
    if ":" in str(where):
        return from_code(str(where), weights, example, mean, std)
    if str(where).partition("(")[0] in registry.public("architectures"):
        if mean or std:
            remedy = f": say {where}(mean=(...), std=(...))" if _has_option(str(where), "mean") else ""
            raise PellucidError(f"{where} normalises its own images{remedy}; --mean and --std are for your own code")
        if weights is None:
            raise PellucidError(
                f"{where!s} is an architecture without weights: give --weights FILE.safetensors, or a trained model"
            )
        return _from_spec(str(where), weights), {"architecture": str(where)}
    raise PellucidError(_none_at(Path(where)))


def _none_at(where: Path) -> str:
    """Why there is no model: a card alone, a run that is not finished, or nothing of the kind."""
    if (where / "card.json").is_file():
        return f"of {where} the card alone is here: pellucid zoo --folder zoo --build --only NAME trains it"
    if (where / RECIPE).is_file():
        return f"the training run in {where} is not finished: give its pellucid train again with --resume"
    return (
        f"no model at {str(where)!r}: give a .safetensors file, a folder holding model.safetensors (a finished "
        f"training run), an architecture ({', '.join(registry.public('architectures'))}) with --weights, or your own "
        "code as file.py:function"
    )


def _has_option(spec: str, option: str) -> bool:
    return option in inspect.signature(registry.public("architectures")[spec.partition("(")[0]]).parameters


def _from_file(path: Path, weights: Path | None) -> tuple[nn.Module, Mapping[str, str]]:
    if weights is not None:
        raise PellucidError(f"{path} already holds weights: leave out {weights}, or name an architecture")
    _, metadata = read_safetensors(path)
    facts = json.loads(metadata.get("pellucid", "{}"))
    if facts.get("format") != FORMAT or "architecture" not in facts:
        raise PellucidError(
            f"{path} does not say which architecture it holds (found metadata {json.dumps(metadata)[:200]}): "
            "name the architecture as the model and this file as its weights"
        )
    return _from_spec(facts["architecture"], path), facts


def _from_spec(spec: str, path: Path) -> Network:
    build = registry.parse(spec, "architectures")
    network = build()
    load_into(network, path)
    return network.eval()


def build(spec: str, *, channels: int, size: int, classes: int, generator: torch.Generator) -> tuple[Network, str]:
    """A fresh network for data of a shape, and the full specification that rebuilds it."""
    named = registry.parse(spec, "architectures")
    given = named.keywords if isinstance(named, partial) else {}
    fitting = {"channels": channels, "size": size, "classes": classes}
    options = {k: v for k, v in fitting.items() if registry.option(named, k) is not None} | given
    function = named.func if isinstance(named, partial) else named
    return function(**options, generator=generator), registry.describe(partial(function, **options))
