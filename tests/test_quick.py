"""A trunk held still is the trunk, to rounding, in value and gradient; and it is made only where that is known."""

import pytest
import torch
from torch import nn

from pellucid.architectures.inception import googlenet
from pellucid.architectures.resnet import resnet18, resnet20, wresnet
from pellucid.architectures.small import pool, ross
from pellucid.architectures.squeezenet import squeezenet1_1
from pellucid.foreign import as_network
from pellucid.network import Network, Normalise, frozen
from pellucid.quick import quick_trunk

BUILDERS = {
    "pool": (lambda generator: pool(generator=generator), (1, 28, 28)),
    "ross": (lambda generator: ross(generator=generator), (1, 28, 28)),
    "wresnet": (lambda generator: wresnet(generator=generator), (3, 32, 32)),
    "resnet18 at 32": (lambda generator: resnet18(size=32, classes=10, generator=generator), (3, 32, 32)),
    "resnet18 at 64": (lambda generator: resnet18(size=64, classes=10, generator=generator), (3, 64, 64)),
    "resnet18 at 224": (lambda generator: resnet18(generator=generator), (3, 224, 224)),
    "resnet20": (lambda generator: resnet20(generator=generator), (3, 32, 32)),
    "googlenet at 64": (lambda generator: googlenet(size=64, classes=10, generator=generator), (3, 64, 64)),
    "googlenet at 224": (lambda generator: googlenet(generator=generator), (3, 224, 224)),
    "squeezenet1_1 at 224": (lambda generator: squeezenet1_1(generator=generator), (3, 224, 224)),
}


def uneven(network: Network, generator: torch.Generator) -> Network:
    """Batch norms as training leaves them: no mean is 0, no variance 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                assert values is not None
                values.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_quick_trunk_is_the_trunk(name: str, generator: torch.Generator) -> None:
    build, shape = BUILDERS[name]
    network = uneven(build(generator), generator).double()  # in fp32 a unit at its kink may fall on either side
    x = torch.rand(2, *shape, generator=generator, dtype=torch.float64).requires_grad_()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    plain = network(x)
    (plain_gradient,) = torch.autograd.grad(plain.square().sum(), x)
    with frozen(network):
        held = network(x)
        (quick,) = network._held_trunk
        assert quick is not None
        assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
        (gradient,) = torch.autograd.grad(held.square().sum(), x)
    torch.testing.assert_close(held, plain, rtol=1e-9, atol=1e-9 * float(plain.detach().abs().max()))
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-9, atol=1e-9 * float(plain_gradient.abs().max()))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


class Moody(nn.Module):
    """A user's own layer, of which a trace might miss something."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_only_what_is_known_is_made_quick(generator: torch.Generator) -> None:
    """A layer that is not torch's, torchvision's or ours, a trunk in training mode, one without weights: None."""
    network = ross(generator=generator)
    assert quick_trunk(network.trunk) is None
    network.eval()
    assert quick_trunk(network.trunk) is not None
    assert quick_trunk(nn.Sequential(*network.trunk.children(), Moody()).eval()) is None
    assert quick_trunk(nn.Sequential(nn.ReLU()).eval()) is None


def test_resnet18_has_the_usual_parameters(generator: torch.Generator) -> None:
    """11,689,512 on ImageNet (He et al. 2016, table 1, counted by torchvision), 11,173,962 on CIFAR-10."""
    assert sum(p.numel() for p in resnet18(generator=generator).parameters()) == 11_689_512
    assert sum(p.numel() for p in resnet18(size=32, classes=10, generator=generator).parameters()) == 11_173_962
    names = set(resnet18(generator=generator).trunk.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= names


def test_a_trunk_that_cannot_be_traced_is_left_as_it_is(generator: torch.Generator) -> None:
    """Taken apart by a hook, branching on its input, with parametrised weights, watched: slow, and the same values."""
    x = torch.rand(3, 1, 8, 8, generator=generator)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    foreign = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    networks = {
        "captured": as_network(foreign, x),
        "branching": Network(nn.Sequential(Normalise((0.5,), (0.5,)), *layers), nn.Linear(4, 3)),
        "parametrised": Network(
            nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)), *layers[1:]), nn.Linear(4, 3)
        ),
    }
    for network in networks.values():
        network.eval()
        plain = network(x)
        with frozen(network):
            assert torch.equal(network(x), plain)
    network, seen = uneven(resnet18(size=32, classes=4, channels=1, generator=generator), generator), []
    last = list(network.trunk.children())[-1]
    last.register_full_backward_hook(lambda *_: seen.append(1))
    with frozen(network):
        there = torch.rand(2, 1, 32, 32, generator=generator).requires_grad_()
        network(there).sum().backward()
    assert seen == [1]
