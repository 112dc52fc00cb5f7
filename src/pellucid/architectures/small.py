"""The small CNNs of Boopathy et al. 2020 and of Ross & Doshi-Velez 2018."""

from torch import nn

from pellucid.errors import PellucidError
from pellucid.initialise import fan_in
from pellucid.layers import Conv2d
from pellucid.network import Network
from pellucid.normalisation import GlobalContrast, LocalContrast
from pellucid.types import Generator


def small(*, channels: int = 1, size: int = 28, classes: int = 10, generator: Generator = None) -> Network:
    """Small: conv 4x4x16 /2, conv 4x4x32 /2, conv 7x7x100, average pool, linear without bias.

    ReLU before every convolution but the first, none after the last: so the last convolution, the pooling
    and the head are one linear map, which `Network` folds. 166,396 parameters for MNIST, 166,908 for CIFAR-10.
    Source: Boopathy et al. 2020, sec. 5, in the authors' released form.
    """
    _divisible(size, 4)
    trunk = nn.Sequential(
        Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        Conv2d(32, 100, 7, padding=3),
    )
    return fan_in(Network(trunk, nn.Linear(100, classes, bias=False)), generator)


def pool(*, channels: int = 1, size: int = 28, classes: int = 10, generator: Generator = None) -> Network:
    """Pool: conv 5x5x32, max-pool, conv 5x5x64, max-pool, average pool, linear without bias (52,736 parameters).

    The ReLU stands before the second convolution only, after the pooling. Source: Boopathy et al. 2020, sec. 5.
    """
    _divisible(size, 4)
    trunk = nn.Sequential(
        Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
    )
    return fan_in(Network(trunk, nn.Linear(64, classes, bias=False)), generator)


def ross(
    *, channels: int = 1, size: int = 28, classes: int = 10, contrast: bool = False, generator: Generator = None
) -> Network:
    """The Ross & Doshi-Velez 2018 CNN: two times conv 5x5, BatchNorm, ReLU, max-pool; FC 1024; dropout 0.5; linear.

    The fully connected layer is written as the convolution over the whole map that it is, so the pooled map has
    one position: class activation maps of this network carry no location, gradient maps do.
    BatchNorm without scale, momentum 0.1, eps 1e-3; Xavier-uniform weights, as in the authors' TF-slim defaults.
    With `contrast` global and then local contrast normalisation come first, as for their SVHN (`svhn@ross`); there the
    global one was part of the data, and radii were in each image's standard deviations: here they are in pixels.
    """
    _divisible(size, 4)
    first = nn.Sequential(GlobalContrast(), LocalContrast()) if contrast else None
    trunk = nn.Sequential(
        *_slim_block(channels, 32, 5, padding=2),
        nn.MaxPool2d(2),
        *_slim_block(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        *_slim_block(64, 1024, size // 4, padding=0),
        nn.Dropout(0.5),
    )
    network = Network(trunk, nn.Linear(1024, classes), normalise=first)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _slim_block(inputs: int, outputs: int, size: int, *, padding: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1)
    norm.weight.requires_grad_(False)  # centre only: TF-slim's scale=False keeps the scale at 1
    return [Conv2d(inputs, outputs, size, padding=padding, bias=False), norm, nn.ReLU()]


def _divisible(size: int, by: int) -> None:
    if size < by or size % by:
        raise PellucidError(f"size (={size}) must be a positive multiple of {by} for this architecture")
