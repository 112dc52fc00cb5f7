"""The standard objective."""

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.types import Generator, Images, Labels


def standard(
    model: nn.Module, x: Images, y: Labels, *, step: int, generator: Generator = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`CE(f(x), y)`, the mean over the batch."""
    del step, generator
    loss = F.cross_entropy(model(x), y)
    return loss, {"cross_entropy": loss.detach()}
