"""Residual networks."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.initialise import fan_in, he_normal
from pellucid.layers import Conv2d
from pellucid.network import IMAGENET_MEAN, IMAGENET_STD, Network, normalisation
from pellucid.types import Generator


class PreActivationBlock(nn.Module):
    """`shortcut(x) + conv(relu(conv(relu(x))))`; a striding shortcut is an average pool with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.widen = outputs - inputs
        self.relu1 = nn.ReLU()
        self.conv1 = Conv2d(inputs, outputs, 3, stride=stride, padding=1 if stride == 1 else 0)
        self.relu2 = nn.ReLU()
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        if self.widen:
            before = self.widen // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.widen - before))
        x = self.relu1(x)
        if self.stride > 1:  # "SAME" as the published weights were trained: for even sizes nothing before, one after
            x = F.pad(x, (0, 1, 0, 1))
        return shortcut + self.conv2(self.relu2(self.conv1(x)))


def wresnet(*, channels: int = 3, classes: int = 10, generator: Generator = None) -> Network:
    """WResnet: conv 3x3x16, three groups of five pre-activation residual blocks of widths 16, 32, 64; no BatchNorm.

    463,008 parameters on CIFAR-10. The topology of Madry et al. 2018 with its *non-wide* filters, as
    Boopathy et al. 2020 in fact trained it. No ReLU after the last block; linear head without bias.
    """
    layers: list[nn.Module] = [Conv2d(channels, 16, 3, padding=1)]
    inputs = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(5):
            layers.append(PreActivationBlock(inputs, width, stride if block == 0 else 1))
            inputs = width
    return fan_in(Network(nn.Sequential(*layers), nn.Linear(64, classes, bias=False)), generator)


class Padded(nn.Module):
    """Every `stride`-th position, with channels of zeros before and after: the shortcut without parameters."""

    def __init__(self, stride: int, widen: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = widen // 2, widen - widen // 2

    def forward(self, x: Any) -> Any:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """`relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))`; where shapes change, the shortcut is a 1x1 convolution.

    That is option B of He et al. 2016, sec. 3.3; without `projects` it is option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, projects: bool = True) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu_out = nn.ReLU()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            projection = Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential(*projection) if projects else Padded(stride, outputs - inputs)

    def forward(self, x: Any) -> Any:  # not of tensors alone: of the stand-ins of a trace, too
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu_out(shortcut + x)


def resnet18(
    *,
    channels: int = 3,
    size: int = 224,
    classes: int = 1000,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    generator: Generator = None,
) -> Network:
    """ResNet-18: four groups of two residual blocks of widths 64, 128, 256, 512; torchvision's names in the trunk.

    From 128 px on with ImageNet's stem, conv 7x7 /2 and max-pool; below with conv 3x3, from 64 px on with a max-pool
    and below without one, as usual on CIFAR-10. He-normal weights.
    Weights under torchvision's names load as they are. `mean` and `std` are by default ImageNet's with ImageNet's stem,
    as torchvision's weights want it, and below 128 px none; `mean=(0, 0, 0), std=(1, 1, 1)` is none at any size.
    Source: He et al. 2016, sec. 4; for 32 px the wide variant of common CIFAR-10 code, not their sec. 4.2.
    """
    photograph = size >= 128
    if photograph and mean is None and std is None:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    layers: dict[str, nn.Module] = {
        "conv1": Conv2d(
            channels,
            64,
            7 if photograph else 3,
            stride=2 if photograph else 1,
            padding=3 if photograph else 1,
            bias=False,
        ),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(),
    }
    if size >= 64:
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    inputs = 64
    for group, width in enumerate((64, 128, 256, 512), start=1):
        layers[f"layer{group}"] = nn.Sequential(
            BasicBlock(inputs, width, 1 if group == 1 else 2), BasicBlock(width, width, 1)
        )
        inputs = width
    network = Network(
        nn.Sequential(OrderedDict(layers)),
        nn.Linear(512, classes),
        normalise=normalisation(channels, mean, std),
        published={"fc.": "head.", "": "trunk."},
    )
    return he_normal(network, generator)


def resnet20(
    *,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    mean: tuple[float, ...] | None = IMAGENET_MEAN,
    std: tuple[float, ...] | None = IMAGENET_STD,
    generator: Generator = None,
) -> Network:
    """ResNet-20 for CIFAR-10: conv 3x3x16, three groups of three residual blocks of widths 16, 32, 64, linear.

    269,722 parameters: where shapes change, the shortcut takes every other position and adds channels of zeros
    (option A), and has none. Weights load under torchvision's names, and with `linear` in place of `fc`.
    `mean` and `std` are ImageNet's, since the published weights (akamaster/pytorch_resnet_cifar10) were trained with
    them on CIFAR-10; for other than three channels their averages; None for no normalisation.
    Any size will do: the stem is that for 32 px. He-normal weights, biases 0.
    Source: He et al. 2016, sec. 4.2, n = 3; initialisation: He et al. 2015, eq. 10.
    """
    if size < 4:
        raise PellucidError(f"size (={size}) must be at least 4 for this architecture")
    layers: dict[str, nn.Module] = {
        "conv1": Conv2d(channels, 16, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(16),
        "relu": nn.ReLU(),
    }
    inputs = 16
    for group, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        blocks = [BasicBlock(inputs, width, stride, projects=False)]
        blocks += [BasicBlock(width, width, 1) for _ in range(2)]
        layers[f"layer{group}"] = nn.Sequential(*blocks)
        inputs = width
    network = Network(
        nn.Sequential(OrderedDict(layers)),
        nn.Linear(64, classes),
        normalise=normalisation(channels, mean, std),
        published={"fc.": "head.", "linear.": "head.", "": "trunk."},
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
