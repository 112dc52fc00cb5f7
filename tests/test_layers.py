"""The quick convolution is `nn.Conv2d`: values, first and second derivatives."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.layers import Conv2d

GEOMETRIES = {
    "channels": st.integers(1, 4),
    "outputs": st.integers(1, 3),
    "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
    "size": st.tuples(st.integers(4, 7), st.integers(4, 7)),
    "bias": st.booleans(),
}


def derivatives(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """Value, first derivatives of a curved function of it, and first derivatives of the size of those."""
    x = x.clone().requires_grad_()
    values = conv(x)
    variables = [x, *conv.parameters()]
    first = torch.autograd.grad(values.exp().sum(), variables, create_graph=True)
    length = torch.stack([(f**2).sum() for f in first]).sum()
    second = torch.autograd.grad(length, variables)
    return [t.detach() for t in (values, *first, *second)]


@settings(deadline=None, max_examples=80)
@given(**GEOMETRIES)
def test_same_derivatives_as_the_ordinary_convolution(
    channels: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    bias: bool,
) -> None:
    """Value, first and second derivatives in x, weight and bias agree in float64."""
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    generator = torch.Generator().manual_seed(sum(size) + 10 * channels)
    ours = Conv2d(channels, outputs, kernel, stride=stride, padding=padding, bias=bias).double()
    plain = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=padding, bias=bias).double()
    with torch.no_grad():
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            q.copy_(p.normal_(0, 0.3, generator=generator))
    x = torch.empty(2, channels, *size, dtype=torch.float64).uniform_(generator=generator)
    for a, b in zip(derivatives(ours, x), derivatives(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("channels", "stride"), list(product([1, 4], [1, 2])))
def test_gradcheck(channels: int, stride: int, generator: torch.Generator) -> None:
    """First and second derivatives equal finite differences."""
    conv = Conv2d(channels, 2, 3, stride=stride, padding=1).double()
    x = torch.empty(1, channels, 4, 4, dtype=torch.float64).uniform_(generator=generator).requires_grad_()
    weight = torch.empty_like(conv.weight).normal_(generator=generator).requires_grad_()

    def at(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x,)) ** 2

    assert torch.autograd.gradcheck(at, (x, weight))
    assert torch.autograd.gradgradcheck(at, (x, weight))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_modes_are_the_ordinary_convolution(channels: int, generator: torch.Generator) -> None:
    """Under no_grad bit for bit, under autocast in bfloat16 with its type, value and gradient."""
    ours = Conv2d(channels, 3, 3, stride=2, padding=1)
    plain = nn.Conv2d(channels, 3, 3, stride=2, padding=1)
    plain.load_state_dict(ours.state_dict())
    x = torch.empty(2, channels, 8, 8).uniform_(generator=generator)
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
    results = []
    for conv in (ours, plain):
        at = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(at)
        results.append((out, *torch.autograd.grad(out.float().sum(), [at, *conv.parameters()])))
    assert results[0][0].dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("what", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_what_has_no_quick_path_is_the_ordinary_convolution(what: dict[str, Any], generator: torch.Generator) -> None:
    """Groups, dilation, other paddings: value and gradient bit for bit."""
    options: dict[str, Any] = {"padding": 2} | what
    ours, plain = Conv2d(2, 2, 3, **options), nn.Conv2d(2, 2, 3, **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.empty(2, 2, 6, 6).uniform_(generator=generator).requires_grad_()
    one, two = ours(x), plain(x)
    assert torch.equal(one, two)
    assert torch.equal(torch.autograd.grad(one.exp().sum(), x)[0], torch.autograd.grad(two.exp().sum(), x)[0])


def test_only_what_is_asked_for_is_differentiated(generator: torch.Generator) -> None:
    """With frozen weights the images still get their gradient, and the weights none."""
    conv = Conv2d(1, 2, 3).requires_grad_(False)
    x = torch.empty(1, 1, 5, 5).uniform_(generator=generator).requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in conv.parameters())


def test_no_images(generator: torch.Generator) -> None:
    """An empty batch goes through and back."""
    del generator
    for channels in (1, 4):
        x = torch.empty(0, channels, 8, 8, requires_grad=True)
        out = Conv2d(channels, 3, 3, stride=2, padding=1)(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert gradient.shape == x.shape
