"""What a peer's user has: our networks of torch's own layers, every one run as it is written."""

import copy

import torch
from torch import nn

from pellucid.layers import Conv2d
from pellucid.network import Network


class AsWritten(nn.Module):
    """The same network of torch's own layers, nothing folded: its weights are a copy."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        _plain_layers(self.network)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.head(self.network.trunk(self.network.normalise(x)).mean((2, 3)))


def _plain_layers(module: nn.Module) -> None:
    for child in module.children():
        if isinstance(child, Conv2d):
            setattr(child, "__class__", nn.Conv2d)  # noqa: B010
        _plain_layers(child)
