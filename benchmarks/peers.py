"""What a peer's user has: our networks of torch's own layers, every one run as it is written."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

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


def art_pgd(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, Callable[[], Any]]:
    """ART's PGD, where `pip install adversarial-robustness-toolbox` was done by hand."""
    if importlib.util.find_spec("art") is None:
        return {}
    from art.attacks.evasion import ProjectedGradientDescentPyTorch  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    wrapped = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1))
    attack = ProjectedGradientDescentPyTorch(
        wrapped, eps=0.3, eps_step=0.01, max_iter=steps, batch_size=len(x), verbose=False
    )
    return {"ART": lambda: attack.generate(x.numpy(), y.numpy())}
