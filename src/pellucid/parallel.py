"""Several processes, one per GPU or core, that train one network: started by torchrun, or none and alone.

Each takes its share of every batch, and gradients are averaged over all before the step. So the run is the one of a
single process with the joint batch, to rounding, but for what looks across a batch (batch norm's statistics) and for
random numbers, which every process draws for itself.
"""

import atexit
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.network import Normalise

Rows = Int[Tensor, " n"]


@dataclass(frozen=True)
class Team:
    """Who I am among how many. Alone, nothing is ever sent."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, rows: Rows) -> Int[Tensor, " mine"]:
        """My part of a batch: every `size`-th row."""
        return rows[self.rank :: self.size] if self.size > 1 else rows

    def average(self, tensors: Sequence[Tensor], wishes: Sequence[bool] = ()) -> tuple[bool, ...]:
        """In place, each tensor becomes its mean over all processes; of each wish, whether any process has it.

        One message for all of it: on CPUs every message of a small network's step costs as much as a layer of it.
        """
        if self.size == 1:
            return tuple(wishes)
        wished = torch.tensor(wishes, dtype=torch.float32, device=tensors[0].device)
        flat = _joined([*tensors, wished])
        dist.all_reduce(flat)
        _spread(flat / self.size, [*tensors, wished])
        return tuple(bool(wish) for wish in wished.tolist())

    def gather(self, mine: Tensor, device: torch.device) -> list[Tensor]:
        """A tensor of one shape from all processes, in their order; the others' are on the CPU."""
        if self.size == 1:
            return [mine]
        found = [torch.empty_like(mine, device=device) for _ in range(self.size)]
        dist.all_gather(found, mine.to(device).contiguous())
        return [each.cpu() for each in found]

    def leaders(self, figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The leader's figures, of the same names, for all: what is decided by them is decided alike."""
        if self.size == 1:
            return dict(figures)
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
        dist.broadcast(values, 0)
        return dict(zip(figures, values.tolist(), strict=True))

    def same_buffers(self, network: nn.Module) -> None:
        """Batch norm's running statistics are the leader's everywhere."""
        if self.size == 1:
            return
        norms = [module for module in network.modules() if not isinstance(module, Normalise)]
        buffers = [buffer for module in norms for buffer in module.buffers(recurse=False)]
        floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        if floats:
            flat = _joined(floats)
            dist.broadcast(flat, 0)
            _spread(flat, floats)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def _joined(tensors: Sequence[Tensor]) -> Float[Tensor, " all"]:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])


def _spread(flat: Float[Tensor, " all"], tensors: Sequence[Tensor]) -> None:
    """In place, what `_joined` made of tensors of these shapes."""
    for tensor, part in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def leads() -> bool:
    """Whether this process is the one that speaks, before any team is joined."""
    return os.environ.get("RANK", "0") == "0"


def place(device: str) -> str:
    """The device of this process: under torchrun, `cuda` is the GPU of its local rank."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and _size() > 1 else device


def team(device: torch.device) -> Team:
    """The processes that torchrun started, joined once for as long as this one lives; or one alone."""
    if _size() == 1:
        return Team()
    if device.type not in ("cpu", "cuda"):
        raise PellucidError(f"several processes train on cpu or cuda, not on {device.type}: leave out torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Before there is a group: its functions take the group of their import's time as a default, and an optimiser
        # imports it. That kept gloo's threads beyond the interpreter's end, which now and then aborted a process.
        import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Team(dist.get_rank(), dist.get_world_size())


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
