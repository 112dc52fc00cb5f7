"""Teachers: trained networks whose softened predictions others learn from."""

from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.models import load_model
from pellucid.network import device_of, frozen
from pellucid.types import Images

Teacher = nn.Module | str | None


def teacher_probabilities(teacher: Teacher, x: Images, temperature: float) -> Float[Tensor, "b classes"]:
    """`softmax(g(x) / T)` of the teacher g, with no gradient. A path is loaded once."""
    if teacher is None:
        raise PellucidError(
            "distillation needs teacher='...', a network trained with --objective 'standard(temperature=50)'"
        )
    if temperature <= 0:
        raise PellucidError(f"temperature (={temperature:g}) must be above 0")
    network = teacher if isinstance(teacher, nn.Module) else _loaded(str(Path(teacher).resolve()))
    if device_of(network) != x.device:
        network.to(x.device)
    with frozen(network), torch.no_grad():
        return (network(x) / temperature).softmax(1)


@lru_cache(maxsize=4)
def _loaded(path: str) -> nn.Module:
    return load_model(path)[0].eval()
