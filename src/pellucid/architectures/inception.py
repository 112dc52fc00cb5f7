"""GoogLeNet, and its inception modules."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from pellucid.errors import PellucidError
from pellucid.initialise import he_normal
from pellucid.layers import Conv2d
from pellucid.network import IMAGENET_MEAN, IMAGENET_STD, Network, Normalise, normalisation
from pellucid.types import Generator


class BasicConv2d(nn.Module):
    """`relu(bn(conv(x)))`, BatchNorm with eps 1e-3."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:  # not of tensors alone: of the stand-ins of a trace, too
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """`[conv1x1(x), conv3x3(conv1x1(x)), conv3x3(conv1x1(x)), conv1x1(maxpool3x3(x))]`, side by side."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.branch1 = BasicConv2d(inputs, one, 1)
        self.branch2 = nn.Sequential(BasicConv2d(inputs, three_in, 1), BasicConv2d(three_in, three, 3, padding=1))
        self.branch3 = nn.Sequential(BasicConv2d(inputs, five_in, 1), BasicConv2d(five_in, five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(inputs, pooled, 1))

    def forward(self, x: Any) -> Any:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


# Of each module: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (Szegedy et al. 2015, table 1).
_WIDTHS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(
    *,
    channels: int = 3,
    size: int = 224,
    classes: int = 1000,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    transform_input: bool = True,
    dropout: float = 0.4,
    generator: Generator = None,
) -> Network:
    """GoogLeNet with BatchNorm: conv 7x7 /2, conv 1x1, conv 3x3, nine inception modules, average pool, linear.

    6,624,904 parameters for 1,000 classes, under torchvision's names; without the two auxiliary heads, whose weights a
    file may hold and which are left out. As torchvision has it: BatchNorm (eps 1e-3) after every convolution, and
    a 3x3 convolution where the paper has 5x5. Dropout takes whole feature maps, which is dropout of their averages:
    the paper's 0.4 (torchvision's 0.2). Below 128 px the stem's first convolution is 3x3 and keeps the size, and of
    its two max-pools the second is left out, below 64 px both: the last maps have 8 x 8 positions at 32 and 64 px.
    Images are normalised as torchvision's published weights want it: by `mean` and `std`, and where `transform_input`,
    as there when pretrained, from ImageNet's normalisation to a mean and std of .5. With ImageNet's mean and std both
    together are exactly (x - .5) / .5. Weights trained without it need `transform_input=False`.
    He-normal weights (the paper gives none). Source: Szegedy et al. 2015; BatchNorm: Ioffe & Szegedy 2015.
    """
    if size < 8:
        raise PellucidError(f"size (={size}) must be at least 8 for this architecture")
    photograph = size >= 128
    layers: dict[str, nn.Module] = {
        "conv1": BasicConv2d(
            channels, 64, 7 if photograph else 3, stride=2 if photograph else 1, padding=3 if photograph else 1
        )
    }
    if size >= 64:
        layers["maxpool1"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    layers |= {"conv2": BasicConv2d(64, 64, 1), "conv3": BasicConv2d(64, 192, 3, padding=1)}
    if photograph:
        layers["maxpool2"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    inputs = 192
    for name, widths in _WIDTHS.items():
        if name == "4a":
            layers["maxpool3"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if name == "5a":
            layers["maxpool4"] = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        layers[f"inception{name}"] = Inception(inputs, widths)
        inputs = widths[0] + widths[2] + widths[4] + widths[5]
    layers["dropout"] = nn.Dropout2d(dropout)
    network = Network(
        nn.Sequential(OrderedDict(layers)),
        nn.Linear(inputs, classes),
        normalise=_normalise(channels, mean, std, transform_input),
        published={"fc.": "head.", "aux1.": None, "aux2.": None, "": "trunk."},
    )
    return he_normal(network, generator)


def _normalise(
    channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, transform_input: bool
) -> nn.Module | None:
    """`(x - m) / s`, then `(z i_s + i_m - .5) / .5` with ImageNet's i_m and i_s: together one normalisation."""
    if not transform_input or (mean is None and std is None):
        return normalisation(channels, mean, std)
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return Normalise((0.5,) * channels, (0.5,) * channels)
    raise PellucidError(
        f"transform_input undoes ImageNet's normalisation, and mean {mean} and std {std} are another: "
        "transform_input=False"
    )
