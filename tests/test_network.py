"""Networks: the folded tail is the unfolded one, maps add up to logits, and holding a model still leaves no trace."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid import registry
from pellucid.errors import PellucidError
from pellucid.network import Averages, Network, Normalise, frozen, softplus, why_not_folded


def unfolded(network: Network, x: Tensor) -> Tensor:
    """The logits, layer by layer."""
    return network.head(network.trunk(network.normalise(x)).mean((2, 3)))


def unfolded_maps(network: Network, x: Tensor) -> Tensor:
    """The class activation maps, layer by layer, as a sum over the channels written out."""
    a = network.trunk(network.normalise(x))
    bias = network.head.bias if network.biased else torch.zeros(network.head.out_features, dtype=x.dtype)
    weighted = [(row[None, :, None, None] * a).sum(1) + b for row, b in zip(network.head.weight, bias, strict=True)]
    maps = torch.stack(weighted, 1)
    return maps / (a.shape[2] * a.shape[3])


GEOMETRIES = {
    "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "size": st.tuples(st.integers(4, 8), st.integers(4, 8)),
    "biases": st.tuples(st.booleans(), st.booleans()),
    "headless": st.booleans(),
    "seed": st.integers(0, 2**32),
}


@settings(deadline=None, max_examples=80)
@given(**GEOMETRIES)
def test_folding_changes_nothing(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    biases: tuple[bool, bool],
    headless: bool,
    seed: int,
) -> None:
    """Logits, maps, and their first and second derivatives in images and parameters agree to 1e-10 in float64."""
    assume(all(n + 2 * p > d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    generator = torch.Generator().manual_seed(seed)
    last = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding, dilation=dilation, bias=biases[0])
    # Softplus, so that second derivatives are not zero.
    trunk = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), last)
    head = Averages(4) if headless else nn.Linear(4, 3, bias=biases[1])
    network = Network(trunk, head, normalise=Normalise((0.1, 0.2), (0.5, 2.0))).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    assert network.folds
    x = torch.empty(2, 2, *size, dtype=torch.float64).uniform_(generator=generator).requires_grad_()
    pairs = ((network, lambda at: unfolded(network, at)), (network.class_maps, lambda at: unfolded_maps(network, at)))
    for fast, slow in pairs:
        for a, b in zip(derivatives(fast, network, x), derivatives(slow, network, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with frozen(network), torch.no_grad():
        torch.testing.assert_close(network(x), unfolded(network, x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(network(x), network.class_maps(x).sum((2, 3)), rtol=1e-10, atol=1e-10)


def derivatives(f: Callable[[Tensor], Tensor], network: Network, x: Tensor) -> list[Tensor]:
    """Value, gradients of a curved function of it, and gradients of the length of the image gradient."""
    values = f(x)
    variables = [x, *network.parameters()]
    first = torch.autograd.grad(values.square().sum(), variables, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), variables, materialize_grads=True)
    return [t.detach() for t in (values, *first, *second)]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (nn.ReLU(), "ReLU stands between"),
        (nn.MaxPool2d(2), "MaxPool2d stands between"),
        (nn.Dropout(0.5), "Dropout stands between"),
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 4, 3, padding="same"), "not padded with a number"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "not padded with a number of zeros"),
    ],
)
def test_what_does_not_fold_says_why(last: nn.Module, reason: str, generator: torch.Generator) -> None:
    """No folding past a layer that is not linear, and the logits are still the sums of the maps."""
    network = Network(nn.Sequential(nn.Conv2d(1, 4, 3), last), nn.Linear(4, 3)).double().eval()
    assert reason in (why_not_folded(network) or "")
    assert not network.folds
    x = torch.empty(2, 1, 8, 8, dtype=torch.float64).uniform_(generator=generator)
    torch.testing.assert_close(network(x), unfolded(network, x), rtol=0, atol=0)
    torch.testing.assert_close(network.class_maps(x).sum((2, 3)), network(x), rtol=1e-12, atol=1e-12)


def test_a_trunk_that_is_no_sequence_does_not_fold() -> None:
    """A module of its own, or an empty sequence, is left whole."""
    assert "not a plain sequence" in (why_not_folded(Network(nn.Conv2d(1, 4, 3), nn.Linear(4, 3))) or "")
    assert "not a plain sequence" in (why_not_folded(Network(nn.Sequential(), nn.Linear(1, 3))) or "")


@pytest.mark.parametrize("where", ["trunk", "trunk.2", "head"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_watched_layer_is_called(tiny: Network, images: Tensor, where: str, kind: str) -> None:
    """A hook on the trunk, its last convolution or the head runs: folding would pass it by."""
    calls: list[str] = []
    handle = getattr(tiny.get_submodule(where), kind)(lambda *_: calls.append(where))
    expected = unfolded(tiny, images)
    calls.clear()
    torch.testing.assert_close(tiny(images), expected, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert calls == [where]
    assert tiny.folds


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", sorted(registry.public("architectures")))
def test_maps_add_up_to_logits(name: str, bias: bool, generator: torch.Generator) -> None:
    """Σ_i CAM_c(x)_i = f_c(x) for every architecture, with and without a bias in the head (Boopathy et al., eq. 1)."""
    build = registry.parse(name, "architectures")
    network = build(channels=3, classes=4, generator=generator)
    if not isinstance(network.head, Averages):
        network.head = nn.Linear(network.head.in_features, 4, bias=bias)
        network.biased = bias
    network = network.double().eval()
    size = registry.option(build, "size") or 32
    x = torch.empty(2, 3, size, size, dtype=torch.float64).uniform_(generator=generator)
    with torch.no_grad():
        logits = unfolded(network, x)
        scale = float(logits.abs().max()) + 1
        torch.testing.assert_close(network(x), logits, rtol=1e-10, atol=1e-10 * scale)
        torch.testing.assert_close(network.class_maps(x).sum((2, 3)), logits, rtol=1e-10, atol=1e-10 * scale)


def state(model: nn.Module) -> tuple[list[bool], list[bool], list[Tensor]]:
    """Modes, gradient flags and copies of all buffers."""
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return modes, flags, [buffer.clone() for buffer in model.buffers()]


def same_state(model: nn.Module, before: tuple[list[bool], list[bool], list[Tensor]]) -> bool:
    modes, flags, buffers = state(model)
    return (modes, flags) == before[:2] and all(torch.equal(a, b) for a, b in zip(buffers, before[2], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_every_flag(noisy: Network, images: Tensor, fails: bool) -> None:
    """With a BatchNorm in eval mode inside a training network, one parameter fixed, nested, and on errors too."""
    noisy.train()
    assert isinstance(noisy.trunk, nn.Sequential)
    noisy.trunk[1].eval()
    noisy.head.weight.requires_grad_(False)
    before = state(noisy)
    try:
        with frozen(noisy) as outer:
            assert outer is noisy
            with frozen(noisy):
                noisy(images)
            assert not any(module.training for module in noisy.modules())
            assert not any(parameter.requires_grad for parameter in noisy.parameters())
            if fails:
                raise KeyError("on purpose")
    except KeyError:
        assert fails
    assert same_state(noisy, before)


def test_frozen_gives_the_images_their_gradient(tiny: Network, images: Tensor) -> None:
    """Inside, images are differentiated and parameters are not."""
    with frozen(tiny):
        x = images.clone().requires_grad_()
        tiny(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in tiny.parameters())


def change(network: Network) -> None:
    """As an optimiser's step does: in place."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.1)


def test_the_held_tail_is_dropped_at_the_end(tiny: Network, images: Tensor) -> None:
    """After a weight update logits and maps are those of the new weights, inside the next block as well."""
    with frozen(tiny), frozen(tiny):
        old = tiny(images)
        tiny.class_maps(images)
    change(tiny)
    for _ in range(2):
        assert not torch.allclose(tiny(images), old)
        torch.testing.assert_close(tiny(images), unfolded(tiny, images), rtol=1e-5, atol=1e-5)
        with frozen(tiny):
            torch.testing.assert_close(tiny(images), unfolded(tiny, images), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(tiny.class_maps(images), unfolded_maps(tiny, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [copy.deepcopy, softplus], ids=["deepcopy", "softplus"])
def test_a_copy_made_while_frozen_holds_no_old_tail(
    tiny: Network, images: Tensor, make: Callable[[Network], Network]
) -> None:
    """A copy taken inside `frozen` follows its own weights afterwards, and they get gradients."""
    with frozen(tiny):
        tiny(images)
        tiny.class_maps(images)
        twin = make(tiny)
        twin(images)
    change(tiny)
    if make is copy.deepcopy:
        change(twin)
    twin.requires_grad_(True)
    torch.testing.assert_close(twin(images), unfolded(twin, images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(twin.class_maps(images), unfolded_maps(twin, images), rtol=1e-5, atol=1e-5)
    twin(images).sum().backward()
    assert twin.head.weight.grad is not None


def test_a_tail_is_held_per_size(tiny: Network, generator: torch.Generator) -> None:
    """One frozen network serves images of several sizes."""
    with frozen(tiny):
        for size in (8, 12, 9, 8):
            x = torch.empty(2, 1, size, size).uniform_(generator=generator)
            torch.testing.assert_close(tiny(x), unfolded(tiny, x), rtol=1e-5, atol=1e-5)


def test_the_softplus_twin_in_closed_form() -> None:
    """On one channel: w₂ log(1 + exp(beta (w₁ x + b₁))) / beta + b₂."""
    trunk = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    network = Network(trunk, nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (2.0, -0.5, 3.0, 0.25), strict=True):
            parameter.fill_(value)
    x = torch.linspace(0, 1, 4, dtype=torch.float64).reshape(1, 1, 2, 2)
    beta = 5.0
    expected = 3 * ((1 + (beta * (2 * x - 0.5)).exp()).log() / beta).mean() + 0.25
    torch.testing.assert_close(softplus(network, beta=beta)(x)[0, 0], expected, rtol=1e-12, atol=0)
    assert isinstance(trunk[1], nn.ReLU)


def test_the_softplus_twin_shares_its_parameters(noisy: Network, images: Tensor) -> None:
    """The same tensors, no ReLU left, at most log(2) / beta away at each unit."""
    noisy.eval()
    twin = softplus(noisy, beta=1e4)
    assert list(map(id, [*twin.parameters(), *twin.buffers()])) == list(
        map(id, [*noisy.parameters(), *noisy.buffers()])
    )
    assert not any(isinstance(module, nn.ReLU) for module in twin.modules())
    torch.testing.assert_close(twin(images), noisy(images), rtol=0, atol=1e-2)
    change(noisy)
    torch.testing.assert_close(twin(images), noisy(images), rtol=0, atol=1e-2)


def test_one_relu_used_twice_is_replaced_twice() -> None:
    """A module that stands at two places of a network is replaced at both."""
    relu = nn.ReLU()
    trunk = nn.Sequential(nn.Conv2d(1, 2, 1), relu, nn.Conv2d(2, 2, 1), relu)
    twin = softplus(Network(trunk, nn.Linear(2, 2)))
    assert not any(isinstance(module, nn.ReLU) for module in twin.modules())


def test_softplus_of_a_model_without_relu_is_refused() -> None:
    """It would be the model itself, and its curvature zero unnoticed."""
    with pytest.raises(PellucidError, match=r"no nn\.ReLU"):
        softplus(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_copies_and_state_dicts(noisy: Network, tiny: Network, images: Tensor) -> None:
    """A deep copy and a loaded state give the same logits and share no memory."""
    for network in (noisy.eval(), tiny):
        expected = network(images).detach()
        twin = copy.deepcopy(network)
        change(network)
        torch.testing.assert_close(twin(images), expected, rtol=0, atol=0)
        network.load_state_dict(twin.state_dict())
        torch.testing.assert_close(network(images), expected, rtol=0, atol=0)
    assert not any("_held" in name for name in tiny.state_dict())


def test_normalise(generator: torch.Generator) -> None:
    """(x - mean) / std per channel; unequal lengths and std <= 0 are refused."""
    x = torch.empty(2, 2, 3, 3).uniform_(generator=generator)
    out = Normalise((0.5, 0.25), (2.0, 4.0))(x)
    torch.testing.assert_close(out, torch.stack([(x[:, 0] - 0.5) / 2, (x[:, 1] - 0.25) / 4], 1), rtol=1e-6, atol=1e-7)
    for mean, std in (((0.5,), (1.0, 1.0)), ((0.5,), (0.0,))):
        with pytest.raises(PellucidError, match="one entry per channel"):
            Normalise(mean, std)


def test_a_convolution_that_computes_something_of_its_own_is_not_folded() -> None:
    """A subclass with another forward (weight standardisation) keeps its own arithmetic."""

    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / self.weight.std()

    network = Network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Standardised(4, 6, 3)), nn.Linear(6, 5))
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert "of its own" in str(why_not_folded(network))
    torch.testing.assert_close(network(x), network.head(network.features(x).mean((2, 3))))


@pytest.mark.parametrize("name", ["pool", "ross", "noisy"])
def test_a_held_trunk_is_the_same_function(
    name: str, request: pytest.FixtureRequest, generator: torch.Generator
) -> None:
    """Batch norms folded away and channels last: logits, maps and input gradients as layer by layer, to rounding."""
    made = request.getfixturevalue("noisy") if name == "noisy" else registry.public("architectures")[name]()
    network = made.double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    size = 16 if name == "noisy" else 28
    x = torch.rand(3, 1, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, network.head.out_features, generator=generator, dtype=torch.float64)
    expected, maps = unfolded(network, x), unfolded_maps(network, x)
    gradient = torch.autograd.grad((expected * weights).sum(), x)[0]
    with frozen(network):
        found = network(x)
        assert network._held_trunk  # or nothing was tried
        assert network._held_trunk[0] is not None
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), x)[0], gradient)
        torch.testing.assert_close(network.class_maps(x), maps)
    assert not network._held_trunk
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    with frozen(network):  # what was held is not held over
        torch.testing.assert_close(network(x), unfolded(network, x))


def test_a_trunk_of_unknown_layers_is_left_alone(images: Tensor) -> None:
    """A layer that computes something of its own, a batch norm without statistics, a hook: run as they are."""

    class Twice(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * input.relu()

    own = Network(nn.Sequential(nn.Conv2d(1, 3, 3), Twice()), nn.Linear(3, 2)).eval()
    batchwise = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU())
    seen: list[int] = []
    watched = nn.Conv2d(1, 3, 3)
    watched.register_forward_hook(lambda *_: seen.append(1))
    hooked = Network(nn.Sequential(watched, nn.ReLU()), nn.Linear(3, 2)).eval()
    for network in (own, Network(batchwise, nn.Linear(3, 2)).eval(), hooked):
        expected = unfolded(network, images)
        with frozen(network):
            torch.testing.assert_close(network(images), expected)
    assert len(seen) == 2
