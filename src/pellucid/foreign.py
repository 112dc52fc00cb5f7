"""Foreign CNNs: find the last feature maps, the average pool and the linear head of any module, by trying."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.network import Network, Normalise, frozen
from pellucid.types import Images

# What may stand between a module's output and the pooling without being a module of its own.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda a: a,
    "after relu": F.relu,
    "after relu6": F.relu6,
    "after silu": F.silu,
    "after gelu": F.gelu,
}


class Captured(nn.Module):
    """A foreign module run up to one of its layers: the layer's output, through one of `ACTIVATIONS`."""

    def __init__(self, module: nn.Module, layer: str, activation: str) -> None:
        super().__init__()
        self.module = module
        self.layer = layer
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen.append(output)

        handle = self.module.get_submodule(self.layer).register_forward_hook(note)
        try:
            self.module(x)
        finally:
            handle.remove()
        return ACTIVATIONS[self.activation](seen[-1])


def as_network(
    module: nn.Module,
    example: Images,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Network:
    """Take a CNN apart into normalise -> trunk -> average pool -> linear head, sharing its parameters.

    Works for any module whose logits are a linear layer of averaged feature maps, however it is written
    (torchvision, timm, plain): the split is found by running `example`, a few images in [0, 1], and is accepted only
    when it reproduces the module's logits. `mean` and `std` go in front, for a module that wants normalised
    images. Raises `PellucidError` with the reason where there is no such split.
    """
    if isinstance(module, Network):
        return module
    normalise = None if mean is None or std is None else Normalise(mean, std)
    inputs = example if normalise is None else normalise(example)
    with frozen(module), torch.no_grad():
        logits, outputs, heads = _watch(module, inputs)
        name, head, pooled = _head(heads, logits)
        layer, activation = _feature_layer(outputs, pooled, name)
        network = Network(Captured(module, layer, activation), head, normalise=normalise)
        gap = float((network(example) - logits).abs().max())
        if gap > 1e-4 * (1 + float(logits.abs().max())):
            raise PellucidError(f"taking {type(module).__name__} apart at {layer!r} changed its logits by {gap:.3g}")
    for own in (network, network.trunk, network.normalise):  # and not the module's own flags: they are the caller's
        own.training = module.training
    return network


def _watch(
    module: nn.Module, x: Tensor
) -> tuple[Tensor, dict[str, Tensor], list[tuple[str, nn.Linear, Tensor, Tensor]]]:
    """The logits, every layer's last 4-D output by name, and every linear layer with its input and output."""
    outputs: dict[str, Tensor] = {}
    heads: list[tuple[str, nn.Linear, Tensor, Tensor]] = []
    handles = []
    for name, layer in module.named_modules():

        def note(layer: nn.Module, inputs: tuple, output: object, *, name: str = name) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and name:
                outputs.pop(name, None)
                outputs[name] = output
            if isinstance(layer, nn.Linear) and isinstance(output, Tensor):
                heads.append((name, layer, inputs[0], output))

        handles.append(layer.register_forward_hook(note))
    try:
        logits = module(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, outputs, heads


def _head(heads: list[tuple[str, nn.Linear, Tensor, Tensor]], logits: Tensor) -> tuple[str, nn.Linear, Tensor]:
    for name, layer, given, output in reversed(heads):
        if output.shape == logits.shape and torch.equal(output, logits):
            return name, layer, given
    raise PellucidError(
        "the model does not end in a linear layer whose output are the logits, so it has no class activation maps: "
        "gradient maps and gradcam(layer=...) work without them"
    )


def _feature_layer(outputs: dict[str, Tensor], pooled: Tensor, head: str) -> tuple[str, str]:
    """The earliest last layer whose averaged output is what the head is given."""
    scale = 1e-5 * (1 + float(pooled.abs().max()))
    for name, output in reversed(outputs.items()):
        if output.shape[2:] == (1, 1) or output.shape[1] != pooled.shape[-1]:
            continue
        for activation, apply in ACTIVATIONS.items():
            if float((apply(output).mean((2, 3)) - pooled).abs().max()) <= scale:
                return name, activation
    raise PellucidError(
        f"what the linear head {head!r} is given is not the average of any layer's feature maps (a flattened map, a "
        "second linear layer, or max-pooling?), so there are no class activation maps: gradient maps and "
        "gradcam(layer=...) work without them"
    )
