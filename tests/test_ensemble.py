"""APGD, FAB, Square and the ensemble: the laws of each, and the images that fall to torchattacks' own."""

import importlib
import inspect
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from pellucid import registry
from pellucid.attacks import ensemble as stages
from pellucid.attacks.apgd import _begin, _sparsify, apgd
from pellucid.attacks.ensemble import ensemble
from pellucid.attacks.fab import fab
from pellucid.attacks.square import square
from pellucid.balls import L1, L2, Ball, Linf
from pellucid.boxes import into_l1_ball, onto_hyperplane
from pellucid.data import load, subset
from pellucid.errors import PellucidError
from pellucid.import_weights import import_weights
from pellucid.metrics import correct, input_gradient_norm, margin
from pellucid.models import load_model
from pellucid.network import Network, frozen
from pellucid.types import Images, Labels

Seeded = Callable[[int], torch.Generator]
Attack = Callable[..., Images]

APGD = {name: partial(apgd, steps=10, loss=name) for name in ("ce", "dlr", "dlr_targeted")}
EVERY = [*APGD.values(), partial(fab, steps=10), partial(square, queries=300), partial(ensemble, steps=5, queries=20)]
NAMES = [*APGD, "fab", "square", "ensemble"]


def linear(classes: int) -> nn.Sequential:
    """A linear classifier of 4 x 4 grey images, in float64."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()
    with torch.no_grad():
        model.get_parameter("1.weight").normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
        model.get_parameter("1.bias").zero_()
    return model


@pytest.fixture
def bent() -> nn.Sequential:
    """A network of five classes on 8 x 8 grey images, with curvature, some of whose images fall easily and some not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 5))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model.eval()


class Coarse(nn.Module):
    """A model that rounds its images first: no gradient passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked = 0

    def forward(self, x: Images) -> Tensor:
        self.asked += len(x)
        return self.model((x * 16).round() / 16)


class Masked(nn.Module):
    """A model with one class more, which is ruled out: its logit is minus infinity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Images) -> Tensor:
        logits = self.model(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)


class Says(nn.Module):
    """A model that answers the same to all images."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Images) -> Tensor:
        return self.logits[: len(x)]


class Scaled(nn.Module):
    """A model whose logits are multiplied."""

    def __init__(self, model: nn.Module, by: float) -> None:
        super().__init__()
        self.model = model
        self.by = by

    def forward(self, x: Images) -> Tensor:
        return self.by * self.model(x)


def says(model: nn.Module, x: Images) -> Labels:
    """The predictions."""
    with frozen(model), torch.no_grad():
        return model(x).argmax(1)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(seed))


def least(x: np.ndarray, w: np.ndarray, value: float, p: float) -> float:
    """The least ‖δ‖_p with `<w, δ> = value` in the box, by a solver: a linear program, or for p = 2 a quadratic one."""
    d = len(x)
    box = list(zip(-x, 1 - x, strict=True))
    if p == 2:
        plane = {"type": "eq", "fun": lambda delta: w @ delta - value}
        found = minimize(
            lambda delta: delta @ delta, np.zeros(d), bounds=box, constraints=plane, options={"ftol": 1e-15}
        )
        return float(found.fun) ** 0.5
    bounds = np.ones((d, 1)) if p > 2 else np.eye(d)  # |δ_i| <= t: one t for all, or one each
    k = bounds.shape[1]
    above = np.block([[np.eye(d), -bounds], [-np.eye(d), -bounds]])
    cost = np.r_[np.zeros(d), np.ones(k)]
    found = linprog(cost, above, np.zeros(2 * d), np.r_[w, np.zeros(k)][None], [value], box + [(0, None)] * k)
    return float(found.fun)


@pytest.mark.parametrize("p", [1, 2, torch.inf])
def test_the_hyperplane_projection_is_a_solvers_optimum(p: float) -> None:
    """On the hyperplane, in the box, no longer than need be; with pixels at a bound and pixels without weight."""
    n, d = 40, 7
    x, w = uniform(n, d, seed=1).round(decimals=1), uniform(n, d, seed=2) - 0.5
    w[::3, 0] = 0
    furthest = torch.where(w > 0, w * (1 - x), -w * x).sum(1), -torch.where(w < 0, -w * (1 - x), w * x).sum(1)
    value = torch.where(torch.arange(n) % 2 == 0, *furthest) * uniform(n, seed=4)
    delta = onto_hyperplane(x, w, value, p=p)
    torch.testing.assert_close((w * delta).sum(1), value, rtol=1e-9, atol=1e-12)
    assert ((x + delta >= -1e-12) & (x + delta <= 1 + 1e-12)).all()
    expected = [least(a, b, c, p) for a, b, c in zip(x.numpy(), w.numpy(), value.tolist(), strict=True)]
    torch.testing.assert_close(delta.norm(p=p, dim=1), torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("p", [1, 2, torch.inf])
def test_a_hyperplane_out_of_reach_is_approached(p: float) -> None:
    """Every pixel of weight goes to its bound; without any weight nothing moves."""
    x, w = uniform(5, 6, seed=1), uniform(5, 6, seed=2) - 0.5
    w[4] = 0
    delta = onto_hyperplane(x, w, torch.full((5,), 100.0).double(), p=p)
    corner = torch.where(w > 0, 1 - x, -x) * (w != 0)
    torch.testing.assert_close(delta, corner)


def test_the_l1_projection_is_nearest() -> None:
    """`<target - z, q - z> <= 0` for every point q of ball and box; on the surface where the target lies outside."""
    n, d = 20, 8
    x, target = uniform(n, d, seed=1).round(decimals=1), 3 * uniform(n, d, seed=2) - 1
    eps = 0.05 + uniform(n, seed=3)
    z = into_l1_ball(x, target, eps)
    assert (z >= 0).all()
    assert (z <= 1).all()
    torch.testing.assert_close((z - x).abs().sum(1), eps, rtol=1e-9, atol=1e-12)
    for seed in range(50):
        q = into_l1_ball(x, z + uniform(n, d, seed=10 + seed) - 0.5, eps)
        assert (((target - z) * (q - z)).sum(1) <= 1e-12).all()
    torch.testing.assert_close(into_l1_ball(x, z, eps), z)


@pytest.mark.parametrize("attack", EVERY, ids=NAMES)
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_any_number_of_classes_from_two(attack: Attack, classes: int, seeded: Seeded) -> None:
    """No attack asks for classes that are not there; in a ball that holds the boundary, every image falls."""
    model, x = linear(classes), uniform(6, 1, 4, 4, seed=5) * 0.2 + 0.4
    y = says(model, x)
    found = attack(model, x, y, ball=Linf(0.4), generator=seeded(0))
    assert not correct(model(found), y).any()


def test_one_class_and_no_effort_are_refused(images: Tensor) -> None:
    """By name and value."""
    y = torch.zeros(3, dtype=torch.long)
    single = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    for attack in (apgd, fab):
        with pytest.raises(PellucidError, match="1 class"):
            attack(single, images, y)
        with pytest.raises(PellucidError, match="targets"):
            attack(single, images, y, targets=0)
    with pytest.raises(PellucidError, match="queries"):
        square(single, images, y, queries=0)
    with pytest.raises(PellucidError, match="area"):
        square(single, images, y, area=0.0)


@pytest.mark.parametrize("attack", EVERY, ids=NAMES)
def test_what_is_wrong_already_comes_back(attack: Attack, bent: nn.Module, seeded: Seeded) -> None:
    """Bit by bit."""
    images = uniform(3, 1, 8, 8, seed=6).float()
    wrong = (says(bent, images) + 1) % 5
    assert torch.equal(attack(bent, images, wrong, generator=seeded(0)), images)


@pytest.mark.parametrize("name", APGD)
@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.4), L1(0.3)], ids=["Linf", "L2", "L1"])
def test_apgd_reaches_the_optimum_of_a_linear_model(name: str, ball: Ball, seeded: Seeded) -> None:
    """Two classes, away from the box: the margin falls by eps ‖w‖_dual."""
    model, x = linear(2), uniform(4, 1, 4, 4, seed=5) * 0.2 + 0.4
    with torch.no_grad():
        model.get_parameter("1.bias").copy_(torch.tensor([30.0, 0.0]))
    y = torch.zeros(4, dtype=torch.long)
    w = model.get_parameter("1.weight").detach()
    dual = {Linf: 1, L2: 2, L1: torch.inf}[type(ball)]
    expected = margin(model(x), y) - float(ball.eps) * (w[0] - w[1]).norm(p=dual)
    found = margin(model(apgd(model, x, y, ball=ball, loss=name, steps=60, generator=seeded(0))), y)  # pyright: ignore
    assert (found >= expected - 1e-9).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_apgd_gets_no_worse_with_restarts(bent: nn.Module, seeded: Seeded) -> None:
    """Over the same random numbers; and never worse than the image itself."""
    images = uniform(3, 1, 8, 8, seed=6).float()
    y = says(bent, images)
    worst = margin(bent(images), y)
    for restarts in (1, 2, 4):
        found = apgd(bent, images, y, ball=Linf(0.01), steps=5, restarts=restarts, generator=seeded(0))
        assert (margin(bent(found), y) <= worst + 1e-6).all()
        worst = margin(bent(found), y).detach()


def test_dlr_does_not_see_the_scale_of_the_logits(bent: nn.Module, seeded: Seeded) -> None:
    """The same images, whatever the logits are multiplied by (a power of two, so that no rounding differs)."""
    images = uniform(3, 1, 8, 8, seed=6).float()
    x, network = images.double(), bent.double()
    y = says(network, x)
    for name in ("dlr", "dlr_targeted"):
        run = partial(apgd, x=x, y=y, ball=Linf(0.01), steps=8, loss=name)
        assert torch.equal(run(network, generator=seeded(0)), run(Scaled(network, 2.0**12), generator=seeded(0)))


@pytest.mark.parametrize("attack", EVERY, ids=NAMES)
def test_saturated_logits_stop_no_attack(attack: Attack, bent: nn.Module, seeded: Seeded) -> None:
    """Where the cross entropy's gradient is exactly zero, everything falls that falls without the saturation."""
    images = uniform(3, 1, 8, 8, seed=6).float()
    y = says(bent, images)
    saturated = Scaled(bent, 1e6).eval()
    assert (input_gradient_norm(saturated, images, y) == 0).all()
    for model in (bent, saturated):
        found = attack(model, images, y, ball=Linf(0.3), generator=seeded(0))
        assert not correct(bent(found), y).any()


@pytest.mark.parametrize("ball", [Linf(0.9), L2(3.0), L1(9.0)], ids=["Linf", "L2", "L1"])
@pytest.mark.parametrize("classes", [2, 5])
def test_fab_finds_the_distance_to_the_nearest_boundary(ball: Ball, classes: int, seeded: Seeded) -> None:
    """Of a linear model, as a solver finds it within the box, to half a percent."""
    model, x = linear(classes), uniform(6, 1, 4, 4, seed=5)
    y = says(model, x)
    logits, w = model(x).detach(), model.get_parameter("1.weight").detach()
    p = {Linf: torch.inf, L2: 2, L1: 1}[type(ball)]
    expected = [
        min(
            least(x[i].flatten().numpy(), (w[t] - w[y[i]]).numpy(), float(logits[i, y[i]] - logits[i, t]), p)
            for t in range(classes)
            if t != y[i]
        )
        for i in range(len(x))
    ]
    notes: dict[str, Any] = {}
    found = fab(model, x, y, ball=ball, steps=30, search=10, notes=notes, generator=seeded(0))
    assert not correct(model(found), y).any()
    torch.testing.assert_close(notes["eps"], ball.norm(found - x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(notes["eps"], torch.tensor(expected).double(), rtol=0.005, atol=0)


def test_fab_in_a_hurry_breaks_the_same_images(bent: nn.Module, seeded: Seeded) -> None:
    """Whether or not it stops at the first one in the ball; what is too far comes back unchanged."""
    x = uniform(20, 1, 8, 8, seed=6).float()
    y, ball = says(bent, x), Linf(0.02)
    found = [fab(bent, x, y, ball=ball, steps=10, smallest=smallest, generator=seeded(0)) for smallest in (True, False)]
    fallen = [~correct(bent(at), y) for at in found]
    assert torch.equal(*fallen)
    assert 0 < fallen[0].sum() < 20
    assert torch.equal(found[0][~fallen[0]], x[~fallen[0]])
    assert (ball.norm(found[0] - x) <= ball.norm(found[1] - x) + 1e-7).all()


def test_square_tries_corners_and_counts_its_queries(bent: nn.Module, seeded: Seeded) -> None:
    """Every pixel at `x ± eps` or the box's end; the model sees what the notes say, and each image once before."""
    x = uniform(20, 1, 8, 8, seed=6).float()
    y, model, notes = says(bent, x), Coarse(bent), {}
    found = square(model, x, y, ball=Linf(0.02), queries=40, notes=notes, generator=seeded(0))
    ends = torch.stack([(x - 0.02).clamp_min(0), (x + 0.02).clamp_max(1)])
    assert (found == ends).any(0).all()
    assert model.asked == 20 + int(notes["queries"].sum())
    fallen = ~correct(model(found), y)
    assert (notes["queries"][~fallen] == 40).all()
    assert 0 < fallen.sum() < 20


@pytest.mark.parametrize("ball", [Linf(0.1), L2(1.5), L1(20.0)], ids=["Linf", "L2", "L1"])
def test_square_needs_no_gradient(ball: Ball, bent: nn.Module, seeded: Seeded) -> None:
    """It breaks a model that rounds its images, on which gradients find nothing."""
    model, x = Coarse(bent), uniform(8, 1, 8, 8, seed=6).float()
    y = says(model, x)
    start = margin(model(x), y)
    found = margin(model(square(model, x, y, ball=ball, queries=300, generator=seeded(0))), y)
    assert (found < start).all()
    assert (found < 0).any()


def test_square_goes_on_from_a_start(bent: nn.Module, seeded: Seeded) -> None:
    """It ends no worse than where it was told to begin."""
    x = uniform(8, 1, 8, 8, seed=6).float()
    y, ball = says(bent, x), Linf(0.01)
    begun = apgd(bent, x, y, ball=ball, steps=20, generator=seeded(0))
    found = square(bent, x, y, ball=ball, queries=20, start=begun, generator=seeded(0))
    assert (margin(bent(found), y) <= margin(bent(begun), y) + 1e-6).all()


def test_the_ensemble_says_what_broke_each_image(bent: nn.Module, seeded: Seeded) -> None:
    """A name where the returned image is misclassified, and only there; `clean` where it was so before."""
    x = uniform(20, 1, 8, 8, seed=6).float()
    y = says(bent, x)
    y[:2] = (y[:2] + 1) % 5
    notes: dict[str, Any] = {}
    found = ensemble(bent, x, y, ball=Linf(0.015), steps=5, queries=50, notes=notes, generator=seeded(0))
    broken = ~correct(bent(found), y)
    assert (broken.numpy() == (notes["broken_by"] != "")).all()
    assert ((notes["broken_by"] == "clean") == (np.arange(20) < 2)).all()
    assert torch.equal(found[:2], x[:2])
    assert 2 < broken.sum() < 20


def test_each_stage_sees_what_still_stands_and_is_not_believed(
    bent: nn.Module, monkeypatch: pytest.MonkeyPatch, seeded: Seeded
) -> None:
    """Images outside ball or box break nothing; the fallen are not handed on."""
    images = uniform(3, 1, 8, 8, seed=6).float()
    y, seen = says(bent, images), []
    ball = Linf(0.3)
    fallen = apgd(bent, images, y, ball=ball, generator=seeded(0))
    assert not correct(bent(fallen), y).any()

    def stage(make: Callable[[Images], Images]) -> Attack:
        def attack(x: Images, y: Labels, *, ball: Ball, generator: torch.Generator) -> Images:
            del y, ball, generator
            seen.append(len(x))
            return make(x)

        return attack

    made = {
        "too far": lambda _: 1 - images.round(),
        "no image": lambda x: x + 0.2 * torch.where(x > 0.5, 1, -1),
        "first": lambda x: torch.cat([fallen[:1], x[1:]]),
        "rest": lambda _: fallen[1:],
        "nothing": lambda x: x,
    }
    monkeypatch.setattr(stages, "_stages", lambda *_: [(name, stage(make)) for name, make in made.items()])
    notes: dict[str, Any] = {}
    found = ensemble(bent, images, y, ball=ball, notes=notes)
    assert seen == [3, 3, 3, 2]
    assert list(notes["broken_by"]) == ["first", "rest", "rest"]
    assert torch.equal(found, fallen)


def test_a_class_that_is_ruled_out_protects_nobody(bent: nn.Module, seeded: Seeded) -> None:
    """The same images fall as without it."""
    x = uniform(20, 1, 8, 8, seed=6).float()
    y = says(bent, x)
    fallen = [
        ~correct(bent(ensemble(model, x, y, ball=Linf(0.015), steps=20, queries=100, generator=seeded(0))), y)
        for model in (bent, Masked(bent))
    ]
    assert torch.equal(*fallen)
    assert 2 < fallen[0].sum() < 20


def test_logits_that_are_no_numbers_are_judged_as_evaluation_does() -> None:
    """Class 0 is right: infinities by their order, a NaN anywhere is no answer; and rounding is of the margin's two."""
    inf, nan = float("inf"), float("nan")
    falls = {
        (0.0, 1.0, -inf): True,
        (1.0, 0.0, -inf): False,
        (-inf, 1.0, 0.0): True,
        (0.0, -inf, -inf): False,
        (inf, 1.0, 0.0): False,
        (0.0, inf, 1.0): True,
        (inf, inf, 0.0): False,
        (nan, 1.0, 0.0): True,
        (2.0, nan, 0.0): True,
        (nan, nan, nan): True,
        (0.0, 1.0, -1e9): True,
        (1e8, 1e8 + 8, 0.0): False,
    }
    model, x = Says([list(logits) for logits in falls]), torch.full((len(falls), 1, 2, 2), 0.5)
    y = torch.zeros(len(falls), dtype=torch.long)
    judged = stages._judged(model, x, x, y, Linf(0.1)) > 0
    assert judged.tolist() == list(falls.values())
    assert torch.equal(judged[:-1], ~correct(model(x), y)[:-1])  # the last is wrong by no more than rounding


@pytest.mark.parametrize("ball", [Linf(0.2), L2(1.0)], ids=["Linf", "L2"])
def test_the_ensembles_map_attack_steps_as_far_as_the_ball_is_wide(ball: Ball, seeded: Seeded) -> None:
    """Where maps are linear in the pixels their largest values fall as far as the ball allows, image by image."""
    network = Network(nn.Sequential(nn.Conv2d(1, 3, 2)), nn.Linear(3, 4)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=seeded(4))
    x = torch.full((3, 1, 6, 6), 0.5, dtype=torch.float64)
    y, radii = torch.tensor([0, 1, 2]), float(ball.eps) * torch.tensor([0.2, 0.5, 1.0]).double()
    attack = dict(stages._stages(network, (), 20, 10, {}))["aai"]

    def maps(at: Tensor) -> Tensor:
        return network.class_maps(at)[torch.arange(3), y].flatten(1)

    at = x.clone().requires_grad_()
    top = maps(at).topk(8, dim=1).indices
    (slope,) = torch.autograd.grad(maps(at).gather(1, top).sum(), at)
    dual = slope.flatten(1).norm(dim=1, p=1 if isinstance(ball, Linf) else 2)
    found = attack(x, y, ball=ball.resized(radii), generator=seeded(0))
    fall = (maps(x) - maps(found)).gather(1, top).sum(1).detach()
    assert (fall <= radii * dual * (1 + 1e-9)).all()
    assert (fall >= 0.97 * radii * dual).all()


ALONE: dict[str, Attack] = {
    "apgd": partial(apgd, steps=6, restarts=2),
    "apgd_dlr": partial(apgd, steps=6, loss="dlr_targeted"),
    "fab": partial(fab, steps=6, restarts=3),
    "square": partial(square, queries=40),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("ball", [Linf(0.008), L2(0.05), L1(0.2)], ids=["Linf", "L2", "L1"])
def test_who_has_fallen_changes_no_one_elses_draws(name: str, ball: Ball, bent: nn.Module, seeded: Seeded) -> None:
    """One image relabelled, so that it is wrong from the first: the others' results stay."""
    x, model = uniform(12, 1, 8, 8, seed=6), bent.double()
    y = says(model, x)
    other = torch.cat([(y[:1] + 1) % 5, y[1:]])
    notes: list[dict[str, Any]] = [{}, {}]
    given = [{"notes": note} if name in ("fab", "square") else {} for note in notes]
    found = [
        ALONE[name](model, x, labels, ball=ball, generator=seeded(0), **more)
        for labels, more in zip((y, other), given, strict=True)
    ]
    assert torch.equal(found[1][0], x[0])
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=0, atol=1e-9)
    for key in notes[0]:
        torch.testing.assert_close(notes[0][key][1:], notes[1][key][1:], rtol=0, atol=1e-9)


def test_l1_sparsity_follows_the_authors_recursion() -> None:
    """Croce & Hein 2021: fewer pixels than 0.95 of the last checkpoint's, at first of all, keep the step whole."""
    x, d, eps = torch.zeros(1, 1, 16, 16, dtype=torch.float64), 256, 3.0
    y = torch.zeros(1, dtype=torch.long)
    walk = _begin(x, x, y, y, L1(torch.tensor([eps]).double()))
    last, step = d, eps
    for moved in (200, 150, 149, 148, 60, 60, 59, 58, 57, 57, 57, 57, 57, 20):
        walk.best = torch.zeros(1, d, dtype=torch.float64)
        walk.best[:, :moved] = 0.5
        walk.best = walk.best.view_as(x)
        _sparsify(walk)
        step = eps if moved / last < 0.95 else max(step / 1.5, eps / 10)
        last = moved
        assert float(walk.step) == pytest.approx(step)
        assert float(walk.sparsity) == pytest.approx(moved / 1.5)


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("square(start=3)", r"square\(start=3\) must be images"),
        ("ensemble(others=(1,))", r"ensemble\(others=\(1,\)\) must be networks"),
        ("ensemble(others=pgd)", "must be networks"),
    ],
)
def test_what_no_specification_can_name_is_refused(spec: str, rule: str, bent: nn.Module) -> None:
    """By option and rule, also where no types are checked."""
    attack = registry.parse(spec, "attacks")
    assert isinstance(attack, partial)
    x, y = uniform(3, 1, 8, 8, seed=6).float(), torch.zeros(3, dtype=torch.long)
    with pytest.raises(PellucidError, match=rule):
        inspect.unwrap(attack.func)(bent, x, y, **attack.keywords)
    with pytest.raises(PellucidError, match="a tensor"):
        inspect.unwrap(square)(bent, x, y, start=x[:, :, :4])


def test_images_from_other_models_come_first(bent: nn.Module, seeded: Seeded) -> None:
    """Those of the model itself break its twin that rounds, and get the credit."""
    images = uniform(3, 1, 8, 8, seed=6).float()
    y, notes = says(bent, images), {}
    ensemble(Coarse(bent), images, y, others=(bent,), notes=notes, generator=seeded(0), queries=5, steps=3)
    assert set(notes["broken_by"]) == {"transfer"}


# Beside torchattacks


def robust(attack: Attack, model: nn.Module, x: Images, y: Labels) -> int:
    """How many images stand."""
    found = attack(x, y)
    with torch.no_grad():
        return int((correct(model(found), y) & correct(model(x), y)).sum())


def beside_torchattacks(model: nn.Module, x: Images, y: Labels, *, eps: float, steps: int, queries: int) -> None:
    """No attack weaker than torchattacks' by more than one image in a hundred (two of few), the ensemble by none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = importlib.import_module("torchattacks")
    classes, ball, g = model(x[:1]).shape[1], Linf(eps), torch.Generator
    common = {"eps": eps, "seed": 0}
    pairs = {
        "apgd ce": (partial(apgd, steps=steps), peer.APGD(model, steps=steps, **common)),
        "apgd dlr": (
            partial(apgd, steps=steps, loss="dlr_targeted"),
            peer.APGDT(model, steps=steps, n_classes=classes, **common),
        ),
        "fab": (
            partial(fab, steps=steps),
            peer.FAB(model, steps=steps, multi_targeted=True, n_classes=classes, **common),
        ),
        "square": (partial(square, queries=queries), peer.Square(model, n_queries=queries, **common)),
        "ensemble": (
            partial(ensemble, steps=steps, queries=queries),
            peer.AutoAttack(model, n_classes=classes, **common),
        ),
    }
    with frozen(model):
        for name, (ours, theirs) in pairs.items():
            bound = partial(ours, model, ball=ball, generator=g().manual_seed(0))
            mine, other = robust(bound, model, x, y), robust(theirs, model, x, y)
            if name == "ensemble":
                assert mine <= other, f"{name}: {mine} of {len(x)} stand, {other} against torchattacks'"
            else:
                slack = max(2, len(x) // 100)
                assert mine - other <= slack, f"{name}: {mine} of {len(x)} stand, {other} against torchattacks'"


@pytest.mark.crosscheck
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_beside_torchattacks_on_few_images(bent: nn.Module) -> None:
    """A random network and its own predictions, in a ball in which about half of the images fall."""
    x = uniform(40, 1, 8, 8, seed=6).float()
    beside_torchattacks(bent, x, says(bent, x), eps=0.012, steps=10, queries=200)


@pytest.mark.slow
@pytest.mark.crosscheck
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["adv", "int", "ig", "normal"])
def test_beside_torchattacks_on_the_published_networks(name: str, real_data: Path, tmp_path: Path) -> None:
    """The 200 images of Boopathy et al. 2020 at eps 0.3, on the networks they published."""
    source = os.environ.get("PELLUCID_REFERENCE_NETS")
    if not source or not Path(source).is_dir():
        pytest.skip("needs PELLUCID_REFERENCE_NETS, a folder of the networks published by Boopathy et al. 2020")
    del real_data
    images = load("mnist", "test")
    x, y = images.batch(subset("boopathy200", len(images)))
    import_weights(Path(source), tmp_path)
    model, _ = load_model(str(tmp_path / f"mnist_smallgap_{name}_100.safetensors"), example=x[:4])
    beside_torchattacks(model, x, y, eps=0.3, steps=100, queries=5000)
