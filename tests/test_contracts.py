"""What every attack and every architecture that is discovered must keep."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid import registry
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.interpretation import aai
from pellucid.balls import L1, L2, Ball, Linf
from pellucid.interpreters.gradients import gradient
from pellucid.metrics import margin
from pellucid.network import Network

ATTACKS = sorted(registry.public("attacks"))
ARCHITECTURES = sorted(registry.public("architectures"))
BALLS = (Linf(0.1), L2(0.8), L1(5.0))
Quick = Callable[[str, str], Callable[..., Any]]
Seeded = Callable[[int], torch.Generator]


def variants(attack: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The attack in its own ball; and, where it takes any, in each."""
    if not isinstance(registry.option(attack, "ball"), Ball):
        return [attack]
    return [attack, *(partial(attack, ball=ball) for ball in BALLS)]


def inside(attack: Callable[..., Any], found: Tensor, x: Tensor) -> bool:
    """Whether images lie in the attack's ball, the norm measured in float64."""
    ball = registry.option(attack, "ball")
    return not isinstance(ball, Ball) or bool((ball.norm(found.double() - x.double()) <= ball.eps + 1e-6).all())


def traces(model: nn.Module) -> list[object]:
    """Everything that an attack might change about a model."""
    modes = [module.training for module in model.modules()]
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    return [modes, flags, hooks, {name: tensor.tolist() for name, tensor in model.state_dict().items()}]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("net", ["tiny", "noisy"])
def test_every_attack_keeps_the_contract(
    name: str, net: str, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded, request: pytest.FixtureRequest
) -> None:
    """Same seed, same bits; in the ball and in [0, 1]; plain; images and model untouched, in train mode too."""
    network = request.getfixturevalue(net).train()
    network.head.bias.requires_grad_(False)
    if net == "noisy":
        network.trunk[1].eval()
    before, state = images.clone(), traces(network)
    for attack in variants(quick("attacks", name)):
        found = attack(network, images, labels, generator=seeded(2))
        assert found.shape == images.shape
        assert found.dtype == images.dtype
        assert not found.requires_grad
        assert found.isfinite().all()
        assert found.min() >= 0
        assert found.max() <= 1
        assert inside(attack, found, images)
        with torch.no_grad():
            again = attack(network, images, labels, generator=seeded(2))
        assert torch.equal(found, again)
        assert found.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)
    assert images.grad is None
    assert traces(network) == state


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_uses_the_global_generator(
    name: str, tiny: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """With a generator of its own, an attack leaves the global one where it was."""
    before = torch.get_rng_state()
    quick("attacks", name)(tiny, images, labels, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_takes_one_image_none_and_float64(
    name: str, noisy: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """The last batch of a data set may have one image, a filtered one none; the type follows the images."""
    x = images.double()
    for attack in variants(quick("attacks", name)):
        for count in (1, 0):
            found = attack(noisy.double(), x[:count], labels[:count], generator=seeded(0))
            assert found.shape == x[:count].shape
            assert found.dtype == torch.float64
            assert inside(attack, found, x[:count])


@pytest.mark.parametrize("name", ATTACKS)
def test_deterministic_attacks_take_each_image_alone(
    name: str, noisy: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """What does not depend on the seed does not depend on the other images either."""
    attack, x, network = quick("attacks", name), images.double(), noisy.double()
    if "random_start" in inspect.signature(attack).parameters:
        attack = partial(attack, random_start=False)
    together = attack(network, x, labels, generator=seeded(0))
    if not torch.equal(together, attack(network, x, labels, generator=seeded(1))):
        assert name not in ("fgsm", "pgd")
        return
    for i in range(len(x)):
        alone = attack(network, x[[i]], labels[[i]], generator=seeded(2))
        torch.testing.assert_close(together[[i]], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "attack", [fgsm, partial(pgd, steps=3), partial(aai, steps=3, interpreter=gradient)], ids=registry.describe
)
@pytest.mark.parametrize("ball", BALLS, ids=registry.describe)
def test_attacks_on_a_model_that_is_no_network(
    attack: Callable[..., Any], ball: Ball, images: Tensor, labels: Tensor, seeded: Seeded
) -> None:
    """Any module that maps images to logits, as the gradient attacks promise."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 5)).train()
    state = traces(model)
    found = attack(model, images, labels, ball=ball, generator=seeded(0))
    assert inside(partial(attack, ball=ball), found, images)
    assert (found != images).flatten(1).any(1).all()
    assert traces(model) == state


@pytest.mark.parametrize("ball", BALLS, ids=registry.describe)
@pytest.mark.parametrize("targeted", [False, True])
def test_attacks_on_a_linear_model_reach_the_optimum(
    ball: Linf | L2 | L1, targeted: bool, generator: torch.Generator
) -> None:
    """For two classes the margin changes by 2 eps ‖w‖_dual, and no more: away from the box, by one step and by many."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    w = model.get_parameter("1.weight")
    with torch.no_grad():
        w.normal_(0, 0.3, generator=generator)
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    ball = ball.resized(0.3)
    y = torch.tensor([0, 1])
    dual = {Linf: 1, L2: 2, L1: torch.inf}[type(ball)]
    change = 0.3 * float((w[0] - w[1]).detach().norm(p=dual)) * (1 if targeted else -1)
    expected = margin(model(x), y) + change
    for attack in (
        partial(fgsm, ball=ball, targeted=targeted),
        partial(pgd, ball=ball, targeted=targeted, steps=4, random_start=False),
        partial(pgd, ball=ball, targeted=targeted, steps=4, random_start=False, keep_best=False),
    ):
        torch.testing.assert_close(margin(model(attack(model, x, y)), y), expected, rtol=1e-9, atol=1e-12)


def test_pgd_gets_no_worse_with_restarts_and_steps(
    noisy: Network, images: Tensor, labels: Tensor, seeded: Seeded
) -> None:
    """Over the same random numbers the margin of the best iterate does not grow."""
    noisy.eval()
    for name, values in (("restarts", (1, 2, 4)), ("steps", (1, 2, 4))):
        worst = torch.full((3,), torch.inf)
        for value in values:
            options: dict[str, Any] = {"restarts": 1, "steps": 3, "step_size": 0.03, "ball": Linf(0.1)} | {name: value}
            found = margin(noisy(pgd(noisy, images, labels, generator=seeded(0), **options)), labels).detach()
            assert (found <= worst + 1e-6).all()
            worst = found


def test_aai_as_coded_by_its_definition(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """One step of 0.01 down the sum of the 8 largest values of the clean map, from a random start."""
    network, x = tiny.double(), images.double()
    ball = Linf(0.1)
    start = ball.sample(x, seeded(0)).clamp(0, 1).requires_grad_()
    maps = [network.class_maps(at)[torch.arange(3), labels].flatten(1) for at in (x, start)]
    top = maps[0].topk(8, dim=1).indices
    (down,) = torch.autograd.grad(maps[1].gather(1, top).sum(), start)
    expected = torch.min(torch.max(start - 0.01 * down.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    found = aai(network, x, labels, ball=ball, steps=1, reading="as_coded", generator=seeded(0))
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_aai_moves_maps_and_keeps_classes(tiny: Network, images: Tensor, seeded: Seeded) -> None:
    """As written, it prefers images that keep their class, and with more steps their maps are no closer."""
    network, x = tiny.double(), images.double()
    y = network(x).argmax(1)
    clean = network.class_maps(x)[torch.arange(3), y]
    last = torch.full((3,), -torch.inf, dtype=torch.float64)
    for steps in (0, 5, 20):
        found = aai(network, x, y, ball=Linf(0.05), steps=steps, step_size=0.01, generator=seeded(0))
        distance = (network.class_maps(found)[torch.arange(3), y] - clean).flatten(1).abs().sum(1).detach()
        kept = margin(network(found), y) >= 0
        distance = torch.where(kept, distance, -torch.inf)
        assert (distance >= last - 1e-12).all()
        last = distance
    assert kept.all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_builds_a_network(name: str, seeded: Seeded) -> None:
    """Logits of the shape asked for, finite, fresh from a generator alone, and differentiable in every parameter."""
    build = registry.parse(name, "architectures")
    channels = 1 if registry.option(build, "channels") is not None else 3
    options = {"channels": 1} if channels == 1 else {}
    before = torch.get_rng_state()
    one, two, other = (build(**options, classes=4, generator=seeded(s)).eval() for s in (0, 0, 1))
    torch.set_rng_state(before)
    assert isinstance(one, Network)
    size = registry.option(build, "size") or 32
    x = torch.empty(2, channels, size, size).uniform_(generator=seeded(5))
    logits = one(x)
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(two(x), logits)
    assert not torch.equal(other(x), logits)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_takes_the_number_of_classes_and_channels(name: str) -> None:
    """The options that data decide."""
    build = registry.parse(name, "architectures")
    for channels, classes in ((1, 2), (3, 7)):
        network = build(channels=channels, classes=classes)
        assert network.head.out_features == classes
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert first.in_channels == channels


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("small", 166_396),
        ("small(channels=3, size=32)", 166_908),
        ("pool", 52_736),
        ("wresnet", 463_008),
        ("wresnet(classes=9)", 462_944),
        # Two 5x5 convolutions, one over the whole 7x7 map, without biases; BatchNorm's scale and centre; the head.
        (
            "ross",
            25 * 32 + 2 * 32 + 25 * 32 * 64 + 2 * 64 + 49 * 64 * 1024 + 2 * 1024 + 1024 * 10 + 10,
        ),
    ],
)
def test_parameter_counts(spec: str, count: int) -> None:
    """As published, or counted by hand."""
    assert sum(p.numel() for p in registry.parse(spec, "architectures")().parameters()) == count
