"""Metrics against naive loops, scipy and finite differences, and Proposition 1."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid import metrics
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.metrics import discrepancy, input_gradient_norm, kendall_tau, pearson, top_k_overlap, weighted_discrepancy
from pellucid.network import Network

DOUBLE = torch.float64


@pytest.fixture
def two_maps(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Maps of four images and three classes, and others."""
    a, b = (torch.empty(4, 3, 2, 5, dtype=DOUBLE).normal_(generator=generator) for _ in range(2))
    return a, b


def test_correct_and_margin(generator: torch.Generator) -> None:
    """f_y - max_{j≠y} f_j by a loop; positive exactly where the prediction is y."""
    logits = torch.empty(50, 4, dtype=DOUBLE).normal_(generator=generator)
    y = torch.arange(50) % 4
    pairs = zip(logits.tolist(), y.tolist(), strict=True)
    naive = [row[c] - max(v for j, v in enumerate(row) if j != c) for row, c in pairs]
    torch.testing.assert_close(metrics.margin(logits, y), torch.tensor(naive, dtype=DOUBLE), rtol=0, atol=1e-15)
    assert torch.equal(metrics.correct(logits, y), metrics.margin(logits, y) > 0)


@pytest.mark.parametrize(("p", "squared"), [(1, False), (2, False), (2, True)])
def test_discrepancy_is_equation_3(two_maps: tuple[Tensor, Tensor], p: int, squared: bool) -> None:
    """(1/|C|) Σ_i ‖L(x, i) - L(x', i)‖_p, by loops over images, classes and positions."""
    a, b = two_maps
    naive = []
    for one, two in zip(a.tolist(), b.tolist(), strict=True):
        norms = []
        for left, right in zip(one, two, strict=True):
            gaps = [abs(u - v) for r, s in zip(left, right, strict=True) for u, v in zip(r, s, strict=True)]
            norms.append(sum(g**p for g in gaps) ** (1 if squared else 1 / p))
        naive.append(sum(norms) / len(norms))
    found = discrepancy(a, b, p=p, squared=squared)
    torch.testing.assert_close(found, torch.tensor(naive, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_discrepancy_is_a_distance(two_maps: tuple[Tensor, Tensor]) -> None:
    """Zero to itself, symmetric, and within the triangle."""
    a, b = two_maps
    c = a.flip(0)
    assert torch.equal(discrepancy(a, a), torch.zeros(4, dtype=DOUBLE))
    assert torch.equal(discrepancy(a, b), discrepancy(b, a))
    assert (discrepancy(a, c) <= discrepancy(a, b) + discrepancy(b, c) + 1e-12).all()


def naive_eq_8(a: Tensor, b: Tensor, logits: Tensor, y: Tensor, as_coded: bool) -> Tensor:
    """Boopathy et al. 2020, eq. 8, one image and one class at a time."""
    totals = []
    for i, t in enumerate(y.tolist()):
        powers = [math.exp(v) for v in logits[i].tolist()]
        others = [j for j in range(len(powers)) if j != t]
        below = sum(powers[j] for j in others) if as_coded else sum(powers)
        gaps = [float((a[i, j] - b[i, j]).abs().sum()) for j in range(len(powers))]
        total = gaps[t] + sum(powers[j] / below * gaps[j] for j in others)
        totals.append(total * (a[i, 0].numel() if as_coded else 0.5))
    return torch.tensor(totals, dtype=DOUBLE)


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
def test_weighted_discrepancy_is_equation_8(two_maps: tuple[Tensor, Tensor], reading: str) -> None:
    """Both readings against a loop."""
    a, b = two_maps
    logits = a.sum((2, 3))
    y = torch.tensor([0, 1, 2, 1])
    found = weighted_discrepancy(a, b, logits, y, reading=reading)  # pyright: ignore[reportArgumentType]
    expected = naive_eq_8(a, b, logits, y, reading == "as_coded")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
def test_no_images_have_no_discrepancy(two_maps: tuple[Tensor, Tensor], reading: str) -> None:
    """An empty batch is answered with an empty batch."""
    none = two_maps[0][:0]
    y = torch.empty(0, dtype=torch.int64)
    found = weighted_discrepancy(none, none, none.sum((2, 3)), y, reading=reading)  # pyright: ignore[reportArgumentType]
    assert found.shape == discrepancy(none, none).shape == (0,)


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
def test_the_weights_of_equation_8_may_be_detached(two_maps: tuple[Tensor, Tensor], reading: str) -> None:
    """The value stays; the gradient in the logits is there, or is not."""
    a, b = two_maps
    logits = a.sum((2, 3)).requires_grad_()
    y = torch.tensor([0, 1, 2, 1])
    free = weighted_discrepancy(a, b, logits, y, reading=reading)  # pyright: ignore[reportArgumentType]
    held = weighted_discrepancy(a, b, logits, y, reading=reading, detach_weights=True)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(free, held, rtol=0, atol=0)
    assert torch.autograd.grad(free.sum(), logits)[0].abs().max() > 0
    assert not held.requires_grad


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
def test_equation_8_survives_sure_networks(two_maps: tuple[Tensor, Tensor], reading: str) -> None:
    """With logits 1e4 apart value and gradient stay finite in float32."""
    a, b = (m.float() for m in two_maps)
    logits = torch.tensor([1e4, 0.0, -1e4]).repeat(4, 1).requires_grad_()
    found = weighted_discrepancy(a, b, logits, torch.tensor([0, 1, 2, 0]), reading=reading)  # pyright: ignore[reportArgumentType]
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), bias=st.booleans(), relu=st.booleans())
def test_proposition_1(seed: int, bias: bool, relu: bool) -> None:
    """For every pair with prediction t -> t', D_{2,l1} of CAM is at least ½ (f_t(x) - f_t'(x)) >= 0."""
    generator = torch.Generator().manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), *([nn.ReLU()] if relu else []))
    network = Network(trunk, nn.Linear(6, 4, bias=bias)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
        x, other = (torch.empty(64, 1, 7, 7, dtype=DOUBLE).uniform_(generator=generator) for _ in range(2))
        logits = network(x)
        t, t_attacked = logits.argmax(1), network(other).argmax(1)
        classes = torch.stack([t, t_attacked], 1)
        found = discrepancy(cam(network, x, classes), cam(network, other, classes))
        bound = metrics.proposition_1_bound(logits, t, t_attacked)
    flipped = t != t_attacked
    assert (bound[flipped] >= 0).all()
    assert (found[flipped] >= bound[flipped] - 1e-12).all()


def test_proposition_1_is_tight() -> None:
    """One position, and x' on the boundary where f_t drops and f_t' stays: D = ½ (f_t - f_t') to 1e-12."""
    network = Network(nn.Sequential(nn.Conv2d(2, 2, 1, bias=False)), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        assert isinstance(network.trunk, nn.Sequential)
        last = network.trunk[0]
        assert isinstance(last, nn.Conv2d)
        last.weight.copy_(torch.eye(2, dtype=DOUBLE).reshape(2, 2, 1, 1))
        network.head.weight.copy_(torch.eye(2, dtype=DOUBLE))
        x = torch.tensor([0.9, 0.3], dtype=DOUBLE).reshape(1, 2, 1, 1)
        other = torch.tensor([0.3, 0.3], dtype=DOUBLE).reshape(1, 2, 1, 1)
        classes = torch.tensor([[0, 1]])
        found = discrepancy(cam(network, x, classes), cam(network, other, classes))
        bound = metrics.proposition_1_bound(network(x), classes[:, 0], classes[:, 1])
    torch.testing.assert_close(found, bound, rtol=1e-12, atol=0)


def tied(generator: torch.Generator, n: int, d: int, values: int) -> Tensor:
    """Rows with many ties."""
    return torch.randint(values, (n, d), generator=generator).to(DOUBLE)


@pytest.mark.parametrize("d", [2, 3, 10, 64, 65, 200])
@pytest.mark.parametrize("values", [2, 5, 10**6])
def test_kendall_tau_is_scipys(d: int, values: int, generator: torch.Generator) -> None:
    """Tau-b with ties, on both sides of the limit between the two ways to count; NaN where a row is constant."""
    a, b = tied(generator, 12, d, values), tied(generator, 12, d, values)
    a[0] = 1.0
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    expected = torch.from_numpy(np.array([scipy.stats.kendalltau(u, v)[0] for u, v in pairs], dtype=float))
    assert expected[0].isnan()
    for dtype, tolerance in ((DOUBLE, 1e-12), (torch.float32, 1e-6)):
        found = kendall_tau(a.to(dtype), b.to(dtype))
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("d", [20, 100])
def test_kendall_tau_of_orders(d: int, generator: torch.Generator) -> None:
    """1 for any increasing function, -1 for any decreasing one."""
    a = torch.empty(3, d, dtype=DOUBLE).normal_(generator=generator)
    torch.testing.assert_close(kendall_tau(a, a.exp()), torch.ones(3, dtype=DOUBLE))
    torch.testing.assert_close(kendall_tau(a, -(a**3)), -torch.ones(3, dtype=DOUBLE))


def test_kendall_tau_in_chunks(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pairs go at once, the same values; and none for no rows."""
    a, b = tied(generator, 7, 12, 4), tied(generator, 7, 12, 4)
    whole = kendall_tau(a, b)
    monkeypatch.setattr(metrics, "SIGN_TENSOR_VALUES", 1)
    assert torch.equal(kendall_tau(a, b), whole)
    assert kendall_tau(a[:0], b[:0]).shape == (0,)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), d=st.integers(1, 12), k=st.integers(1, 14), values=st.sampled_from([2, 4, 10**6]))
def test_top_k_overlap_against_sets(seed: int, d: int, k: int, values: int) -> None:
    """|top_k(a) ∩ top_k(b)| / k by Python's stable sort, ties to the lowest position."""
    generator = torch.Generator().manual_seed(seed)
    a, b = tied(generator, 3, d, values), tied(generator, 3, d, values)
    naive = []
    for one, two in zip(a.tolist(), b.tolist(), strict=True):
        tops = [set(sorted(range(d), key=lambda i, row=row: -row[i])[:k]) for row in (one, two)]
        naive.append(len(tops[0] & tops[1]) / min(k, d))
    found = top_k_overlap(a, b, k=k)
    torch.testing.assert_close(found, torch.tensor(naive, dtype=DOUBLE), rtol=0, atol=1e-6)
    torch.testing.assert_close(top_k_overlap(a, a, k=k), torch.ones(3, dtype=DOUBLE), rtol=0, atol=1e-6)


def test_input_gradient_norm_against_differences(noisy: Network, generator: torch.Generator) -> None:
    """‖∂CE/∂x‖_2 by central differences over every pixel, in eval mode, without a trace in the model."""
    network = noisy.double().train()
    x = torch.empty(2, 1, 4, 4, dtype=DOUBLE).uniform_(generator=generator)
    y = torch.tensor([1, 3])
    found = metrics.input_gradient_norm(network, x, y)
    assert network.training
    network.eval()
    h = 1e-6
    steps = h * torch.eye(16, dtype=DOUBLE).reshape(16, 1, 1, 4, 4)
    with torch.no_grad():
        up, down = (
            F.cross_entropy(network((x + s * steps).flatten(0, 1)), y.repeat(16), reduction="none").reshape(16, 2)
            for s in (1, -1)
        )
    torch.testing.assert_close(found, ((up - down) / (2 * h)).norm(dim=0), rtol=1e-6, atol=1e-8)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_tiny_gradient_is_not_zero() -> None:
    """The norm of entries of 1e-30 is their norm, not zero: only a gradient of zeros counts as vanished."""

    class Faint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1) * 1e-30, torch.zeros(len(x))], 1)

    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    norms = input_gradient_norm(Faint(), x, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(norms, torch.full((3,), 0.5e-30 * 4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("p", [0, 3])
def test_norms_other_than_one_and_two_are_refused(p: int) -> None:
    """There is no silent 2-norm."""
    maps = torch.zeros(1, 1, 2, 2)
    with pytest.raises(PellucidError, match=f"p .={p}"):
        discrepancy(maps, maps, p=p)


def test_pearson_is_scipys(generator: torch.Generator) -> None:
    """With maps of any scale and offset; a constant map has none, and a finite gradient."""
    a, b = (torch.empty(6, 49, dtype=DOUBLE).normal_(generator=generator) for _ in range(2))
    a, b = 1000 * a - 30, 0.01 * (b + a) + 5
    expected = torch.tensor([scipy.stats.pearsonr(u, v)[0] for u, v in zip(a, b, strict=True)], dtype=DOUBLE)
    torch.testing.assert_close(pearson(a, b), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pearson(a, 3 * a + 1), torch.ones(6, dtype=DOUBLE))
    torch.testing.assert_close(pearson(a.float() * 1e-12, b.float() * 1e12), expected.float(), rtol=1e-4, atol=1e-5)
    for pair in ((torch.full((6, 49), 0.3), b.float()), (b.float(), torch.zeros(6, 49))):
        maps = [each.requires_grad_() for each in pair]
        found = pearson(*maps)
        assert torch.equal(found, torch.zeros(6))
        assert all(torch.equal(grad, torch.zeros(6, 49)) for grad in torch.autograd.grad(found.sum(), maps))
    assert torch.autograd.gradcheck(pearson, tuple(each[:, :5].clone().requires_grad_() for each in (a / 1000, b)))
