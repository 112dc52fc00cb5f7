"""A training run's whole state in one safetensors file, written atomically: weights, optimiser, generators, step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid.errors import PellucidError
from pellucid.recipe import differences
from pellucid.weights import read_safetensors, write_atomically


class State(NamedTuple):
    """What a training step changes, besides the global generators, from which dropout draws."""

    network: nn.Module
    optimiser: Optimizer
    generator: torch.Generator


def save_checkpoint(path: Path, state: State, run: Mapping[str, Any], *, step: int, log: list[dict]) -> None:
    """Write the state after `step` steps of a run (a `recipe.identity`), as of between two steps.

    Whoever is killed while writing leaves the last checkpoint whole.
    """
    optimiser = state.optimiser.state_dict()
    tensors = {f"network.{name}": tensor for name, tensor in state.network.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in optimiser["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    tensors["generator"] = state.generator.get_state()
    tensors["global_generator"] = torch.get_rng_state()  # dropout draws from it: it takes no generator
    if state.generator.device.type == "cuda":
        tensors["cuda_generator"] = torch.cuda.get_rng_state(state.generator.device)
    facts = {"step": step, "groups": optimiser["param_groups"], "plain": plain, "log": log, "run": run}
    content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {"state": json.dumps(facts)})
    write_atomically(path, content)


def load_checkpoint(path: Path, state: State, run: Mapping[str, Any]) -> tuple[int, list[dict]]:
    """Restore in place what `save_checkpoint` wrote; the step to go on from and the log so far.

    Raises `PellucidError`, naming the file, where it is damaged or of another run: recipe, data or type of device.
    """
    try:
        tensors, metadata = read_safetensors(path)
    except PellucidError as error:
        raise PellucidError(f"{error}: remove the file to start the run anew") from None
    try:
        facts = json.loads(metadata["state"])
        changed = differences(facts["run"], run)
        if not changed:
            step, log = int(facts["step"]), [dict(entry) for entry in facts["log"]]
            if not 0 <= step <= run["recipe"]["steps"]:
                raise ValueError(f"step {step} of {run['recipe']['steps']}")
            _restore(state, tensors, facts)
            return step, log
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise PellucidError(
            f"{path} is not a checkpoint of this run ({type(error).__name__}: {error}): remove it to start anew"
        ) from None
    raise PellucidError(
        f"{path} is a checkpoint of another run ({'; '.join(changed)}): resume it as it was, or choose another --out"
    )


def _restore(state: State, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    prefix = "network."
    state.network.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    found: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["plain"].items()}
    for key, tensor in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            found.setdefault(int(index), {})[name] = tensor
    state.optimiser.load_state_dict({"state": found, "param_groups": facts["groups"]})
    state.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["global_generator"])
    if state.generator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_generator"], state.generator.device)
