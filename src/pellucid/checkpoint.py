"""A training run's whole state in one safetensors file, written atomically: weights, optimiser, generators, step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from pellucid.errors import PellucidError
from pellucid.memory import Memory
from pellucid.parallel import Team
from pellucid.recipe import Recipe, differences
from pellucid.watch import Best
from pellucid.weights import read_safetensors, write_atomically


class State(NamedTuple):
    """What a training step changes, besides the global generators, from which dropout draws."""

    network: nn.Module
    optimiser: Optimizer
    generator: torch.Generator
    averaged: AveragedModel | None  # of the weights over the steps
    best: Best  # by the held-out images
    team: Team
    memory: Memory | None = None


def save_checkpoint(path: Path, state: State, run: Mapping[str, Any], *, step: int, log: list[dict]) -> None:
    """Write the state after `step` steps of a run (a `recipe.identity`), as of between two steps.

    Whoever is killed while writing leaves the last checkpoint whole. Of several processes the leader writes, after
    all have sent it the states of their generators, and what they remember.
    """
    optimiser = state.optimiser.state_dict()
    parts = {"network": state.network.state_dict(), "best": state.best.weights or {}}
    if state.averaged is not None:
        parts["averaged"] = state.averaged.state_dict()
    tensors = {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    if state.memory is not None:
        state.memory.exchange()
        tensors["memory"] = state.memory.store
    plain: dict[str, dict[str, Any]] = {}
    for index, values in optimiser["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    tensors |= _generators(state)
    if not state.team.leads:
        return
    facts = {"step": step, "groups": optimiser["param_groups"], "plain": plain, "log": log, "run": run}
    facts["best"] = state.best.facts()
    content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {"state": json.dumps(facts)})
    write_atomically(path, content)


def _generators(state: State) -> dict[str, Tensor]:
    """The states of all generators, of all processes."""
    team, device = state.team, state.generator.device
    found: dict[str, Tensor] = {}
    own = {"generator": state.generator.get_state()}
    own["global_generator"] = torch.get_rng_state()  # dropout draws from it: it takes no generator
    if device.type == "cuda":
        own["cuda_generator"] = torch.cuda.get_rng_state(device)
    for name, mine in own.items():
        found |= {_of_rank(name, rank): each for rank, each in enumerate(team.gather(mine, device))}
    return found


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


def read_log(folder: Path) -> list[dict]:
    """What a run has logged: all of it where it is finished, else up to its last checkpoint."""
    finished, checkpoint = folder / "metrics.json", folder / "checkpoint.safetensors"
    try:
        if finished.is_file():
            return json.loads(finished.read_text())
        return json.loads(read_safetensors(checkpoint)[1]["state"])["log"] if checkpoint.is_file() else []
    except (ValueError, LookupError, OSError) as error:
        raise PellucidError(f"{folder}: its log cannot be read ({error})") from None


def ending(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """How a finished run ended: `step` of `of`, why it `stopped` before (or ""), `best_step` where the best weights
    were kept, and the `last` loss and scores on held-out images, where weights were kept those of these."""
    facts = json.loads(read_safetensors(folder / "checkpoint.safetensors")[1]["state"])
    best = facts["best"]
    kept = best["step"] if recipe.keep == "best" else None
    last: dict[str, float] = {}
    for entry in facts["log"]:
        if not kept or entry["step"] <= kept:
            last |= {name: value for name, value in entry.items() if name == "loss" or name.startswith("validation_")}
    return {"step": facts["step"], "of": recipe.steps, "stopped": best["stopped"], "best_step": kept, "last": last}


def _restore(state: State, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    state.network.load_state_dict(_under("network.", tensors))
    found: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["plain"].items()}
    for key, tensor in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            found.setdefault(int(index), {})[name] = tensor
    state.optimiser.load_state_dict({"state": found, "param_groups": facts["groups"]})
    if state.averaged is not None:
        state.averaged.load_state_dict(_under("averaged.", tensors))
    if state.memory is not None:
        state.memory.store.copy_(tensors["memory"])
    state.best.restore(facts["best"], _under("best.", tensors))
    rank = state.team.rank
    state.generator.set_state(tensors[_of_rank("generator", rank)])
    torch.set_rng_state(tensors[_of_rank("global_generator", rank)])
    if state.generator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[_of_rank("cuda_generator", rank)], state.generator.device)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_rank(name: str, rank: int) -> str:
    """The leader's, and that of one process alone, has the plain name."""
    return f"{name}.{rank}" if rank else name
