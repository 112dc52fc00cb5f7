"""A training run's whole state in one safetensors file, written atomically: weights, optimiser, generators, step."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid.errors import PellucidError
from pellucid.weights import read_safetensors, write_atomically


def save_checkpoint(
    path: Path, network: nn.Module, optimiser: Optimizer, generator: torch.Generator, *, step: int, log: list[dict]
) -> None:
    """Write the state after `step` steps. Whoever is killed while writing leaves the last checkpoint whole."""
    state = optimiser.state_dict()
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    tensors["generator"] = generator.get_state()
    tensors["global_generator"] = torch.get_rng_state()  # dropout draws from it: it takes no generator
    facts = {"step": step, "groups": state["param_groups"], "plain": plain, "log": log}
    content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {"state": json.dumps(facts)})
    write_atomically(path, content)


def load_checkpoint(
    path: Path, network: nn.Module, optimiser: Optimizer, generator: torch.Generator
) -> tuple[int, list[dict]]:
    """Restore in place what `save_checkpoint` wrote; the step to go on from and the log so far."""
    tensors, metadata = read_safetensors(path)
    try:
        facts = json.loads(metadata["state"])
        prefix = "network."
        network.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["plain"].items()}
        for key, tensor in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": facts["groups"]})
        generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["global_generator"])
    except (KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise PellucidError(f"{path} is not a checkpoint of this run ({error}): remove it to start anew") from None
    return facts["step"], facts["log"]
