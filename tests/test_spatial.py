"""The warp by its laws, and the attack that seeks the smoothest warp that fools."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.attacks.spatial import spatial
from pellucid.distortions.elastic import warp
from pellucid.errors import PellucidError
from pellucid.metrics import margin
from pellucid.network import Network

Seeded = Callable[[int], torch.Generator]
Reading = Literal["as_written", "as_coded"]


@pytest.fixture
def x() -> Tensor:
    """Two colour images, higher than wide."""
    return torch.rand(2, 3, 17, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(28, 28), (31, 224)])
def test_zero_flow_is_the_identity_to_the_bit(dtype: torch.dtype, size: tuple[int, int]) -> None:
    at = torch.rand(2, 1, *size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for outside in ("edge", "zeros"):
        assert torch.equal(warp(at, at.new_zeros(2, *size, 2), outside=outside), at)


def test_a_flow_of_whole_pixels_rolls(x: Tensor) -> None:
    """Away from the border, where the edge is repeated or black comes in."""
    for down, right in ((1, 0), (0, 1), (-2, 3)):
        flow = torch.tensor([down, right], dtype=x.dtype).expand(2, 17, 12, 2)
        inner = (..., slice(3, -3), slice(3, -3))
        for outside in ("edge", "zeros"):
            assert torch.equal(warp(x, flow, outside=outside)[inner], x.roll((-down, -right), (2, 3))[inner])
    assert torch.equal(warp(x, flow)[:, :, 0, 0], x[:, :, 0, 3])
    assert not warp(x, flow, outside="zeros")[:, :, 0].any()


@pytest.mark.parametrize(("outside", "padding"), [("edge", "border"), ("zeros", "zeros")])
def test_warp_is_torchs_grid_sample(x: Tensor, outside: str, padding: str, seeded: Seeded) -> None:
    """With `align_corners=True`, values and gradients."""
    flow = torch.empty(2, 17, 12, 2, dtype=x.dtype).uniform_(-4, 4, generator=seeded(0)).requires_grad_()
    at = x.clone().requires_grad_()
    rows, columns = torch.meshgrid(torch.arange(17), torch.arange(12), indexing="ij")
    i, j = flow[..., 0] + rows, flow[..., 1] + columns
    grid = torch.stack([2 * j / 11 - 1, 2 * i / 16 - 1], 3)
    theirs = F.grid_sample(at, grid, padding_mode=padding, align_corners=True)
    ours = warp(at, flow, outside=outside)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.empty_like(x).uniform_(generator=seeded(1))
    for one, two in zip(*(torch.autograd.grad((weights * r).sum(), (at, flow)) for r in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_zero_flow_as_coded_transposes(images: Tensor, labels: Tensor) -> None:
    """A model whose logits do not depend on the image gives the flow no gradient: it stays zero."""
    constant = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    nn.init.zeros_(constant.get_parameter("1.weight"))
    assert torch.equal(spatial(constant, images, labels, reading="as_coded"), images.mT)
    assert torch.equal(spatial(constant, images, labels, steps=5), images)
    with pytest.raises(PellucidError, match="square"):
        spatial(constant, images[..., :12], labels, reading="as_coded")


@pytest.fixture
def nervous() -> nn.Module:
    """A linear network of three classes that looks at every pixel."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=torch.Generator().manual_seed(5))
    return model


def test_it_moves_pixels_and_fools(nervous: nn.Module, images: Tensor) -> None:
    """Images that the network reads its own way, until they are moved: no value beyond those there were."""
    images = images.double()
    y = nervous(images).argmax(1)
    found = spatial(nervous, images, y)
    assert (margin(nervous(found), y) < 0).all()
    assert (found.flatten(1).amax(1) <= images.flatten(1).amax(1)).all()
    assert (found.flatten(1).amin(1) >= images.flatten(1).amin(1)).all()


def test_of_all_iterates_the_smoothest_that_fools(nervous: nn.Module, images: Tensor) -> None:
    """With more steps no image is won back, and none that fell has a rougher flow."""
    at = images.double()
    y = nervous(at).argmax(1)
    last, fooled = torch.full((3,), torch.inf, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)
    for steps in (0, 10, 30, 100):
        notes: dict[str, Any] = {}
        now = margin(nervous(spatial(nervous, at, y, steps=steps, notes=notes)), y) < 0
        assert (now | ~fooled).all()
        assert (notes["flow_variation"][fooled] <= last[fooled]).all()
        last, fooled = notes["flow_variation"], now
    assert fooled.all()
    spatial(nervous, at, y, reading="as_coded", notes=notes)
    assert (notes["flow_variation"] > 0).all()


def test_images_do_not_couple(nervous: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Each alone as all together; as coded they do: the one step length of L-BFGS is everybody's."""
    at, y = images.double(), labels % 3
    readings: tuple[tuple[Reading, bool], ...] = (("as_written", False), ("as_coded", True))
    for reading, couples in readings:
        together = spatial(nervous, at, y, steps=10, reading=reading)
        alone = torch.cat([spatial(nervous, at[[i]], y[[i]], steps=10, reading=reading) for i in range(3)])
        assert bool((together - alone).abs().max() > 1e-6) == couples


@pytest.mark.parametrize("reading", ["as_written", "as_coded"])
def test_aimed_it_reaches_its_target(reading: Reading, nervous: nn.Module, images: Tensor) -> None:
    """As coded its lead grows, from that of the transposed images, at least."""
    at = images.double()
    y, goal = nervous(at).argmax(1), torch.full((3,), 2)
    found = spatial(nervous, at, y, target=2, reading=reading)
    aim = torch.where(y == 2, nervous(at).scatter(1, y[:, None], -torch.inf).argmax(1), goal)
    lead = margin(nervous(found), aim)
    assert (lead > 0).all() if reading == "as_written" else (lead > margin(nervous(at.mT), aim)).all()


def test_a_negative_tau_is_named(tiny: Network, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(PellucidError, match="tau"):
        spatial(tiny, images, labels, tau=-1.0)
