"""Foreign CNNs taken apart: however they are written, the Network gives their logits, and maps that sum to them."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.foreign import as_network
from pellucid.models import load_model, save_model
from pellucid.network import Network


class LikeTorchvision(nn.Module):
    """`avgpool`, flatten, `fc`, with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


class Functional(nn.Module):
    """ReLU and mean in `forward`, one module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for _ in range(2):
            x = F.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 5)
    )


@pytest.mark.parametrize("build", [LikeTorchvision, Functional, plain])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_foreign_cnn_keeps_its_logits(build: type, normalised: bool) -> None:
    """Same logits as the module on (normalised) images; maps that sum to them; parameters shared; modes untouched."""
    module = build().train()
    x = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    mean, std = ((0.1, 0.2, 0.3), (0.5, 0.4, 0.3)) if normalised else (None, None)
    network = as_network(module, x, mean=mean, std=std)
    assert all(m.training for m in module.modules())
    module.eval()
    network.eval()
    given = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None] if mean and std else x
    torch.testing.assert_close(network(x), module(given), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.class_maps(x).sum((2, 3)), module(given), atol=1e-5, rtol=1e-5)
    assert {id(p) for p in module.parameters()} == {id(p) for p in network.parameters()}
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(256, 5)), "not the average"),
        (
            nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
            "does not end in a linear layer .*the maximum of those of '0'",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 5)), "not the average"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_with_the_reason(module: nn.Module, reason: str) -> None:
    """A flattened map, a missing head, max-pooling: no class activation maps, and the error says why."""
    with pytest.raises(PellucidError, match=reason):
        as_network(module, torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)))


def test_a_network_is_its_own(tiny: Network) -> None:
    """A Network is returned as it is."""
    assert as_network(tiny, torch.zeros(1, 1, 8, 8)) is tiny


CODE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def number():
    return 3

class NotCalled:
    pass
"""


def test_own_code_with_own_weights(tmp_path: Path) -> None:
    """`file.py:function` builds the module; weights from safetensors or torch.save; wrappers' prefixes stripped."""
    (tmp_path / "nets.py").write_text(CODE)
    where = f"{tmp_path / 'nets.py'}:build"
    example = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network, facts = load_model(where, example=example)
    assert isinstance(network, Network)
    assert "Sequential" in facts["architecture"]
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    expected = other(example)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        loaded, _ = load_model(where, weights=tmp_path / file, example=example)
        torch.testing.assert_close(loaded(example), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{}/nets.py:nothing", "no function 'nothing'"),
        ("{}/nets.py:number", "must return a torch.nn.Module"),
        ("{}/absent.py:build", "cannot import"),
        ("no_such_package_at_all:build", "cannot import"),
        ("{}", "no model at"),
        ("small", "without weights"),
    ],
)
def test_models_that_are_not_there(tmp_path: Path, where: str, message: str) -> None:
    """Each way of naming no model has its own message."""
    (tmp_path / "nets.py").write_text(CODE)
    with pytest.raises(PellucidError, match=message):
        load_model(where.format(tmp_path))


def test_a_hostile_torch_file_is_not_run(tmp_path: Path) -> None:
    """A pickle in place of weights is refused, and nothing in it runs."""
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (canary,))

    torch.save({"a": Hostile()}, tmp_path / "w.pt")
    (tmp_path / "nets.py").write_text(CODE)
    with pytest.raises(PellucidError, match="holds more than tensors"):
        load_model(f"{tmp_path / 'nets.py'}:build", weights=tmp_path / "w.pt")
    assert not canary.exists()


def test_stored_networks_come_back(tmp_path: Path) -> None:
    """A saved architecture is rebuilt from the file alone; other weights, other files, no metadata are refused."""
    from pellucid.architectures.small import pool, small

    network = small(classes=4, generator=torch.Generator().manual_seed(0))
    save_model(network, tmp_path / "model.safetensors", architecture="small(classes=4)", objective="standard")
    found, facts = load_model(tmp_path)
    assert facts["objective"] == "standard"
    assert all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), network.state_dict().values(), strict=True)
    )
    save_model(pool(), tmp_path / "wrong.safetensors", architecture="small(classes=4)")
    with pytest.raises(PellucidError, match="another network"):
        load_model(tmp_path / "wrong.safetensors")
    save_file(copy.deepcopy(network).state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(PellucidError, match="does not say which architecture"):
        load_model(tmp_path / "bare.safetensors")
    assert isinstance(load_model("small(classes=4)", weights=tmp_path / "bare.safetensors")[0], Network)
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "bare.safetensors").read_bytes()[:200])
    with pytest.raises(PellucidError, match="torn"):
        load_model(tmp_path / "torn.safetensors")


def test_equal_networks_are_equal_files(tmp_path: Path) -> None:
    """The same weights and facts, saved twice, are the same bytes: a checksum can tell."""
    from pellucid.architectures.small import small

    network = small(generator=torch.Generator().manual_seed(0))
    facts = {f"fact{i}": str(i) for i in range(20)}
    for name in ("a", "b"):
        save_model(network, tmp_path / f"{name}.safetensors", architecture="small", **facts)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [((0.5,) * 3, (0.5,) * 3, "3 means and stds for images of 1"), ((127.0,), (50.0,), r"in \[0, 1\]")],
)
def test_normalisation_must_fit_the_images(
    tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    """Means of another number of channels are not broadcast, means of 0 to 255 are not taken."""
    (tmp_path / "nets.py").write_text(CODE)
    where = f"{tmp_path / 'nets.py'}:build"
    with pytest.raises(PellucidError, match=message):
        load_model(where, mean=mean, std=std)[0](torch.zeros(1, 1, 8, 8))


def test_own_code_that_fails_is_told_by_its_name(tmp_path: Path) -> None:
    """What a user's function raises is reported with the function's name; a module in place of a function is taken."""
    (tmp_path / "own.py").write_text(CODE + "\n\ndef boom():\n    raise KeyError('my config')\n\nready = build()\n")
    with pytest.raises(PellucidError, match=r"own.py:boom\(\) raised KeyError"):
        load_model(f"{tmp_path / 'own.py'}:boom")
    assert load_model(f"{tmp_path / 'own.py'}:ready")[0](torch.zeros(1, 1, 8, 8)).shape == (1, 3)
