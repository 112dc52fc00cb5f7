"""FGSM, TGSM and PGD: underflow seen and repaired, survivors, targets, the L1 step."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.attacks.gradient import fgsm, iterated_tgsm, pgd, tgsm
from pellucid.balls import L1, L2, Ball, Linf
from pellucid.errors import PellucidError
from pellucid.metrics import log_odds, margin
from pellucid.network import Network
from pellucid.search import ascend
from pellucid.targets import choose

Seeded = Callable[[int], torch.Generator]
BALLS = [Linf(0.1), L2(0.8), L1(6.0)]
RADII = {Linf: 0.1, L2: 1.5, L1: 15.0}


class Shifted(nn.Module):
    """A model whose logits are moved: all by as much, so that half precision drowns, or those of one class: a lie."""

    def __init__(self, model: nn.Module, shift: float, lie: float = 0.0) -> None:
        super().__init__()
        self.model, self.shift, self.lie = model, shift, lie

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        half = logits.dtype == torch.bfloat16
        return logits + self.shift if not half or self.shift else self._told(logits.float())

    def _told(self, logits: Tensor) -> Tensor:
        """Only in half precision: class 1 is more likely, or less, than it is."""
        return torch.cat([logits[:, :1], logits[:, 1:2] + self.lie, logits[:, 2:]], 1)


class Scaled(nn.Module):
    """A model whose logits are many times as large, so that its losses underflow; and who counts its images."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale, self.images = model, scale, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.scale * self.model(x)


def perceptron(classes: int) -> nn.Module:
    """A network with curvature, that answers with each of its classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, classes))
    generator = torch.Generator().manual_seed(classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
    return model


@pytest.fixture
def crowd() -> tuple[nn.Module, Tensor, Tensor]:
    """A model of five classes and thirty images, most of them classified as labelled."""
    model = perceptron(5)
    x = torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    y[-4:] = (y[-4:] + 1) % 5  # the last have fallen already; the first have, below, the smallest radii
    return model, x, y


def test_underflow_is_noted_kept_and_repaired(images: Tensor) -> None:
    """With two classes CE's gradient has the same direction at any scale: repaired, the confident model's too."""
    model = perceptron(2)
    y = model(images).argmax(1)
    confident = Scaled(model, 200 / float(margin(model(images), y).detach().min()))
    notes: dict[str, Any] = {}
    kept = fgsm(confident, images, y, ball=Linf(0.1), notes=notes)
    assert notes["gradient_underflow"].all()
    assert torch.equal(kept, images)
    repaired = fgsm(confident, images, y, ball=Linf(0.1), underflow="repair")
    assert (repaired != images).flatten(1).any(1).all()
    torch.testing.assert_close(repaired, fgsm(model, images, y, ball=Linf(0.1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_a_confident_model_does_not_pass_for_robust(loss: Literal["ce", "margin"]) -> None:
    """PGD fells the images of a model and of the same model with larger logits; with underflow kept, not those."""
    model, x = perceptron(2), torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    confident = Scaled(model, 3000)
    notes: dict[str, Any] = {}
    options: dict[str, Any] = {"ball": Linf(0.02), "steps": 10, "loss": loss, "random_start": False}

    def fallen(attacked: nn.Module, **more: Any) -> Tensor:
        return margin(model(pgd(attacked, x, y, **options, **more)), y) < 0

    assert torch.equal(fallen(confident, notes=notes), fallen(model))
    assert fallen(model).any()
    assert notes["gradient_underflow"].any()
    blind = fallen(confident, underflow="keep")
    assert (blind.sum() < fallen(model).sum()) == (loss == "ce")


@pytest.mark.parametrize("ball", BALLS, ids=["Linf", "L2", "L1"])
def test_repair_changes_nothing_where_nothing_underflows(ball: Ball, tiny: Network, images: Tensor) -> None:
    """The gradients of CE and of the log-odds have one direction."""
    network, x, y = tiny.double(), images.double(), torch.tensor([0, 3, 1])
    options: dict[str, Any] = {"ball": ball, "steps": 4, "random_start": False, "keep_best": False}
    kept, repaired = (pgd(network, x, y, underflow=how, **options) for how in ("keep", "repair"))
    torch.testing.assert_close(kept, repaired, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.1, 1.0, 20.0]))
def test_cross_entropy_is_the_softplus_of_the_negative_log_odds(seed: int, scale: float) -> None:
    """`CE = log(1 + exp(-log_odds))`."""
    logits = scale * torch.empty(4, 6, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))
    y = torch.tensor([0, 2, 5, 3])
    torch.testing.assert_close(F.softplus(-log_odds(logits, y)), F.cross_entropy(logits, y, reduction="none"))


def test_the_margin_loss_by_its_definition(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """One step along the sign of the gradient of max_{j≠y} f_j - f_y."""
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-margin(tiny(x), labels).sum(), x)
    expected = (images + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(tiny, images, labels, ball=Linf(0.1), loss="margin"), expected)


@pytest.mark.parametrize("ball", [Linf(0.03), *(kind(torch.linspace(0, top, 30)) for kind, top in RADII.items())])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("targeted", [False, True])
def test_stopping_when_fooled_gives_the_same_verdicts(
    ball: Ball, restarts: int, targeted: bool, crowd: tuple[nn.Module, Tensor, Tensor], seeded: Seeded
) -> None:
    """Image by image, over the same random numbers."""
    model, x, y = crowd
    goal = (y + 1) % 5 if targeted else y
    options: dict[str, Any] = {"ball": ball, "steps": 8, "restarts": restarts, "targeted": targeted}
    verdicts = [
        model(pgd(model, x, goal, stop_when_fooled=stop, generator=seeded(3), **options)).argmax(1) == goal
        for stop in (False, True)
    ]
    assert torch.equal(*verdicts)
    assert verdicts[0].any()
    assert not verdicts[0].all()


def test_restarts_attack_only_what_stands(crowd: tuple[nn.Module, Tensor, Tensor], seeded: Seeded) -> None:
    """Far fewer images pass the network."""
    model, x, y = crowd
    counted = Scaled(model, 1.0)
    passes = []
    for stop in (False, True):
        counted.images = 0
        pgd(counted, x, y, ball=Linf(0.3), steps=10, restarts=4, stop_when_fooled=stop, generator=seeded(0))
        passes.append(counted.images)
    assert passes[1] < 0.5 * passes[0]


def test_stopping_goes_with_the_best_iterate(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """The last iterate cannot be had of an image that has left."""
    with pytest.raises(PellucidError, match="keep_best"):
        pgd(tiny, images, labels, stop_when_fooled=True, keep_best=False)


@pytest.mark.parametrize("goal", ["next", "random", "runner_up", "least_likely", 2])
def test_tgsm_is_fgsm_towards_the_goal(
    goal: Any, tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded
) -> None:
    """`x - eps sign ∇CE(f(x), t)`, t by any rule; `iterated_tgsm` of one such step is the same."""
    t = choose(goal, tiny, images, labels, seeded(1))
    notes: dict[str, Any] = {}
    found = tgsm(tiny, images, labels, target=goal, ball=Linf(0.1), notes=notes, generator=seeded(1))
    assert torch.equal(found, fgsm(tiny, images, t, ball=Linf(0.1), targeted=True))
    assert torch.equal(notes["target"], t)
    once = iterated_tgsm(tiny, images, labels, target=goal, steps=1, step_size=0.1, generator=seeded(1))
    torch.testing.assert_close(once, found)


@pytest.mark.parametrize("eps", [None, 0.15])
def test_iterated_tgsm_by_its_definition(eps: float | None, tiny: Network, images: Tensor, labels: Tensor) -> None:
    """`x' <- clip(x' - 0.1 sign ∇CE(f(x'), y + 1))`, in a ball or in the box alone."""
    network, x = tiny.double(), images.double()
    at = x.clone()
    for _ in range(4):
        at.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(at), (labels + 1) % 5, reduction="sum"), at)
        at = at.detach() - 0.1 * gradient.sign()
        at = (at if eps is None else torch.min(torch.max(at, x - eps), x + eps)).clamp(0, 1)
    found = iterated_tgsm(network, x, labels, steps=4, ball=None if eps is None else Linf(eps))
    torch.testing.assert_close(found, at, rtol=0, atol=1e-12)
    assert ((found - x).abs().max() > 0.3) == (eps is None)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), eps=st.floats(0, 20), spread=st.floats(0, 5))
def test_a_sparse_l1_step_is_a_unit_step(seed: int, eps: float, spread: float) -> None:
    """‖d‖_1 = 1 where the gradient has no zeros, on round(spread eps) pixels: the largest, by the gradient's sign."""
    g = torch.empty(3, 2, 4, 4, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))
    d = L1(eps).sparse(g, spread=spread)
    count = min(max(1, round(spread * eps)), 32)
    torch.testing.assert_close(L1(1.0).norm(d), torch.ones(3, dtype=torch.float64))
    assert ((d != 0).flatten(1).sum(1) == count).all()
    assert (d * g >= 0).all()
    rest = g.abs().masked_fill(d != 0, 0).flatten(1).amax(1)
    assert (g.abs().masked_fill(d == 0, torch.inf).flatten(1).amin(1) >= rest).all()
    assert torch.equal(L1(eps).sparse(torch.zeros_like(g), spread=spread), torch.zeros_like(g))


def test_an_unknown_loss_is_refused(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Also where no specification has been read."""
    unchecked: Any = getattr(fgsm, "__wrapped__", fgsm)
    with pytest.raises((PellucidError, TypeError), match="ce"):
        unchecked(tiny, images, labels, loss="hinge")


def test_a_search_in_half_precision_fells_about_the_same_images(tiny: Network, seeded: Seeded) -> None:
    """Verdicts in fp32 of images found under bf16: within 5 % of those of the search in fp32, in the same ball.

    Of 600 images: processors round differently, and of 60 chance alone can make it 4.
    """
    x = torch.rand(600, 1, 16, 16, generator=seeded(0))
    y = tiny(x).argmax(1)
    attack = partial(pgd, tiny, x, y, ball=Linf(0.36), steps=10, random_start=False)
    single, half = attack(), attack(precision="bf16")
    assert half.dtype == torch.float32
    assert (half - x).abs().max() <= 0.36 + 1e-6
    assert not torch.equal(single, half)  # or it was not tried
    fallen = [margin(tiny(found), y) < 0 for found in (single, half)]
    assert 50 < int(fallen[0].sum()) < 550
    assert abs(int(fallen[0].sum()) - int(fallen[1].sum())) <= 30


@pytest.mark.parametrize("stop", [False, True])
def test_half_precision_may_not_say_who_falls(stop: bool, crowd: tuple[nn.Module, Tensor, Tensor]) -> None:
    """A hundred added to all logits rounds bf16 margins to halves: who falls, and which iterate is best, stays fp32's.

    A hundred changes nothing in fp32. Under bf16 the gradients are coarser, which costs an image or two.
    """
    model, x, _ = crowd
    y = model(x).argmax(1)
    loud = Shifted(model, 100.0)
    attack = partial(pgd, loud, x, y, ball=Linf(0.02), steps=12, random_start=False, stop_when_fooled=stop)
    single, half = (margin(model(attack(precision=how)), y) for how in ("fp32", "bf16"))
    assert 5 < int((single < 0).sum()) < 25
    assert abs(int((half < 0).sum()) - int((single < 0).sum())) <= 2


@pytest.mark.parametrize("lie", [-20.0, 20.0])
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("restarts", [1, 3])
def test_what_bf16_says_of_verdicts_is_not_believed(
    lie: float, stop: bool, restarts: int, crowd: tuple[nn.Module, Tensor, Tensor], seeded: Seeded
) -> None:
    """Half precision that sees every image fallen at once, or none ever, moves no bit of the result."""
    model, x, _ = crowd
    x = x[model(x).argmax(1) == 1]
    y = torch.ones(len(x), dtype=torch.long)
    options: dict[str, Any] = {"ball": Linf(0.02), "steps": 12, "restarts": restarts, "stop_when_fooled": stop}

    def found(lie: float) -> Tensor:
        return pgd(Shifted(model, 0.0, lie), x, y, precision="bf16", generator=seeded(2), **options)

    honest = found(0.0)
    fallen = margin(model(honest), y) < 0
    assert fallen.any()
    assert not fallen.all()
    assert torch.equal(found(lie), honest)


def test_a_judge_has_the_last_word(crowd: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Asked of the best of every five steps by the loss's own score, and of the last iterate; the best is of those."""
    model, x, y = crowd
    asked: list[Tensor] = []

    def loss(at: Tensor) -> Tensor:
        return -margin(model(at), y)

    def judge(at: Tensor) -> Tensor:
        asked.append(at)
        return margin(model(at), y)  # the very opposite

    found = ascend(loss, x, Linf(0.05), steps=12, step_size=0.01, judge=judge)
    assert len(asked) == 4
    worth = torch.stack([margin(model(at), y) for at in asked])
    assert torch.equal(margin(model(found), y), worth.amax(0))
