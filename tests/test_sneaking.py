"""The sneaking attack, NDS, NSL and Proposition 1; and attacks on maps that need a smooth twin."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.attacks import sneaking
from pellucid.attacks.gradient import pgd
from pellucid.attacks.interpretation import aai
from pellucid.attacks.sneaking import isa
from pellucid.balls import L2, Linf
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam, gradcam_plus_plus, representation
from pellucid.interpreters.gradients import gradient, integrated_gradients, smoothgrad
from pellucid.metrics import discrepancy, margin, normalised_discrepancy, proposition_1_bound
from pellucid.network import Network
from pellucid.stealth import sneaking_scores
from pellucid.targets import choose
from pellucid.types import Interpreter, Notes

Seeded = Callable[[int], torch.Generator]


def random_network(seed: int, classes: int) -> Network:
    """A small network of random weights, folded or not."""
    generator = torch.Generator().manual_seed(seed)
    tail = [nn.ReLU()] if seed % 2 else []
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), *tail)
    network = Network(trunk, nn.Linear(5, classes, bias=seed % 3 > 0))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return network.eval()


def test_proposition_1_holds_on_a_thousand_random_networks() -> None:
    """No image that moves class t to t' has a two-class l1 discrepancy of CAMs under half the clean margin."""
    reached, ratios = 0, []
    for seed in range(1000):
        network = random_network(seed, classes=2 + seed % 5)
        x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        clean = network.class_maps(x)
        order = clean.sum((2, 3)).argsort(1, descending=True)
        at = x.clone().requires_grad_()
        ahead = network(at).gather(1, order[:, :2]).diff(dim=1)
        (g,) = torch.autograd.grad(ahead.sum(), at)
        maps = network.class_maps((x + 0.5 * g.sign()).clamp(0, 1))
        rows = order[:, :2, None, None].expand(-1, -1, *maps.shape[2:])
        with torch.no_grad():
            apart = discrepancy(clean.gather(1, rows), maps.gather(1, rows))
            logits, attacked = clean.sum((2, 3)), maps.sum((2, 3))
            won = margin(attacked, order[:, 1]) > 0
            bound = proposition_1_bound(logits, order[:, 0], order[:, 1])
        assert (apart >= bound - 1e-5)[won].all(), seed
        reached += int(won.sum())
        ratios += (apart / bound)[won].tolist()
    assert reached > 500  # or the law was not tried
    assert min(ratios) < 1.5  # nor a bound that is never near


def test_proposition_1_holds_on_what_the_sneaking_attack_finds() -> None:
    """The attack that minimises this very discrepancy comes near the bound, and never under it."""
    nearest, reached = torch.inf, 0
    for seed in range(12):
        network = random_network(seed, classes=2 + seed % 5)
        x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        notes: dict[str, Any] = {}
        isa(network, x, network(x).argmax(1), ball=Linf(0.5), steps=8, search=4, target="runner_up", notes=notes)
        success, apart, bound = (notes[f"isa_{name}_0"] for name in ("reached", "two_class", "bound"))
        assert (apart >= bound - 1e-5)[success].all()
        reached += int(success.sum())
        nearest = min([nearest, *(apart / bound)[success].tolist()])
    assert reached > 20
    assert nearest < 1.2


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
@pytest.mark.parametrize("classes", [1, 2, "all"])
def test_sneaking_moves_maps_less_than_the_plain_attack(
    tiny: Network, seeded: Seeded, reading: Any, classes: Any
) -> None:
    """Images that reach the goal do so with maps no farther away, on the whole much nearer, than the plain attack's."""
    x = torch.rand(24, 1, 16, 16, generator=seeded(0))
    y = tiny(x).argmax(1)
    goal = choose("runner_up", tiny, x, y)
    ball = Linf(0.5)
    found = isa(tiny, x, y, ball=ball, classes=classes, target="runner_up", reading=reading, steps=20, search=8)
    plain = pgd(tiny, x, goal, ball=ball, targeted=True, steps=20, random_start=False)
    chosen = {1: y[:, None], 2: torch.stack([y, goal], 1), "all": torch.arange(5).expand(24, -1)}[classes]
    with torch.no_grad():
        reached = (margin(tiny(found), goal) > 0) & (margin(tiny(plain), goal) > 0)
        clean = cam(tiny, x, chosen)
        sneaky, bold = (discrepancy(clean, cam(tiny, at, chosen))[reached] for at in (found, plain))
    assert int(reached.sum()) >= 8
    assert sneaky.mean() < 0.8 * bold.mean()


def test_the_smallest_radius_is_the_closed_form_on_a_linear_network(seeded: Seeded) -> None:
    """For two classes `eps* = (f_t - f_t') / ‖w_t - w_t'‖_1`, to the bisection's 2^-10."""
    network = Network(nn.Sequential(nn.Conv2d(1, 3, 6, bias=False)), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=seeded(1))
    x = 0.5 + 0.05 * torch.rand(6, 1, 6, 6, generator=seeded(2), dtype=torch.float64)
    y = network(x).argmax(1)
    at = x.clone().requires_grad_()
    (w,) = torch.autograd.grad(margin(network(at), y).sum(), at)
    expected = margin(network(x), y) / w.flatten(1).abs().sum(1)
    notes: dict[str, Any] = {}
    isa(network, x, y, target="runner_up", multipliers=(1.0,), steps=10, search=12, notes=notes)
    assert notes["found"].all()
    assert expected.max() < 0.4  # the box does not matter
    torch.testing.assert_close(notes["isa_eps_0"], expected, rtol=0, atol=2**-11)


@pytest.mark.parametrize(
    "interpreter",
    [
        gradcam_plus_plus,
        partial(gradcam_plus_plus, reading="as_coded"),
        representation,
        gradient,
        partial(integrated_gradients, steps=3),
        partial(smoothgrad, samples=2),
    ],
)
def test_any_interpreter_can_be_sneaked_past(interpreter: Interpreter, tiny: Network, seeded: Seeded) -> None:
    """Every map and both readings: what comes back is an image, changed exactly where the goal was reached."""
    x = torch.rand(3, 1, 16, 16, generator=seeded(0))
    y = tiny(x).argmax(1)
    for reading in ("as_written", "as_coded"):
        notes: dict[str, Any] = {}
        options: dict[str, Any] = {"target": "runner_up", "multipliers": (1.0, 1.5), "steps": 4, "search": 3}
        found = isa(tiny, x, y, interpreter=interpreter, reading=reading, notes=notes, generator=seeded(1), **options)
        scores = sneaking_scores({name: np.asarray(value) for name, value in notes.items()})
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal(notes["found"], (found != x).flatten(1).any(1))
        assert scores["n_isa"] + scores["dropped"] == 3


def test_an_image_that_cannot_be_fooled_comes_back_unchanged(images: Tensor, labels: Tensor) -> None:
    """A model that never changes its mind: found is False, and nothing is counted."""
    network = Network(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(2, 5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.head.bias.copy_(torch.tensor([5.0, 1, 0, 5, 0]))
    notes: dict[str, Any] = {}
    found = isa(network, images, torch.zeros_like(labels), target=1, steps=2, search=2, notes=notes)
    assert torch.equal(found, images)
    assert not notes["found"].any()
    scores = sneaking_scores({name: np.asarray(value) for name, value in notes.items()})
    assert scores["n_isa"] == 0
    assert np.isnan(scores["nds"])


def levels(nds: list[list[float]], eps: list[list[float]], **changes: Any) -> dict[str, np.ndarray]:
    """Rows as `isa` would note them: one inner list per image, one number per radius."""
    columns: dict[str, Any] = {"nds": nds, "eps": eps}
    shape = np.shape(nds)
    columns |= {"counts": np.ones(shape, bool), "reached": np.ones(shape, bool)}
    columns |= {"two_class": np.ones(shape), "bound": np.zeros(shape)} | changes
    rows = {f"isa_{name}_{k}": np.asarray(v)[:, k] for name, v in columns.items() for k in range(shape[1])}
    return rows | {"found": np.ones(shape[0], bool)}


def test_nds_and_nsl_by_hand() -> None:
    """Two images at two radii; the second never gives way: slope 0 as written, left out as coded."""
    scores = sneaking_scores(levels([[4.0, 2.0], [3.0, 5.0]], [[0.1, 0.2], [0.2, 0.4]]))
    assert scores["nds"] == pytest.approx((4 + 2 + 3 + 3) / 4)  # 5 becomes 3: the smaller attack still holds
    assert scores["nsl"] == pytest.approx(((2 / 4) / (0.1 / 0.1) + 0) / 2)
    assert scores["nds_as_coded"] == pytest.approx(3)
    assert scores["nsl_as_coded"] == pytest.approx(0.5 / 2)
    assert scores["never_gave_way"] == 1
    assert scores["bound_holds"]


def test_a_violated_bound_is_seen() -> None:
    """The check of Proposition 1 can fail, and counts only attacks that reached their goal."""
    bad = {"two_class": np.array([[0.1, 0.1]]), "bound": np.array([[1.0, 1.0]])}
    rows = levels([[1.0, 1.0]], [[0.1, 0.2]], **bad)
    assert not sneaking_scores(rows)["bound_holds"]
    assert sneaking_scores(rows)["bound_violations"] == 2
    unreached = levels([[1.0, 1.0]], [[0.1, 0.2]], **bad, reached=np.zeros((1, 2), bool))
    assert sneaking_scores(unreached)["bound_holds"] is None
    incomplete = levels([[1.0, 1.0]], [[0.1, 0.2]], bound=np.full((1, 2), np.nan))
    assert sneaking_scores(incomplete)["bound_holds"] is None


def test_an_explanation_that_gives_way_within_one_radius_has_no_slope() -> None:
    """Neither zero nor negative: counted apart, and its NDS still counts."""
    scores = sneaking_scores(levels([[2.0, 1.0], [2.0, 1.0], [4.0, 2.0]], [[0.1, 0.1], [0.1, 0.09], [0.1, 0.2]]))
    assert scores["no_slope"] == 2
    assert scores["nsl"] == pytest.approx(0.5)
    assert scores["nsl_as_coded"] == pytest.approx(0.5 / 2)
    assert scores["n_isa"] == 3


@pytest.mark.parametrize("p", [1, 2])
def test_the_as_coded_discrepancy_by_hand(p: int, tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Of maps not divided by u, squared for p = 2; input-gradient maps, which never are divided, stay as they are."""
    for interpreter, factor in ((cam, 64), (gradient, 1)):  # 8 x 8 positions
        seen = dict[str, Any]()

        def spy(sneak: sneaking._Sneak, *_: object, seen: dict[str, Any] = seen) -> Tensor:
            seen["found"] = sneak.distance(sneak.real, sneak.real + 0.5)
            seen["values"] = sneak.real[0, 0].numel()
            return sneak.x

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sneaking, "_levels", spy)
            isa(tiny, images, labels, interpreter=interpreter, p=p, reading="as_coded")
        expected = seen["values"] * (0.5 * factor) ** p
        torch.testing.assert_close(seen["found"], torch.full((3,), float(expected)))


def test_normalised_discrepancy_is_free_of_units(generator: torch.Generator) -> None:
    """Scaling each class's maps changes nothing; a constant map has no scale and is left out; by hand for one map."""
    a, b = torch.randn(2, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
    scale = torch.rand(4, 3, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    for p in (1, 2):
        expected = normalised_discrepancy(a, b, p=p)
        torch.testing.assert_close(normalised_discrepancy(scale * a, scale * b, p=p), expected)
        with_constant = torch.cat([a, torch.ones(4, 1, 5, 5, dtype=torch.float64)], 1)
        other = torch.cat([b, torch.zeros(4, 1, 5, 5, dtype=torch.float64)], 1)
        torch.testing.assert_close(normalised_discrepancy(with_constant, other, p=p), expected)
    one = normalised_discrepancy(torch.tensor([[[[0.0, 2.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    assert one.item() == pytest.approx((1 + 0 + 2) / 2)


@pytest.mark.parametrize("interpreter", [gradient, partial(smoothgrad, samples=3, generator=None)])
def test_the_twin_finds_what_the_relu_network_hides(interpreter: Interpreter, noisy: Network, seeded: Seeded) -> None:
    """The attack through softplus moves the real network's input-gradient map much farther than the one without."""
    x = torch.rand(8, 1, 16, 16, generator=seeded(0))
    noisy.eval()
    y = noisy(x).argmax(1)
    moved = {}
    for surrogate in (None, "auto"):
        options: dict[str, Any] = {"ball": L2(1.0), "steps": 15, "interpreter": interpreter, "surrogate": surrogate}
        found = aai(noisy, x, y, generator=seeded(1), **options)
        maps = [gradient(noisy, at, y[:, None]).detach() for at in (x, found)]
        moved[surrogate] = discrepancy(*maps).mean()
        assert (noisy(found).argmax(1) == y).all()
    assert moved["auto"] > 1.2 * moved[None]


class Functional(nn.Module):
    """ReLU by function: no module that a twin could replace."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(256, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x.flatten(1))))


def test_a_map_without_gradient_is_refused(images: Tensor, labels: Tensor) -> None:
    """Where no twin can be made an attack on the map would only wander: an error, unless one insists."""
    attack = partial(aai, Functional(), images, labels, interpreter=gradient, steps=2)
    with pytest.raises(PellucidError, match="zero everywhere"):
        attack()
    assert attack(surrogate=None).shape == images.shape


@pytest.mark.parametrize("wrong", [{"p": 3}, {"multipliers": ()}, {"multipliers": (0.5,)}])
def test_options_that_make_no_sense(wrong: dict[str, Any], tiny: Network, images: Tensor, labels: Tensor) -> None:
    """The message names the value and the rule."""
    with pytest.raises(PellucidError, match=r"isa\(p=.*multipliers"):
        isa(tiny, images, labels, **wrong)


def test_notes_are_one_value_per_image(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """What an attack notes becomes columns of the rows."""
    notes: Notes = {}
    isa(tiny, images, labels, steps=2, search=2, notes=notes, generator=seeded(0))
    assert all(len(value) == len(images) for value in notes.values())
