"""Networks: the classifier every room works on, how to take a foreign one apart, and how to hold one still.

`Network` = normalise -> trunk -> average pool -> linear head, or no head where the averages are the logits. Where the
trunk ends in a convolution, that convolution, the pooling and the head are one linear map: `Network` folds them,
exactly and differentiably.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.inputs import given
from pellucid.layers import Conv2d, convolve
from pellucid.quick import quick_trunk, watched
from pellucid.types import Images, Labels, Logits

ClassMaps = Float[Tensor, "b classes hm wm"]
Features = Float[Tensor, "b k hm wm"]
Model = TypeVar("Model", bound=nn.Module)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # by which published weights are normalised


class Normalise(nn.Module):
    """`(x - mean) / std` per channel: the network's own first layer, so that attacks speak pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0 or max(mean) > 1 or min(mean) < 0:
            raise PellucidError(
                f"mean {mean} and std {std} must have one entry per channel, every std > 0, every mean in [0, 1], as "
                "the images are: divide by 255 what was measured on 0 to 255"
            )
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Images) -> Images:
        if x.shape[1] != len(self.mean):
            raise PellucidError(f"{len(self.mean)} means and stds for images of {x.shape[1]} channels")
        return (x - self.mean) / self.std


def normalisation(channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Normalise | None:
    """`Normalise(mean, std)`; None where both are None. ImageNet's is, for other than three channels, its average."""
    if mean is None and std is None:
        return None
    if channels != 3:
        mean, std = (
            (sum(values) / 3,) * channels if values in (IMAGENET_MEAN, IMAGENET_STD) else values
            for values in (mean, std)
        )
    if mean is None or std is None or {len(mean), len(std)} != {channels}:
        raise PellucidError(
            f"mean {mean} and std {std} go together, with one number for each of the {channels} channels"
        )
    return Normalise(mean, std)


class Averages(nn.Module):
    """The head of a network that has none, `f_c = (1/u) Σ_i A_{c,i}`: the averaged feature maps are the logits.

    It has no parameters; `weight` and `bias` are those of the linear head that would change nothing.
    """

    one: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.in_features = self.out_features = classes
        self.register_buffer("one", torch.ones(()), persistent=False)  # knows the device and the type

    @property
    def weight(self) -> Float[Tensor, "classes classes"]:
        return self.one.expand(self.out_features).diag()

    @property
    def bias(self) -> Float[Tensor, " classes"]:
        return self.one.new_zeros(self.out_features)

    def forward(self, pooled: Logits) -> Logits:
        if pooled.shape[1] != self.out_features:
            raise PellucidError(
                f"{pooled.shape[1]} feature maps for {self.out_features} classes: without a linear head there must be "
                "one for each"
            )
        return pooled

    def extra_repr(self) -> str:
        return f"classes={self.out_features}"


Head = nn.Linear | Averages


class Tail(NamedTuple):
    """The folded convolution, average pool and head: one kernel for the maps, one matrix for the logits."""

    kernel: Float[Tensor, "classes k kh kw"]
    bias: Float[Tensor, " classes"]
    matrix: Float[Tensor, "classes k h w"] | None


class Network(nn.Module):
    """normalise -> trunk -> average pool over the u positions -> linear head: `f_c(x) = Σ_i CAM_c(x)_i`.

    With `Averages` in place of the head the trunk ends in one feature map per class. `published` are the names that
    others' files give the weights, as prefixes: theirs -> ours, the first that fits; None for what is left out here.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: Head,
        *,
        normalise: nn.Module | None = None,
        published: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.trunk = trunk
        self.head = head
        self.published = dict(published or {})
        self.biased = any(name == "bias" for name, _ in head.named_parameters())
        self._held: dict[tuple[int, int] | None, Tail] | None = None
        self._held_trunk: list[nn.Module | None] = []  # empty: not made yet. A list, so that it is no submodule

    def __getstate__(self) -> dict[str, Any]:
        """A copy made while frozen must not keep the held tails: nobody would drop them."""
        return self.__dict__ | {"_held": None, "_held_trunk": []}

    def features(self, x: Images) -> Features:
        """The last feature maps A, before pooling."""
        quick = self._quick()
        if quick is None:
            return self.trunk(self.normalise(x))
        return quick(self.normalise(x).contiguous(memory_format=torch.channels_last))

    def forward(self, x: Images) -> Logits:
        if not self.folds:
            return self.head(self.features(x).mean((2, 3)))
        stem = self._stem(x)
        tail = self._tail((stem.shape[2], stem.shape[3]))
        assert tail.matrix is not None
        return F.linear(stem.flatten(1), tail.matrix.flatten(1), tail.bias)

    def class_maps(self, x: Images) -> ClassMaps:
        """Class activation maps of all classes in one pass: `CAM_c = (1/u) (Σ_k w_k^c A_k + bias_c)`.

        Summed over their u positions they are the logits, exactly (Boopathy et al. 2020, eq. 1). Without a linear head
        they are the feature maps, divided by u.
        """
        if not self.folds:
            a = self.features(x)
            maps = a if isinstance(self.head, Averages) else torch.einsum("ck,bkhw->bchw", self.head.weight, a)
            if self.biased:
                maps = maps + self.head.bias[:, None, None]
            return maps / (a.shape[2] * a.shape[3])
        stem = self._stem(x)
        tail = self._tail(None)
        last = self._last()
        if last.dilation == (1, 1):
            maps = convolve(stem, tail.kernel, tail.bias, last.stride, _numbers(last.padding))
        else:
            maps = F.conv2d(stem, tail.kernel, tail.bias, last.stride, last.padding, last.dilation)
        return maps / (maps.shape[2] * maps.shape[3])

    @property
    def folds(self) -> bool:
        """Whether convolution, average pool and head are one linear map. See `why_not_folded`."""
        return why_not_folded(self) is None

    def _quick(self) -> nn.Module | None:
        """A quicker trunk while the network is held still; the hooks of a watched trunk must see the real one."""
        if self._held is None or any(watched(module) for module in self.trunk.modules()):
            return None
        if not self._held_trunk:
            self._held_trunk.append(quick_trunk(self.trunk))
        return self._held_trunk[0]

    def _last(self) -> nn.Conv2d:
        assert isinstance(self.trunk, nn.Sequential)
        last = self.trunk[-1]
        assert isinstance(last, nn.Conv2d)
        return last

    def _stem(self, x: Images) -> Features:
        assert isinstance(self.trunk, nn.Sequential)
        x = self.normalise(x)
        for module in list(self.trunk)[:-1]:
            x = module(x)
        return x

    def _head_bias(self) -> Float[Tensor, " classes"]:
        return self.head.bias if self.biased else self.head.weight.new_zeros(self.head.out_features)

    def _logit_bias(self) -> Float[Tensor, " classes"]:
        inner = self._last().bias
        return self._head_bias() if inner is None else self._head_bias() + self.head.weight @ inner

    def _tail(self, size: tuple[int, int] | None) -> Tail:
        if self._held is None:
            return self._fold(size)
        if size not in self._held:
            with torch.no_grad():
                self._held[size] = self._fold(size)
        return self._held[size]

    def _fold(self, size: tuple[int, int] | None) -> Tail:
        """Fold the head into the last convolution; with a size, the pooled map's matrix as well."""
        last = self._last()
        with torch.autocast(last.weight.device.type, enabled=False):
            kernel = last.weight
            if not isinstance(self.head, Averages):
                kernel = torch.einsum("ck,kixy->cixy", self.head.weight, kernel)
            matrix = None if size is None else _pooled(kernel, last, size)
            return Tail(kernel, self._logit_bias(), matrix)


def _numbers(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    assert not isinstance(padding, str)  # refused by why_not_folded
    return padding


def _pooled(
    kernel: Float[Tensor, "classes k kh kw"], conv: nn.Conv2d, size: tuple[int, int]
) -> Float[Tensor, "classes k h w"]:
    """The average over positions of a convolution, as a matrix on its input: the adjoint of the average.

    Each input position collects the kernel taps that reach it: taps (y + pad - dilation·t) / stride must be an
    output position. That is a product of a row and a column indicator, so it is two small matrix products.
    """
    reach = [
        _reach(
            size[axis],
            kernel.shape[2 + axis],
            int(conv.stride[axis]),
            int(conv.padding[axis]),
            conv.dilation[axis],
        )
        for axis in (0, 1)
    ]
    (rows, heights), (columns, widths) = reach
    rows, columns = rows.to(kernel), columns.to(kernel)
    return torch.einsum("ckts,ht,ws->ckhw", kernel, rows, columns) / (heights * widths)


def _reach(size: int, taps: int, stride: int, padding: int, dilation: int) -> tuple[Tensor, int]:
    """Which tap meets which input position at some output position, `[size taps]`, and how many outputs."""
    outputs = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    position = torch.arange(size)[:, None] + padding - dilation * torch.arange(taps)[None, :]
    reached = (position % stride == 0) & (position >= 0) & (position < outputs * stride)
    return reached.float(), outputs


_PLAIN = (nn.Conv2d.forward, Conv2d.forward, nn.Sequential.forward, nn.Linear.forward, Averages.forward)


def why_not_folded(network: Network) -> str | None:
    """Why the tail of a network is not one linear map, or None where it is (and therefore folded)."""
    trunk = network.trunk
    if not isinstance(trunk, nn.Sequential) or len(trunk) == 0:
        return "the trunk is not a plain sequence of layers"
    last = trunk[-1]
    if not isinstance(last, nn.Conv2d):
        return f"a {type(last).__name__} stands between the last convolution and the average pool"
    if (
        type(last).forward not in _PLAIN
        or type(trunk).forward not in _PLAIN
        or type(network.head).forward not in _PLAIN
    ):
        return "the trunk, its last convolution or the head computes something of its own"
    if last.groups != 1 or last.padding_mode != "zeros" or isinstance(last.padding, str):
        return "the last convolution is grouped, or not padded with a number of zeros"
    if any(watched(module) for module in (trunk, last, network.head)):
        return "a hook watches the trunk, its last convolution or the head"
    return None


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def frozen(model: Model, x: Images | None = None, y: Labels | None = None) -> Iterator[Model]:
    """Hold a model still: eval mode, no parameter gradients, folded tails computed once.

    The only place that changes mode or `requires_grad`. Every submodule's own flag is restored exactly,
    on errors too, so that a BatchNorm frozen inside a training network stays frozen. An attack hands over its images
    and labels, and `PellucidError` says what is wrong with them, or with the model's first answer (`inputs.given`).
    """
    if x is not None or y is not None:
        classes = model.head.out_features if isinstance(model, Network) else None
        with given(model, x, y, count=classes), frozen(model):
            yield model
        return
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    holders = [(m, m._held, m._held_trunk) for m in model.modules() if isinstance(m, Network)]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for module, held, trunk in holders:
            module._held, module._held_trunk = ({}, []) if held is None else (held, trunk)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, held, trunk in holders:
            module._held, module._held_trunk = held, trunk


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 means fp32: no TF32 in matrix products or convolutions while the block runs."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def softplus(model: Model, *, beta: float = 1.0) -> Model:
    """A copy of the model that shares every parameter, its ReLUs replaced by `log(1 + exp(beta x)) / beta`.

    The surrogate through which gradient maps of ReLU networks are attacked, since the curvature of a ReLU
    network is zero almost everywhere (Dombrowski et al. 2019). The larger beta, the closer to the ReLU:
    they differ by at most `log(2) / beta` at each unit. Raises where no `nn.ReLU` module is found.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    parents = [
        (parent, name)
        for parent in twin.modules()
        for name, child in parent._modules.items()  # named_children leaves out a module's second place
        if isinstance(child, nn.ReLU)
    ]
    if not parents:
        raise PellucidError(
            "softplus surrogate: the model holds no nn.ReLU module to replace; if it calls F.relu in forward, "
            "use nn.ReLU modules instead"
        )
    for parent, name in parents:
        setattr(parent, name, nn.Softplus(beta=beta))
    return twin
