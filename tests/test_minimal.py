"""Minimal attacks against the closed-form radii of linear networks, and what they say of themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.minimal import cw, fmn, smallest
from pellucid.attacks.saliency import jsma
from pellucid.balls import L1, L2, Ball, Linf
from pellucid.errors import PellucidError
from pellucid.metrics import margin
from pellucid.search import move_back

DUAL = {Linf: 1, L2: 2, L1: torch.inf}
LARGEST = {Linf: 0.4, L2: 0.8, L1: 2.0}
straight = partial(pgd, loss="margin", random_start=False, steps=10)
fast_cw = partial(cw, iterations=300, learning_rate=0.03, c=0.1, search=7)


@pytest.fixture
def x() -> Tensor:
    """Four grey images: far from the box."""
    return torch.full((4, 1, 5, 5), 0.5, dtype=torch.float64)


def linear(seed: int, classes: int) -> nn.Module:
    """A random linear classifier of 5 x 5 pixels, that calls grey class 0, class 1 the next by half a logit."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, classes)).double()
    weight, bias = model.get_parameter("1.weight"), model.get_parameter("1.bias")
    with torch.no_grad():
        weight.copy_(torch.empty(classes, 25, dtype=torch.float64).normal_(generator=generator))
        bias.copy_(-0.5 * weight.sum(1))
        bias -= torch.arange(classes)
        bias[0] -= 0.5
    return model


def radius(model: nn.Module, x: Tensor, y: Tensor, p: float) -> Tensor:
    """`min_{j≠y} (f_y - f_j) / ‖w_y - w_j‖_p` in the dual norm p: exact where the box is far."""
    weight, logits = model.get_parameter("1.weight"), model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (weight[y][:, None, :] - weight[None]).norm(p=p, dim=2)
    return (gaps / lengths).scatter(1, y[:, None], torch.inf).amin(1).detach()


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("attack", [partial(smallest, attack=straight), fmn])
def test_the_radius_of_a_linear_network(
    attack: Callable[..., Tensor], kind: type[Linf | L2 | L1], classes: int, x: Tensor
) -> None:
    """Found to 0.5 %, from above."""
    for seed in range(3):
        model, y = linear(seed, classes), torch.zeros(4, dtype=torch.long)
        notes: dict[str, Any] = {}
        ball = kind(LARGEST[kind])
        attack(model, x, y, ball=ball, notes=notes)
        exact = radius(model, x, y, DUAL[kind])
        assert notes["found"].all()
        assert (notes["eps"] >= exact * (1 - 1e-9)).all()
        assert (notes["eps"] <= exact * 1.005).all()


@pytest.mark.parametrize("classes", [2, 5])
def test_cw_finds_the_l2_radius_of_a_linear_network(classes: int, x: Tensor) -> None:
    """To 0.5 %, from above."""
    model, y = linear(0, classes), torch.zeros(4, dtype=torch.long)
    notes: dict[str, Any] = {}
    fast_cw(model, x, y, notes=notes)
    exact = radius(model, x, y, 2)
    assert (notes["eps"] >= exact * (1 - 1e-9)).all()
    assert (notes["eps"] <= exact * 1.005).all()


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (fast_cw, L2(1.0)),
        *((partial(fmn, ball=ball), ball) for ball in (Linf(1.0), L2(9.0), L1(80.0))),
        *((partial(smallest, ball=ball, attack=pgd), ball) for ball in (Linf(1.0), L2(9.0))),
    ],
)
def test_what_is_noted_is_true(
    attack: Callable[..., Tensor], ball: Ball, generator: torch.Generator, images: Tensor
) -> None:
    """Fooled with the norm noted; 0 where x is misclassified already."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
    y = model(images).argmax(1)
    y[0] = (y[0] + 1) % 5
    notes: dict[str, Any] = {}
    found = attack(model, images, y, notes=notes, generator=generator)
    assert notes["found"].all()
    assert (margin(model(found), y) < 0).all()
    torch.testing.assert_close(notes["eps"], ball.norm(found - images))
    assert torch.equal(found[0], images[0])
    assert notes["eps"][0] == 0
    assert (notes["eps"][1:] > 0).all()


@pytest.mark.parametrize("attack", [fast_cw, fmn, smallest])
def test_where_nothing_is_found_the_image_comes_back(attack: Callable[..., Tensor], images: Tensor) -> None:
    """A model that always says class 0 cannot be fooled: found is false, eps infinite."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with torch.no_grad():
        model.get_parameter("1.weight").zero_()
        model.get_parameter("1.bias").copy_(torch.tensor([2.0, 0.0, 0.0]))
    notes: dict[str, Any] = {}
    found = attack(model, images, torch.zeros(3, dtype=torch.long), notes=notes)
    assert torch.equal(found, images)
    assert not notes["found"].any()
    assert notes["eps"].isinf().all()


@pytest.mark.parametrize("attack", [fast_cw, fmn])
def test_a_target_is_reached(attack: Callable[..., Tensor], x: Tensor) -> None:
    """Towards a class, no nearer than without one."""
    model, y = linear(1, 5), torch.zeros(4, dtype=torch.long)
    free: dict[str, Any] = {}
    attack(model, x, y, notes=free)
    for target in (2, "least_likely"):
        aimed: dict[str, Any] = {}
        found = attack(model, x, y, target=target, notes=aimed)
        goal = 2 if target == 2 else int(model(x)[0].argmin())
        assert (model(found).argmax(1) == goal).all()
        assert (aimed["eps"] >= 0.995 * free["eps"]).all()


def test_cw_with_kappa_wins_by_kappa(x: Tensor) -> None:
    """Another class leads by at least kappa logits, at the distance that a linear network needs for it."""
    model, y = linear(2, 2), torch.zeros(4, dtype=torch.long)
    notes: dict[str, Any] = {}
    found = fast_cw(model, x, y, kappa=0.7, notes=notes)
    assert (margin(model(found), y) <= -0.7).all()
    clean = margin(model(x), y)
    assert (notes["eps"] <= 1.005 * radius(model, x, y, 2) * (clean + 0.7) / clean).all()


def test_a_longer_search_finds_nothing_larger(images: Tensor, generator: torch.Generator) -> None:
    """Each further halving keeps the smallest."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    y, last = model(images).argmax(1), torch.full((3,), torch.inf)
    for search in range(6):
        notes: dict[str, Any] = {}
        smallest(model, images, y, attack=fgsm, search=search, notes=notes)
        assert (notes["eps"] <= last).all()
        last = notes["eps"]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_moving_back_ends_at_the_boundary(seed: int) -> None:
    """On a half-space: the point still fools, and a thousandth of the way nearer would not; nothing found stays."""
    generator = torch.Generator().manual_seed(seed)
    x, found = torch.rand(2, 6, 1, 2, 2, generator=generator, dtype=torch.float64)
    level = torch.rand(6, generator=generator, dtype=torch.float64)

    def fooled(at: Tensor) -> Tensor:
        far = (found - x).flatten(1).square().sum(1)
        return ((at - x) * (found - x)).flatten(1).sum(1) / far > 1.2 * level

    back = move_back(x, found, fooled, halvings=10)
    share = (back - x).flatten(1).norm(dim=1) / (found - x).flatten(1).norm(dim=1)
    possible = fooled(found)
    assert fooled(back)[possible].all()
    assert (share - 1.2 * level)[possible].abs().max(dim=0).values <= 1e-3 if possible.any() else True
    assert torch.equal(back[~possible], found[~possible])


def test_an_attack_without_a_ball_cannot_be_bisected(x: Tensor) -> None:
    """Nor do negative kappa or no weight at all make sense."""
    model, y = linear(0, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(PellucidError, match="takes no ball"):
        smallest(model, x, y, attack=jsma)
    with pytest.raises(PellucidError, match="kappa"):
        cw(model, x, y, kappa=-1.0)
    with pytest.raises(PellucidError, match="kappa"):
        cw(model, x, y, c=0.0)
