"""What every attack, interpreter, architecture and transform that is discovered must keep."""

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_origin

import jaxtyping
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pellucid import registry
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.interpretation import aai
from pellucid.balls import L1, L2, Ball, Linf
from pellucid.contract import check_contract
from pellucid.draws import PerImage
from pellucid.errors import PellucidError
from pellucid.inputs import given
from pellucid.interpreters.gradients import gradient
from pellucid.metrics import margin
from pellucid.network import Network
from pellucid.stylising import FeedForward, decoder_layers, encoder_layers
from pellucid.types import Transform

ATTACKS = sorted(registry.public("attacks"))
INTERPRETERS = sorted(registry.public("interpreters"))
ARCHITECTURES = sorted(registry.public("architectures"))
TRANSFORMS = registry.public("transforms")
# Of each transform options under which it does something; a name in capitals is the file of that name.
SETTINGS: dict[str, dict[str, Any]] = {
    "fast_style": {"weights": "FAST"},
    "high_pass": {"radius": 3},
    "low_pass": {"radius": 3},
    "patch_shuffle": {"k": 2},
    "random_fourier": {"p": 0.4},
    "saturate": {"p": 8},
    "stylize": {"encoder_weights": "ENCODER", "decoder_weights": "DECODER", "styles": "digits", "split": "test"},
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
    ),
]
BALLS = (Linf(0.1), L2(0.8), L1(5.0))
Quick = Callable[[str, str], Callable[..., Any]]
Seeded = Callable[[int], torch.Generator]


def variants(attack: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The attack in its own ball; and, where it takes any, in each."""
    if not isinstance(registry.option(attack, "ball"), Ball):
        return [attack]
    return [attack, *(partial(attack, ball=ball) for ball in BALLS)]


def inside(attack: Callable[..., Any], found: Tensor, x: Tensor) -> bool:
    """Whether images lie in the attack's ball, the norm measured in float64."""
    ball = registry.option(attack, "ball")
    return not isinstance(ball, Ball) or bool((ball.norm(found.double() - x.double()) <= ball.eps + 1e-6).all())


def traces(model: nn.Module) -> list[object]:
    """Everything that an attack might change about a model."""
    modes = [module.training for module in model.modules()]
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    return [modes, flags, hooks, {name: tensor.tolist() for name, tensor in model.state_dict().items()}]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("net", ["tiny", "noisy"])
def test_every_attack_keeps_the_contract(
    name: str, net: str, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded, request: pytest.FixtureRequest
) -> None:
    """Same seed, same bits; in the ball and in [0, 1]; plain; images and model untouched, in train mode too."""
    network = request.getfixturevalue(net).train()
    network.head.bias.requires_grad_(False)
    if net == "noisy":
        network.trunk[1].eval()
    before, state = images.clone(), traces(network)
    for attack in variants(quick("attacks", name)):
        found = attack(network, images, labels, generator=seeded(2))
        assert found.shape == images.shape
        assert found.dtype == images.dtype
        assert not found.requires_grad
        assert found.isfinite().all()
        assert found.min() >= 0
        assert found.max() <= 1
        assert inside(attack, found, images)
        with torch.no_grad():
            again = attack(network, images, labels, generator=seeded(2))
        assert torch.equal(found, again)
        assert found.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)
    assert images.grad is None
    assert traces(network) == state


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_uses_the_global_generator(
    name: str, tiny: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """With a generator of its own, an attack leaves the global one where it was."""
    before = torch.get_rng_state()
    quick("attacks", name)(tiny, images, labels, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_takes_one_image_none_and_float64(
    name: str, noisy: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """The last batch of a data set may have one image, a filtered one none; the type follows the images."""
    x = images.double()
    for attack in variants(quick("attacks", name)):
        for count in (1, 0):
            found = attack(noisy.double(), x[:count], labels[:count], generator=seeded(0))
            assert found.shape == x[:count].shape
            assert found.dtype == torch.float64
            assert inside(attack, found, x[:count])


@pytest.mark.parametrize("name", ATTACKS)
def test_deterministic_attacks_take_each_image_alone(
    name: str, noisy: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """What does not depend on the seed does not depend on the other images either."""
    attack, x, network = quick("attacks", name), images.double(), noisy.double()
    if "random_start" in inspect.signature(attack).parameters:
        attack = partial(attack, random_start=False)
    together = attack(network, x, labels, generator=seeded(0))
    if not torch.equal(together, attack(network, x, labels, generator=seeded(1))):
        assert name not in ("fgsm", "pgd")
        return
    for i in range(len(x)):
        alone = attack(network, x[[i]], labels[[i]], generator=seeded(2))
        torch.testing.assert_close(together[[i]], alone, rtol=0, atol=1e-9)


class Tuple(nn.Module):
    """Gives a pair, as detectors and auxiliary heads do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        return logits, logits


def bad_images(x: Tensor) -> dict[str, tuple[object, str]]:
    """What users hand over in place of images in [0, 1], and what they are told."""
    hole = x.clone()
    hole[1, 0, 2, 3] = torch.nan
    return {
        "bytes as floats": (255 * x, r"\[0, 1\]: divide by 255"),
        "normalised": ((x - 0.5) / 0.1, r"leave their normalisation to the model"),
        "not finite": (hole, "1 of 3 images hold pixels that are not finite"),
        "bytes": ((255 * x).byte(), r"uint8, and must be floats in \[0, 1\]"),
        "no batch": (x[0], r"x\[None\] adds the batch"),
        "no channels": (x[:, 0], r"must have \[batch, c, h, w\]"),
        "an array": (x.numpy(), "must be a tensor"),
    }


def bad_classes(y: Tensor) -> dict[str, tuple[object, str]]:
    """What users hand over in place of the class of each image, and what they are told."""
    return {
        "floats": (y.float(), "float32, and must be int64"),
        "short": (y.short(), "int16, and must be int64"),
        "too few": (y[:2], "for 3 images"),
        "one too large": (y + 2, "class 5 does not exist: classes are numbered 0 to 4"),
        "negative": (y - 1, "class -1 does not exist"),
        "a list": (y.tolist(), "must be a tensor"),
        "as shape": (torch.stack([y, y])[None], "have shape"),
    }


def bad_models(model: Network) -> dict[str, tuple[Any, str]]:
    """What users hand over in place of a classifier, and what they are told."""
    relu = nn.ReLU()  # some maps must have one, to make a smooth twin
    return {
        "probabilities": (nn.Sequential(model, nn.Softmax(1), relu), "leave out its final softmax"),
        "a pair": (Tuple(model), "gives a tuple, and must give logits"),
        "maps": (nn.Sequential(model, nn.Unflatten(1, (5, 1, 1)), relu), r"\(\d+, 5, 1, 1\), and must give logits"),
        "float64": (copy.deepcopy(model).double(), "weights are float64 and the images float32"),
        "what load_model gives": ((model, {}), r"model, _ = load_model"),
    }


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: without the tests' check of every annotation."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_refuses_what_breaks_the_contract(
    name: str, tiny: Network, images: Tensor, labels: Tensor, quick: Quick, seeded: Seeded
) -> None:
    """Called directly, it names the value, the rule and the remedy, and leaves the model as it was."""
    attack, state = quick("attacks", name), traces(tiny)
    if registry.option(attack, "interpreter") is not None:
        attack = partial(attack, interpreter=gradient)  # takes any model
    cases = [(tiny, x, labels, match) for x, match in bad_images(images).values()]
    cases += [(tiny, images, y, match) for y, match in bad_classes(labels).values()]
    cases += [(model, images, labels, match) for model, match in bad_models(tiny).values()]
    for model, x, y, match in cases:
        with pytest.raises(PellucidError, match=match):
            attack(model, x, y, generator=seeded(0))
    with torch.inference_mode(), pytest.raises(PellucidError, match=r"use torch\.no_grad"):  # noqa: TID251
        attack(tiny, images, labels, generator=seeded(0))
    assert traces(tiny) == state
    assert attack(tiny, images, labels, generator=seeded(0)).shape == images.shape


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", INTERPRETERS)
def test_every_interpreter_refuses_what_breaks_the_contract(
    name: str, tiny: Network, images: Tensor, labels: Tensor, quick: Quick
) -> None:
    """As attacks do; but the images may lie somewhat beside the box, and CAMs have models of their own to refuse."""
    interpreter, classes = quick("interpreters", name), labels[:, None]
    cases = [(tiny, x, classes, match) for x, match in bad_images(images).values()]
    cases += [(tiny, images, y, match) for y, match in bad_classes(classes).values()]
    cases.append((tiny, images, labels, r"y\[:, None\]"))
    cases += [(m, images, classes, f"{match}|not a pellucid.Network") for m, match in bad_models(tiny).values()]
    for model, x, y, match in cases:
        with pytest.raises(PellucidError, match=match):
            interpreter(model, x, y)
    with torch.inference_mode(), pytest.raises(PellucidError, match=r"use torch\.no_grad"):  # noqa: TID251
        interpreter(tiny, images, classes)
    assert torch.isfinite(interpreter(tiny, images + 0.3, classes)).all()


def wrong_options() -> list[tuple[str, str, object, str]]:
    """Of every attack the options that specifications check, wrong."""
    cases: list[tuple[str, str, object, str]] = []
    for name in ATTACKS:
        options = inspect.signature(registry.public("attacks")[name]).parameters
        cases += [
            (name, option, value, f"{option} .*must be a whole number")
            for option in registry.COUNTS
            if option in options
            for value in (True, 2.5, -1)
        ]
        if "ball" in options:
            cases += [(name, "ball", 0.3, r"ball \(=0\.3\) must be a ball: Linf\(0\.3\)")]
            cases += [(name, "ball", Linf(torch.full((9,), 0.1)), r"radii of shape \(9,\) for \d images")]
        if "step_size" in options:
            cases += [(name, "step_size", 0.0, "step_size .*must be above 0")]
    return cases


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "option", "value", "message"), wrong_options())
def test_direct_calls_refuse_what_specifications_do(
    name: str, option: str, value: object, message: str, tiny: Network, images: Tensor, labels: Tensor, quick: Quick
) -> None:
    """What would do nothing, or fail deep inside, is named with its value and the rule."""
    with pytest.raises(PellucidError, match=message):
        quick("attacks", name)(tiny, images, labels, **{option: value})


def wrong_choices() -> list[tuple[str, str]]:
    """Of every transform the options that are one of a few words."""
    options = [(name, p) for name in TRANSFORMS for p in inspect.signature(TRANSFORMS[name]).parameters.values()]
    return [(name, option.name) for name, option in options if get_origin(option.annotation) is Literal]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "option"), wrong_choices())
def test_transforms_called_directly_refuse_what_is_no_choice(name: str, option: str, images: Tensor) -> None:
    """A misspelt reading is not taken for one of the two."""
    for wrong in ("as_writen", "as_code", "", None):
        with pytest.raises(
            PellucidError, match=rf"{name}\({option}={wrong!r}\): choose one of 'as_written', 'as_coded'"
        ):
            TRANSFORMS[name](images, **{option: wrong})


def test_attacks_that_cannot_succeed_are_refused(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """None leaves an image as it was, or has nowhere to go, and calls that robust; maps of one class are maps."""
    one = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 1))
    for attack in (pgd, fgsm, partial(registry.public("attacks")["square"], queries=2)):
        with pytest.raises(PellucidError, match="no other class to end in"):
            attack(one, images, 0 * labels)
    assert gradient(one, images, 0 * labels[:, None]).shape[0] == len(images)
    for attack in (partial(pgd, steps=0), partial(pgd, restarts=0)):
        with pytest.raises(PellucidError, match="must be a whole number of at least 1"):
            attack(tiny, images, labels)
    with pytest.raises(PellucidError, match="hinge"):
        aai(tiny, images, labels, hinge=-1.0)


class Ours(nn.Module):
    """Computes what it should, unless it is held still: as a bug of ours would have it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.head.weight.requires_grad:
            raise IndexError("our own")
        return self.head(x.flatten(1))


def test_our_own_bugs_are_not_blamed_on_the_model() -> None:
    """What fails only while the model is held still comes through as it is; a lazy layer is called that."""
    with pytest.raises(IndexError, match="our own"):
        check_contract(Ours(), torch.zeros(2, 1, 2, 2), classes=2)
    with pytest.raises(PellucidError, match=r"1\.weight has no values yet \(a lazy layer\): run the model"):
        check_contract(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), torch.zeros(2, 1, 2, 2), classes=2)


def test_the_check_asks_nothing_of_the_model_and_is_made_once(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """As many passes as without it; attacks inside attacks, and the maps they follow, are not checked again."""
    passes: list[int] = []
    handle = tiny.register_forward_hook(lambda _module, inputs, _answer: passes.append(len(inputs[0])))
    fgsm(tiny, images, labels)
    assert len(passes) == 1
    handle.remove()
    with given(tiny, images, labels):
        assert pgd(tiny, 2 * images - 0.5, labels, steps=1).shape == images.shape
    with pytest.raises(PellucidError, match="pixels lie in"):
        pgd(tiny, 2 * images, labels, steps=1)


def test_the_contract_explains_types(tiny: Network, images: Tensor) -> None:
    """A float64 model is called that, and not one that takes no images of this shape."""
    with pytest.raises(PellucidError, match=r"float64 and the images float32, and must be alike: model\.to"):
        check_contract(tiny.double(), images, classes=5)
    with pytest.raises(PellucidError, match="does not take images of shape"):
        check_contract(tiny.float(), images[:, :, :0], classes=5)


@pytest.mark.parametrize(
    "attack", [fgsm, partial(pgd, steps=3), partial(aai, steps=3, interpreter=gradient)], ids=registry.describe
)
@pytest.mark.parametrize("ball", BALLS, ids=registry.describe)
def test_attacks_on_a_model_that_is_no_network(
    attack: Callable[..., Any], ball: Ball, images: Tensor, labels: Tensor, seeded: Seeded
) -> None:
    """Any module that maps images to logits, as the gradient attacks promise."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 5)).train()
    state = traces(model)
    found = attack(model, images, labels, ball=ball, generator=seeded(0))
    assert inside(partial(attack, ball=ball), found, images)
    assert (found != images).flatten(1).any(1).all()
    assert traces(model) == state


@pytest.mark.parametrize("ball", BALLS, ids=registry.describe)
@pytest.mark.parametrize("targeted", [False, True])
def test_attacks_on_a_linear_model_reach_the_optimum(
    ball: Linf | L2 | L1, targeted: bool, generator: torch.Generator
) -> None:
    """For two classes the margin changes by 2 eps ‖w‖_dual, and no more: away from the box, by one step and by many."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    w = model.get_parameter("1.weight")
    with torch.no_grad():
        w.normal_(0, 0.3, generator=generator)
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    ball = ball.resized(0.3)
    y = torch.tensor([0, 1])
    dual = {Linf: 1, L2: 2, L1: torch.inf}[type(ball)]
    change = 0.3 * float((w[0] - w[1]).detach().norm(p=dual)) * (1 if targeted else -1)
    expected = margin(model(x), y) + change
    for attack in (
        partial(fgsm, ball=ball, targeted=targeted),
        partial(pgd, ball=ball, targeted=targeted, steps=4, random_start=False),
        partial(pgd, ball=ball, targeted=targeted, steps=4, random_start=False, keep_best=False),
    ):
        torch.testing.assert_close(margin(model(attack(model, x, y)), y), expected, rtol=1e-9, atol=1e-12)


def test_pgd_gets_no_worse_with_restarts_and_steps(
    noisy: Network, images: Tensor, labels: Tensor, seeded: Seeded
) -> None:
    """Over the same random numbers the margin of the best iterate does not grow."""
    noisy.eval()
    for name, values in (("restarts", (1, 2, 4)), ("steps", (1, 2, 4))):
        worst = torch.full((3,), torch.inf)
        for value in values:
            options: dict[str, Any] = {"restarts": 1, "steps": 3, "step_size": 0.03, "ball": Linf(0.1)} | {name: value}
            found = margin(noisy(pgd(noisy, images, labels, generator=seeded(0), **options)), labels).detach()
            assert (found <= worst + 1e-6).all()
            worst = found


def test_aai_as_coded_by_its_definition(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """One step of 0.01 down the sum of the 8 largest values of the clean map, from a random start."""
    network, x = tiny.double(), images.double()
    ball = Linf(0.1)
    start = ball.sample(x, seeded(0)).clamp(0, 1).requires_grad_()
    maps = [network.class_maps(at)[torch.arange(3), labels].flatten(1) for at in (x, start)]
    top = maps[0].topk(8, dim=1).indices
    (down,) = torch.autograd.grad(maps[1].gather(1, top).sum(), start)
    expected = torch.min(torch.max(start - 0.01 * down.sign(), x - 0.1), x + 0.1).clamp(0, 1)
    found = aai(network, x, labels, ball=ball, steps=1, reading="as_coded", generator=seeded(0))
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_aai_moves_maps_and_keeps_classes(tiny: Network, images: Tensor, seeded: Seeded) -> None:
    """As written, it prefers images that keep their class, and with more steps their maps are no closer."""
    network, x = tiny.double(), images.double()
    y = network(x).argmax(1)
    clean = network.class_maps(x)[torch.arange(3), y]
    last = torch.full((3,), -torch.inf, dtype=torch.float64)
    for steps in (0, 5, 20):
        found = aai(network, x, y, ball=Linf(0.05), steps=steps, step_size=0.01, generator=seeded(0))
        distance = (network.class_maps(found)[torch.arange(3), y] - clean).flatten(1).abs().sum(1).detach()
        kept = margin(network(found), y) >= 0
        distance = torch.where(kept, distance, -torch.inf)
        assert (distance >= last - 1e-12).all()
        last = distance
    assert kept.all()


@pytest.fixture(scope="module")
def style_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of the networks that put styles on images, each layer keeping the size of what it is given."""
    folder, files = tmp_path_factory.mktemp("styles"), {}
    builds = {"ENCODER": encoder_layers, "DECODER": decoder_layers, "FAST": FeedForward}
    for seed, (name, build) in enumerate(builds.items()):
        generator, tensors = torch.Generator().manual_seed(seed), build().state_dict()
        for tensor in tensors.values():
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.1
            tensor.normal_(0, scale, generator=generator)
        files[name] = str(folder / f"{name}.safetensors")
        save_file(tensors, files[name])
    return files


@pytest.fixture
def transform(request: pytest.FixtureRequest, style_files: dict[str, str]) -> Transform:
    """A discovered transform with the options of `SETTINGS`."""
    assert request.param in SETTINGS, f"{request.param} is new: give it options in SETTINGS"
    options = {name: style_files.get(str(value), value) for name, value in SETTINGS[request.param].items()}
    return partial(TRANSFORMS[request.param], **options)


every_transform = pytest.mark.parametrize("transform", sorted(TRANSFORMS), indirect=True)


def pictures(c: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Four images, wider than high."""
    x = torch.empty(4, c, 16, 24, dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(5))
    return x.to(device, dtype)


def test_settings_are_those_of_the_transforms_there_are() -> None:
    assert set(SETTINGS) == set(TRANSFORMS)


@every_transform
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1, 3])
def test_every_transform_keeps_shape_type_place_and_what_it_is_given(
    transform: Transform, c: int, dtype: torch.dtype, device: str
) -> None:
    """It does something; an empty batch stays one; the images are not written to, and no global generator moves."""
    x = pictures(c, dtype, device)
    before, state = x.clone(), torch.get_rng_state()
    for rows in (range(4), range(1), range(0)):
        found = transform(x[: len(rows)], generator=PerImage(0, rows))
        assert (found.shape, found.dtype, found.device) == (x[: len(rows)].shape, x.dtype, x.device)
        assert found.isfinite().all()
        assert not torch.equal(found, x[: len(rows)]) or not len(rows)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@every_transform
def test_every_transform_takes_each_image_alone(transform: Transform) -> None:
    """One image, or several in another order, become what they become in a larger batch; and again the same."""
    x = pictures(3)
    whole = transform(x, generator=PerImage(2, range(4)))
    assert torch.equal(whole, transform(x, generator=PerImage(2, range(4))))
    for rows in ([0], [3], [2, 1]):
        found = transform(x[rows], generator=PerImage(2, rows))
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=1e-9)


@every_transform
@pytest.mark.parametrize("extreme", [False, True])
def test_every_transform_keeps_the_box(transform: Transform, extreme: bool) -> None:
    """Filters with their option `clip`; images of black and white too."""
    if registry.option(transform, "clip") is not None:
        transform = partial(transform, **{"clip": True})
    x = pictures(3).round() if extreme else pictures(3)
    found = transform(x, generator=PerImage(0, range(4)))
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.std() > 0.01


@every_transform
def test_every_transform_can_be_differentiated(transform: Transform) -> None:
    """As `pellucid.transforms` says: a derivative that differences confirm, of each image by itself alone."""
    x = pictures(3).requires_grad_()
    weight = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(1))

    def value(at: Tensor) -> Tensor:
        return (weight * transform(at, generator=PerImage(0, range(4)))).flatten(1).sum(1)

    (gradient,) = torch.autograd.grad(value(x)[1], x)
    assert gradient.isfinite().all()
    assert gradient[1].any()
    assert not gradient[[0, 2, 3]].any()
    direction, step = torch.zeros_like(x), 1e-8  # longer steps cross kinks of ReLUs
    direction[1].normal_(generator=torch.Generator().manual_seed(2))
    x = (0.1 + 0.8 * x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x)[1], x)
    change = (value(x + step * direction) - value(x - step * direction))[1] / (2 * step)
    assert float(change.detach()) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.usefixtures("unchecked")
@every_transform
def test_every_transform_refuses_what_are_no_images(transform: Transform) -> None:
    """But filters take each other's images, which lie beside the box."""
    cases: dict[str, tuple[Any, str]] = dict(bad_images(pictures(3)[:3]))
    if registry.option(transform, "clip") is not None:
        cases = {name: case for name, case in cases.items() if name not in ("bytes as floats", "normalised")}
    for wrong, match in cases.values():
        with pytest.raises(PellucidError, match=match):
            transform(wrong, generator=PerImage(0, range(3)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_builds_a_network(name: str, seeded: Seeded) -> None:
    """Logits of the shape asked for, finite, fresh from a generator alone, and differentiable in every parameter."""
    build = registry.parse(name, "architectures")
    channels = 1 if registry.option(build, "channels") is not None else 3
    options = {"channels": 1} if channels == 1 else {}
    before = torch.get_rng_state()
    one, two, other = (build(**options, classes=4, generator=seeded(s)).eval() for s in (0, 0, 1))
    torch.set_rng_state(before)
    assert isinstance(one, Network)
    size = registry.option(build, "size") or 32
    x = torch.empty(2, channels, size, size).uniform_(generator=seeded(5))
    logits = one(x)
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(two(x), logits)
    assert not torch.equal(other(x), logits)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_takes_the_number_of_classes_and_channels(name: str) -> None:
    """The options that data decide."""
    build = registry.parse(name, "architectures")
    for channels, classes in ((1, 2), (3, 7)):
        network = build(channels=channels, classes=classes)
        assert network.head.out_features == classes
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert first.in_channels == channels


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("small", 166_396),
        ("small(channels=3, size=32)", 166_908),
        ("pool", 52_736),
        ("wresnet", 463_008),
        ("wresnet(classes=9)", 462_944),
        # Two 5x5 convolutions, one over the whole 7x7 map, without biases; BatchNorm's scale and centre; the head.
        (
            "ross",
            25 * 32 + 2 * 32 + 25 * 32 * 64 + 2 * 64 + 49 * 64 * 1024 + 2 * 1024 + 1024 * 10 + 10,
        ),
    ],
)
def test_parameter_counts(spec: str, count: int) -> None:
    """As published, or counted by hand."""
    assert sum(p.numel() for p in registry.parse(spec, "architectures")().parameters()) == count
