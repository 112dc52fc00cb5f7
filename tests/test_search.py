"""Laws of the two searches: linear problems have closed forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pellucid.balls import L1, L2, Ball, Linf, per_image
from pellucid.metrics import margin
from pellucid.network import Network
from pellucid.search import Loss, ascend, ascend_survivors, bisect


def linear(w: Tensor) -> Loss:
    """`⟨w, x⟩` per image."""
    return lambda x: (x * w).flatten(1).sum(1)


def wavy(w: Tensor) -> Loss:
    """A loss with many close local maxima, so that steps overshoot."""
    return lambda x: 0.01 * torch.sin(25 * (x * w).flatten(1).sum(1))


@pytest.fixture
def w(generator: torch.Generator) -> Tensor:
    """A direction without zeros."""
    drawn = torch.empty(1, 2, 3, 3, dtype=torch.float64).normal_(generator=generator)
    return drawn + 0.01 * drawn.sign()


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    """Four images, some of their pixels near the box."""
    return torch.empty(4, 2, 3, 3, dtype=torch.float64).uniform_(generator=generator)


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
def test_linf_ascent_of_a_linear_loss(
    w: Tensor, x: Tensor, keep_best: bool, random_start: bool, generator: torch.Generator
) -> None:
    """The maximum is clip(x + eps sign w), reached once the steps add up to 2 eps."""
    found = ascend(
        linear(w),
        x,
        Linf(0.2),
        steps=5,
        step_size=0.1,
        keep_best=keep_best,
        random_start=random_start,
        generator=generator,
    )
    torch.testing.assert_close(found, (x + 0.2 * w.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def test_l2_ascent_of_a_linear_loss(w: Tensor) -> None:
    """Away from the box the maximum is x + eps w / ‖w‖."""
    x = torch.full((3, 2, 3, 3), 0.5, dtype=torch.float64)
    eps = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    found = ascend(linear(w), x, L2(eps), steps=3, step_size=eps / 2)
    torch.testing.assert_close(found, x + per_image(eps, x) * w / w.norm(), rtol=0, atol=1e-12)


def test_l1_ascent_of_a_linear_loss(w: Tensor) -> None:
    """Away from the box the maximum lies on the pixel of largest |w|."""
    x = torch.full((2, 2, 3, 3), 0.5, dtype=torch.float64)
    found = ascend(linear(w), x, L1(0.3), steps=3, step_size=0.15)
    expected = x + torch.where(w.abs() == w.abs().max(), 0.3 * w.sign(), 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from([Linf, L2, L1]),
    eps=st.floats(0, 1),
    steps=st.integers(0, 4),
    keep_best=st.booleans(),
    random_start=st.booleans(),
)
def test_the_result_lies_in_the_ball_and_in_the_box(
    seed: int, kind: type[Linf | L2 | L1], eps: float, steps: int, keep_best: bool, random_start: bool
) -> None:
    """‖x' - x‖ <= eps + 1e-6 and 0 <= x' <= 1, in float32; x' is plain, and x is untouched."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty(2, 1, 3, 3).uniform_(generator=generator).requires_grad_()
    before = x.detach().clone()
    ball: Ball = kind(eps)
    found = ascend(
        wavy(torch.ones(1)),
        x,
        ball,
        steps=steps,
        step_size=eps,
        keep_best=keep_best,
        random_start=random_start,
        generator=generator,
    )
    assert (ball.norm(found.double() - before.double()) <= eps + 1e-6).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert torch.equal(x, before)
    assert x.grad is None


def test_the_best_is_the_best_of_all_iterates(w: Tensor, x: Tensor) -> None:
    """The n-th last iterate is the n-th iterate: the best score is the maximum over them, per image."""
    value = wavy(w)

    def score(steps: int, keep_best: bool) -> Tensor:
        found = value(ascend(value, x, Linf(0.3), steps=steps, step_size=0.2, keep_best=keep_best))
        assert isinstance(found, Tensor)
        return found

    iterates = torch.stack([score(steps, False) for steps in range(7)])
    assert (iterates.argmax(0) < 6).any()  # or the last would be the best by chance
    for steps in range(7):
        assert torch.equal(score(steps, True), iterates[: steps + 1].amax(0))


def test_a_step_is_projected_and_then_clipped(w: Tensor, x: Tensor) -> None:
    """One long L2 step from near the box gives clip(x + eps w / ‖w‖), not the projection of what was clipped."""
    found = ascend(linear(w), x, L2(0.5), steps=1, step_size=1.0, keep_best=False)
    torch.testing.assert_close(found, (x + 0.5 * w / w.norm()).clamp(0, 1), rtol=0, atol=1e-12)


def test_a_loss_and_a_score_have_their_own_work(w: Tensor, x: Tensor) -> None:
    """With the loss's negative as its score, the first iterate is the best, though the last is the loss's maximum."""
    value = linear(w)

    def pair(at: Tensor) -> tuple[Tensor, Tensor]:
        worth = value(at)
        assert isinstance(worth, Tensor)
        return worth, -worth.detach()

    torch.testing.assert_close(ascend(pair, x, Linf(0.1), steps=2, step_size=0.1), x, rtol=0, atol=0)
    last = ascend(pair, x, Linf(0.1), steps=2, step_size=0.1, keep_best=False)
    torch.testing.assert_close(last, (x + 0.1 * w.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def test_ascent_takes_its_gradient_in_any_mode(w: Tensor, x: Tensor) -> None:
    """Under no_grad the same images come out."""
    free = ascend(wavy(w), x, Linf(0.1), steps=2, step_size=0.05)
    with torch.no_grad():
        assert torch.equal(ascend(wavy(w), x, Linf(0.1), steps=2, step_size=0.05), free)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("steps", [0, 1, 6, 12])
def test_bisection_finds_the_radius_of_a_linear_classifier(w: Tensor, x: Tensor, steps: int) -> None:
    """The Linf radius of `⟨w, x⟩ + b` is |f| / ‖w‖_1: found from above, to (high - low) / 2^steps."""
    radius = torch.tensor([0.03, 0.2, 0.79, 0.8001], dtype=torch.float64)
    bias = -(x * w).flatten(1).sum(1) - radius * w.abs().sum()

    def attempt(eps: Tensor) -> tuple[Tensor, Tensor]:
        moved = x + per_image(eps, x) * w.sign()
        return moved, (moved * w).flatten(1).sum(1) + bias >= 0

    low, high = torch.zeros(4, dtype=torch.float64), torch.full((4,), 0.8, dtype=torch.float64)
    images, values, found = bisect(attempt, low, high, steps=steps)
    assert found.tolist() == [True, True, True, False]
    assert (values[:3] >= radius[:3] - 1e-12).all()
    assert (values[:3] <= radius[:3] + 0.8 / 2**steps + 1e-12).all()
    assert values[3] == 0.8
    torch.testing.assert_close(images, x + per_image(values, x) * w.sign(), rtol=0, atol=0)
    assert torch.equal(low, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(high, torch.full((4,), 0.8, dtype=torch.float64))


@pytest.mark.parametrize("ball", [Linf(0.4), L2(4.9)], ids=["Linf", "L2"])
@pytest.mark.parametrize("per_image_radius", [False, True])
def test_the_survivors_search_fells_the_same_images(
    tiny: Network, seeded: Callable[[int], torch.Generator], ball: Linf | L2, per_image_radius: bool
) -> None:
    """Who has fallen leaves, who stands goes on: the verdicts, and the standing images, are those of `ascend`."""
    x = torch.rand(24, 1, 16, 16, generator=seeded(0))
    y = tiny(x).detach().topk(2).indices[:, 0]
    y[:4] = (y[:4] + 1) % 5  # some have fallen before the first step
    eps = ball.eps * torch.linspace(0.1, 1.5, 24) if per_image_radius else ball.eps
    ball = ball.resized(eps)

    def loss_of(rows: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda at: (F.cross_entropy(tiny(at), y[rows], reduction="none"), -margin(tiny(at).detach(), y[rows]))

    options: dict[str, Any] = {"steps": 13, "step_size": 0.1 * eps, "random_start": True}
    whole = ascend(loss_of(torch.arange(24)), x, ball, generator=seeded(1), **options)
    quick = ascend_survivors(loss_of, x, ball, generator=seeded(1), **options)
    fallen = margin(tiny(whole), y) < 0
    assert torch.equal(margin(tiny(quick), y) < 0, fallen)
    assert 5 < int(fallen.sum()) < 24  # four had fallen before
    torch.testing.assert_close(quick[~fallen], whole[~fallen])
