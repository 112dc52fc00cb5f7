"""The networks that the authors of Boopathy et al. 2020 published give the numbers they printed.

Needs `PELLUCID_REFERENCE_NETS`, a folder of their `networks/*.pkl`, and `PELLUCID_DATA` with MNIST and CIFAR-10. The
authors' protocol throughout: 200 test images, no random start, 200 steps of 0.01, the last iterate; one image is .005.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pellucid import registry
from pellucid.attacks.gradient import pgd
from pellucid.attacks.interpretation import aai
from pellucid.attacks.sneaking import isa
from pellucid.balls import Linf
from pellucid.data import load, subset
from pellucid.import_weights import import_weights
from pellucid.interpreters.activations import cam
from pellucid.metrics import correct, kendall_tau, margin
from pellucid.models import load_model
from pellucid.network import frozen
from pellucid.search import ascend
from pellucid.stealth import sneaking_scores
from pellucid.types import Images, Labels

pytestmark = pytest.mark.slow

ONE_IMAGE = 0.005 + 1e-6  # fp32 has 0.525 two parts in a hundred million too low

Subset = dict[str, tuple[Images, Labels]]

MNIST_EPS = (0, 0.05, 0.1, 0.2, 0.3, 0.35, 0.4)
# Boopathy et al. 2020, Table 3, MNIST Small, as re-evaluated to the last digit.
TABLE_3_MNIST = {
    "normal": (1.000, 0.530, 0.045, 0.000, 0.000, 0.000, 0.000),
    "adv": (0.980, 0.960, 0.940, 0.925, 0.890, 0.010, 0.000),
    "ig": (0.985, 0.950, 0.895, 0.410, 0.005, 0.000, 0.000),
    "int": (0.935, 0.930, 0.905, 0.840, 0.790, 0.180, 0.140),
}
CIFAR_EPS = (0, 2, 4, 6, 8)  # of 255
TABLE_A1_CIFAR = {
    "normal": (0.650, 0.015, 0.000, 0.000, 0.000),
    "adv": (0.505, 0.470, 0.380, 0.330, 0.285),
    "int": (0.525, 0.435, 0.360, 0.295, 0.230),
}
# Table 2, top-8 AAI on CAM, at eps .05, .1, .2, .3. None: fewer than 100 of the 200 images keep their class.
TABLE_2 = {
    "normal": (0.907, None, None, None),
    "adv": (0.978, 0.955, 0.910, 0.857),
    "int": (0.982, 0.968, 0.941, 0.913),
    "ig": (0.958, 0.894, 0.662, 0.278),
}


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published networks, imported."""
    source = os.environ.get("PELLUCID_REFERENCE_NETS")
    if not source or not Path(source).is_dir():
        pytest.skip("needs PELLUCID_REFERENCE_NETS, a folder of the networks published by Boopathy et al. 2020")
    out = tmp_path_factory.mktemp("reference")
    import_weights(Path(source), out)
    return out


@pytest.fixture
def images(real_data: Path) -> Subset:
    """The authors' 200 test images of each set."""
    assert real_data.is_dir()
    found = {}
    for name in ("mnist", "cifar10"):
        test = load(name, "test")
        found[name] = test.batch(subset("boopathy200", len(test)))
    return found


def network(networks: Path, name: str) -> nn.Module:
    path = networks / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {name}.pkl in PELLUCID_REFERENCE_NETS")
    return load_model(path)[0]


def accuracy(model: nn.Module, batch: tuple[Images, Labels], eps: float, *, keep_best: bool = False) -> float:
    x, y = batch
    ball = Linf(eps)
    options: dict[str, Any] = {
        "steps": 200,
        "step_size": 0.01,
        "random_start": False,
        "underflow": "keep",
    }  # as the authors did
    attacked = pgd(model, x, y, ball=ball, keep_best=keep_best, **options)
    with torch.no_grad():
        return correct(model(attacked), y).float().mean().item()


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("method", TABLE_3_MNIST)
def test_table_3_mnist_small(method: str, keep_best: bool, networks: Path, images: Subset) -> None:
    """Also with the library's default, which returns the best iterate and not the last."""
    model = network(networks, f"mnist_smallgap_{method}_100")
    found = [accuracy(model, images["mnist"], eps, keep_best=keep_best) for eps in MNIST_EPS]
    assert found == pytest.approx(TABLE_3_MNIST[method], abs=ONE_IMAGE)


@pytest.mark.parametrize("method", TABLE_A1_CIFAR)
def test_table_a1_cifar_small(method: str, networks: Path, images: Subset) -> None:
    model = network(networks, f"cifar_smallgap_{method}_200")
    found = [accuracy(model, images["cifar10"], eps / 255) for eps in CIFAR_EPS]
    assert found == pytest.approx(TABLE_A1_CIFAR[method], abs=ONE_IMAGE)


@pytest.mark.parametrize(("method", "expected"), [("normal", 0.0), ("intadv", 0.690)])
def test_table_a1_mnist_pool(method: str, expected: float, networks: Path, images: Subset) -> None:
    model = network(networks, f"mnist_pool_{method}_100")
    assert accuracy(model, images["mnist"], 0.3) == pytest.approx(expected, abs=ONE_IMAGE)


@pytest.mark.parametrize(("method", "clean"), [("normal", 0.765), ("int", 0.735)])
def test_table_3_cifar_wresnet_clean(method: str, clean: float, networks: Path, images: Subset) -> None:
    x, y = images["cifar10"]
    with torch.no_grad():
        logits = network(networks, f"cifar_wresnet_{method}_200")(x)
    assert correct(logits, y).float().mean().item() == pytest.approx(clean, abs=1e-6)


def test_table_3_cifar_wresnet_int_at_8(networks: Path, images: Subset) -> None:
    model = network(networks, "cifar_wresnet_int_200")
    assert accuracy(model, images["cifar10"], 8 / 255) == pytest.approx(0.270, abs=ONE_IMAGE)


def test_wresnet_normals_last_robustness_is_underflow(networks: Path, images: Subset) -> None:
    """The paper prints .060 at 8/255: twelve images, which are not robust; cross-entropy has no gradient there in fp32.

    With margins of some 100 nats `1 - p` is 0, so PGD leaves seven of them as they are and .040 survive; flushing
    subnormal numbers to zero, as TensorFlow does, makes it eleven and .055. Ascent of the margin takes them all.
    """
    model = network(networks, "cifar_wresnet_normal_200")
    with torch.no_grad():
        margins = margin(model(images["cifar10"][0]), images["cifar10"][1])
    surest = margins.argsort(descending=True)[:20]
    x, y = (part[surest] for part in images["cifar10"])
    ball = Linf(8 / 255)
    options: dict[str, Any] = {"steps": 3, "step_size": 0.01, "random_start": False, "keep_best": False}
    attacked = pgd(model, x, y, ball=ball, underflow="keep", **options)
    assert torch.equal((attacked == x).flatten(1).all(1), margins[surest] > 100)
    with frozen(model):
        attacked = ascend(lambda at: -margin(model(at), y), x, ball, steps=40, step_size=0.01)
    repaired = pgd(model, x, y, ball=ball, steps=40, step_size=0.01)
    with torch.no_grad():
        assert not correct(model(attacked), y).any()
        assert not correct(model(repaired), y).any()


@pytest.mark.parametrize("method", TABLE_2)
def test_table_2_mnist_small(method: str, networks: Path, images: Subset) -> None:
    """Kendall's tau of the true class's CAM, over the images whose prediction the attack left as it was."""
    x, y = images["mnist"]
    model = network(networks, f"mnist_smallgap_{method}_100")
    for eps, expected in zip((0.05, 0.1, 0.2, 0.3), TABLE_2[method], strict=True):
        attacked = aai(model, x, y, ball=Linf(eps), reading="as_coded", generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            unchanged = model(attacked).argmax(1) == model(x).argmax(1)
            maps, other = (cam(model, at, y[:, None]).flatten(1) for at in (x, attacked))
        tau = kendall_tau(maps, other)[unchanged].mean().item()
        if expected is None:
            assert int(unchanged.sum()) < 100
        else:
            assert int(unchanged.sum()) >= 100
            assert tau == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("interpreter", ["cam", "gradcam_plus_plus(reading='as_coded')"])
def test_table_1_pattern(interpreter: str, networks: Path, images: Subset) -> None:
    """As-coded ISA on the normal network: of 1, 2 and all classes, 2-class l1 has the largest NDS and smallest NSL.

    The paper has 3.07 / 3.27 / 2.53 and .081 / .022 / .041 for CAM; which images and radii it took is not known.
    """
    model = network(networks, "mnist_smallgap_normal_100")
    x, y = images["mnist"]
    found = {}
    for classes in (1, 2, "all"):
        attack = registry.parse(f"isa(interpreter={interpreter}, classes={classes!r}, reading='as_coded')", "attacks")
        notes: dict[str, Any] = {}
        attack(model, x, y, notes=notes, generator=torch.Generator().manual_seed(123))
        found[classes] = sneaking_scores({name: value.numpy() for name, value in notes.items()})
    nds = {classes: scores["nds_as_coded"] for classes, scores in found.items()}
    nsl = {classes: scores["nsl_as_coded"] for classes, scores in found.items()}
    print(f"{interpreter}: NDS {nds}, NSL {nsl}")  # noqa: T201
    assert max(nds, key=lambda classes: nds[classes]) == 2
    assert min(nsl, key=lambda classes: nsl[classes]) == 2
    if interpreter == "cam":
        assert all(scores["bound_holds"] for scores in found.values())
        paper = {1: (3.0723, 0.0810), 2: (3.2672, 0.0223), "all": (2.5289, 0.0414)}
        for classes, (theirs, slope) in paper.items():
            assert nds[classes] == pytest.approx(theirs, rel=0.15)
            assert nsl[classes] == pytest.approx(slope, rel=0.2)


@pytest.mark.parametrize("name", ["normal", "adv", "int", "ig"])
def test_proposition_1_on_the_published_networks(name: str, networks: Path, images: Subset) -> None:
    """The attack that minimises the two-class discrepancy never brings it under half the clean margin."""
    model = network(networks, f"mnist_smallgap_{name}_100")
    x, y = (part[:50] for part in images["mnist"])
    notes: dict[str, Any] = {}
    isa(model, x, y, notes=notes, generator=torch.Generator().manual_seed(0))
    scores = sneaking_scores({key: value.numpy() for key, value in notes.items()})
    assert scores["n_isa"] > 25
    assert scores["bound_holds"]
