"""Transforms of images: identities, inverses, what is kept, what a seed decides."""

import io
import json
import math
import shutil
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid import stylising
from pellucid.architectures.small import small
from pellucid.cli import run
from pellucid.data import load, write
from pellucid.data.write import Add, bytes_of, parquet_writer
from pellucid.draws import PerImage
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate, transformed
from pellucid.models import save_model
from pellucid.outcome import on_correct
from pellucid.report.contact_sheet import contact_sheet
from pellucid.results import wilson
from pellucid.stylising import FeedForward, adain, decoder_layers, encoder_layers
from pellucid.transforms.frequency import high_pass, low_pass, random_fourier
from pellucid.transforms.shape import patch_shuffle
from pellucid.transforms.texture import fast_style, saturate, stylize
from pellucid.types import Transform


def images(b: int = 3, c: int = 3, h: int = 8, w: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(b, c, h, w, dtype=dtype).uniform_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "neutral",
    [
        partial(saturate, p=2),
        partial(patch_shuffle, k=1),
        partial(random_fourier, p=0),
        partial(low_pass, radius=math.hypot(4, 4)),
    ],
)
def test_neutral_settings_change_nothing(neutral: Transform) -> None:
    """To rounding: p = 2, one patch, no mode dropped, every mode kept."""
    x = images()
    torch.testing.assert_close(neutral(x, generator=torch.Generator()), x, rtol=0, atol=1e-12)


@given(p=st.floats(0.05, 2000), v=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_saturation_by_its_formula(p: float, v: list[float]) -> None:
    """Value by value; in the box; monotone; odd about 1/2."""
    x = torch.tensor(sorted(v), dtype=torch.float64).view(1, 1, 1, -1)
    found = saturate(x, p=p).flatten()
    expected = [math.copysign(abs(2 * u - 1) ** (2 / p), 2 * u - 1) / 2 + 0.5 for u in sorted(v)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found.diff() >= 0).all()
    torch.testing.assert_close(saturate(1 - x, p=p), 1 - saturate(x, p=p), rtol=0, atol=1e-9)


def test_saturation_at_infinity_and_its_gradient() -> None:
    """Black and white, grey stays; saturations compose as p q / 2; no gradient is infinite, not even at 1/2."""
    x = images()
    x[0, 0, 0, 0] = 0.5
    assert set(saturate(x, p=math.inf).unique().tolist()) == {0.0, 0.5, 1.0}
    torch.testing.assert_close(saturate(saturate(x, p=8), p=3), saturate(x, p=12), rtol=0, atol=1e-12)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(saturate(at, p=8).sum(), at)
    assert gradient.isfinite().all()
    assert gradient[0, 0, 0, 0] == 0
    inside = (x - 0.5).abs() > 0.05
    step = 1e-6
    slope = (saturate((x + step).clamp(0, 1), p=8) - saturate((x - step).clamp(0, 1), p=8)) / (2 * step)
    assert torch.allclose(gradient[inside], slope[inside], rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(k=st.integers(1, 4), tall=st.integers(1, 3), wide=st.integers(1, 3), c=st.integers(1, 3), seed=st.integers(0, 9))
def test_shuffling_keeps_the_multiset_of_patches(k: int, tall: int, wide: int, c: int, seed: int) -> None:
    """Every patch is there once, whole, all channels together."""
    x = images(2, c, k * tall, k * wide)
    found = patch_shuffle(x, k=k, generator=torch.Generator().manual_seed(seed))

    def patches(one: Tensor) -> list[tuple[float, ...]]:
        parts = [part for row in one.split(tall, 1) for part in row.split(wide, 2)]
        return sorted(tuple(part.flatten().tolist()) for part in parts)

    for before, after in zip(x, found, strict=True):
        assert patches(before) == patches(after)


def test_shuffles_are_uniform_and_differ_from_image_to_image() -> None:
    """Of 2 x 2 patches the 24 orders are equally likely (chi-squared at 1e-6), whatever the image before got."""
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(4800, 1, 2, 2) / 4
    found = (patch_shuffle(x, k=2, generator=torch.Generator().manual_seed(0)) * 4).flatten(1).long()
    orders, counts = found.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    from scipy.stats import chisquare

    assert chisquare(counts.numpy()).pvalue > 1e-6
    same = (found[1:] == found[:-1]).all(1).double().mean()
    assert abs(float(same) - 1 / 24) < 5 * math.sqrt(1 / 24 / 4800)


RANDOM = {"patch_shuffle": partial(patch_shuffle, k=2), "random_fourier": partial(random_fourier, p=0.4)}


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_seed_gives_the_same_images_whatever_the_batch(name: str) -> None:
    """Of one generator, in batches of any size; of streams per image, in any order and of any selection too."""
    transform, x = RANDOM[name], images(6)
    whole = transform(x, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    parts = torch.cat([transform(part, generator=generator) for part in x.split([1, 3, 2])])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, transform(x, generator=torch.Generator().manual_seed(4)))
    rows = [4, 1, 5]
    mine = transform(x, generator=PerImage(3, range(6)))
    assert torch.equal(mine[rows], transform(x[rows], generator=PerImage(3, rows)))
    assert not torch.equal(mine, transform(x, generator=PerImage(4, range(6))))
    with pytest.raises(PellucidError, match=r"2 streams .* 6 images"):
        transform(x, generator=PerImage(0, [1, 2]))


@settings(deadline=None)
@given(h=st.integers(2, 9), w=st.integers(2, 9), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_filters_are_projections_that_share_the_image(h: int, w: int, share: float, seed: int) -> None:
    """Low and high of a radius add up to the image, orthogonally; each once is each twice; the mean is the low's."""
    x = images(2, 1, h, w, seed)
    radius = share * math.hypot(h // 2, w // 2)
    low, high = low_pass(x, radius=radius), high_pass(x, radius=radius)
    torch.testing.assert_close(low + high, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(low_pass(low, radius=radius), low, rtol=0, atol=1e-12)
    torch.testing.assert_close(high_pass(high, radius=radius), high, rtol=0, atol=1e-12)
    torch.testing.assert_close((low * high).sum((1, 2, 3)), torch.zeros(2, dtype=x.dtype), rtol=0, atol=1e-9)
    torch.testing.assert_close(low.mean((2, 3)), x.mean((2, 3)), rtol=0, atol=1e-12)


def test_a_wave_passes_by_its_frequency() -> None:
    """A plane wave of (3, 4) cycles per image, 5 in all, passes at radius 5 and not below."""
    rows, columns = torch.arange(16.0, dtype=torch.float64), torch.arange(16.0, dtype=torch.float64)
    wave = (0.3 * torch.cos(2 * math.pi * (3 * rows[:, None] + 4 * columns[None]) / 16)).view(1, 1, 16, 16)
    torch.testing.assert_close(low_pass(wave + 0.5, radius=5), wave + 0.5, rtol=0, atol=1e-12)
    torch.testing.assert_close(low_pass(wave + 0.5, radius=4.99), torch.full_like(wave, 0.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(high_pass(wave + 0.5, radius=4.99), wave, rtol=0, atol=1e-12)
    assert high_pass(wave + 0.5, radius=4.99, clip=True).min() == 0
    kept = high_pass(wave + 0.5, radius=4.99, keep_mean=True)
    torch.testing.assert_close(kept, wave + 0.5, rtol=0, atol=1e-12)


def test_the_coded_filters_keep_the_published_shares() -> None:
    """At 224 pixels a radius of 130 keeps 7.0 % of the modes, 144 keeps 1.7 %; the zero frequency is among the low."""
    x = images(1, 1, 224, 224)

    def share(radius: float) -> float:
        # Its mask is not symmetric: of a mode whose conjugate is not kept half is left by taking the real part.
        ratio = torch.fft.fft2(low_pass(x, radius=radius, reading="as_coded")) / torch.fft.fft2(x)
        return float(ratio.real.mean())

    assert share(130) == pytest.approx(0.070, abs=0.0005)
    assert share(144) == pytest.approx(0.017, abs=0.0005)
    low, high = (f(x, radius=130.5, reading="as_coded") for f in (low_pass, high_pass))
    torch.testing.assert_close(low + high, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(low.mean(), x.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "transform", [partial(low_pass, radius=3), partial(high_pass, radius=3), partial(random_fourier, p=0.4)]
)
def test_images_in_half_precision_are_filtered_in_single(transform: Transform, dtype: torch.dtype) -> None:
    """And rounded once, to what they were; 12 x 10 pixels, of which no library has a transform in halves."""
    x = images(2, 3, 12, 10, dtype=torch.float32).to(dtype)
    found = transform(x, generator=torch.Generator().manual_seed(0))
    assert found.dtype == dtype
    assert torch.equal(found, transform(x.float(), generator=torch.Generator().manual_seed(0)).to(dtype))


def test_random_filters_drop_modes_with_their_probability() -> None:
    """In pairs of conjugates, so that nothing imaginary is lost; each channel for itself; the share is p."""
    x = images(8, 3, 32, 32)
    found = torch.fft.fft2(random_fourier(x, p=0.3, generator=torch.Generator().manual_seed(0)))
    ratio = found / torch.fft.fft2(x)
    kept = (ratio - 1).abs() < 1e-6
    assert (kept | (ratio.abs() < 1e-6)).all()
    n = kept.numel() / 2  # pairs are one draw
    assert abs(float(kept.double().mean()) - 0.7) < 5 * math.sqrt(0.3 * 0.7 / n)
    assert not torch.equal(kept[:, 0], kept[:, 1])
    coded = torch.fft.fft2(random_fourier(x, p=0.3, reading="as_coded", generator=torch.Generator().manual_seed(0)))
    halves = ((coded / torch.fft.fft2(x)).abs() - 0.5).abs() < 1e-6
    assert abs(float(halves.double().mean()) - 2 * 0.3 * 0.7) < 0.02


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: saturate(x, p=0), "above 0"),
        (lambda x: saturate(x, p=math.nan), "above 0"),
        (lambda x: patch_shuffle(x, k=3), "2, 4, 8 do"),
        (lambda x: patch_shuffle(x, k=0), r"patch_shuffle\(k=0\) must be .* at least 1: images are cut into k x k"),
        (lambda x: patch_shuffle(x, k=True), r"patch_shuffle\(k=True\) must be a whole number"),
        (lambda x: low_pass(x, radius=-1), "from 0 to 5.65"),
        (lambda x: high_pass(x, radius=6), "from 0 to 5.65"),
        (lambda x: low_pass(x, radius=9, reading="as_coded"), "indices"),
        (lambda x: random_fourier(x, p=1.5), "probability"),
        (lambda x: saturate(255 * x), "must lie in"),
        (lambda x: stylize(x, encoder_weights="nowhere", decoder_weights="nowhere"), "at least 16 pixels"),
        (lambda x: fast_style(x, weights="nowhere.safetensors"), "no file 'nowhere.safetensors'"),
        (lambda x: fast_style(x[:, :, :4, :4]), "at least 5 pixels on the longer side, not 4 x 4"),
    ],
)
def test_settings_out_of_range_are_refused(call: Callable[[Tensor], Tensor], says: str) -> None:
    """The value, the rule, the remedy."""
    with pytest.raises(PellucidError, match=says):
        call(images())


def test_adain_has_the_styles_statistics() -> None:
    """Mean and deviation of every channel are the style's; its own style changes nothing; a channel's place is kept."""
    content, style = images(2, 4, 6, 6), 3 * images(2, 4, 5, 9, seed=1) - 1
    found = adain(content, style)
    torch.testing.assert_close(found.mean((2, 3)), style.mean((2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.var((2, 3)), style.var((2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(adain(content, content), content, rtol=0, atol=1e-12)
    correlation = torch.corrcoef(torch.stack([content[0, 0].flatten(), found[0, 0].flatten()]))[0, 1]
    assert correlation == pytest.approx(1, abs=1e-9)


def filled(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of 0.1, or, where that is less, such that a layer keeps the size of what it is given."""
    generator = torch.Generator().manual_seed(seed)
    scales = {name: min(0.1, (2 / max(1, t[0].numel())) ** 0.5) for name, t in network.state_dict().items()}
    drawn = {name: torch.empty_like(t).normal_(generator=generator) for name, t in network.state_dict().items()}
    return {name: scales[name] * t for name, t in drawn.items()}


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Files of random weights, the encoder with the layers that nobody uses, as it is published."""
    encode, decode = filled(encoder_layers()), filled(decoder_layers(), 1)
    save_file(encode | {"32.weight": torch.zeros(512, 512, 3, 3)}, tmp_path / "vgg_normalised.safetensors")
    torch.save(decode, tmp_path / "decoder.pth")
    save_file(filled(FeedForward()), tmp_path / "fast.safetensors")
    return {
        name: str(tmp_path / file)
        for name, file in (
            ("encoder", "vgg_normalised.safetensors"),
            ("decoder", "decoder.pth"),
            ("fast", "fast.safetensors"),
        )
    }


def paint(folder: Path, seed: int, count: int = 5) -> None:
    """Paintings of several sizes, as a folder of one class."""
    (folder / "train/any").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (30, 24 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"train/any/{number}.png")


def published(spec: str) -> nn.Sequential:
    """pytorch-AdaIN's networks layer by layer: P reflects a border, C convolves 3 x 3, M pools, U enlarges."""
    layers: list[nn.Module] = []
    for word in spec.split():
        kind, *widths = word.split(",")
        before, after = (int(n) for n in widths) if widths else (0, 0)
        made = {
            "I": lambda: nn.Conv2d(3, 3, (1, 1)),
            "P": lambda: nn.ReflectionPad2d((1, 1, 1, 1)),
            "C": lambda before=before, after=after: nn.Conv2d(before, after, (3, 3)),
            "R": nn.ReLU,
            "M": lambda: nn.MaxPool2d((2, 2), (2, 2), (0, 0), ceil_mode=True),
            "U": lambda: nn.UpsamplingNearest2d(scale_factor=2),
        }
        layers.append(made[kind]())
    return nn.Sequential(*layers)


VGG = (
    "I P C,3,64 R P C,64,64 R M P C,64,128 R P C,128,128 R M "
    "P C,128,256 R P C,256,256 R P C,256,256 R P C,256,256 R M P C,256,512 R"
)
MIRROR = (
    "P C,512,256 R U P C,256,256 R P C,256,256 R P C,256,256 R P C,256,128 R U "
    "P C,128,128 R P C,128,64 R U P C,64,64 R P C,64,3"
)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [(stylising.encoder, VGG, (2, 3, 21, 34)), (stylising.decoder, MIRROR, (2, 512, 3, 5))],
    ids=["encoder", "decoder"],
)
def test_the_networks_of_adain_are_those_published(
    ours: Callable[[str, Tensor], nn.Module], theirs: str, shape: tuple[int, ...], weights: dict[str, str]
) -> None:
    """Layer 30 of the one is relu4_1, an eighth of the image rounded up; tensors go by the layers' numbers."""
    twin = published(theirs).double()
    file = Path(weights[ours.__name__])
    stored = stylising.read_state_dict(file)
    twin.load_state_dict({name: stored[name] for name in twin.state_dict()})
    x = torch.empty(shape, dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(0))
    expected = twin(x)
    assert expected.shape == ((2, 512, 3, 5) if ours is stylising.encoder else (2, 3, 24, 40))
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours(str(file), x)(x), expected, rtol=1e-12, atol=1e-12)


def by_hand(x: Tensor, painting: Path, weights: dict[str, str]) -> Tensor:
    """`decode(AdaIN(encode(x), encode(painting)))` of one image, cut to [0, 1], without our networks and our loader."""
    side = max(x.shape[1:])
    with Image.open(painting) as opened:
        wide, high = (max(side, round(n * side / min(opened.size))) for n in opened.size)
        scaled = torch.from_numpy(np.array(opened.resize((wide, high), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    top, left = (high - side) // 2, (wide - side) // 2
    square = scaled[:, top : top + side, left : left + side]
    top, left = (side - x.shape[1]) // 2, (side - x.shape[2]) // 2
    style = (square[:, top : top + x.shape[1], left : left + x.shape[2]].float() / 255).to(x)
    encode, decode = published(VGG).to(x), published(MIRROR).to(x)
    for network, name in ((encode, "encoder"), (decode, "decoder")):
        stored = stylising.read_state_dict(Path(weights[name]))
        network.load_state_dict({key: stored[key] for key in network.state_dict()})
    a, b = (encode(image[None])[0].flatten(1) for image in (x, style))
    moments = [(t.mean(1, keepdim=True), (t.var(1, keepdim=True) + 1e-5).sqrt()) for t in (a, b)]
    mixed = moments[1][1] * (a - moments[0][0]) / moments[0][1] + moments[1][0]
    found = decode(mixed.view(1, 512, -(-x.shape[1] // 8), -(-x.shape[2] // 8)))[0]
    return found[:, : x.shape[1], : x.shape[2]].clamp(0, 1)


def test_stylising_puts_the_painting_that_was_drawn_on_each_image(weights: dict[str, str], tmp_path: Path) -> None:
    """By hand, image by image; by seed other paintings, of all of them."""
    paint(tmp_path / "art", 0)
    styled = partial(stylize, encoder_weights=weights["encoder"], decoder_weights=weights["decoder"])
    x, files = images(4, 3, 20, 17), sorted((tmp_path / "art/train/any").iterdir())
    found, drawn = [], []
    for seed in (0, 1):
        found.append(styled(x, styles=str(tmp_path / "art"), generator=PerImage(seed, range(4))))
        draws = [float(torch.empty(()).uniform_(generator=stream)) for stream in PerImage(seed, range(4)).streams]
        drawn.append([int(5 * u) for u in draws])
        expected = torch.stack([by_hand(one, files[n], weights) for one, n in zip(x, drawn[-1], strict=True)])
        torch.testing.assert_close(found[-1], expected, rtol=0, atol=1e-9)
        assert ((expected > 0) & (expected < 1)).double().mean() > 0.5  # else the box would hide what is put on
    for one, another, n, m in zip(*found, *drawn, strict=True):
        assert torch.equal(one, another) == (n == m)
    assert len({*drawn[0], *drawn[1]}) > 2


def test_paintings_are_read_again_when_they_have_changed(
    weights: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files, of the same names; one more of them; or where `$PELLUCID_DATA` is."""
    styled = partial(stylize, encoder_weights=weights["encoder"], decoder_weights=weights["decoder"])
    x = images(2, 3, 16, 16)

    def put(styles: str) -> Tensor:
        return styled(x, styles=styles, generator=PerImage(0, range(2)))

    for number in (1, 2):
        paint(tmp_path / f"{number}/art", number)
    one, two = (put(str(tmp_path / f"{number}/art")) for number in (1, 2))
    assert not torch.equal(one, two)
    for number, expected in ((1, one), (2, two)):
        monkeypatch.setenv("PELLUCID_DATA", str(tmp_path / str(number)))
        assert torch.equal(put("art"), expected)
    paint(tmp_path / "1/art", 2)
    assert torch.equal(put(str(tmp_path / "1/art")), two)
    paint(tmp_path / "1/art", 2, count=50)
    assert not torch.equal(put(str(tmp_path / "1/art")), two)
    assert stylising.paintings("digits", "test", 16) is stylising.paintings("digits", "test", 16)
    assert stylising.paintings(str(tmp_path / "2/art"), "train", 16) is stylising.paintings(
        str(tmp_path / "2/art"), "train", 16
    )


def test_stylising_stays_in_the_box_and_takes_grey(weights: dict[str, str], tmp_path: Path) -> None:
    """The same paintings whatever the batch; alpha 0 needs none; grey comes back grey; what is foreign is refused."""
    paint(tmp_path / "art", 0)
    put = partial(
        stylize, encoder_weights=weights["encoder"], decoder_weights=weights["decoder"], styles=str(tmp_path / "art")
    )
    x = images(4, 3, 20, 16, dtype=torch.float32)
    found = put(x, generator=PerImage(0, range(4)))
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found[2:], put(x[2:], generator=PerImage(0, [2, 3])), rtol=0, atol=1e-5)
    plain = [put(x, alpha=0.0, generator=PerImage(seed, range(4))) for seed in (0, 1)]
    torch.testing.assert_close(plain[0], plain[1], rtol=0, atol=1e-6)
    assert put(x[:, :1], generator=PerImage(0, range(4))).shape == (4, 1, 20, 16)
    with pytest.raises(PellucidError, match="1 or 3 channels"):
        put(x[:, :2])
    with pytest.raises(PellucidError, match=r"does not hold the weights of AdaIN's encoder.*tensors differ"):
        stylize(x, encoder_weights=weights["fast"], decoder_weights=weights["decoder"])
    with pytest.raises(PellucidError, match="in \\[0, 1\\]"):
        put(x, alpha=1.5)


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (1, 5)])
def test_the_feed_forward_network_layer_by_layer(weights: dict[str, str], size: tuple[int, int]) -> None:
    """Against its description written out with torch's own layers: SAME borders, instance norms, transposed cut."""
    w = {name: t.double() for name, t in stylising.read_state_dict(Path(weights["fast"])).items()}
    x = images(1, 3, *size)

    def norm(a: Tensor, name: str) -> Tensor:
        mean, variance = a.mean((2, 3), keepdim=True), a.var((2, 3), keepdim=True, correction=0)
        scale, shift = (w[f"{name}.norm_{part}"].view(1, -1, 1, 1) for part in ("scale", "shift"))
        return scale * (a - mean) / (variance + 1e-3).sqrt() + shift

    def same(a: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        pads: list[int] = []
        for n in (a.shape[3], a.shape[2]):
            missing = max(0, (math.ceil(n / stride) - 1) * stride + kernel.shape[2] - n)
            pads += [missing // 2, missing - missing // 2]
        return norm(F.conv2d(F.pad(a, pads), kernel, stride=stride), name)

    a = same(255 * x, "conv1").relu()
    a = same(same(a, "conv2", 2).relu(), "conv3", 2).relu()
    for block in range(1, 6):
        a = a + same(same(a, f"res{block}.conv1").relu(), f"res{block}.conv2")
    for name in ("up1", "up2"):
        a = norm(F.conv_transpose2d(a, w[f"{name}.weight"], stride=2)[:, :, :-1, :-1], name).relu()
    expected = ((150 * same(a, "conv_out").tanh() + 127.5) / 255)[:, :, : size[0], : size[1]].clamp(0, 1)
    found = fast_style(x, weights=weights["fast"])
    assert found.shape == x.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_weights_are_read_again_when_their_file_has_changed(weights: dict[str, str]) -> None:
    """A file is read once while it stays as it is."""
    x = images(1, 3, 16, 16)
    before = fast_style(x, weights=weights["fast"])
    assert torch.equal(before, fast_style(x, weights=weights["fast"]))
    save_file(filled(FeedForward(), 7), weights["fast"])
    assert not torch.equal(before, fast_style(x, weights=weights["fast"]))


def test_written_sets_are_the_images_to_half_a_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the rows asked for, with their labels and numbers, in a folder that --data takes; a sheet; by seed."""
    out = tmp_path / "shuffled"
    command = ["transform", "--data", "digits", "--images", "5:9", "--transform", "patch_shuffle(k=2)", "--json"]
    assert run([*command, "--seed", "3", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)["sets"]
    assert found[0]["n"] == 4
    assert found[0]["cut"] == 0
    digits, written = load("digits"), load(out)
    rows = torch.arange(5, 9)
    expected = transformed(partial(patch_shuffle, k=2), digits.batch(rows)[0], rows, 3)
    torch.testing.assert_close(written.batch(range(4))[0], expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert torch.equal(written.labels, digits.labels[5:9])
    assert written.class_names == digits.class_names
    assert pq.read_table(out / "test.parquet")["row"].to_pylist() == [5, 6, 7, 8]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size[0] > 2 * 112
    assert run([*command, "--seed", "4", "--out", str(out)]) == 2
    assert "another call" in capsys.readouterr().err


def test_several_transforms_are_several_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder each; what a filter leaves beyond the box is cut, and said."""
    specs = ["saturate(p=8)", "saturate(p=inf)", "high_pass(radius=2)"]
    options = [word for spec in specs for word in ("--transform", spec)]
    assert run(["transform", "--data", "digits", "--images", "first:3", *options, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert said.count("left [0, 1] and were cut") == 1
    sets = [load(tmp_path / name) for name in ("1-saturate", "2-saturate", "3-high_pass")]
    assert set(sets[1].batch(range(3))[0].unique().tolist()) <= {0.0, float(torch.tensor(128 / 255)), 1.0}
    assert not torch.equal(sets[0].batch(range(3))[0], sets[1].batch(range(3))[0])


def colours(path: Path, names: tuple[str, ...] = ("ant", "bee", "cat"), n: int = 7) -> Path:
    """A Parquet file of images higher than wide, in RGB, of every class but the middle one."""
    add: Add
    with parquet_writer(path, "test", names) as add:
        pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 9, 6), dtype=np.uint8)
        add(torch.from_numpy(pixels), torch.arange(n) % 2 * 2, range(n))
    return path


@pytest.mark.parametrize("data", ["digits", "colours"])
def test_folders_hold_the_same_set_to_the_bit(data: str, tmp_path: Path) -> None:
    """Classes, labels and pixels that come back by --data FOLDER are those of the Parquet file, class by class."""
    source = data if data == "digits" else str(colours(tmp_path / "source"))
    command = ["transform", "--data", source, "--images", "1:6", "--transform", "saturate(p=8)"]
    assert run([*command, "--out", str(tmp_path / "one")]) == 0
    for _ in range(2):  # the same call replaces what it wrote
        assert run([*command, "--out", str(tmp_path / "many"), "--format", "folder"]) == 0
    assert run([*command, "--out", str(tmp_path / "many")]) == 2  # another call
    one, many = load(tmp_path / "one"), load(tmp_path / "many")
    assert (many.class_names, many.shape, many.split) == (one.class_names, one.shape, one.split)
    order = one.labels.argsort(stable=True)
    assert torch.equal(many.labels, one.labels[order])
    assert torch.equal(many.batch(range(5))[0], one.batch(order)[0])
    rows = pq.read_table(tmp_path / "one/test.parquet")["row"].to_pylist()
    files = sorted((tmp_path / "many/test").glob("*/*.png"))
    assert [int(file.stem) for file in files] == [rows[i] for i in order.tolist()]
    spec = ["--transform", "patch_shuffle(k=3)"] if data == "colours" else ["--transform", "patch_shuffle(k=2)"]
    assert run(["transform", "--data", str(tmp_path / "many"), *spec, "--out", str(tmp_path / "again")]) == 0


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("cat", "bee", "ant"), "in the order of their names, and here 'cat' is before 'bee'"),
        (("0", "10", "2", "1"), "'2' is before '1'"),
        (("a", "b/c", "d"), "no folder can be called 'b/c'"),
        ((".a", "b", "c"), "no folder can be called '.a'"),
    ],
)
def test_folders_that_would_come_back_otherwise_are_refused(
    names: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their labels would be others, or their files none."""
    command = ["transform", "--data", str(colours(tmp_path / "source", names)), "--transform", "saturate"]
    assert run([*command, "--format", "folder", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "--format parquet" in said
    assert not (tmp_path / "out").exists()
    assert run([*command, "--format", "zip", "--out", str(tmp_path / "out")]) == 2
    assert "choose parquet or folder" in capsys.readouterr().err
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    assert load(tmp_path / "out").class_names == names


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_sets_are_written_part_by_part(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 350 images there are never more in memory than one part of 100, and the one before it."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(x: Tensor) -> tuple[Tensor, int]:
        nonlocal most
        pixels, cut = bytes_of(x)
        alive.append(weakref.ref(pixels))
        most = max(most, sum(ref() is not None for ref in alive))
        return pixels, cut

    monkeypatch.setattr(write, "bytes_of", watched)
    command = ["transform", "--data", "digits", "--images", "350", "--transform", "saturate", "--out", str(tmp_path)]
    assert run([*command, "--format", form]) == 0
    assert len(alive) == 4
    assert most <= 2
    assert len(load(tmp_path)) == 350
    if form == "parquet":
        written = pq.ParquetFile(tmp_path / "test.parquet")
        assert [written.metadata.row_group(i).num_rows for i in range(4)] == [100, 100, 100, 50]
        assert json.loads(written.schema_arrow.metadata[b"huggingface"])["info"]["features"]["label"]["names"]


def test_a_set_made_anew_takes_the_place_of_the_old_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while the old folder goes, all of the new one is there; nothing hidden stays in the end."""
    where = tmp_path / "set"

    def made(value: int) -> None:
        with write._whole(where) as neighbour:
            for name in ("a", "b"):
                (neighbour / name).mkdir(parents=True)
                (neighbour / name / "0.png").write_bytes(bytes([value]))

    made(1)
    gone, interrupted = shutil.rmtree, [False]

    def interrupting(path: Path) -> None:
        if not interrupted[0]:
            interrupted[0] = True
            raise KeyboardInterrupt
        gone(path)

    monkeypatch.setattr(write.shutil, "rmtree", interrupting)
    with pytest.raises(KeyboardInterrupt):
        made(2)
    assert sorted(file.read_bytes() for file in where.rglob("*.png")) == [b"\2", b"\2"]
    made(3)
    assert sorted(file.read_bytes() for file in where.rglob("*.png")) == [b"\3", b"\3"]


@pytest.mark.parametrize("form", ["parquet", "folder"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, partial(OSError, 28, "No space left")], ids=["ctrl-c", "full"])
def test_an_interrupted_set_leaves_nothing(
    form: str,
    error: Callable[[], BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No half of it; of several sets those that are whole stay, and the same call goes through."""
    left = [1]

    def failing(x: Tensor) -> tuple[Tensor, int]:
        left[0] -= 1
        if left[0] < 0:
            raise error()
        return bytes_of(x)

    monkeypatch.setattr(write, "bytes_of", failing)
    out = tmp_path / "out/here"
    command = ["transform", "--data", "digits", "--images", "first:150", "--format", form, "--out", str(out)]
    code, says = (130, "interrupted") if error is KeyboardInterrupt else (2, f"No space left: {out}/test")
    assert run([*command, "--transform", "saturate"]) == code
    assert says in capsys.readouterr().err
    assert not out.parent.exists()
    left[0] = 3  # of two parts of 100 and 50 images of each set
    own = tmp_path / "own.py"
    own.write_text("def dark(x):\n    return x / 2\n")
    several = [*command, "--transform", "saturate", "--transform", f"{own}:dark"]
    assert run(several) == code
    assert sorted(path.name for path in out.iterdir()) == ["1-saturate", "call.json"]
    assert len(load(out / "1-saturate")) == 150
    left[0] = 4
    assert run(several) == 0
    assert sorted(path.name for path in out.iterdir()) == ["1-saturate", "2-dark", "call.json", "sheet.png"]
    assert len(load(out / "2-dark")) == 150
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(("h", "w"), [(8, 16), (24, 8), (300, 150)])
def test_sheets_keep_the_shape_of_images(h: int, w: int) -> None:
    """The longer side fills its square of 112 pixels; what the shorter one leaves is white, to both sides."""
    sheet = Image.open(io.BytesIO(contact_sheet({"dark": np.zeros((1, 3, h, w))}, ["one"])))
    tile = np.asarray(sheet)[26 : 26 + 112, 8 : 8 + 112].mean(2)
    high, wide = 112 * h // max(h, w), 112 * w // max(h, w)
    expected = np.full((112, 112), 255.0)
    top, left = (112 - high) // 2, (112 - wide) // 2
    expected[top : top + high, left : left + wide] = 0
    np.testing.assert_array_equal(tile, expected)


def test_accuracy_on_correct_by_hand() -> None:
    """A ratio of sums with Wilson's interval; a mean over batches of 32 of ratios, those of none right left out."""
    before = np.array([True] * 20 + [False] * 12 + [True] * 4 + [False] * 28 + [False] * 32)
    after = np.array([True] * 10 + [False] * 10 + [True] * 12 + [True] * 4 + [False] * 28 + [True] * 32)
    found = on_correct({"correct": before}, {"correct": after})
    assert found["accuracy_on_correct"] == 14 / 24
    assert found["n_correct"] == 24
    assert found["interval_on_correct"] == list(wilson(14, 24))
    assert found["accuracy_on_correct_batch_mean"] == (10 / 20 + 4 / 4) / 2


def test_evaluate_on_transformed_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accuracies are those counted here, image by image; own transforms go too; wrong settings are named."""
    network = small(generator=torch.Generator().manual_seed(0))
    save_model(network, tmp_path / "net.safetensors", architecture="small")
    own = tmp_path / "mine.py"
    own.write_text("def dark(x, *, by: float = 0.5):\n    return x * (1 - by)\n")
    digits, rows = load("digits"), torch.arange(40)
    x, y = digits.batch(rows)
    command = ["evaluate", "--model", str(tmp_path / "net.safetensors"), "--data", "digits", "--images", "first:40"]
    for spec, change in (
        ("patch_shuffle(k=4)", partial(patch_shuffle, k=4)),
        (f"{own}:dark(by=0.25)", lambda x, **_: x * 0.75),
    ):
        assert run([*command, "--transform", spec, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        with torch.no_grad():
            before = network(x).argmax(1) == y
            after = network(change(x, generator=PerImage(0, rows.tolist()))).argmax(1) == y
        assert found["accuracy"] == pytest.approx(float(after.double().mean()))
        assert found["clean_accuracy"] == pytest.approx(float(before.double().mean()))
        assert found["n_correct"] == int(before.sum())
        assert found["accuracy_on_correct"] == pytest.approx(float((before & after).sum() / before.sum()))
    own.write_text("def boom(x):\n    raise ValueError('no')\n\n\ndef none(x):\n    return None\n")
    for name, says in (("boom", "mine.py, line 2"), ("none", "returned a NoneType")):
        assert run([*command, "--transform", f"{own}:{name}"]) == 2
        assert says in capsys.readouterr().err
    for spec, says in (("patch_shuffle(k=3)", "2, 4, 7"), ("low_pass(radius=99)", "cycles"), ("nix", "no transform")):
        assert run([*command, "--transform", spec]) == 2
        assert says in capsys.readouterr().err


def test_rows_under_a_style_belong_to_its_weights(weights: dict[str, str], tmp_path: Path) -> None:
    """The file of the same name holds another style: the old rows are not taken for its own."""
    network, digits, rows = small(generator=torch.Generator().manual_seed(0)), load("digits"), torch.arange(6)
    measurement = Measurement(transform=partial(fast_style, weights=weights["fast"]))
    for seed in (0, 7, 0):
        save_file(filled(FeedForward(), seed), weights["fast"])
        found = evaluate(network, digits, rows, measurement, cells=tmp_path / "cells")
        anew = evaluate(network, digits, rows, measurement)
        assert all((found[name] == anew[name]).all() for name in anew)
    assert len(list((tmp_path / "cells").iterdir())) == 2


def test_weights_are_not_touched_by_the_precision_of_images(weights: dict[str, str]) -> None:
    """Half-precision images in between change nothing of the next ones' style."""
    x = images(1, 3, 16, 16, dtype=torch.float32)
    before = fast_style(x, weights=weights["fast"])
    fast_style(x.bfloat16(), weights=weights["fast"])
    assert torch.equal(before, fast_style(x, weights=weights["fast"]))
