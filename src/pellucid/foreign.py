"""Foreign CNNs: find the last feature maps, the average pool and the linear head, if any, of any module, by trying."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.network import Averages, Head, Network, Normalise, frozen
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
    """Take a CNN apart into normalise -> trunk -> average pool -> linear head or none, sharing its parameters.

    Works for any module whose logits are a linear layer of averaged feature maps, or these averages themselves (as
    SqueezeNet's), however it is written (torchvision, timm, plain): the split is found by running `example`, a few
    images in [0, 1], and is accepted only when it reproduces the module's logits. `mean` and `std` go in front, for a
    module that wants normalised images. Raises `PellucidError` with the reason where there is no such split.
    """
    if isinstance(module, Network):
        return module
    normalise = None if mean is None or std is None else Normalise(mean, std).to(example)
    inputs = example if normalise is None else normalise(example)
    with frozen(module), torch.no_grad():
        logits, outputs, heads = _watch(module, inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise PellucidError("the model gives no logits [batch, classes], so it cannot be taken apart")
        layer, activation, head = _split(logits, outputs, heads)
        network = Network(Captured(module, layer, activation), head, normalise=normalise)
        gap = float((network(example) - logits).abs().max())
        if gap > 1e-4 * (1 + float(logits.abs().max())):
            raise PellucidError(f"taking {type(module).__name__} apart at {layer!r} changed its logits by {gap:.3g}")
    ours = (network, network.trunk, network.normalise, *([head] if isinstance(head, Averages) else []))
    for own in ours:  # and not the module's own flags: they are the caller's
        own.training = module.training
    return network


def _watch(
    module: nn.Module, x: Tensor
) -> tuple[object, dict[str, Tensor], list[tuple[str, nn.Linear, Tensor, Tensor]]]:
    """What it gives, every layer's last 4-D output by name, and every linear layer with its input and output."""
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


def _split(
    logits: Tensor, outputs: dict[str, Tensor], heads: list[tuple[str, nn.Linear, Tensor, Tensor]]
) -> tuple[str, str, Head]:
    """The layer of the last feature maps, the activation after it, and the head. Raises with the reason."""
    for name, head, given, output in reversed(heads):
        if output.shape == logits.shape and torch.equal(output, logits):
            found = _feature_layer(outputs, given)
            if found is None:
                raise PellucidError(_refusal(f"what the linear head {name!r} is given is", outputs, given))
            return *found, head
    found = _feature_layer(outputs, logits)
    if found is None:
        raise PellucidError(
            "the model does not end in a linear layer whose output are the logits, and "
            + _refusal("what it gives is", outputs, logits)
        )
    return *found, Averages(logits.shape[1]).to(logits)


def _feature_layer(outputs: dict[str, Tensor], pooled: Tensor) -> tuple[str, str] | None:
    """The earliest last layer whose output, averaged over positions, is what was pooled."""
    return _pooled_to(outputs, pooled, lambda a: a.mean((2, 3)))


def _pooled_to(outputs: dict[str, Tensor], pooled: Tensor, pool: Callable[[Tensor], Tensor]) -> tuple[str, str] | None:
    scale = 1e-5 * (1 + float(pooled.abs().max()))
    for name, output in reversed(outputs.items()):
        if output.shape[2:] == (1, 1) or (len(output), output.shape[1]) != pooled.shape:
            continue
        for activation, apply in ACTIVATIONS.items():
            if float((pool(apply(output)) - pooled).abs().max()) <= scale:
                return name, activation
    return None


def _refusal(what: str, outputs: dict[str, Tensor], pooled: Tensor) -> str:
    largest = _pooled_to(outputs, pooled, lambda a: a.amax((2, 3)))
    why = (
        f"the maximum of those of {largest[0]!r}: only averages have them"
        if largest
        else "a flattened map, a second linear layer, or another pooling?"
    )
    return (
        f"{what} not the average of any layer's feature maps ({why}), so there are no class activation maps: gradient "
        "maps and gradcam(layer=...) work without them"
    )
