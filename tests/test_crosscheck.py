"""The same numbers as captum, foolbox, torchattacks and scipy."""

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pellucid import metrics
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.minimal import cw, fmn
from pellucid.attacks.saliency import jsma
from pellucid.balls import L1, L2, Ball, Linf
from pellucid.data import load
from pellucid.interpreters.activations import gradcam
from pellucid.interpreters.gradients import gradient, integrated_gradients, smoothgrad
from pellucid.network import Network, softplus

pytestmark = [
    pytest.mark.crosscheck,
    # foolbox and torchattacks call what newer libraries deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning:captum"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning"),
]

EPS, STEP, STEPS = 0.2, 0.05, 7


def peer(name: str) -> ModuleType:
    """Another library, without what it warns of on import. `make test` installs it: a missing one is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@pytest.fixture
def smooth(tiny: Network) -> Network:
    """Without kinks, so that rounding never decides a sign by itself."""
    return softplus(tiny, beta=3.0).eval()


@pytest.fixture
def classes() -> Tensor:
    """One class per image."""
    return torch.tensor([[0], [3], [1]])


def close(ours: Tensor, theirs: Tensor, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=atol)


def test_gradient_is_captums_saliency(smooth: Network, images: Tensor, classes: Tensor) -> None:
    """Saliency with its sign."""
    theirs = peer("captum.attr").Saliency(smooth).attribute(images, target=classes[:, 0], abs=False)
    close(gradient(smooth, images, classes)[:, 0], theirs, atol=1e-7)


@pytest.mark.parametrize(("rule", "method"), [("right", "riemann_right"), ("midpoint", "riemann_middle")])
def test_integrated_gradients_are_captums(
    rule: str, method: str, smooth: Network, images: Tensor, classes: Tensor
) -> None:
    """Both Riemann sums, from a baseline that is not black."""
    theirs = (
        peer("captum.attr")
        .IntegratedGradients(smooth)
        .attribute(images, baselines=0.25, target=classes[:, 0], n_steps=13, method=method)
    )
    ours = integrated_gradients(smooth, images, classes, baseline=0.25, steps=13, rule=rule)  # pyright: ignore
    close(ours[:, 0], theirs.float(), atol=1e-6)


def test_smoothgrad_is_captums_noise_tunnel(
    smooth: Network,
    images: Tensor,
    classes: Tensor,
    seeded: Callable[[int], torch.Generator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With our noise handed to captum in its layout: every image's samples side by side."""
    captum = peer("captum.attr")
    tunnel = importlib.import_module("captum.attr._core.noise_tunnel")
    count, sigma = 6, 0.15
    ours = smoothgrad(smooth, images, classes, samples=count, sigma=sigma, generator=seeded(4))
    noise = torch.empty(count, *images.shape).normal_(generator=seeded(4))
    spread = images.flatten(1).amax(1) - images.flatten(1).amin(1)
    scaled = (sigma * spread[:, None, None, None] * noise).transpose(0, 1).flatten(0, 1)

    class Torch:
        """torch, but for its normal numbers."""

        normal = staticmethod(lambda _mean, std: scaled.reshape(std.shape))

        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    monkeypatch.setattr(tunnel, "torch", Torch())
    theirs = captum.NoiseTunnel(captum.Saliency(smooth)).attribute(
        images, nt_type="smoothgrad", nt_samples=count, stdevs=1.0, target=classes[:, 0], abs=False
    )
    close(ours[:, 0], theirs, atol=1e-6)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_gradcam_is_captums(layer: str, smooth: Network, images: Tensor, classes: Tensor) -> None:
    """LayerGradCam, which is signed too, at two layers."""
    model = nn.Sequential(*smooth.trunk.children(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), smooth.head)
    theirs = peer("captum.attr").LayerGradCam(model, model[int(layer)]).attribute(images, target=classes[:, 0])
    close(gradcam(model, images, classes, layer=layer), theirs, atol=1e-6)


def goal(labels: Tensor, targeted: bool) -> Tensor:
    return (labels + 1) % 5 if targeted else labels


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("ball", [Linf(EPS), L2(1.5)], ids=["Linf", "L2"])
def test_pgd_is_foolboxs(ball: Ball, targeted: bool, smooth: Network, images: Tensor, labels: Tensor) -> None:
    """The last iterate of as many steps from the image itself."""
    foolbox = peer("foolbox")
    y = goal(labels, targeted)
    kind = "LinfPGD" if isinstance(ball, Linf) else "L2PGD"
    attack = getattr(foolbox.attacks, kind)(abs_stepsize=STEP, steps=STEPS, random_start=False)
    criterion = (foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification)(y)
    model = foolbox.PyTorchModel(smooth, bounds=(0, 1), device="cpu")
    theirs = attack.run(model, images, criterion, epsilon=ball.eps)
    ours = pgd(
        smooth,
        images,
        y,
        ball=ball,
        steps=STEPS,
        step_size=STEP,
        random_start=False,
        keep_best=False,
        targeted=targeted,
    )
    assert (ours - images).abs().max() > STEP / 2
    close(ours, theirs)


def test_fgsm_is_foolboxs_and_torchattacks(smooth: Network, images: Tensor, labels: Tensor) -> None:
    """One step of eps along the sign."""
    foolbox, torchattacks = peer("foolbox"), peer("torchattacks")
    ours = fgsm(smooth, images, labels, ball=Linf(EPS))
    model = foolbox.PyTorchModel(smooth, bounds=(0, 1), device="cpu")
    close(ours, foolbox.attacks.LinfFastGradientAttack().run(model, images, labels, epsilon=EPS))
    close(ours, torchattacks.FGSM(smooth, eps=EPS)(images, labels))
    step = foolbox.attacks.L2FastGradientAttack().run(model, images, labels, epsilon=1.5)
    close(fgsm(smooth, images, labels, ball=L2(1.5)), step)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("ball", [Linf(EPS), L2(1.5)], ids=["Linf", "L2"])
def test_pgd_is_torchattacks(ball: Ball, targeted: bool, smooth: Network, images: Tensor, labels: Tensor) -> None:
    """The last iterate of as many steps from the image itself."""
    torchattacks = peer("torchattacks")
    kind = torchattacks.PGD if isinstance(ball, Linf) else torchattacks.PGDL2
    attack = kind(smooth, eps=ball.eps, alpha=STEP, steps=STEPS, random_start=False)
    y = goal(labels, targeted)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    ours = pgd(
        smooth,
        images,
        y,
        ball=ball,
        steps=STEPS,
        step_size=STEP,
        random_start=False,
        keep_best=False,
        targeted=targeted,
    )
    close(ours, attack(images, y))


@pytest.fixture(scope="module")
def reader() -> Network:
    """A classifier of digits of 14 x 14 pixels, trained for a second."""
    trunk = nn.Sequential(nn.Conv2d(1, 8, 4, stride=2), nn.ReLU(), nn.Conv2d(8, 24, 5, stride=2))
    network, generator = Network(trunk, nn.Linear(24, 10)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    x, y = load("digits", "train").batch(torch.arange(1000))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(100):
        rows = slice(50 * (step % 20), 50 * (step % 20) + 50)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[rows, :, ::2, ::2]), y[rows]).backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits(reader: Network) -> tuple[Tensor, Tensor]:
    """Digits it reads correctly. Dimmed: torchattacks' JSMA leaves out pixels of 0.99 and more."""
    x, y = load("digits", "test").batch(torch.arange(200))
    x = 0.98 * x[:, :, ::2, ::2]
    right = reader(x).argmax(1) == y
    assert right.sum() > 100
    return x[right], y[right]


def test_jsma_is_torchattacks(reader: Network, digits: tuple[Tensor, Tensor]) -> None:
    """Bit for bit where ours gets there: where no pair helps, torchattacks goes on with an arbitrary one."""
    x, y = (v[:20] for v in digits)
    notes: dict[str, Any] = {}
    ours = jsma(reader, x, y, gamma=0.25, notes=notes)
    theirs = peer("torchattacks").JSMA(reader, theta=1.0, gamma=0.25)(x.clone(), y)
    reached = notes["reached"]
    assert reached.sum() >= 10
    assert torch.equal(ours[reached], theirs[reached])
    assert not (reader(theirs[~reached]).argmax(1) == notes["target"][~reached]).any()


@pytest.mark.parametrize("name", ["L1PGD", "SparseL1DescentAttack"])
@pytest.mark.parametrize("eps", [2.0, 3.0, 6.0])
def test_l1_pgd_is_no_weaker_than_foolboxs(
    name: str, eps: float, reader: Network, digits: tuple[Tensor, Tensor]
) -> None:
    """In as many steps the margins are smaller on average and no more images stand, whichever step theirs takes.

    foolbox 3.3.4 lets images of SparseL1Descent out of the ball (where one image of a batch is outside, it moves those
    inside outwards): they are put back first.
    """
    foolbox, (x, y) = peer("foolbox"), digits
    model = foolbox.PyTorchModel(reader, bounds=(0, 1), device="cpu")
    ours = metrics.margin(reader(pgd(reader, x, y, ball=L1(eps), steps=40, random_start=False)), y)
    for size in (0.05, 0.2, 0.5):
        attack = getattr(foolbox.attacks, name)(steps=40, rel_stepsize=size, random_start=False)
        found = attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=eps)
        theirs = metrics.margin(reader(L1(eps).project(found, x)), y)
        assert ours.mean() <= theirs.mean()
        assert (ours > 0).sum() <= (theirs > 0).sum()


def test_cw_is_no_weaker_than_foolboxs(reader: Network, digits: tuple[Tensor, Tensor]) -> None:
    """The median L2 norm, over as many iterations and searches at the same rate, to 1 %."""
    foolbox, (x, y) = peer("foolbox"), (v[:20] for v in digits)
    model = foolbox.PyTorchModel(reader, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(steps=150, binary_search_steps=5, stepsize=0.05, initial_const=0.1)
    theirs = attack.run(model, x, foolbox.criteria.Misclassification(y))
    notes: dict[str, Any] = {}
    cw(reader, x, y, iterations=150, search=5, learning_rate=0.05, c=0.1, notes=notes)
    assert notes["found"].all()
    assert notes["eps"].median() <= 1.01 * L2(1.0).norm(theirs - x).median()


@pytest.mark.parametrize(("name", "ball"), [("LInf", Linf(1.0)), ("L2", L2(14.0)), ("L1", L1(196.0))])
def test_fmn_is_no_weaker_than_foolboxs(name: str, ball: Ball, reader: Network, digits: tuple[Tensor, Tensor]) -> None:
    """The median norm in as many steps. foolbox 3.3.4 does not project in L2 (its factor is a norm over itself)."""
    foolbox, (x, y) = peer("foolbox"), (v[:20] for v in digits)
    model = foolbox.PyTorchModel(reader, bounds=(0, 1), device="cpu")
    theirs = getattr(foolbox.attacks, f"{name}FMNAttack")(steps=100).run(
        model, x, foolbox.criteria.Misclassification(y)
    )
    norms = torch.where(reader(theirs).argmax(1) != y, ball.norm(theirs - x), torch.inf)
    notes: dict[str, Any] = {}
    fmn(reader, x, y, ball=ball, steps=100, notes=notes)
    assert notes["found"].all()
    assert notes["eps"].median() <= norms.median()


@pytest.mark.parametrize("d", [50, 784])
def test_kendall_tau_is_scipys(d: int, generator: torch.Generator) -> None:
    """On maps with and without ties."""
    a, b = (torch.empty(5, d).normal_(generator=generator) for _ in range(2))
    for one, two in ((a, b), (a.round(), b.round()), (a, a + 0.1 * b)):
        expected = [scipy.stats.kendalltau(u.numpy(), v.numpy())[0] for u, v in zip(one, two, strict=True)]
        close(metrics.kendall_tau(one, two), torch.tensor(expected, dtype=torch.float32), atol=1e-6)
