"""JSMA against a naive search of all pairs."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.attacks.saliency import _best_pair, jsma
from pellucid.data import load
from pellucid.errors import PellucidError
from pellucid.network import Network

Jacobian = Literal["logits", "softmax"]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Six handwritten digits of 14 x 14 pixels, in float64."""
    x, y = load("digits", "test").batch(torch.arange(6))
    return x[:, :, ::2, ::2].double(), y


@pytest.fixture(scope="module")
def network() -> Network:
    """A classifier of such digits, trained for a second."""
    trunk = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), nn.Conv2d(8, 24, 5, stride=2))
    network = Network(trunk, nn.Linear(24, 10))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    x, y = load("digits", "train").batch(torch.arange(1000))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(100):
        rows = slice(50 * (step % 20), 50 * (step % 20) + 50)
        optimiser.zero_grad()
        F.cross_entropy(network(x[rows, :, ::2, ::2]), y[rows]).backward()
        optimiser.step()
    return network.double().eval()


def naive_pair(a: Tensor, b: Tensor) -> tuple[int, int] | None:
    """`argmax_{p<q} (a_p + a_q)(b_p + b_q)` where both sums are positive: all d x d, the first of equals."""
    sums = a[:, None] + a[None, :], b[:, None] + b[None, :]
    upper = torch.ones(len(a), len(a)).triu(1).bool()
    score = torch.where((sums[0] > 0) & (sums[1] > 0) & upper, sums[0] * sums[1], -1).flatten()
    if score.max() < 0:
        return None
    return divmod(int((score == score.max()).nonzero()[0, 0]), len(a))


def naive_jsma(model: nn.Module, x: Tensor, goal: int, theta: float, gamma: float, jacobian: Jacobian) -> Tensor:
    """One image, one backward pass per class, the whole table of pairs."""
    at = x.flatten().clone()
    free = at < 1 if theta > 0 else at > 0
    for _ in range(int(gamma * len(at) / 2)):
        leaf = at.clone().requires_grad_()
        logits = model(leaf.view(1, *x.shape))[0]
        if int(logits.argmax()) == goal:
            break
        outputs = logits if jacobian == "logits" else logits.softmax(0)
        rows = torch.stack([torch.autograd.grad(output, leaf, retain_graph=True)[0] for output in outputs])
        alpha, beta = rows[goal], rows.sum(0) - rows[goal]
        a, b = (alpha, -beta) if theta > 0 else (-alpha, beta)
        pair = naive_pair(a.masked_fill(~free, -torch.inf), b.masked_fill(~free, -torch.inf))
        if pair is None:
            break
        at[list(pair)] = (at[list(pair)] + theta).clamp(0, 1)
        free[list(pair)] = False
    return at.view_as(x)


@pytest.mark.parametrize(
    ("theta", "gamma", "jacobian"),
    [(1.0, 0.25, "logits"), (-1.0, 0.25, "logits"), (0.4, 0.25, "logits"), (1.0, 0.1, "softmax")],
)
def test_the_images_are_those_of_the_naive_search(
    network: Network, digits: tuple[Tensor, Tensor], theta: float, gamma: float, jacobian: Jacobian
) -> None:
    """Bit for bit, on real digits, for several targets."""
    x, y = digits
    for goal in (0, 4, 7):
        others = y != goal
        found = jsma(network, x[others], y[others], target=goal, theta=theta, gamma=gamma, jacobian=jacobian)
        expected = torch.stack([naive_jsma(network, one, goal, theta, gamma, jacobian) for one in x[others]])
        assert torch.equal(found, expected)
        assert (found != x[others]).any()


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32), d=st.integers(1, 14), kind=st.sampled_from(["few", "close", "wide"]))
def test_the_best_pair_is_that_of_all_pairs(seed: int, d: int, kind: str) -> None:
    """Also among exact ties, among float32 sums that round to ties, with pixels left out, and with no pair at all."""
    generator = torch.Generator().manual_seed(seed)

    def slopes() -> Tensor:
        if kind == "wide":
            return torch.empty(5, d).normal_(generator=generator)
        whole = torch.randint(-2, 3, (5, d), generator=generator).float()
        return whole if kind == "few" else 1 + whole * torch.finfo(torch.float32).eps

    out = torch.rand(5, d, generator=generator) < 0.2
    a, b = slopes().masked_fill(out, -torch.inf), slopes().masked_fill(out, -torch.inf)
    pairs, helps = _best_pair(a, b)
    expected = [naive_pair(*rows) for rows in zip(a, b, strict=True)]
    assert helps.tolist() == [pair is not None for pair in expected]
    for pair, one in zip(pairs.tolist(), expected, strict=True):
        assert one is None or tuple(pair) == one


def test_each_pixel_moves_once_and_the_budget_holds(network: Network, digits: tuple[Tensor, Tensor]) -> None:
    """At most floor(gamma d / 2) pairs of pixels, each moved by theta or to the bound, upwards only."""
    x, y = digits
    notes: dict[str, Any] = {}
    found = jsma(network, x, y, theta=0.3, gamma=0.08, notes=notes)
    moved = found - x
    assert ((moved == 0) | ((moved - 0.3).abs() < 1e-12) | (found == 1)).all()
    assert (notes["pairs"] <= 7).all()
    assert torch.equal((moved != 0).flatten(1).sum(1), 2 * notes["pairs"])
    assert torch.equal(notes["target"], (y + 1) % 10)
    assert torch.equal(notes["reached"], network(found).argmax(1) == notes["target"])


def test_images_stop_at_the_target(network: Network, digits: tuple[Tensor, Tensor]) -> None:
    """One that is there already is not touched; one that gets there would not have been there a pair earlier."""
    x, _ = digits
    there = network(x).argmax(1)
    label = (there - 1) % 10  # the target is the next
    assert torch.equal(jsma(network, x, label), x)
    notes: dict[str, Any] = {}
    jsma(network, x, there, notes=notes)
    assert notes["reached"].sum() >= 3
    assert notes["pairs"][notes["reached"]].unique().numel() > 1  # they leave one after another
    for i in notes["reached"].nonzero()[:, 0].tolist():
        earlier: dict[str, Any] = {}
        jsma(network, x[[i]], there[[i]], gamma=(2 * int(notes["pairs"][i]) - 1) / 196, notes=earlier)
        assert not earlier["reached"][0]


def test_an_attack_that_no_pair_helps_ends() -> None:
    """Where every pixel lowers the target, nothing is changed upwards; downwards everything that may be."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
        model.get_parameter("1.bias").copy_(torch.tensor([9.0, 0.0]))
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
    assert torch.equal(jsma(model, x, y), x)
    down = jsma(model, x, y, theta=-1, gamma=0.5)
    assert torch.equal((down == 0).flatten(), torch.arange(16) < 8)  # all equal: the first pairs first


@pytest.mark.parametrize("options", [{"theta": 0.0}, {"gamma": 1.5}, {"gamma": -0.1}])
def test_senseless_options_are_refused(
    options: dict[str, float], network: Network, digits: tuple[Tensor, Tensor]
) -> None:
    """theta 0 and gamma outside [0, 1]."""
    with pytest.raises(PellucidError, match="theta"):
        jsma(network, *digits, **options)  # pyright: ignore[reportArgumentType]
