"""On a GPU all is as on the CPU: maps and losses to rounding, attacks as often, inside their balls."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid import data, pretrained, registry, zoo_card
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.balls import Linf
from pellucid.evaluation import Measurement, attack_images, evaluate, transformed
from pellucid.interpreters.activations import cam
from pellucid.models import load_model
from pellucid.network import Network, full_precision
from pellucid.recipe import Recipe
from pellucid.training import train
from pellucid.transforms.frequency import low_pass, random_fourier
from pellucid.transforms.shape import patch_shuffle
from pellucid.transforms.texture import saturate

Quick = Callable[[str, str], Callable[..., Any]]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions in full precision, as `evaluate` takes them: by default a GPU rounds their factors to 11 bits."""
    with full_precision():
        yield


@pytest.fixture(scope="module")
def digits() -> data.ImageSet:
    """Of the same size as in the other tests."""
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def robust(tmp_path_factory: pytest.TempPathFactory, digits: data.ImageSet) -> Path:
    """A network that attacks do not all win against."""
    out = tmp_path_factory.mktemp("robust")
    train(Recipe("adversarial(attack=pgd(ball=Linf(0.2), steps=5))", steps=300, lr=3e-3), digits, out)
    return out


def both(robust: Path) -> tuple[Network, Network]:
    """The same network on CPU and GPU."""
    one, two = (load_model(robust)[0] for _ in range(2))
    assert isinstance(one, Network)
    assert isinstance(two, Network)
    return one, two.to("cuda")


@pytest.mark.parametrize("name", sorted(registry.public("interpreters")))
def test_maps(name: str, robust: Path, digits: data.ImageSet, quick: Quick) -> None:
    """Every interpreter: the same maps to 1e-4 of their largest value, where nothing is drawn at random."""
    if "generator" in inspect.signature(registry.public("interpreters")[name]).parameters:
        pytest.skip("draws at random: another generator on another device")
    interpreter = quick("interpreters", name)
    one, two = both(robust)
    x, y = digits.batch(range(8))
    found, there = (
        interpreter(net, x.to(where), y[:, None].to(where)).detach().cpu()
        for net, where in ((one, "cpu"), (two, "cuda"))
    )
    assert torch.allclose(found, there, atol=1e-4 * float(found.abs().max()))


@pytest.mark.parametrize("attack", [fgsm, partial(pgd, ball=Linf(0.2), steps=10, random_start=False)])
def test_attacks_without_chance(attack: partial, robust: Path, digits: data.ImageSet) -> None:
    """The same images but for signs of gradients that are all but zero."""
    one, two = both(robust)
    x, y = digits.batch(range(64))
    found, there = attack(one, x, y), attack(two, x.cuda(), y.cuda()).cpu()
    assert float(((found - there).abs() < 1e-4).float().mean()) > 0.99


@pytest.mark.parametrize("name", sorted(registry.public("attacks")))
def test_attacks(name: str, robust: Path, digits: data.ImageSet, quick: Quick) -> None:
    """Every attack in short: fools about as many on both, and stays in its ball and on its device."""
    attack = quick("attacks", name)
    x, y = digits.batch(range(48))
    shares = []
    for model in both(robust):
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(0)
        found = attack_images(attack, model, x.to(device), y.to(device), generator=generator)
        assert found.device.type == device.type
        shares.append(float((model(found).argmax(1) == y.to(device)).float().mean()))
    assert abs(shares[0] - shares[1]) <= 0.2


def test_rows(robust: Path, digits: data.ImageSet) -> None:
    """An evaluation's rows: the same verdicts, gradient norms, and tau of maps."""
    measurement = Measurement(
        attack=partial(pgd, ball=Linf(0.1), steps=5, random_start=False), interpreter=cam, gradient_norm=True
    )
    one, two = (evaluate(model, digits, range(64), measurement) for model in both(robust))
    assert (one["correct"] == two["correct"]).mean() > 0.95
    assert abs(np.nanmean(one["tau"]) - np.nanmean(two["tau"])) < 0.02
    assert torch.allclose(torch.tensor(one["gradient_norm"]), torch.tensor(two["gradient_norm"]), rtol=1e-3)


@pytest.mark.parametrize("objective", sorted(registry.public("objectives")))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training(objective: str, precision: str, tmp_path: Path, digits: data.ImageSet) -> None:
    """Every objective trains on the GPU, in both precisions, to finite weights."""
    recipe = Recipe(objective, steps=4, batch_size=16, lr=1e-3, precision=precision)  # pyright: ignore[reportArgumentType]
    network = train(recipe, digits, tmp_path, device="cuda")
    values: list[Tensor] = list(network.state_dict().values())
    assert all(bool(value.isfinite().all()) for value in values)


def test_ten_steps_of_training(tmp_path: Path, digits: data.ImageSet) -> None:
    """Ten standard steps end near the CPU's, as far as Adam, which divides by small gradients, lets rounding grow."""
    recipe = Recipe("standard", steps=10, batch_size=32, lr=1e-3)
    one = train(recipe, digits, tmp_path / "cpu").state_dict()
    two = train(recipe, digits, tmp_path / "gpu", device="cuda").state_dict()
    assert all(torch.allclose(one[name], two[name].cpu(), atol=2e-3) for name in one)


def test_the_zoo_is_built_on_a_gpu_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained and measured there; the weights load on a CPU."""
    recipe = Recipe("int2(ball=Linf(0.3), steps=2)", steps=20, batch_size=50)
    monkeypatch.setattr(pretrained, "recipes", lambda: {"digits/small/int2": recipe})
    effort = zoo_card.Effort(images=20, ensemble="")
    card = pretrained.build(["digits/small/int2"], tmp_path, effort=effort, device="cuda")["digits/small/int2"]
    assert card["device"] == "cuda"
    assert pretrained.cards(tmp_path)["digits/small/int2"]["device"] == "cuda"
    assert next(load_model(tmp_path / "digits/small/int2")[0].parameters()).device.type == "cpu"


@pytest.mark.parametrize("change", [partial(saturate, p=8.0), patch_shuffle, low_pass, random_fourier])
def test_a_gpu_changes_images_as_a_cpu_does(change: partial, robust: Path, digits: data.ImageSet) -> None:
    """The same shuffles and frequencies, drawn for each image; the answers are nearly always the same."""
    one, two = both(robust)
    x, _ = digits.batch(range(8))
    found = transformed(change, x.cuda(), range(8), 3)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), transformed(change, x, range(8), 3), rtol=1e-4, atol=1e-5)
    answers = [
        evaluate(net, digits, range(200), Measurement(transform=change), seed=3)["prediction"] for net in (one, two)
    ]
    assert float(np.mean(answers[0] == answers[1])) > 0.98
