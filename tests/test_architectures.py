"""Architectures: each is the network that others publish, weight for weight, and its maps are exact."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid import registry
from pellucid.architectures.inception import googlenet
from pellucid.architectures.resnet import resnet18, resnet20
from pellucid.architectures.squeezenet import squeezenet1_1
from pellucid.cli import run
from pellucid.data import load
from pellucid.errors import PellucidError
from pellucid.foreign import as_network
from pellucid.interpreters.activations import cam, gradcam, gradcam_plus_plus, representation
from pellucid.models import build, load_model, save_model
from pellucid.network import IMAGENET_MEAN, IMAGENET_STD, Averages, Network, frozen
from pellucid.weights import load_into

# The networks as others write them, with their names; typed anew from the papers and the published state dicts.


class TwinFire(nn.Module):
    def __init__(self, inputs: int, squeezed: int, half: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, half, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, half, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        one, three = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([one, three], 1)


class TwinSqueezeNet(nn.Module):
    """No linear head: the class maps themselves are averaged."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        halve = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(inplace=True),
            halve(),
            TwinFire(64, 16, 64),
            TwinFire(128, 16, 64),
            halve(),
            TwinFire(128, 32, 128),
            TwinFire(256, 32, 128),
            halve(),
            TwinFire(256, 48, 192),
            TwinFire(384, 48, 192),
            TwinFire(384, 64, 256),
            TwinFire(512, 64, 256),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class TwinConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class TwinInception(nn.Module):
    def __init__(self, inputs: int, one: int, three_in: int, three: int, five_in: int, five: int, pooled: int) -> None:
        super().__init__()
        self.branch1 = TwinConv(inputs, one, 1)
        self.branch2 = nn.Sequential(TwinConv(inputs, three_in, 1), TwinConv(three_in, three, 3, padding=1))
        self.branch3 = nn.Sequential(TwinConv(inputs, five_in, 1), TwinConv(five_in, five, 3, padding=1))
        pool = nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True)
        self.branch4 = nn.Sequential(pool, TwinConv(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)], 1)


class TwinAuxiliary(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = TwinConv(inputs, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, classes)


class TwinGoogLeNet(nn.Module):
    """Given images that are normalised by ImageNet's mean and std; with the heads that only training uses."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = TwinConv(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = TwinConv(64, 64, 1)
        self.conv3 = TwinConv(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = TwinInception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = TwinInception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = TwinInception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = TwinInception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = TwinInception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = TwinInception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = TwinInception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = TwinInception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = TwinInception(832, 384, 192, 384, 48, 128, 128)
        self.aux1, self.aux2 = TwinAuxiliary(512, classes), TwinAuxiliary(528, classes)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        channels = [x[:, [c]] * (s / 0.5) + (m - 0.5) / 0.5 for c, m, s in zip(range(3), *IMAGENET, strict=True)]
        x = torch.cat(channels, 1)
        for name, layer in self.named_children():
            x = x if name.startswith("aux") else layer(torch.flatten(x, 1) if name == "dropout" else x)
        return x


class TwinBlock(nn.Module):
    """One ReLU used twice; `downsample` is a module, or a function without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int, downsample: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class TwinResNet18(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for group, (inputs, width) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], start=1):
            stride = 1 if group == 1 else 2
            project = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            first = TwinBlock(inputs, width, stride, None if group == 1 else project)
            self.add_module(f"layer{group}", nn.Sequential(first, TwinBlock(width, width, 1, None)))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            x = layer(torch.flatten(x, 1) if name == "fc" else x)
        return x


class TwinResNet20(nn.Module):
    """For 32 px, the shortcuts of option A, the activations and the pooling functions in `forward`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for group, width in enumerate((16, 32, 64), start=1):
            quarter = width // 4
            take = partial(_every_other, quarter=quarter)
            first = TwinBlock(16, 16, 1, None) if group == 1 else TwinBlock(width // 2, width, 2, take)
            rest = [TwinBlock(width, width, 1, None) for _ in range(2)]
            self.add_module(f"layer{group}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for group in (1, 2, 3):
            x = self.get_submodule(f"layer{group}")(x)
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def _every_other(x: Tensor, quarter: int) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)


IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


class Pair(NamedTuple):
    """An architecture and the same network as others write it, for images of a size."""

    ours: Callable[..., Network]
    twin: Callable[[int], nn.Module]
    size: int


PAIRS = {
    "squeezenet1_1": Pair(squeezenet1_1, TwinSqueezeNet, 224),
    "googlenet": Pair(googlenet, TwinGoogLeNet, 224),
    "resnet18": Pair(resnet18, TwinResNet18, 224),
    "resnet20": Pair(resnet20, TwinResNet20, 32),
}
Made = tuple[Network, nn.Module, Tensor, Tensor]


def weighted(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights that keep the scale of what passes, and batch norms as training leaves them; float64, eval mode."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dim() > 1:
                tensor.normal_(0, math.sqrt(2 / tensor[0].numel()), generator=generator)
            elif name.endswith(("running_var", "bn.weight", "bn1.weight", "bn2.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.uniform_(-0.2, 0.2, generator=generator)
    return module.double().eval()


@pytest.fixture(params=PAIRS)
def made(request: pytest.FixtureRequest, tmp_path: Path, generator: torch.Generator) -> Made:
    """Our network with the weights of the twin's file, the twin, images, and the images normalised for the twin."""
    ours, twin, size = PAIRS[request.param]
    theirs = weighted(twin(7), generator)
    network = ours(classes=7).double().eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    load_into(network, tmp_path / "theirs.safetensors")
    x = torch.empty(2, 3, size, size, dtype=torch.float64).uniform_(generator=generator)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in IMAGENET)
    return network, theirs, x, (x - mean) / std


def test_published_weights_make_the_published_network(made: Made) -> None:
    """A state dict under others' names gives their logits of images that they normalise, and maps that add up to them.

    To 1e-5: our means and stds are fp32.
    """
    network, theirs, x, normalised = made
    with torch.no_grad():
        logits = theirs(normalised)
        scale = 1e-5 * float(logits.abs().max())
        torch.testing.assert_close(network(x), logits, rtol=1e-5, atol=scale)
        torch.testing.assert_close(network.class_maps(x).sum((2, 3)), network(x), rtol=1e-10, atol=1e-10)
        with frozen(network):
            torch.testing.assert_close(network(x), logits, rtol=1e-5, atol=scale)


def test_a_foreign_twin_is_taken_apart_to_the_same_maps(made: Made) -> None:
    """`as_network` finds the same last feature maps in the module as others write it: logits and maps are ours."""
    network, theirs, x, _ = made
    taken = as_network(theirs, x, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    assert isinstance(taken.head, Averages) == isinstance(network.head, Averages)
    with torch.no_grad():
        maps = taken.class_maps(x)
        scale = 1e-5 * float(maps.abs().max())
        torch.testing.assert_close(maps, network.class_maps(x), rtol=1e-5, atol=scale)
        torch.testing.assert_close(maps.sum((2, 3)), taken(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("squeezenet1_1", 1_235_496),  # torchvision's count
        ("googlenet", 6_624_904),  # torchvision's, without the auxiliary heads
        ("resnet18", 11_689_512),  # torchvision's
        ("resnet20", 269_722),  # the published implementation's; He et al. 2016, table 6: 0.27 M
        ("squeezenet1_1(classes=10, size=32)", 1_235_496 - 990 * 513),
        ("googlenet(classes=10, size=64)", 6_624_904 - 990 * 1025 - 3 * 64 * (49 - 9)),
        ("resnet20(classes=7, channels=1)", 269_722 - 3 * 65 - 2 * 16 * 9),
    ],
)
def test_parameters_are_as_published(spec: str, count: int) -> None:
    """As published for ImageNet and CIFAR-10; for other classes and stems, counted by hand."""
    assert sum(p.numel() for p in registry.parse(spec, "architectures")().parameters()) == count


@pytest.mark.parametrize(
    ("name", "size", "positions"),
    [
        ("squeezenet1_1", 32, 8),
        ("squeezenet1_1", 64, 8),
        ("squeezenet1_1", 224, 13),
        ("googlenet", 32, 8),
        ("googlenet", 64, 8),
        ("googlenet", 224, 7),
        ("resnet18", 32, 4),
        ("resnet18", 64, 4),
        ("resnet18", 224, 7),
        ("resnet20", 32, 8),
        ("resnet20", 64, 16),
        ("resnet20", 224, 56),
    ],
)
def test_sizes(name: str, size: int, positions: int, generator: torch.Generator) -> None:
    """The maps have as many positions as the strides leave, at 224 px as published; they add up to the logits."""
    network = registry.public("architectures")[name](size=size, classes=5, generator=generator).double().eval()
    x = torch.empty(1, 3, size, size, dtype=torch.float64).uniform_(generator=generator)
    with torch.no_grad():
        maps = network.class_maps(x)
        assert maps.shape == (1, 5, positions, positions)
        torch.testing.assert_close(maps.sum((2, 3)), network(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "resnet20"])
def test_the_smallest_size(name: str) -> None:
    """8 px still have a position to average; less is refused with the rule."""
    make = registry.public("architectures")[name]
    assert make(size=8, classes=3).eval()(torch.full((1, 3, 8, 8), 0.5)).shape == (1, 3)
    with pytest.raises(PellucidError, match=r"size \(=3\) must be at least"):
        make(size=3)


def test_fresh_weights_have_the_published_spread(generator: torch.Generator) -> None:
    """To four standard errors of the estimate: SqueezeNet's 1/√fan-in and .01, the others' √(2/fan)."""

    def check(weight: Tensor, spread: float) -> None:
        sampling = 4 / math.sqrt(2 * weight.numel())
        assert abs(float(weight.std()) / spread - 1) < sampling

    for network, fan in (
        (squeezenet1_1(generator=generator), lambda w: w[0].numel()),
        (resnet20(generator=generator), lambda w: w[0].numel() / 2),
        (googlenet(generator=generator), lambda w: w[:, 0].numel() / 2),
        (resnet18(generator=generator), lambda w: w[:, 0].numel() / 2),
    ):
        for name, module in network.trunk.named_modules():
            if isinstance(module, nn.Conv2d):
                check(module.weight.detach(), 0.01 if name == "classifier" else fan(module.weight) ** -0.5)
                assert module.bias is None or not module.bias.any()
    head = resnet20(classes=1000, generator=generator).head
    check(head.weight.detach(), math.sqrt(2 / 64))
    assert not head.bias.any()


# Weight files.


def test_half_precision_weights_are_loaded_as_floats(tmp_path: Path, generator: torch.Generator) -> None:
    """fp16 in the file, fp32 in the network, the same values."""
    theirs = {name: t.half() for name, t in weighted(TwinSqueezeNet(6), generator).state_dict().items()}
    save_file(theirs, tmp_path / "half.safetensors")
    network, _ = load_model("squeezenet1_1(classes=6)", weights=tmp_path / "half.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.get_parameter("trunk.classifier.weight"), theirs["classifier.1.weight"].float())
    assert torch.equal(
        network.get_parameter("trunk.features.3.squeeze.bias"), theirs["features.3.squeeze.bias"].float()
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_published_files_leave_out_and_what_is_left_out_of_them(
    prefix: str, tmp_path: Path, generator: torch.Generator
) -> None:
    """Batch counts may be absent, wrappers' prefixes present; `fc` is `linear`; normalisation stays; aux heads go."""
    theirs = weighted(TwinResNet20(10), generator).float().state_dict()
    renamed = {
        prefix + name.replace("linear", "fc"): t for name, t in theirs.items() if not name.endswith("batches_tracked")
    }
    save_file(renamed, tmp_path / "w.safetensors")
    network = resnet20(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    load_into(network, tmp_path / "w.safetensors")
    assert torch.equal(network.head.weight, theirs["linear.weight"])
    assert torch.equal(network.get_buffer("trunk.layer3.2.bn2.running_var"), theirs["layer3.2.bn2.running_var"])
    torch.testing.assert_close(network.get_buffer("normalise.std").flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert "aux1.fc1.weight" in TwinGoogLeNet(4).state_dict()  # which the fixture `made` loads


def test_own_files_bring_their_normalisation(tmp_path: Path) -> None:
    """A network saved by Pellucid is rebuilt from its file alone, normalisation and head of averages included."""
    network, spec = build("squeezenet1_1", channels=1, size=32, classes=4, generator=torch.Generator().manual_seed(0))
    assert spec == "squeezenet1_1(channels=1, size=32, classes=4)"
    other = resnet20(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    for saved, named in ((network, spec), (other, "resnet20")):
        saved.eval()
        save_model(saved, tmp_path / "own.safetensors", architecture=named)
        found, _ = load_model(tmp_path / "own.safetensors")
        x = torch.full((1, 1 if saved is network else 3, 32, 32), 0.3)
        assert torch.equal(found(x), saved(x))
    incomplete = {name: t for name, t in other.state_dict().items() if not name.startswith("normalise")}
    save_file(incomplete, tmp_path / "bare.safetensors")
    with pytest.raises(PellucidError, match=r"another network \(2 differ: normalise.mean: not there for \(3, 1, 1\)"):
        load_model("resnet20", weights=tmp_path / "bare.safetensors")


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path, generator: torch.Generator) -> None:
    """The entries that differ, as the file names them; where only the classes differ, the remedy."""
    file = tmp_path / "w.safetensors"
    save_file(weighted(TwinSqueezeNet(6), generator).float().state_dict(), file)
    with pytest.raises(
        PellucidError,
        match=r"2 differ: classifier.1.weight: \(6, 512, 1, 1\) for \(4, 512, 1, 1\); classifier.1.bias: \(6,\) for "
        r"\(4,\)\): it has 6 classes and the network 4; build it with classes=6",
    ):
        load_model("squeezenet1_1(classes=4)", weights=file)
    with pytest.raises(
        PellucidError, match=r"another network .*trunk\.conv1\.weight: not there for \(64, 3, 7, 7\)[^:]*"
    ) as said:
        load_model("resnet18(classes=6)", weights=file)
    assert "build it with" not in str(said.value)
    with pytest.raises(PellucidError, match=r"features\.0\.weight: \(64, 3, 3, 3\) for \(64, 1, 3, 3\)"):
        load_model("squeezenet1_1(channels=1, classes=6)", weights=file)


# Normalisation.


def test_normalisations(generator: torch.Generator) -> None:
    """ImageNet's in three channels, its average in others, none where None; GoogLeNet's transform is (x - .5) / .5."""
    x = torch.empty(2, 3, 8, 8).uniform_(generator=generator)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    for network in (squeezenet1_1(), resnet20(), resnet18(), googlenet(transform_input=False)):
        assert torch.equal(network.normalise(x), (x - mean) / std)
    for network in (squeezenet1_1(mean=None, std=None), resnet18(size=32), googlenet(mean=None, std=None)):
        assert isinstance(network.normalise, nn.Identity)
    torch.testing.assert_close(googlenet().normalise(x), 2 * x - 1, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        resnet20(channels=1).normalise(x[:, :1]), (x[:, :1] - mean.mean()) / std.mean(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(resnet20, mean=None), "go together"),
        (partial(resnet18, mean=(0.5,), std=(0.5,)), "one number for each of the 3 channels"),
        (partial(squeezenet1_1, channels=1, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)), "each of the 1 channels"),
        (partial(googlenet, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), "transform_input=False"),
    ],
)
def test_normalisations_that_do_not_fit_are_refused(make: Callable[[], Network], message: str) -> None:
    """One without the other, another number of channels, a transform of what is not ImageNet's."""
    with pytest.raises(PellucidError, match=message):
        make()


def test_the_remedy_for_mean_and_std_names_the_architectures_options(tmp_path: Path) -> None:
    """Options of the command line that are for one's own code: an architecture has its own."""
    with pytest.raises(PellucidError, match=r"say resnet20\(mean="):
        load_model("resnet20", weights=tmp_path / "w.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(PellucidError, match="small normalises its own images;"):
        load_model("small", weights=tmp_path / "w.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_dropping_maps_is_dropping_averages(generator: torch.Generator) -> None:
    """GoogLeNet's dropout stands before the pooling: each average is 0 or divided by the share that is kept."""
    network = googlenet(size=32, classes=3, generator=generator).eval()
    x = torch.empty(2, 3, 32, 32).uniform_(generator=generator)
    with torch.no_grad():
        kept = network.features(x).mean((2, 3))
        network.get_submodule("trunk.dropout").train()
        dropped = network.features(x).mean((2, 3))
    zero = dropped == 0
    assert 0.3 < float(zero[kept > 0].float().mean()) < 0.5
    torch.testing.assert_close(dropped[~zero], (kept / 0.6)[~zero])


# Networks without a linear head.


@pytest.fixture
def headless(generator: torch.Generator) -> Network:
    """A trunk of five maps, rectified, in float64."""
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    weighted(trunk, generator)
    return Network(trunk, Averages(5)).double().eval()


def test_the_maps_of_a_headless_network_are_its_feature_maps(headless: Network, images: Tensor) -> None:
    """CAM_c = A_c / u, and so are GradCAM and GradCAM++ as coded; GradCAM by autograd at the last layer agrees."""
    x, classes = images.double(), torch.tensor([[0, 3], [2, 2], [4, 1]])
    a = headless.trunk(x)
    expected = torch.stack([a[b, row] for b, row in enumerate(classes)]) / (a.shape[2] * a.shape[3])
    assert (expected > 0).any()
    for interpreter in (
        cam,
        gradcam,
        partial(gradcam, layer="trunk.3"),
        partial(gradcam_plus_plus, reading="as_coded"),
    ):
        torch.testing.assert_close(interpreter(headless, x, classes), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(representation(headless, x, classes)[:, 0], a)
    for reading in (gradcam_plus_plus, partial(gradcam_plus_plus, layer="trunk.3")):
        torch.testing.assert_close(
            reading(headless, x, classes), gradcam_plus_plus(headless, x, classes, layer="trunk.3")
        )


def test_class_maps_of_a_thousand_classes_take_no_product(generator: torch.Generator) -> None:
    """Of a network without a head the maps cost a division: no matrix of classes times classes is ever made."""
    network = Network(nn.Sequential(nn.Conv2d(3, 1000, 1), nn.ReLU()), Averages(1000)).eval()
    x = torch.empty(2, 3, 4, 4).uniform_(generator=generator)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen, torch.no_grad():
        network.class_maps(x)
    called = {event.key for event in seen.key_averages()}
    assert "aten::convolution" in called
    assert not called & {"aten::einsum", "aten::bmm", "aten::mm", "aten::matmul", "aten::diag_embed", "aten::diag"}


def test_the_head_of_averages_is_the_linear_head_that_changes_nothing(generator: torch.Generator) -> None:
    """Its weight is the identity, its bias zero; no parameters, nothing in the state; as many maps as classes."""
    head = Averages(4).double()
    pooled = torch.empty(2, 4, dtype=torch.float64).normal_(generator=generator)
    assert torch.equal(F.linear(pooled, head.weight, head.bias), head(pooled))
    assert not list(head.parameters())
    assert not head.state_dict()
    network = Network(nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()), Averages(4))
    with pytest.raises(PellucidError, match="5 feature maps for 4 classes"):
        network(torch.zeros(1, 3, 4, 4))


class PoolsInForward(nn.Module):
    """conv -> relu -> mean, none of the last two a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.body(x))).mean([2, 3])


def pooling(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), *after)


OWN: dict[str, Callable[[], nn.Module]] = {
    "no activation": lambda: pooling(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "relu": lambda: pooling(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "relu in place": lambda: pooling(nn.ReLU(inplace=True), nn.AvgPool2d(6), nn.Flatten()),
    "batch norm last": lambda: pooling(nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "functions": PoolsInForward,
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("training", [False, True])
def test_a_cnn_of_ones_own_without_a_head(name: str, training: bool, generator: torch.Generator) -> None:
    """Taken apart with its parameters shared and its modes as they were; maps that add up, and gradients that flow."""
    module = weighted(OWN[name](), generator).float().train(training)
    x = torch.empty(3, 3, 10, 10).uniform_(generator=generator)
    network = as_network(module, x)
    assert isinstance(network.head, Averages)
    assert {m.training for m in network.modules()} == {training}
    assert {id(p) for p in module.parameters()} == {id(p) for p in network.parameters()}
    module.eval()
    network.eval()
    torch.testing.assert_close(network(x), module(x), rtol=1e-5, atol=1e-6)
    maps = network.class_maps(x)
    torch.testing.assert_close(maps.sum((2, 3)), module(x), rtol=1e-5, atol=1e-6)
    assert maps.shape[2:] > (1, 1)
    network(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ([nn.AdaptiveMaxPool2d(1), nn.Flatten()], r"the maximum of those of '2': only averages"),
        ([nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()], r"the maximum of those of '3': only averages"),
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softplus()], "not the average of any layer's feature maps"),
        ([nn.LPPool2d(2, 6), nn.Flatten()], "another pooling"),
        ([], r"no logits \[batch, classes\]"),
    ],
)
def test_a_headless_cnn_that_averages_nothing_is_refused(
    after: list[nn.Module], reason: str, generator: torch.Generator
) -> None:
    """A maximum, something after the average, another pooling, no pooling: each with its reason."""
    module = weighted(pooling(*after), generator).float()
    with pytest.raises(PellucidError, match=reason):
        as_network(module, torch.empty(3, 3, 10, 10).uniform_(generator=generator))


def test_a_linear_head_on_a_maximum_is_refused_as_one(generator: torch.Generator) -> None:
    """The same reason where a linear head follows."""
    module = weighted(pooling(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 4)), generator).float()
    with pytest.raises(PellucidError, match=r"head '5' is given is not the average .*the maximum of those of '2'"):
        as_network(module, torch.empty(3, 3, 10, 10).uniform_(generator=generator))


# Real weights, real images; through the command line.


WEIGHTS = {
    "squeezenet1_1": ("squeezenet1_1_imagenet", "imagenet-sample", "train"),
    "resnet20": ("cifar10_resnet20", "cifar10", "test"),
}


def published(name: str, folder: Path) -> tuple[Path, str, str]:
    file, data, split = WEIGHTS[name]
    weights = folder / "weights" / f"{file}.safetensors"
    if not weights.is_file() or not (folder / data).is_dir():
        pytest.skip(f"needs weights/{weights.name} and {data} in PELLUCID_DATA")
    return weights, data, split


def right(name: str, folder: Path, count: int) -> int:
    """How many of the first images of its data a published network classifies rightly."""
    weights, data, split = published(name, folder)
    model, _ = load_model(name, weights=weights)
    images = load(data, split)
    with torch.no_grad(), frozen(model):
        chunks = torch.arange(min(count, len(images))).split(100)
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in map(images.batch, chunks))


@pytest.mark.parametrize(("name", "expected"), [("squeezenet1_1", 318), ("resnet20", 455)])
def test_published_weights_on_real_images(name: str, expected: int, real_data: Path) -> None:
    """Of the first 500 images as many as were counted when the weights were found to be the published ones: up to two
    whose first logits are nearly tied, which another processor may order otherwise."""
    assert abs(right(name, real_data, 500) - expected) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "percent", "tolerance", "n"), [("squeezenet1_1", 60.2, 0.1, 1_000), ("resnet20", 91.73, 0.02, 10_000)]
)
def test_published_weights_have_their_published_accuracy(
    name: str, percent: float, tolerance: float, n: int, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `pellucid evaluate`: ResNet-20's 91.73 % of CIFAR-10's test set, SqueezeNet's 60.2 % of 1,000 ImageNet images.

    The tolerance is one image and two: nearly tied logits.
    """
    weights, data, split = published(name, real_data)
    assert run(["evaluate", "--model", name, "--weights", str(weights), "--data", data, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    low, high = (100 * end for end in found["interval"])
    assert (found["split"], found["n"]) == (split, n)
    assert 100 * found["accuracy"] == pytest.approx(percent, abs=tolerance + 1e-9)
    assert low < percent < high
    assert high - low == pytest.approx(2 * 196 * math.sqrt(percent / 100 * (1 - percent / 100) / n), rel=0.01)


def test_published_weights_want_their_normalisation(real_data: Path) -> None:
    """Without ImageNet's mean and std SqueezeNet knows less than two thirds of what it knows with them."""
    weights, data, split = published("squeezenet1_1", real_data)
    images = load(data, split)
    x, y = images.batch(range(100))
    counts = []
    for spec in ("squeezenet1_1", "squeezenet1_1(mean=None, std=None)"):
        model, _ = load_model(spec, weights=weights)
        with torch.no_grad():
            counts.append(int((model(x).argmax(1) == y).sum()))
    assert counts[1] < 2 / 3 * counts[0]


def test_the_command_takes_the_one_split_there_is(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--data imagenet-sample` has a train split only: it is taken, and stderr says so."""
    weights, data, _ = published("squeezenet1_1", real_data)
    line = ["evaluate", "--model", "squeezenet1_1", "--weights", str(weights), "--data", data, "--images", "first:40"]
    assert run([*line, "--json"]) == 0
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.out)
    assert (found["split"], found["n"]) == ("train", 40)
    assert "imagenet-sample has one split, train" in said.err


def test_a_split_that_was_asked_for_is_never_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], generator: torch.Generator
) -> None:
    """One split: taken where none was named, refused where another was. Two: `test`, silently, as ever."""
    save_model(resnet20(classes=2, generator=generator), tmp_path / "m.safetensors", architecture="resnet20(classes=2)")
    pixels = torch.randint(0, 256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()

    def add(split: str) -> None:
        for i, array in enumerate(pixels):
            where = tmp_path / "photos" / split / "ab"[i % 2]
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(where / f"{i}.png")

    line = ["evaluate", "--model", str(tmp_path / "m.safetensors"), "--data", str(tmp_path / "photos"), "--json"]
    add("train")
    assert run(line) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["split"] == "train"
    assert "has one split, train" in said.err
    assert run([*line, "--split", "test"]) == 2
    assert "no split 'test'" in capsys.readouterr().err
    add("test")
    assert run(line) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["split"] == "test"
    assert "one split" not in said.err


def test_contrast_normalised_images_look_alike_at_any_brightness(seeded: Callable[[int], torch.Generator]) -> None:
    """The Ross CNN with its SVHN layers answers `a x + b` as it answers x; without them it does not."""
    x = torch.empty(3, 1, 32, 32, dtype=torch.float64).uniform_(generator=seeded(0))
    for contrast in (True, False):
        network, full = build(f"ross(contrast={contrast})", channels=1, size=32, classes=10, generator=seeded(1))
        model = network.double().eval()
        alike = torch.allclose(model(x), model(0.5 * x + 0.2), rtol=0, atol=1e-9)
        assert alike is contrast
        assert f"contrast={contrast}" in full or not contrast
        with frozen(model):
            at = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model(at).square().sum(), at)
        assert bool(gradient.isfinite().all())
        assert float((gradient * (x - 0.4)).sum().abs()) < 1e-6 or not contrast  # no way to go by contrast alone
