"""Residual networks."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.initialise import fan_in
from pellucid.layers import Conv2d
from pellucid.network import Network
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


class BasicBlock(nn.Module):
    """`relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))`; where shapes change, the shortcut is a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu_out = nn.ReLU()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Any) -> Any:  # not of tensors alone: of the stand-ins of a trace, too
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu_out(shortcut + x)


def resnet18(*, channels: int = 3, size: int = 224, classes: int = 1000, generator: Generator = None) -> Network:
    """ResNet-18: four groups of two residual blocks of widths 64, 128, 256, 512; torchvision's names in the trunk.

    From 128 px on with ImageNet's stem, conv 7x7 /2 and max-pool; below with conv 3x3, from 64 px on with a max-pool
    and below without one, as usual on CIFAR-10. He-normal weights.
    Source: He et al. 2016, sec. 4; for 32 px the wide variant of common CIFAR-10 code, not their sec. 4.2.
    """
    photograph = size >= 128
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
    network = Network(nn.Sequential(OrderedDict(layers)), nn.Linear(512, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    bound = 512**-0.5
    for parameter in network.head.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network
