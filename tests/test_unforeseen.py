"""The distortions by their closed forms, and the attacks that optimise them."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.attacks.unforeseen import elastic, fog, gabor, jpeg, snow
from pellucid.balls import L1
from pellucid.data import load
from pellucid.distortions import elastic as flow
from pellucid.distortions import fog as plasma
from pellucid.distortions import gabor as noise
from pellucid.distortions import jpeg as code
from pellucid.distortions import snow as flakes
from pellucid.errors import PellucidError
from pellucid.latent import climb, frank_wolfe, vertex
from pellucid.metrics import margin
from pellucid.network import Network
from pellucid.search import select

Seeded = Callable[[int], torch.Generator]
ATTACKS = {
    "gabor": gabor,
    "snow": snow,
    "fog": fog,
    "elastic": elastic,
    "jpeg-linf": partial(jpeg, norm="linf"),
    "jpeg-l2": partial(jpeg, norm="l2"),
    "jpeg-l1": partial(jpeg, norm="l1"),
}


def picture(b: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Images in [0, 1], float64."""
    return torch.rand(b, c, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained for seconds on real digits, and 40 of those that it reads rightly."""
    digits = load("digits", "train")
    x, y = digits.batch(torch.arange(400))
    generator = torch.Generator().manual_seed(0)
    network = Network(nn.Sequential(nn.Conv2d(1, 12, 7, stride=3), nn.ReLU(), nn.Conv2d(12, 24, 8)), nn.Linear(24, 10))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.empty_like(p).normal_(0, p[0].numel() ** -0.5 if p.ndim > 1 else 0.01, generator=generator))
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(network(x), y).backward()
        adam.step()
    right = (margin(network(x), y) > 0).nonzero()[:40, 0]
    assert len(right) == 40
    return network.eval(), x[right], y[right]


@pytest.fixture
def anyone() -> Callable[[int], nn.Module]:
    """A network for images of any size, of so many channels."""

    def build(channels: int) -> nn.Module:
        generator = torch.Generator().manual_seed(channels)
        network = Network(nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU()), nn.Linear(4, 5))
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(torch.empty_like(p).normal_(0, 0.5, generator=generator))
        return network.double().eval()

    return build


def test_dct_is_scipys() -> None:
    plane = picture(2, 1, 16, 24)[:, 0]
    blocks = plane.reshape(2, 2, 8, 3, 8).permute(0, 1, 3, 2, 4)
    expected = np.asarray(scipy.fft.dctn(blocks.numpy(), axes=(3, 4), norm="ortho"))
    found = code.dct(plane).reshape(2, 2, 8, 3, 8).permute(0, 1, 3, 2, 4)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)
    torch.testing.assert_close(code.inverse_dct(code.dct(plane)), plane, rtol=0, atol=1e-13)


@pytest.mark.parametrize("quality", [20, 50, 90])
@pytest.mark.parametrize(("mode", "h", "w"), [("L", 28, 28), ("L", 32, 36), ("YCbCr", 32, 32)])
def test_jpeg_round_trip_is_pillows(mode: str, h: int, w: int, quality: int) -> None:
    """Without subsampling, whose interpolation is each decoder's own, and from planes of whole numbers.

    libjpeg works in whole numbers. Its planes and its pixels are rounded to levels: half a level each, which colours
    multiply by up to 1.772. Where 13 bits tip a coefficient over half a step, one block is off by a step of it: rare.
    So nine pixels in ten agree to one level (two for colour), and the mean to less than that.
    """
    c = len(Image.new(mode, (1, 1)).getbands())
    middle, spread = (0.5, 0.9) if c == 1 else (0.5, 0.3)
    smooth = F.interpolate(picture(1, c, 9, 9) - 0.5, size=(h, w), mode="bicubic") * spread + middle
    levels = (255 * smooth.clamp(0, 1)).round()
    file = io.BytesIO()
    written = Image.fromarray(levels[0].byte().permute(1, 2, 0).numpy().squeeze(), mode)
    written.save(file, "JPEG", quality=quality, subsampling=0)
    theirs = torch.from_numpy(np.array(Image.open(file))).double().reshape(h, w, c).permute(2, 0, 1)
    if c == 3:
        matrix = torch.tensor(code.YCBCR, dtype=torch.float64).inverse()
        levels = torch.einsum("rk,bkhw->brhw", matrix, levels - torch.tensor([0, 128, 128])[:, None, None])
        assert levels.min() > 0
        assert levels.max() < 255
    z = code.encode(levels / 255, quality=quality, subsample=False, rounding="straight_through")
    apart = (255 * code.decode(z, c, h, w, quality=quality, subsample=False)[0] - theirs).abs()
    within = 1 if c == 1 else 2
    assert (apart <= within).double().mean() > 0.9
    assert apart.mean() < within


def test_jpeg_without_rounding_is_the_identity() -> None:
    """For grey; for colour but for what 4:2:0 drops, which is nothing where 2x2 pixels are of one colour."""
    for c, h, w in ((1, 28, 30), (3, 32, 32), (3, 20, 28)):
        x = picture(2, c, h // 2, w // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(code.decode(code.encode(x), c, h, w), x, rtol=0, atol=1e-12)


def test_rounding() -> None:
    """Whole numbers, forwards; backwards 1, and 3 (v - [v])² for soft."""
    v = torch.tensor([[0.2, 1.4, -0.7, 3.0]], dtype=torch.float64, requires_grad=True)
    hard, soft = code.rounded(v, "straight_through"), code.rounded(v, "soft")
    assert torch.equal(hard, v.detach().round())
    torch.testing.assert_close(torch.autograd.grad(hard.sum(), v)[0], torch.ones_like(v))
    assert ((soft - hard).abs() <= 0.125 + 1e-12).all()
    torch.testing.assert_close(torch.autograd.grad(soft.sum(), v)[0], 3 * (v - v.round()).detach() ** 2)


def test_gabor_kernel_by_its_definition() -> None:
    s, length, angle, sides = 0.2, 4.0, 0.7, 3
    one = torch.ones(1, dtype=torch.float64)
    found = noise.kernel(s * one, length * one, angle * one, torch.tensor([sides]), size=9)[0]
    for row in range(9):
        for column in range(9):
            v, u = row - 4, column - 4
            turns = [angle + k * np.pi / sides for k in range(sides)]
            wave = np.mean([np.cos(2 * np.pi / length * (u * np.cos(t) + v * np.sin(t))) for t in turns])
            assert float(found[row, column]) == pytest.approx(np.exp(-np.pi * s**2 * (u**2 + v**2)) * wave, abs=1e-12)


def test_gabor_noise_is_a_convolution(seeded: Seeded) -> None:
    """Of the impulses at their places, stretched to [0, 1] exactly; one impulse shows the kernel."""
    x = picture(3, 1, 20, 28)
    packets = noise.draw(x, seeded(0))
    assert packets.places.flatten(1).any(1).all()
    assert noise.draw(picture(50, 1, 32, 32), seeded(1)).places.double().mean() == pytest.approx(1 / 14, abs=0.005)
    maps = noise.noise(torch.ones_like(x), packets)
    assert torch.equal(maps.amin((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(maps.amax((1, 2, 3)), torch.ones(3, dtype=torch.float64))
    kernels = torch.fft.irfft2(packets.spectra, s=(48, 56))[:, None, :23, :23]
    plain = F.conv2d(packets.places.double().transpose(0, 1), kernels, padding=11, groups=3).transpose(0, 1)
    torch.testing.assert_close(maps, noise.stretched(plain), rtol=0, atol=1e-12)


def test_gabor_packets_as_coded(seeded: Seeded) -> None:
    """On the square of side 1 that their 23x23 pixels span; impulses wherever there are none as written."""
    x = picture(4, 1, 32, 32)
    coded, written, u = noise.draw(x, seeded(0), coded=True), noise.draw(x, seeded(0)), torch.empty(4, 4).double()
    assert torch.equal(coded.places, ~written.places)
    u.uniform_(generator=seeded(0))
    at = torch.linspace(-0.5, 0.5, 23, dtype=torch.float64)
    found = torch.fft.irfft2(coded.spectra, s=(56, 56))[:, :23, :23]
    for i in range(4):
        sides, angle, waves = 1 + int(10 * u[3, i]), torch.pi * u[2, i], 3 + 2.75 * u[1, i]
        envelope = (-0.5 * (at[:, None] ** 2 + at**2) / (0.101 + 0.3 * u[0, i]) ** 2).exp()
        turns = [angle + k * torch.pi / sides for k in range(sides)]
        across = [at * t.cos() + at[:, None] * t.sin() for t in turns]
        expected = envelope * torch.stack([(2 * torch.pi * waves * a).cos() for a in across]).mean(0)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-12)


def test_gabor_noise_as_coded_is_black_and_white(seeded: Seeded) -> None:
    """Whatever its scale; its gradient is that of a map with the mean, the divisor and the bounds held."""
    x = picture(3, 1, 32, 32)
    waves = noise.noise(2 * x - 1, noise.draw(x, seeded(0), coded=True))
    even = noise.stretched(noise.evened(waves))
    torch.testing.assert_close(noise.stretched(noise.evened(100 * waves)), even)
    size = (waves - waves.mean((2, 3), keepdim=True)).abs()
    clear = size > 0.02 * size.amax((2, 3), keepdim=True)
    assert clear.double().mean() > 0.9
    assert ((even < 0.05) | (even > 0.95))[clear].all()
    waves.requires_grad_()
    noise.stretched(noise.evened(waves), held=True).sum().backward()
    divisor = noise.FAINT + size / size.amax((2, 3), keepdim=True)
    held = noise.evened(waves.detach())
    spread = held.amax((2, 3), keepdim=True) - held.amin((2, 3), keepdim=True)
    torch.testing.assert_close(waves.grad, 1 / (divisor * spread))


def naive_plasma(own: np.ndarray, decay: float) -> np.ndarray:
    size = len(own)
    heights, stride, amplitude = np.zeros_like(own), size, 1.0
    heights[0, 0] = own[0, 0]
    while stride > 1:
        half = stride // 2
        diagonals, straights = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
        for offsets, elders in (([(half, half)], diagonals), ([(0, half), (half, 0)], straights)):
            for down, right in offsets:
                for i in range(down, size, stride):
                    for j in range(right, size, stride):
                        near = [heights[(i + half * a) % size, (j + half * b) % size] for a, b in elders]
                        heights[i, j] = np.mean(near) + amplitude * own[i, j]
        stride, amplitude = half, amplitude / decay
    return heights


@pytest.mark.parametrize("size", [1, 2, 16])
def test_plasma_is_the_diamond_square_algorithm(size: int) -> None:
    own = picture(2, 1, size, size)
    expected = np.stack([naive_plasma(one[0].numpy(), 1.75)[None] for one in own])
    np.testing.assert_allclose(plasma.plasma(own).numpy(), expected, atol=1e-13)


def test_fog_mixes_towards_white() -> None:
    """Every pixel between its own value and white fog; the darkest part of the plasma adds nothing."""
    x, own = picture(2, 3, 20, 28), picture(2, 1, 32, 32, seed=1)
    assert plasma.side(x) == 32
    found = plasma.distort(x, own, eps=3.0)
    assert ((found - x / 4).abs() < 1e-12).all(1).flatten(1).any(1).all()
    assert ((found <= x / 4 + 0.75 + 1e-12) & (found >= x / 4 - 1e-12)).all()


def test_snow_falls_amid_its_cell(seeded: Seeded) -> None:
    """One flake lights its streak around its cell, and its own place at full brightness."""
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    lit = torch.zeros(1, flakes.LAYERS, 8, 8, dtype=torch.float64)
    lit[0, 0, 3, 4] = 1
    point = torch.zeros(1, flakes.LAYERS, 13, 13, dtype=torch.float64)
    point[..., 6, 6] = 1
    assert flakes.distort(x, lit, point, eps=1.0, veil=0.0).nonzero().tolist() == [[0, 0, 14, 18]]
    shown = flakes.distort(x, lit, flakes.draw(x, seeded(0)), eps=1.0, veil=0.0)[0, 0]
    assert shown.max() > 0.9
    assert shown[:7].max() == shown[21:].max() == 0


def test_snow_budget_is_projected_onto(seeded: Seeded) -> None:
    """The nearest point p of {0 <= q <= 1, mean q <= 0.2}: `<v - p, q - p> <= 0` for all q of the set."""
    ball = flakes.Flurry()
    v = 2 * picture(5, 7, 4, 4) - 0.5
    v[0] *= 0.05
    nearest = ball.project(v, v)
    assert (nearest.flatten(1).mean(1) <= 0.2 + 1e-9).all()
    for seed in range(20):
        q = ball.sample(v, seeded(seed))
        assert q.min() >= 0
        assert q.max() <= 1
        assert (q.flatten(1).mean(1) <= 0.2 + 1e-9).all()
        assert ((v - nearest) * (q - nearest)).flatten(1).sum(1).max() <= 1e-7
        torch.testing.assert_close(ball.project(q, v), q, rtol=0, atol=1e-9)


def test_elastic_fields() -> None:
    """Zero is the identity, to the bit; a smoothed field is nowhere larger; far from the border a constant stays."""
    x = picture(2, 3, 40, 33)
    assert torch.equal(flow.distort(x, x.new_zeros(2, 2, 40, 33)), x)
    field = 2 * picture(2, 2, 40, 40) - 1
    assert flow.smooth(field).abs().amax() <= field.abs().amax()
    torch.testing.assert_close(flow.smooth(torch.ones_like(field))[..., 9:-9, 9:-9], field.new_ones(2, 2, 22, 22))


def test_every_distortion_is_differentiable(seeded: Seeded) -> None:
    """By finite differences, away from the clips."""
    x = 0.3 + 0.3 * picture(2, 3, 8, 8)
    packets, streaks = noise.draw(x, seeded(0)), flakes.draw(x, seeded(0))
    z = code.encode(x[:1])
    for distort, latent in (
        (lambda v: noise.distort(x, v, packets, eps=0.1), 2 * picture(2, 1, 8, 8, 1) - 1),
        (lambda v: flakes.distort(x, v, streaks, eps=0.1, veil=0.1), picture(2, 7, 2, 2, 1)),
        (lambda v: plasma.distort(x, v, eps=0.5), 2 * picture(2, 1, 8, 8, 1) - 1),
        (lambda v: flow.distort(x, v, sigma=1.0), picture(2, 2, 8, 8, 1) - 0.3),
        (lambda v: code.decode(z + v, 3, 8, 8), 0.01 * picture(1, 1, 1, z.shape[1], 1)[0, 0]),
    ):
        assert torch.autograd.gradcheck(distort, latent.requires_grad_(), fast_mode=True)


def test_frank_wolfes_vertex_is_the_best_of_its_set(seeded: Seeded) -> None:
    """`<g, s>` is largest at the vertex among points of the L1 ball that have the room, where all have the same."""
    gradient, start = 2 * picture(3, 1, 1, 30) - 1, torch.full((3, 1, 1, 30), 0.5, dtype=torch.float64)
    for eps in (0.0, 0.3, 1.2, 100.0):
        s = vertex(gradient, start, eps, start) - start
        assert (s.flatten(1).abs().sum(1) <= eps + 1e-12).all()
        assert s.abs().max() <= 0.5
        for seed in range(20):
            other = L1(eps).sample(torch.zeros_like(start), seeded(seed)).clamp(-0.5, 0.5)
            assert ((gradient * (s - other)).sum((1, 2, 3)) >= -1e-12).all()


def test_frank_wolfe_as_coded_spreads_its_budget() -> None:
    """Up a slope, twice: as written both steps push the same coordinates to the wall; as coded the second the next."""
    start, y = torch.full((2, 1, 1, 12), 0.5), torch.tensor([1, 1])
    slope = nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        slope.weight.copy_(torch.stack((torch.arange(12, 0, -1) * torch.tensor([1, -1]).repeat(6), torch.zeros(12))))
    options = {"target": None, "steps": 2, "random_start": False, "generator": None}
    for coded, amount, count in ((False, 0.5, 4), (True, 0.25, 8)):
        found = frank_wolfe(
            nn.Sequential(nn.Flatten(), slope), start, y, lambda z, _: z, start, 2.0, coded=coded, **options
        )
        moved = found.flatten(1) - 0.5
        assert (moved.abs().sum(1) == 2).all()
        assert torch.equal(moved[:, :count], amount * slope.weight[:1, :count].sign().expand(2, -1).detach())


def test_frank_wolfe_keeps_no_graph(
    tiny: Network, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the best so far nor what it is compared with asks for gradients, however many steps are taken."""
    asked: list[bool] = []

    def watched(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        asked.append(yes.requires_grad or no.requires_grad)
        return select(mask, yes, no)

    monkeypatch.setattr("pellucid.latent.select", watched)
    start = torch.full((3, 1, 1, 4), 0.5)

    def render(z: Tensor, at: Tensor) -> Tensor:
        return (images[at] + 0.1 * z.mean((1, 2, 3), keepdim=True)).clamp(0, 1)

    options = {"target": None, "steps": 3, "coded": False, "random_start": False, "generator": None}
    assert not frank_wolfe(tiny, images, labels, render, start, 1.0, **options).requires_grad
    assert len(asked) == 4
    assert not any(asked)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_at_eps_zero_return_the_image(name: str, anyone: Callable[[int], nn.Module]) -> None:
    """Grey, in both readings, but for the veil of snow as coded; images of one size or another."""
    x = picture(2, 1, 28, 28)
    for reading in ("as_written", "as_coded"):
        if (name, reading) != ("snow", "as_coded"):
            found = ATTACKS[name](anyone(1), x, torch.tensor([0, 1]), eps=0.0, steps=2, reading=reading)
            torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 64), (1, 21)])
@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
def test_attacks_take_any_image(
    name: str, channels: int, size: int, reading: str, anyone: Callable[[int], nn.Module], seeded: Seeded
) -> None:
    """Grey and colour, any size; same seed same bits, other seed other bits; wherever aimed."""
    x, y = picture(2, channels, size, size), torch.tensor([0, 1])
    run = partial(ATTACKS[name], anyone(channels), x, y, steps=2, reading=reading, target="random")
    found = run(generator=seeded(0))
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found != x).flatten(1).any(1).all()
    assert torch.equal(found, run(generator=seeded(0)))
    assert not torch.equal(found, run(generator=seeded(1)))


@pytest.mark.parametrize("name", ATTACKS)
def test_larger_eps_is_at_least_as_strong(name: str, trained: tuple[nn.Module, Tensor, Tensor], seeded: Seeded) -> None:
    """On a trained network: from no image lost to most of them, in order."""
    network, x, y = trained
    largest = {
        "gabor": 0.8,
        "snow": 2.0,
        "fog": 4.0,
        "elastic": 6.0,
        "jpeg-linf": 2.0,
        "jpeg-l2": 40.0,
        "jpeg-l1": 600.0,
    }
    kept = []
    for share in (0.0, 0.1, 0.4, 1.0):
        found = ATTACKS[name](network, x, y, eps=share * largest[name], steps=20, generator=seeded(0))
        kept.append(int((margin(network(found), y) > 0).sum()))
    assert kept[0] == 40
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] <= 20


@pytest.mark.parametrize("name", ATTACKS)
def test_optimising_beats_drawing(name: str, trained: tuple[nn.Module, Tensor, Tensor], seeded: Seeded) -> None:
    """Twenty steps take images that the start they begin from does not."""
    network, x, y = trained
    kept = []
    for steps in (0, 20):
        found = ATTACKS[name](network, x, y, steps=steps, generator=seeded(0))
        kept.append(int((margin(network(found), y) > 0).sum()))
    assert kept[1] < kept[0]


def test_snow_as_coded_leaves_its_last_step_free(tiny: Network, images: Tensor, labels: Tensor, seeded: Seeded) -> None:
    """The search brings the flakes back to their budget after every step but that one."""
    rows: list[Tensor] = []

    def render(z: Tensor, at: Tensor) -> Tensor:
        rows.append(z.detach())
        return images[at] + 0.1 * z.mean((1, 2, 3), keepdim=True)

    start = images.new_zeros(3, 7, 4, 4)
    options = {"target": None, "steps": 3, "step_size": 0.3, "coded": True, "generator": seeded(0)}
    for free, over in ((False, False), (True, True)):
        climb(tiny, images, labels, render, start, flakes.Flurry(), free_last=free, **options)
        assert bool((rows[-2].flatten(1).mean(1) <= 0.2 + 1e-6).all())
        assert bool((rows[-1].flatten(1).mean(1) > 0.2 + 1e-3).any()) == over


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_a_wrong_eps_is_named(eps: float, tiny: Network, images: Tensor, labels: Tensor) -> None:
    for attack in ATTACKS.values():
        with pytest.raises(PellucidError, match="eps"):
            attack(tiny, images, labels, eps=eps)
    with pytest.raises(PellucidError, match="smoothing"):
        elastic(tiny, images, labels, smoothing=0.0)
