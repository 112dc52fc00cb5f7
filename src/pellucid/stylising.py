"""The networks that put one image's style on another, from weight files: AdaIN's encoder and decoder, and Johnson's.

Their tensors are read by name and shape and nothing else; a file is read once, as long as it is not changed.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data import ImageSet, load
from pellucid.data.sources import Place, locate
from pellucid.errors import PellucidError
from pellucid.types import Images
from pellucid.weights import read_state_dict

Feature = Float[Tensor, "b k hm wm"]
Net = TypeVar("Net", bound=nn.Module)

TINY = 1e-5  # added to variances in AdaIN
INSTANCE_TINY = 1e-3  # and in the instance norms of the feed-forward network


def adain(content: Feature, style: Float[Tensor, "b k hs ws"]) -> Feature:
    """`σ(s) (c - μ(c)) / σ(c) + μ(s)`, mean and deviation of each channel over its positions.

    The result has the style's means and deviations, to `TINY` in the variances. Source: Huang & Belongie 2017, eq. 8.
    """

    def statistics(a: Tensor) -> tuple[Tensor, Tensor]:
        return a.mean((2, 3), keepdim=True), (a.var((2, 3), keepdim=True) + TINY).sqrt()

    (mean, deviation), (their_mean, their_deviation) = statistics(content), statistics(style)
    return their_deviation * (content - mean) / deviation + their_mean


def three_channels(x: Images) -> Float[Tensor, "b 3 h w"]:
    """RGB of grey images; RGB as it is. Raises `PellucidError` for other numbers of channels."""
    if x.shape[1] not in (1, 3):
        raise PellucidError(f"a style is put on images of 1 or 3 channels, not of {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)


def encoder(weights: str, like: Tensor) -> nn.Module:
    """VGG-19 to relu4_1, for images in [0, 1]: its first layer turns RGB into what the rest was trained on."""
    return _read(weights, encoder_layers, "AdaIN's encoder (vgg_normalised)", like)


def decoder(weights: str, like: Tensor) -> nn.Module:
    """From relu4_1 back to an image."""
    return _read(weights, decoder_layers, "AdaIN's decoder", like)


def transfer_network(weights: str, like: Tensor) -> nn.Module:
    """The feed-forward network of one style."""
    return _read(weights, FeedForward, "a feed-forward style network", like)


def encoder_layers() -> nn.Sequential:
    """Layers 0 to 30 of the common port's encoder; 1x1, then 3x3 convolutions with reflected borders."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    for before, after, pool in (
        (3, 64, False),
        (64, 64, True),
        (64, 128, False),
        (128, 128, True),
        (128, 256, False),
        *((256, 256, False),) * 2,
        (256, 256, True),
        (256, 512, False),
    ):
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if pool else []
    return nn.Sequential(*layers)


def decoder_layers() -> nn.Sequential:
    """The encoder's mirror, pooling become nearest-neighbour upsampling; no ReLU at the end."""
    layers: list[nn.Module] = []
    for before, after, grow in (
        (512, 256, True),
        *((256, 256, False),) * 3,
        (256, 128, True),
        (128, 128, False),
        (128, 64, True),
        (64, 64, False),
    ):
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3), nn.ReLU()]
        layers += [nn.UpsamplingNearest2d(scale_factor=2)] if grow else []
    return nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(64, 3, 3))


class _Convolution(nn.Module):
    """A convolution without bias and an instance norm; "SAME" borders: of stride 2 nothing before, one after."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, up: bool = False) -> None:
        super().__init__()
        shape = (before, after) if up else (after, before)
        self.weight = nn.Parameter(torch.zeros(*shape, kernel, kernel))
        self.norm_scale, self.norm_shift = nn.Parameter(torch.ones(after)), nn.Parameter(torch.zeros(after))
        self.stride, self.up = stride, up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.conv_transpose2d(x, self.weight, stride=2)[:, :, :-1, :-1]
        else:
            x = F.conv2d(F.pad(x, self._borders(x)), self.weight, stride=self.stride)
        return F.instance_norm(x, weight=self.norm_scale, bias=self.norm_shift, eps=INSTANCE_TINY)

    def _borders(self, x: Tensor) -> tuple[int, int, int, int]:
        kernel = self.weight.shape[2]
        missing = [max(0, (-(-n // self.stride) - 1) * self.stride + kernel - n) for n in x.shape[2:]]
        (top, left), (bottom, right) = ([n // 2 for n in missing], [n - n // 2 for n in missing])
        return left, right, top, bottom


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (_Convolution(width, width, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class FeedForward(nn.Sequential):
    """Johnson et al. 2016, as fast-style-transfer has it: images in [0, 1] to images, not cut to [0, 1]."""

    def __init__(self) -> None:
        layers: list[tuple[str, nn.Module]] = [
            ("conv1", _Convolution(3, 32, 9)),
            ("conv2", _Convolution(32, 64, 3, stride=2)),
            ("conv3", _Convolution(64, 128, 3, stride=2)),
            *((f"res{i}", _Residual(128)) for i in range(1, 6)),
            ("up1", _Convolution(128, 64, 3, up=True)),
            ("up2", _Convolution(64, 32, 3, up=True)),
            ("conv_out", _Convolution(32, 3, 9)),
        ]
        super().__init__(OrderedDict(layers))

    def forward(self, input: Images) -> Images:
        x = 255 * input
        for name, layer in self.named_children():
            x = layer(x)
            x = x.relu() if isinstance(layer, _Convolution) and name != "conv_out" else x
        return ((150 * x.tanh() + 127.5) / 255)[:, :, : input.shape[2], : input.shape[3]]


def _read(weights: str, build: Callable[[], nn.Module], what: str, like: Tensor) -> nn.Module:
    path = Path(weights).expanduser()
    if not path.is_file():
        there = f"no file {weights!r}" if weights else "no weights were given"
        raise PellucidError(f"{there}: {what} comes from a file of weights, see docs/transforms.md")
    return _read_once(path.resolve(), path.stat().st_mtime_ns, build, what, like.dtype, like.device)


@lru_cache(maxsize=4)
def _read_once(
    path: Path, changed: int, build: Callable[[], nn.Module], what: str, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    del changed
    with torch.device("meta"):  # no first weights are drawn: they would come from the global generator
        network = build()
    wanted, found = network.state_dict(), read_state_dict(path)
    differ = [name for name, tensor in wanted.items() if name not in found or found[name].shape != tensor.shape]
    if differ:
        shapes = {name: tuple(found[name].shape) if name in found else "missing" for name in differ[:3]}
        first = ", ".join(f"{name} {shape} for {tuple(wanted[name].shape)}" for name, shape in shapes.items())
        raise PellucidError(f"{path} does not hold the weights of {what}: {len(differ)} tensors differ ({first})")
    network.load_state_dict({name: found[name].float() for name in wanted}, assign=True)
    return network.to(device, dtype).eval().requires_grad_(False)


def paintings(styles: str, split: str, side: int) -> ImageSet:
    """Style images, the shorter side scaled to so many pixels and the centre cut out; many are read on demand.

    They are opened once, as long as their files are the same and unchanged, wherever `$PELLUCID_DATA` is. Raises
    `PellucidError` as `load` does.
    """
    if "@" in styles and not Path(styles).expanduser().exists():  # a preparation, made of who knows which files
        return load(styles, split, size=side)
    return _open_once(styles, split, side, () if styles == "digits" else _state(locate(styles, split)))


@lru_cache(maxsize=2)
def _open_once(styles: str, split: str, side: int, state: tuple[object, ...]) -> ImageSet:
    del state
    return load(styles, split, size=side)


def _state(place: Place) -> tuple[object, ...]:
    """Path, size and time of change of every file: `cache.identity`, but for each batch, so twenty times as fast."""
    if place.folder is not None:
        return tuple(_files(str(place.folder)))
    stats = [(file, file.stat()) for file in place.parquet]
    return place.hub, place.config, *((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry.path)
        else:
            stat = entry.stat()
            yield entry.path, stat.st_size, stat.st_mtime_ns


def cut_out(x: Float[Tensor, "b c side side"], size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """The centre of square images, in RGB."""
    top, left = ((x.shape[2] - size[0]) // 2, (x.shape[3] - size[1]) // 2)
    return three_channels(x)[:, :, top : top + size[0], left : left + size[1]].contiguous()
