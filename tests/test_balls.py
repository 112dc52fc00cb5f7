"""Laws of the three balls, on random points in float32 and float64."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.balls import L1, L2, Ball, Linf, per_image
from pellucid.errors import PellucidError

KINDS = (Linf, L2, L1)
DUAL = {Linf: 1, L2: 2, L1: math.inf}


@dataclass(frozen=True)
class Case:
    """A ball of every kind in turn, centres in [0, 1], points around them, and how exact the type is."""

    ball: Linf | L2 | L1
    centre: Tensor
    x: Tensor
    generator: torch.Generator

    @property
    def size(self) -> int:
        return self.centre[0].numel()

    @property
    def tolerance(self) -> float:
        """One rounding of every pixel, whose sizes are below 1 + eps, plus as much for the sums."""
        return 4 * self.size * torch.finfo(self.x.dtype).eps * (1 + float(torch.as_tensor(self.ball.eps).max()))


def within(case: Case, point: Tensor, *, spare: float | None = None) -> bool:
    """Whether a point lies in its ball, measured in float64."""
    norm = case.ball.norm(point.double() - case.centre.double())
    eps = torch.as_tensor(case.ball.eps, dtype=torch.float64)
    return bool((norm <= eps + (case.tolerance if spare is None else spare)).all())


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(dtypes))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    centre = torch.empty(shape, dtype=dtype).uniform_(generator=generator)
    spread = draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    x = centre + spread * torch.empty(shape, dtype=dtype).normal_(generator=generator)
    one_each = draw(st.booleans())
    size = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    eps = size * torch.empty(shape[0], dtype=dtype).uniform_(generator=generator) if one_each else size
    return Case(draw(st.sampled_from(KINDS))(eps), centre, x, generator)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_a_projection_lies_in_the_ball_and_stays_where_it_is(case: Case) -> None:
    """‖Π(x) - c‖ <= eps, and Π(Π(x)) = Π(x), to rounding."""
    once = case.ball.project(case.x, case.centre)
    assert within(case, once)
    if not isinstance(case.ball, L1):  # a sum of up to 27 pixels is rounded more often than 1e-6 allows in float32
        assert within(case, once, spare=1e-6)
    twice = case.ball.project(once, case.centre)
    assert (twice - once).abs().max() <= case.tolerance


@settings(deadline=None, max_examples=100)
@given(cases())
def test_a_point_inside_does_not_move(case: Case) -> None:
    """Π(x) = x, bit for bit, for x well inside the ball."""
    direction = case.x - case.centre
    size = per_image(case.ball.norm(direction), direction).clamp_min(1e-3)
    inside = case.centre + direction * (0.9 * per_image(case.ball.eps, direction) / size).clamp_max(1)
    room = torch.as_tensor(case.ball.eps) - case.ball.norm(inside - case.centre) > case.tolerance
    assert torch.equal(case.ball.project(inside, case.centre)[room], inside[room])


@settings(deadline=None, max_examples=150)
@given(cases((torch.float64,)))
def test_the_projection_is_the_nearest_point(case: Case) -> None:
    """⟨x - p, q - p⟩ <= 0 for every q in the ball: what makes p the nearest point of a convex set."""
    p = case.ball.project(case.x, case.centre)
    extreme = case.centre + per_image(case.ball.eps, case.x) * case.ball.steepest(case.x - p)
    for q in [extreme, *(case.ball.sample(case.centre, case.generator) for _ in range(5))]:
        assert (inner(case.x - p, q - p) <= 1e-12 * case.size).all()
        assert ((case.x - p).flatten(1).norm(dim=1) <= (case.x - q).flatten(1).norm(dim=1) + 1e-12).all()


def naive_l1(delta: np.ndarray, eps: float) -> np.ndarray:
    """Soft-thresholding, the threshold by bisection."""
    if np.abs(delta).sum() <= eps:
        return delta
    low, high = 0.0, float(np.abs(delta).max())
    for _ in range(100):
        middle = (low + high) / 2
        too_small = np.maximum(np.abs(delta) - middle, 0).sum() > eps
        low, high = (middle, high) if too_small else (low, middle)
    return np.sign(delta) * np.maximum(np.abs(delta) - high, 0)


@settings(deadline=None, max_examples=100)
@given(cases((torch.float64,)))
def test_the_l1_projection_against_a_naive_solver(case: Case) -> None:
    """Duchi's thresholds equal those found by bisection."""
    ball = L1(case.ball.eps)
    found = ball.project(case.x, case.centre) - case.centre
    radii = torch.as_tensor(ball.eps, dtype=torch.float64).expand(len(case.x))
    for i in range(len(case.x)):
        expected = naive_l1((case.x[i] - case.centre[i]).numpy().ravel(), float(radii[i]))
        np.testing.assert_allclose(found[i].numpy().ravel(), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=100)
@given(cases())
def test_a_sample_lies_inside(case: Case) -> None:
    """‖sample - c‖ <= eps, to rounding."""
    assert within(case, case.ball.sample(case.centre, case.generator))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_uniform(kind: type[Ball], generator: torch.Generator) -> None:
    """P(‖δ‖ <= r eps) = r^d and E δ = 0, within five standard errors of 4000 samples."""
    n, d, eps = 4000, 4, 0.5
    centre = torch.full((n, 1, 2, 2), 0.5)
    delta = kind(eps).sample(centre, generator) - centre  # pyright: ignore[reportCallIssue]
    norms = kind(eps).norm(delta)  # pyright: ignore[reportCallIssue]
    for r in (0.5, 0.8, 0.95):
        expected = r**d
        share = float((norms <= r * eps).double().mean())
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    assert (delta.mean(0).abs() < 5 * eps / math.sqrt(n)).all()
    assert (delta < 0).float().mean(0).sub(0.5).abs().max() < 2.5 / math.sqrt(n)


@settings(deadline=None, max_examples=100)
@given(cases())
def test_the_steepest_direction_attains_the_dual_norm(case: Case) -> None:
    """‖d‖ <= 1 and ⟨g, d⟩ = ‖g‖_dual, so that no other direction in the unit ball gets further."""
    g = case.x - case.centre
    d = case.ball.steepest(g)
    unit = case.ball.resized(1.0)
    dual = g.double().flatten(1).norm(p=DUAL[type(case.ball)], dim=1)
    assert (case.ball.norm(d) <= 1 + case.tolerance).all()
    torch.testing.assert_close(inner(g, d), dual, rtol=case.tolerance, atol=1e-12)
    for _ in range(5):
        other = unit.sample(torch.zeros_like(g), case.generator)
        assert (inner(g, other) <= inner(g, d) + case.tolerance * (1 + dual)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_gradient_gives_no_step(kind: type[Ball]) -> None:
    """steepest(0) = 0."""
    assert torch.equal(kind(1.0).steepest(torch.zeros(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))  # pyright: ignore


@pytest.mark.parametrize("size", [1e-30, 1e-38, 1e-44, 1e30])
def test_a_tiny_gradient_keeps_its_direction(size: float) -> None:
    """In L2, steepest(s g) = steepest(g) though s² is no float32; to the few bits that are left of s g."""
    g = torch.tensor([3.0, -4.0]).reshape(1, 1, 1, 2)
    d = L2(1.0).steepest(size * g)
    torch.testing.assert_close(d, g / 5, rtol=0, atol=0.05 if size < 1e-40 else 1e-6)
    torch.testing.assert_close(L2(1.0).norm(d), torch.ones(1), rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=50)
@given(cases((torch.float64,)))
def test_a_radius_per_image_is_each_image_alone(case: Case) -> None:
    """Π with eps [b] equals Π of every image with its own eps."""
    radii = torch.empty(len(case.x), dtype=torch.float64).uniform_(generator=case.generator)
    together = case.ball.resized(radii).project(case.x, case.centre)
    for i, eps in enumerate(radii.tolist()):
        alone = case.ball.resized(eps).project(case.x[[i]], case.centre[[i]])
        torch.testing.assert_close(together[[i]], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [-0.1, math.nan, torch.tensor([0.1, -0.1])])
def test_a_radius_that_is_none_is_refused(kind: type[Ball], eps: float | Tensor) -> None:
    """eps < 0 and NaN raise, and the message says the rule."""
    with pytest.raises(PellucidError, match=">= 0"):
        kind(eps)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_no_trouble(kind: type[Ball], generator: torch.Generator) -> None:
    """Every operation maps no images to no images."""
    ball, none = kind(0.1), torch.empty(0, 1, 2, 2)  # pyright: ignore[reportCallIssue]
    results = [ball.project(none, none), ball.sample(none, generator), ball.steepest(none)]
    assert all(result.shape == none.shape for result in results)
    assert ball.norm(none).shape == (0,)
