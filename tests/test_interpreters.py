"""Interpreters: the contract of every one that is discovered, and the closed forms of each."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid import registry
from pellucid.errors import PellucidError
from pellucid.interpreters import gradients
from pellucid.interpreters.activations import cam, gradcam, gradcam_plus_plus, representation
from pellucid.interpreters.gradients import gradient, integrated_gradients, smoothgrad
from pellucid.network import Network, frozen, softplus

NAMES = sorted(registry.public("interpreters"))
DOUBLE = torch.float64
Quick = Callable[[str, str], Callable[..., Any]]


@pytest.fixture
def x(images: Tensor) -> Tensor:
    """Two small images in float64."""
    return images[:2, :, :8, :8].double()


@pytest.fixture
def classes() -> Tensor:
    """Two classes per image, one of them twice."""
    return torch.tensor([[0, 3], [2, 2]])


def maps(interpreter: Callable[..., Tensor], model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """The maps, with the same random numbers each time."""
    if "generator" not in inspect.signature(interpreter).parameters:
        return interpreter(model, x, classes)
    return interpreter(model, x, classes, generator=torch.Generator().manual_seed(5))


def random(name: str) -> bool:
    return "generator" in inspect.signature(registry.public("interpreters")[name]).parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", ["tiny", "noisy"])
def test_every_interpreter_keeps_the_contract(
    name: str, net: str, x: Tensor, classes: Tensor, quick: Quick, request: pytest.FixtureRequest
) -> None:
    """[b m ...]; plain under no_grad, else equal and differentiable in the parameters; model and images untouched."""
    network = request.getfixturevalue(net).double().eval()
    network.head.bias.requires_grad_(False)
    interpreter = quick("interpreters", name)
    before, state = x.clone(), {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        plain = maps(interpreter, network, x, classes)
    assert plain.shape[:2] == classes.shape
    assert plain.dtype == x.dtype
    assert not plain.requires_grad
    graph = maps(interpreter, network, x, classes)
    torch.testing.assert_close(graph.detach(), plain, rtol=1e-12, atol=1e-12)
    wanted = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(graph.square().sum(), wanted, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in found)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_every_interpreter_is_differentiable_in_the_images(
    name: str, tiny: Network, x: Tensor, classes: Tensor, quick: Quick
) -> None:
    """Inside `frozen`, as attacks on interpretations use it; on the softplus twin no gradient is zero."""
    interpreter = quick("interpreters", name)
    twin = softplus(tiny.double())
    with frozen(twin):
        at = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(maps(interpreter, twin, at, classes).square().sum(), at)
    assert (found.flatten(1).abs().amax(1) > 0).all()
    assert not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_every_interpreter_takes_each_image_and_class_alone(
    name: str, noisy: Network, x: Tensor, classes: Tensor, quick: Quick
) -> None:
    """The map of an image and a class does not depend on the others it is asked with (sigma = 0 if random)."""
    network = noisy.double().eval()
    interpreter = quick("interpreters", name)
    if random(name):
        interpreter = partial(interpreter, sigma=0.0)
    with torch.no_grad():
        together = interpreter(network, x, classes)
        for i in range(2):
            for m in range(2):
                alone = interpreter(network, x[[i]], classes[[i]][:, [m]])
                torch.testing.assert_close(together[i, m], alone[0, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_images_give_no_maps(name: str, tiny: Network, quick: Quick) -> None:
    """An empty batch is answered with an empty batch."""
    with torch.no_grad():
        found = quick("interpreters", name)(tiny, torch.empty(0, 1, 8, 8), torch.empty(0, 2, dtype=torch.int64))
    assert found.shape[:2] == (0, 2)


@pytest.mark.parametrize("of", ["logit", "log_probability"])
def test_smoothgrad_without_noise_is_the_gradient(tiny: Network, x: Tensor, classes: Tensor, of: gradients.Of) -> None:
    """sigma = 0."""
    network = tiny.double()
    smooth = smoothgrad(network, x, classes, sigma=0.0, samples=7, of=of)
    torch.testing.assert_close(smooth, gradient(network, x, classes, of=of), rtol=1e-12, atol=1e-14)


def test_smoothgrad_by_a_loop(tiny: Network, x: Tensor, classes: Tensor, generator: torch.Generator) -> None:
    """The mean of gradients at x + sigma (max x - min x) g, one at a time with the same normal numbers."""
    network = tiny.double()
    found = smoothgrad(network, x, classes, samples=6, sigma=0.2, generator=generator)
    noise = torch.empty(6, *x.shape, dtype=DOUBLE).normal_(generator=torch.Generator().manual_seed(0))
    naive = torch.zeros_like(found)
    for i in range(2):
        spread = x[i].max() - x[i].min()
        for g in noise[:, i]:
            naive[i] += gradient(network, (x[i] + 0.2 * spread * g)[None], classes[[i]])[0] / 6
    torch.testing.assert_close(found, naive, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("of", ["logit", "log_probability"])
def test_the_gradient_in_closed_form(of: gradients.Of, x: Tensor, classes: Tensor, generator: torch.Generator) -> None:
    """Of V softplus(W x): Wᵀ (V_c ∘ σ(W x)); of log p_c, less the mean over classes. And its derivative."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Softplus(), nn.Linear(9, 4)).double()
    w, v, bias = (model.get_parameter(n) for n in ("1.weight", "3.weight", "1.bias"))
    inner = x.flatten(1) @ w.t() + bias
    jacobian = torch.einsum("ch,bh,hd->bcd", v, inner.sigmoid(), w)  # [b classes d]
    if of == "log_probability":
        p = model(x).softmax(1)
        jacobian = jacobian - torch.einsum("bc,bcd->bd", p, jacobian)[:, None]
    expected = jacobian.gather(1, classes[:, :, None].expand(-1, -1, 64)).reshape(2, 2, 1, 8, 8)
    found = gradient(model, x, classes, of=of)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.empty_like(found).normal_(generator=generator)
    ours = torch.autograd.grad((found * weights).sum(), [w, v], retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), [w, v])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_integrated_gradients_of_a_linear_model(x: Tensor, classes: Tensor) -> None:
    """(x - a) ∘ w_c, whatever the steps and the rule."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    expected = (x[:, None] - 0.3) * model.get_parameter("1.weight")[classes].reshape(2, 2, 1, 8, 8)
    for steps in (1, 7):
        for rule in ("right", "midpoint"):
            found = integrated_gradients(model, x, classes, baseline=0.3, steps=steps, rule=rule)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_integrated_gradients_are_complete(tiny: Network, x: Tensor, classes: Tensor) -> None:
    """On the smooth twin Σ_i IG_i = f_c(x) - f_c(a): the midpoint's error falls as 1/m², the right rule's as 1/m."""
    network = softplus(tiny.double(), beta=2.0)
    black = torch.zeros_like(x)
    with torch.no_grad():
        change = (network(x) - network(black)).gather(1, classes)
        errors = {
            (rule, steps): float(
                (integrated_gradients(network, x, classes, steps=steps, rule=rule).flatten(2).sum(2) - change)
                .abs()
                .max()
            )
            for rule in ("right", "midpoint")
            for steps in (20, 40)
        }
    assert errors["midpoint", 40] < 1e-4 * float(change.abs().max())
    assert errors["midpoint", 20] / errors["midpoint", 40] == pytest.approx(4, rel=0.1)
    assert errors["right", 20] / errors["right", 40] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients(steps=3)"])
def test_derivatives_of_maps_against_finite_differences(name: str, tiny: Network, x: Tensor) -> None:
    """The map of the smooth twin as a function of images and weights: first and second derivatives."""
    network = softplus(tiny.double())
    interpreter = registry.parse(name, "interpreters")
    classes = torch.tensor([[1, 4]])

    def at(image: Tensor, head: Tensor, kernel: Tensor) -> Tensor:
        weights = {"head.weight": head, "trunk.0.weight": kernel}

        def forward(inputs: Tensor) -> Tensor:
            return torch.func.functional_call(network, weights, (inputs,))

        return interpreter(Wrapped(forward), image, classes)

    variables = (
        x[:1, :, :3, :3].clone().requires_grad_(),
        network.head.weight,
        network.get_parameter("trunk.0.weight"),
    )
    assert torch.autograd.gradcheck(at, variables)
    assert torch.autograd.gradgradcheck(lambda image: at(image, *variables[1:]).sum(3), variables[:1])


class Wrapped(nn.Module):
    """A function as a model."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def test_gradcam_is_cam(tiny: Network, noisy: Network, x: Tensor, classes: Tensor) -> None:
    """At the last feature maps, without the head's bias, whether the tail folds or not; `relu` clips it at 0."""
    for network in (tiny.double(), noisy.double().eval()):
        with torch.no_grad():
            network.head.bias.zero_()
        maps = gradcam(network, x, classes)
        torch.testing.assert_close(maps, cam(network, x, classes), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradcam(network, x, classes, relu=True), maps.relu(), rtol=0, atol=0)


def as_plain(network: Network) -> nn.Sequential:
    """The same layers as a model that nobody knows."""
    return nn.Sequential(*network.trunk.children(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.head)


@pytest.mark.parametrize("interpreter", [gradcam, gradcam_plus_plus])
def test_a_named_layer_of_any_model(
    interpreter: Callable[..., Tensor], tiny: Network, x: Tensor, classes: Tensor
) -> None:
    """At the last convolution of a plain sequence, and of the Network by its name, it is the Network's own map."""
    network = tiny.double()
    expected = interpreter(network, x, classes)
    for model, layer in ((as_plain(network), "2"), (network, "trunk.2"), (network, "trunk")):
        found = interpreter(model, x, classes, layer=layer)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            assert torch.equal(interpreter(model, x, classes, layer=layer), found)
        assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_before_an_in_place_relu(tiny: Network, x: Tensor, classes: Tensor) -> None:
    """The map belongs to what the layer gave out, not to what the ReLU after it wrote over it."""
    network = tiny.double()
    expected = gradcam(network, x, classes, layer="trunk.0")
    assert isinstance(network.trunk, nn.Sequential)
    network.trunk[1] = nn.ReLU(inplace=True)
    torch.testing.assert_close(gradcam(network, x, classes, layer="trunk.0"), expected, rtol=1e-12, atol=0)


def test_layers_that_are_not_there_are_named(tiny: Network, images: Tensor) -> None:
    """The error lists the layers; a layer without maps, and a model that is no Network, are refused."""
    classes = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(PellucidError, match=r"no layer 'nope': there are .*trunk\.2"):
        gradcam(tiny, images, classes, layer="nope")
    with pytest.raises(PellucidError, match="no feature maps"):
        gradcam(tiny, images, classes, layer="head")
    for interpreter in (cam, gradcam, gradcam_plus_plus, representation):
        with pytest.raises(PellucidError, match="as_network"):
            interpreter(as_plain(tiny), images, classes)


def naive_gradcam_plus_plus(network: Network, x: Tensor, classes: Tensor, *, as_coded: bool) -> Tensor:
    """Chattopadhay et al. 2018, eqs. 10 and 19, one image, class, channel and position at a time."""
    a = network.features(x).detach().requires_grad_()
    logits = network.head(a.mean((2, 3)))
    out = torch.zeros(*classes.shape, *a.shape[2:], dtype=x.dtype)
    for i, row in enumerate(classes.tolist()):
        for m, c in enumerate(row):
            g = torch.autograd.grad(logits[i, c], a, retain_graph=True)[0][i]
            for k in range(len(g)):
                weight = max(float(g[k].mean()), 0.0) if as_coded else 0.0
                for value in [] if as_coded else g[k].flatten().tolist():
                    below = 2 * value**2 + value**3 * float(a[i, k].detach().sum())
                    weight += value**2 / below * max(value, 0.0) if below else 0.0
                out[i, m] += weight * a[i, k].detach()
    return out


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
@pytest.mark.parametrize("net", ["tiny", "noisy"])
def test_gradcam_plus_plus_by_loops(
    net: str, reading: str, x: Tensor, classes: Tensor, request: pytest.FixtureRequest
) -> None:
    """Both readings, with some head weights at zero."""
    network = request.getfixturevalue(net).double().eval()
    with torch.no_grad():
        network.head.weight[0, :2] = 0
    found = gradcam_plus_plus(network, x, classes, reading=reading)  # pyright: ignore[reportArgumentType]
    naive = naive_gradcam_plus_plus(network, x, classes, as_coded=reading == "as_coded")
    torch.testing.assert_close(found, naive, rtol=1e-10, atol=1e-12)


def test_the_representation_is_every_classs(tiny: Network, images: Tensor) -> None:
    """The last feature maps, once per class."""
    found = representation(tiny, images, torch.tensor([[0, 1]] * 3))
    assert torch.equal(found[:, 0], tiny.features(images))
    assert torch.equal(found[:, 1], tiny.features(images))


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_chunks_change_nothing(
    chunk: int, tiny: Network, x: Tensor, classes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few images go at once, the same maps and the same derivatives, to rounding."""
    network = softplus(tiny.double())

    def everything() -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        found = [
            gradient(network, x, classes),
            integrated_gradients(network, x, classes, steps=7),
            smoothgrad(network, x, classes, samples=5, generator=generator),
        ]
        return found + [torch.autograd.grad(m.square().sum(), network.head.weight)[0] for m in found]

    whole = everything()
    monkeypatch.setattr(gradients, "CHUNK", chunk)
    for a, b in zip(everything(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
