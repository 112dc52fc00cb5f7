"""Residual networks."""

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
