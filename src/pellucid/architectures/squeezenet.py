"""SqueezeNet: few parameters, and no linear head."""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from pellucid.errors import PellucidError
from pellucid.layers import Conv2d
from pellucid.network import IMAGENET_MEAN, IMAGENET_STD, Averages, Network, normalisation
from pellucid.types import Generator


class Fire(nn.Module):
    """`relu([conv1x1(s), conv3x3(s)])` with `s = relu(conv1x1(x))`: squeeze, then expand to twice `half` channels."""

    def __init__(self, inputs: int, squeezed: int, half: int) -> None:
        super().__init__()
        self.squeeze = Conv2d(inputs, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand1x1 = Conv2d(squeezed, half, 1)
        self.expand3x3 = Conv2d(squeezed, half, 3, padding=1)
        self.relu_out = nn.ReLU()

    def forward(self, x: Any) -> Any:  # not of tensors alone: of the stand-ins of a trace, too
        x = self.relu(self.squeeze(x))
        return self.relu_out(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


def squeezenet1_1(
    *,
    channels: int = 3,
    size: int = 224,
    classes: int = 1000,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    generator: Generator = None,
) -> Network:
    """SqueezeNet 1.1: conv 3x3x64 /2, eight fire modules, conv 1x1 to the classes, ReLU, average pool; no linear head.

    So the logits are the averages of the last feature maps, which are therefore the class activation maps, times u.
    1,235,496 parameters for 1,000 classes. Below 128 px the first convolution keeps the size, and below 64 px the first
    max-pool is left out: the last maps have 8 x 8 positions at 32 and 64 px.
    Weights under torchvision's names load as they are. `mean` and `std` are ImageNet's, by which torchvision's weights
    want images normalised; None for weights that want pixels in [0, 1].
    Source: Iandola et al. 2016, sec. 3, as its authors' release 1.1 has it, with that release's initialisation:
    uniform of variance 1 / fan-in, the last convolution normal of standard deviation 0.01, biases 0; dropout 0.5.
    """
    if size < 8:
        raise PellucidError(f"size (={size}) must be at least 8 for this architecture")
    photograph = size >= 128
    features: dict[str, nn.Module] = {
        "0": Conv2d(channels, 64, 3, stride=2 if photograph else 1, padding=0 if photograph else 1),
        "1": nn.ReLU(),
    }
    if size >= 64:
        features["2"] = _halve()
    inputs = 64
    for number, squeezed, half in (
        (3, 16, 64),
        (4, 16, 64),
        (6, 32, 128),
        (7, 32, 128),
        (9, 48, 192),
        (10, 48, 192),
        (11, 64, 256),
        (12, 64, 256),
    ):
        if number in (6, 9):
            features[str(number - 1)] = _halve()
        features[str(number)] = Fire(inputs, squeezed, half)
        inputs = 2 * half
    last = Conv2d(inputs, classes, 1)
    layers: dict[str, nn.Module] = {
        "features": nn.Sequential(OrderedDict(features)),
        "dropout": nn.Dropout(0.5),
        "classifier": last,
        "relu": nn.ReLU(),
    }
    network = Network(
        nn.Sequential(OrderedDict(layers)),
        Averages(classes),
        normalise=normalisation(channels, mean, std),
        published={"features.": "trunk.features.", "classifier.1.": "trunk.classifier."},
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(3 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.normal_(last.weight, 0, 0.01, generator=generator)
    return network


def _halve() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)
