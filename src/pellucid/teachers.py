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
    network = teacher if isinstance(teacher, nn.Module) else _loaded(Path(teacher).resolve(), x.device)
    with frozen(network), torch.no_grad():
        answers = network(x.to(device_of(network))).to(x.device)
        return (answers / checked(temperature)).softmax(1)


def checked(temperature: float) -> float:
    """A temperature above 0."""
    if not temperature > 0:
        raise PellucidError(f"temperature (={temperature:g}) must be above 0")
    return temperature


def _loaded(path: Path, device: torch.device) -> nn.Module:
    file = path / "model.safetensors" if path.is_dir() else path
    return _of_time(str(path), file.stat().st_mtime_ns if file.exists() else 0, device)


@lru_cache(maxsize=4)
def _of_time(path: str, time: int, device: torch.device) -> nn.Module:
    del time  # a teacher that was trained anew is another
    return load_model(path)[0].to(device).eval()
