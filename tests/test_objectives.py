"""Objectives: the contract of every one that is discovered, identities at neutral settings, and schedules."""

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid import registry, worst
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.balls import Ball, Linf
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.interpreters.gradients import gradient
from pellucid.metrics import attribution_norm
from pellucid.network import Network, softplus
from pellucid.objectives.adversarial import adversarial, fast, trades
from pellucid.objectives.gradients import double_backprop, ig_norm
from pellucid.objectives.interpretability import int2, int_
from pellucid.objectives.standard import distilled, standard
from pellucid.schedules import Cosine, Ramp, Steps, at

NAMES = sorted(registry.public("objectives"))
Quick = Callable[[str, str], Callable[..., Any]]
Seeded = Callable[[int], torch.Generator]


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


def all_close(model: nn.Module, one: Tensor, two: Tensor) -> None:
    """Equal to rounding in float64, with their gradients."""
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(one, model), gradients(two, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", ["tiny", "noisy"])
def test_every_objective_keeps_the_contract(
    name: str, net: str, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded, request: pytest.FixtureRequest
) -> None:
    """A finite scalar, detached terms, a gradient for every parameter; mode, flags, .grad and images as before."""
    network = request.getfixturevalue(net).train()
    if net == "noisy":
        network.trunk[1].eval()
    modes = [module.training for module in network.modules()]
    before = images.clone()
    loss, terms = quick("objectives", name)(network, images, labels, step=3, generator=seeded(0))
    assert loss.shape == ()
    assert loss.isfinite()
    assert terms
    assert all(term.shape == () and term.isfinite() and not term.requires_grad for term in terms.values())
    assert [module.training for module in network.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(images, before)
    loss.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(
    "objective",
    [
        partial(int_, gamma=0.0),
        partial(int2, gamma=Ramp(0.0, 1.0, 5, 9)),
        partial(trades, beta=0.0),
        partial(double_backprop, lam=0.0),
        partial(ig_norm, lam=0.0),
        partial(adversarial, clean=1.0),
        partial(adversarial, alternate=True),
        partial(fast, length=0.0, noise=0.0),
    ],
)
def test_without_its_term_every_objective_is_standard_training(
    objective: Callable[..., Any], tiny: Network, images: Tensor, labels: Tensor, generator: torch.Generator
) -> None:
    """gamma, lambda, beta = 0, nothing but clean loss, a step of no length: the same bits, gradients too."""
    loss, _ = objective(tiny, images, labels, step=2, generator=generator)
    expected, _ = standard(tiny, images, labels, step=2)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients(loss, tiny), gradients(expected, tiny), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_follows_its_generator(
    name: str, tiny: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """The same seed gives the same bits."""
    objective = quick("objectives", name)
    one, two = (objective(tiny, images, labels, step=0, generator=seeded(3))[0] for _ in range(2))
    assert torch.equal(one, two)


def test_standard_is_cross_entropy(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """mean log Σ_j exp(f_j - f_y)."""
    logits = tiny(images)
    naive = (logits - logits.gather(1, labels[:, None])).exp().sum(1).log().mean()
    loss, terms = standard(tiny, images, labels, step=0)
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-6)
    assert torch.equal(terms["cross_entropy"], loss.detach())


@pytest.mark.parametrize("objective", [int_, int2])
@pytest.mark.parametrize("interpreter", [cam, gradient])
def test_int_without_its_regulariser_is_standard(
    objective: Callable[..., Any],
    interpreter: Callable[..., Tensor],
    tiny: Network,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> None:
    """gamma = 0: value and gradients, to the rounding of logits computed as sums of maps."""
    network, x = tiny.double(), images.double()
    loss, _ = objective(network, x, labels, step=0, generator=generator, gamma=0.0, steps=2, interpreter=interpreter)
    all_close(network, loss, standard(network, x, labels, step=0)[0])


def test_adversarial_training_in_a_ball_of_nothing_is_standard(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """eps = 0, as a number, as a schedule and in the attack's own ball, with any share of clean loss."""
    network, x = tiny.double(), images.double()
    expected = standard(network, x, labels, step=0)[0]
    inner = partial(pgd, ball=Linf(0.0), steps=2)
    for objective in (
        partial(adversarial, eps=0.0),
        partial(adversarial, eps=Ramp(0.0, 0.3, 5, 10)),
        partial(adversarial, attack=inner),
        partial(adversarial, attack=inner, clean=0.3),
    ):
        loss, _ = objective(network, x, labels, step=5)
        all_close(network, loss, expected)


def test_adversarial_training_mixes_two_losses(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """(1 - clean) CE(f(x'), y) + clean CE(f(x), y) with the x' of the attack at this step's radius."""
    network, x = tiny.double(), images.double()
    attack = partial(pgd, ball=Linf(1.0), steps=2)
    ramp = Ramp(0.0, 0.2, 0, 10)
    attacked = pgd(network, x, labels, ball=Linf(0.1), steps=2, generator=seeded(1))
    one, two = (standard(network, at, labels, step=0)[0] for at in (attacked, x))
    loss, terms = adversarial(network, x, labels, step=5, generator=seeded(1), attack=attack, eps=ramp, clean=0.25)
    all_close(network, loss, 0.75 * one + 0.25 * two)
    torch.testing.assert_close(terms["adversarial_cross_entropy"], one.detach(), rtol=1e-12, atol=0)


def test_a_radius_needs_an_attack_in_a_ball(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Otherwise the schedule would be ignored without a word."""

    def no_ball(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        del model, y, generator
        return x

    with pytest.raises(PellucidError, match="needs an attack in a ball"):
        adversarial(tiny, images, labels, step=0, attack=no_ball, eps=0.1)


@pytest.mark.parametrize("objective", [int_, int2])
@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_int_asks_that_maps_correlate(
    objective: Callable[..., Any], gamma: float, tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded
) -> None:
    """Adds correlation times the mean of 1 - r over the true class's maps, at the same x'; r by a loop."""
    network, x = tiny.double(), images.double()
    seen: list[Tensor] = []

    def watched(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not images.requires_grad:
            seen.append(images)
        return cam(model, images, classes)

    found = partial(objective, network, x, labels, step=0, gamma=gamma, steps=2, adversarial=True, interpreter=watched)
    without = found(generator=seeded(4))[0]
    seen.clear()
    loss, terms = found(generator=seeded(4), correlation=Ramp(0.0, 1.5, -1, 0))
    attacked = seen[-1]
    apart = []
    for i, y in enumerate(labels.tolist()):
        u, v = (network.class_maps(at[i : i + 1])[0, y].flatten() for at in (x, attacked))
        u, v = u - u.mean(), v - v.mean()
        apart.append(1 - (u * v).sum() / (u.square().sum() * v.square().sum()).sqrt())
    naive = torch.stack(apart).mean()
    all_close(network, loss, without + 1.5 * naive)
    torch.testing.assert_close(terms["map_correlation"], 1 - naive.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", [int_, int2])
@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
@pytest.mark.parametrize("is_adversarial", [False, True])
@pytest.mark.parametrize("one_class", [False, True])
def test_int_by_a_loop(
    objective: Callable[..., Any],
    reading: str,
    is_adversarial: bool,
    one_class: bool,
    tiny: Network,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CE + gamma D~ of eq. 8, at the x' that the search found, one image and one class at a time."""
    network, x = tiny.double(), images.double()
    found: list[Tensor] = []
    search = worst.ascend

    def spy(loss: Any, at: Tensor, ball: Ball, **options: Any) -> Tensor:
        found.append(search(loss, at, ball, **options))
        return found[0]

    monkeypatch.setattr(worst, "ascend", spy)
    gamma = 0.7
    loss, terms = objective(
        network,
        x,
        labels,
        step=0,
        generator=generator,
        steps=3,
        gamma=gamma,
        reading=reading,
        adversarial=is_adversarial,
        one_class=one_class,
    )
    (attacked,) = found
    apart = naive_discrepancy(network, x, attacked, labels, as_coded=reading == "as_coded", one_class=one_class)
    fit = standard(network, attacked if is_adversarial else x, labels, step=0)[0]
    all_close(network, loss, fit + gamma * apart)
    torch.testing.assert_close(terms["discrepancy"], apart.detach(), rtol=1e-10, atol=0)
    assert Linf(0.3).norm(attacked - x).max() <= 0.3 + 1e-12
    assert (attacked - x).abs().max() > 0.01


def naive_discrepancy(
    network: Network, x: Tensor, attacked: Tensor, labels: Tensor, *, as_coded: bool, one_class: bool
) -> Tensor:
    """Eq. 8 with maps built layer by layer."""
    total = x.new_zeros(())
    for i, t in enumerate(labels.tolist()):
        one, two = (network.features(batch[i : i + 1])[0] for batch in (x, attacked))
        positions = one[0].numel()
        power = network(attacked[i : i + 1])[0].exp()
        others = [j for j in range(5) if j != t]
        below = power[others].sum() if as_coded else power.sum()
        gaps = []
        for row in network.head.weight:
            gap = ((row[:, None, None] * (one - two)).sum(0)).abs().sum() / positions
            gaps.append(gap * positions if as_coded else gap / 2)
        total = total + gaps[t]
        if not one_class:
            total = total + torch.stack([power[j] / below * gaps[j] for j in others]).sum()
    return total / len(labels)


def test_int_searches_where_the_maps_differ_most(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Its discrepancy exceeds that of a random start of the same seed, and Int2's attack exceeds its cross-entropy."""
    network, x = tiny.double(), images.double()
    for objective, term in ((int_, "discrepancy"), (partial(int2, adversarial=True), "adversarial_cross_entropy")):
        values = []
        for steps in (0, 5):
            generator = torch.Generator().manual_seed(0)
            _, terms = objective(network, x, labels, step=0, generator=generator, steps=steps, step_size=0.05)
            values.append(terms[term])
        assert values[1] > values[0]


@pytest.mark.parametrize("of", ["label", "uniform", "entropy", "distilled"])
def test_double_backprop_against_finite_differences(
    of: Any, tiny: Network, images: Tensor, labels: Tensor, generator: torch.Generator
) -> None:
    """The parameter gradient of `CE + λ mean ‖∇_x H(q, ŷ)‖²` along random directions, and the value by its formula."""
    network, x = smooth(tiny), images.double()
    teacher = copy.deepcopy(network) if of == "distilled" else None
    objective = partial(double_backprop, lam=0.5, of=of, teacher=teacher, temperature=2.0)

    def value() -> Tensor:
        return objective(network, x, labels, step=0)[0]

    seen = x.clone().requires_grad_()
    logs = network(seen).log_softmax(1)
    goal = {
        "label": torch.eye(logs.shape[1]).double()[labels],
        "uniform": torch.full_like(logs, 1 / logs.shape[1]),
        "entropy": logs.exp(),
        "distilled": (network(x) / 2.0).softmax(1).detach(),
    }[of]
    (gradient,) = torch.autograd.grad(-(goal * logs).sum(), seen)
    expected = -logs.gather(1, labels[:, None]).mean() + 0.5 * gradient.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(value(), expected, rtol=1e-10, atol=1e-12)
    parameters, analytic = list(network.parameters()), gradients(value(), network)
    for _ in range(3):
        direction = [torch.empty_like(p).normal_(generator=generator) for p in parameters]
        along = sum(float((a * d).sum()) for a, d in zip(analytic, direction, strict=True))
        ends = []
        for length in (1e-5, -2e-5):
            move(parameters, direction, length)
            ends.append(float(value().detach()))
        move(parameters, direction, 1e-5)
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(along, rel=1e-5)


def move(parameters: list[nn.Parameter], direction: list[Tensor], length: float) -> None:
    with torch.no_grad():
        for parameter, along in zip(parameters, direction, strict=True):
            parameter.add_(along, alpha=length)


def smooth(network: Network) -> Network:
    """In float64, its ReLUs replaced: finite differences do not step over kinks."""
    return softplus(network.double())


def test_double_backprop_readings(tiny: Network, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """λ per example is `lam / (2 b)` of theirs; both defences are the mean of the two losses."""
    network, x = tiny.double(), images.double()
    written = double_backprop(network, x, labels, step=0, lam=0.3)[0]
    coded = double_backprop(network, x, labels, step=0, lam=0.3 * 2 * len(x), reading="as_coded")[0]
    all_close(network, written, coded)
    attack = partial(fgsm, ball=Linf(0.1))
    both = double_backprop(network, x, labels, step=0, lam=0.3, attack=attack, generator=generator)[0]
    attacked = standard(network, attack(network, x, labels), labels, step=0)[0]
    all_close(network, both, (written + attacked) / 2)
    with pytest.raises(PellucidError, match="lam"):
        double_backprop(network, x, labels, step=0, lam=-1.0)


def test_ig_norm_bounds_the_attacked_loss(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """At λ = 1 and with many points `CE(x) + ‖IG‖_1 >= CE(x')` for every x' of the ball, by completeness."""
    network, x = tiny.double(), images.double()
    for seed in range(20):
        attacked = Linf(0.3).sample(x, seeded(seed)).clamp(0, 1)
        clean, far = (torch.nn.functional.cross_entropy(network(at), labels, reduction="none") for at in (x, attacked))
        bound = clean + attribution_norm(network, x, attacked, labels, points=2000)
        assert (bound >= far - 1e-3 * far.abs()).all()


def test_ig_norm_by_a_loop(
    tiny: Network, images: Tensor, labels: Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attribution one point and one image at a time; as coded λ is divided by the batch size."""
    network, x = tiny.double(), images.double()
    attacked = Linf(0.2).sample(x, generator).clamp(0, 1)
    norms = []
    for i in range(len(x)):
        total = torch.zeros_like(x[i : i + 1])
        for k in range(1, 6):
            z = (x[i : i + 1] + k / 5 * (attacked - x)[i : i + 1]).requires_grad_()
            loss = torch.nn.functional.cross_entropy(network(z), labels[i : i + 1])
            total += torch.autograd.grad(loss, z, create_graph=True)[0]
        norms.append(((attacked - x)[i : i + 1] * total / 5).abs().sum())
    norm = torch.stack(norms)
    torch.testing.assert_close(attribution_norm(network, x, attacked, labels, points=5), norm, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(worst, "ascend", lambda *_, **__: attacked)
    fit, fit_attacked = (standard(network, at, labels, step=0)[0] for at in (x, attacked))
    plain = partial(ig_norm, network, x, labels, step=0, generator=generator, lam=0.4)
    all_close(network, plain()[0], fit + 0.4 * norm.mean())
    all_close(network, plain(adversarial=True)[0], fit_attacked + 0.4 * norm.mean())
    all_close(network, plain(reading="as_coded")[0], fit + 0.4 / len(x) * norm.mean())


def test_distillation_from_certainty_at_temperature_1_is_standard(
    tiny: Network, images: Tensor, labels: Tensor
) -> None:
    """A teacher whose softmax is the one-hot label, T = 1."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * torch.eye(5, dtype=x.dtype)[labels]

    network, x = tiny.double(), images.double()
    loss, _ = distilled(network, x, labels, step=0, teacher=Sure(), temperature=1.0)
    all_close(network, loss, standard(network, x, labels, step=0)[0])
    with pytest.raises(PellucidError, match="teacher"):
        distilled(network, x, labels, step=0)


def test_trades_by_its_formula(
    tiny: Network, images: Tensor, labels: Tensor, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CE(x) + beta Σ p (log p - log q), the gradient through both arguments; the search raises the divergence."""
    network, x = tiny.double(), images.double()
    attacked = Linf(0.2).sample(x, generator).clamp(0, 1)
    with monkeypatch.context() as patched:
        patched.setattr(worst, "ascend", lambda *_, **__: attacked)
        loss, _ = trades(network, x, labels, step=0, generator=generator, beta=3.0)
    p, q = network(x).softmax(1), network(attacked).softmax(1)
    expected = standard(network, x, labels, step=0)[0] + 3.0 * (p * (p.log() - q.log())).sum(1).mean()
    all_close(network, loss, expected)
    for start in ("gaussian", "uniform", "blocks"):
        found = []
        for steps in (0, 5):
            again = torch.Generator().manual_seed(1)
            _, terms = trades(network, x, labels, step=0, generator=again, steps=steps, step_size=0.05, start=start)
            found.append(terms["divergence"])
        assert found[1] > found[0]


def test_the_alternation_and_predicted_labels(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Every second batch is attacked only; attacks away from the prediction differ where that is wrong."""
    network, x = tiny.double(), images.double()
    attack = partial(fgsm, ball=Linf(0.1))
    attacked = standard(network, attack(network, x, labels), labels, step=1)[0]
    all_close(network, adversarial(network, x, labels, step=1, attack=attack, alternate=True)[0], attacked)
    wrong = (network(x).argmax(1) + 1) % 5
    away = attack(network, x, network(x).argmax(1))
    expected = standard(network, away, wrong, step=0)[0]
    all_close(network, adversarial(network, x, wrong, step=0, attack=attack, labels="predicted")[0], expected)


def test_fast_training_takes_one_step_from_noise(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """`Π(x + eta + 1.25 eps sign)`, and N-FGSM's without Π: 2 eps of noise and eps more."""
    network, x = tiny.double(), images.double()

    def expected(noise: float, length: float, project: bool) -> Tensor:
        start = Linf(noise * 0.1).sample(x, seeded(4)).clamp(0, 1)
        seen = start.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(seen), labels, reduction="sum")
        at = start + length * 0.1 * torch.autograd.grad(loss, seen)[0].sign()
        at = (Linf(0.1).project(at, x) if project else at).clamp(0, 1)
        return standard(network, at, labels, step=0)[0]

    common = {"step": 0, "ball": Linf(0.1)}
    plain = fast(network, x, labels, generator=seeded(4), **common)[0]
    all_close(network, plain, expected(1.0, 1.25, True))
    free = fast(network, x, labels, generator=seeded(4), length=1.0, noise=2.0, project=False, **common)[0]
    all_close(network, free, expected(2.0, 1.0, False))


def test_starts_in_blocks_are_corners_of_the_ball(images: Tensor, generator: torch.Generator) -> None:
    """±1 everywhere, both signs, and neighbours agree far more often than chance has it."""
    x = images.repeat(20, 1, 1, 1)
    signs = worst.blocks_of_signs(x, generator)
    assert signs.shape == x.shape
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert 0.4 < float((signs > 0).float().mean()) < 0.6
    assert float((signs[..., 1:, :] == signs[..., :-1, :]).float().mean()) > 0.7


def test_half_the_searches_start_in_corners(images: Tensor) -> None:
    """Of no steps: those images lie at ±eps, or at the edge of the box, everywhere; the others do not."""
    x = images.repeat(20, 1, 1, 1) * 0.4 + 0.3
    search = worst.Search(Linf(0.1), None, 0, None, start="blocks")
    found = search(lambda at: at.flatten(1).sum(1), x, 0, torch.Generator().manual_seed(0))
    corners = ((found - x).abs() - 0.1).abs().flatten(1).amax(1) < 1e-6
    assert 0.35 < float(corners.float().mean()) < 0.65


def test_schedules_in_closed_form() -> None:
    """Linear, half a cosine wave, and steps; constant outside; plain numbers stay."""
    ramp, wave = Ramp(1.0, 3.0, 10, 20), Cosine(1.0, 0.0, 10, 20)
    for step in range(0, 31):
        share = min(max((step - 10) / 10, 0), 1)
        assert ramp(step) == pytest.approx(1 + 2 * share, abs=1e-12)
        assert wave(step) == pytest.approx((1 + math.cos(math.pi * share)) / 2, abs=1e-12)
    steps = Steps((3.0, 2.0, 1.0), (5, 9))
    assert [steps(step) for step in (0, 4, 5, 8, 9, 100)] == [3, 3, 2, 2, 1, 1]
    assert at(0.25, 7) == 0.25
    assert at(ramp, 15) == 2


def test_a_schedule_of_no_length_jumps() -> None:
    """first = last: the start before, the end after; never a division by zero."""
    for schedule in (Ramp(1.0, 3.0, 5, 5), Cosine(1.0, 3.0, 5, 5)):
        assert schedule(4) == 1
        assert schedule(6) == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Ramp(0.0, 0.3, 100, 50), "backwards"),
        (lambda: Cosine(0.0, math.inf, 0, 5), "finite"),
        (lambda: Steps((1.0, math.nan), (5,)), "finite"),
        (lambda: Steps((1.0, 2.0, 3.0), (9, 5)), "above the one before"),
        (lambda: Steps((1.0, 2.0), (0,)), "above 0"),
        (lambda: Steps((1.0,), (5,)), "one value more"),
        (lambda: inspect.unwrap(Steps.__post_init__)(SimpleNamespace(values=0.1, at=4)), "two tuples, not 0.1 and 4"),
        (lambda: registry.value("Cosine(0.1)"), r"Cosine\(0.1\) lacks end, first, last"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make: Callable[[], object], says: str) -> None:
    """Backwards, not finite, out of order, of the wrong length: said when it is written, not after an hour."""
    with pytest.raises(PellucidError, match=says):
        make()


@pytest.mark.parametrize(
    ("objective", "options", "says"),
    [
        (int_, {"gamma": -1}, "gamma"),
        (int2, {"correlation": Ramp(0.0, -1.0, -1, 0)}, "correlation"),
        (trades, {"beta": -1}, "beta"),
        (double_backprop, {"lam": -1}, "lam"),
        (ig_norm, {"lam": -1}, "lam"),
        (adversarial, {"clean": 3}, "clean"),
        (int2, {"adversarial": True, "clean": -0.1}, "clean"),
        (adversarial, {"clean": 0.5, "alternate": True}, "alternate"),
        (adversarial, {"labels": "Predicted"}, "labels"),
        (int_, {"clean": 0.5}, "adversarial=True"),
        (int2, {"clean": 7}, "clean"),
        (double_backprop, {"eps": 0.3}, "attack"),
        (double_backprop, {"teacher": "somewhere"}, "teacher"),
        (int_, {"reading": "as-coded"}, "reading"),
        (ig_norm, {"reading": "coded"}, "reading"),
        (double_backprop, {"of": "labels"}, "of"),
    ],
)
def test_what_would_silently_be_something_else_is_refused(
    objective: Callable[..., Any], options: dict[str, Any], says: str, tiny: Network, images: Tensor, labels: Tensor
) -> None:
    """Rewards for penalties, shares outside of [0, 1], readings that do not exist: by name, types checked or not."""
    with pytest.raises((PellucidError, TypeError), match=says):
        inspect.unwrap(objective)(tiny, images, labels, step=0, **options)


def test_searches_are_as_precise_as_the_training(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Under autocast PGD's search runs in bfloat16 too, and without it in float32."""
    seen: set[torch.dtype] = set()

    def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
        del module, inputs
        seen.add(output.dtype)

    attack = partial(pgd, steps=2, keep_best=False)
    for enabled, expected in ((True, torch.bfloat16), (False, torch.float32)):
        seen.clear()
        handle = list(tiny.trunk.children())[-2].register_forward_hook(look)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            adversarial(tiny, images, labels, step=0, attack=attack)
        handle.remove()
        assert seen == {expected}
