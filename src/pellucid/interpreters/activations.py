"""Maps from the last feature maps: CAM and its relatives, and the representation itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.inputs import given
from pellucid.network import Features, Network
from pellucid.types import Classes, Images, Maps, Reading


def cam(model: nn.Module, x: Images, classes: Classes) -> Maps:
    """Class activation map, `[L(x, c)]_i = (1/u) Σ_k w_k^c A_{k,i}`; summed over its u positions it is the logit.

    Needs a `Network` (average pooling, and a linear head or none): `as_network` makes one. Differentiable, signed, at
    the resolution of the feature maps. Where the averages are the logits, it is the last feature map of the class
    itself, divided by u. Source: Zhou et al. 2016; Boopathy et al. 2020, eq. 1.
    """
    network = _network(model)
    with given(model, x, classes, ndim=2, count=network.head.out_features):
        everything = network.class_maps(x)
    return everything.gather(1, classes[:, :, None, None].expand(-1, -1, *everything.shape[2:]))


def gradcam(model: nn.Module, x: Images, classes: Classes, *, layer: str | None = None, relu: bool = False) -> Maps:
    """GradCAM, `Σ_k w_k^c A_k` with `w_k^c = (1/u) Σ_i ∂f_c/∂A_{k,i}`.

    At the last feature maps of a `Network` it is CAM (without the head's bias). `layer` names another module,
    as in `model.named_modules()`, and works for any model. Signed unless `relu`, which clips at 0 as the paper's
    display does. Source: Selvaraju et al. 2017, eqs. 1 and 2.
    """
    a, gradients = _feature_gradients(model, x, classes, layer)
    maps = torch.einsum("bmk,bkhw->bmhw", gradients.mean((3, 4)), a)
    return maps.relu() if relu else maps


def gradcam_plus_plus(
    model: nn.Module,
    x: Images,
    classes: Classes,
    *,
    layer: str | None = None,
    reading: Reading = "as_written",
) -> Maps:
    """GradCAM++, `Σ_k w_k^c A_k` with `w_k^c = Σ_i α_{k,i} max(∂f_c/∂A_{k,i}, 0)`.

    As written, `α = g² / (2 g² + g³ Σ_i A_{k,i})` with `g = ∂f_c/∂A_{k,i}`, and 0 where g is 0
    (Chattopadhay et al. 2018, eqs. 10 and 19; for the exponential of the logit). As coded by Boopathy et al. 2020,
    for average pooling and a linear head: CAM with `max(w, 0)` for w. Not clipped at 0: signed, as all maps here.
    """
    a, g = _feature_gradients(model, x, classes, layer)
    if reading == "as_coded":
        return torch.einsum("bmk,bkhw->bmhw", g.mean((3, 4)).relu(), a)
    denominator = 2 * g**2 + g**3 * a.sum((2, 3))[:, None, :, None, None]
    alpha = torch.where(denominator == 0, 0, g**2 / torch.where(denominator == 0, 1, denominator))
    weights = (alpha * g.relu()).sum((3, 4))
    return torch.einsum("bmk,bkhw->bmhw", weights, a)


def representation(model: nn.Module, x: Images, classes: Classes) -> Maps:
    """The last feature maps themselves, `[b m k h w]`: the same for every class. Boopathy et al. 2020, "Repr"."""
    network = _network(model)
    with given(model, x, classes, ndim=2, count=network.head.out_features):
        a = network.features(x)
    return a[:, None].expand(-1, classes.shape[1], -1, -1, -1)


def _network(model: nn.Module) -> Network:
    if isinstance(model, Network):
        return model
    raise PellucidError(
        "class activation maps need average pooling, and a linear head or none after it, and "
        f"{type(model).__name__} is not a pellucid.Network: take it apart with pellucid.as_network(model), or use "
        "gradcam(layer=...)"
    )


def _feature_gradients(model: nn.Module, x: Images, classes: Classes, layer: str | None) -> tuple[Features, Tensor]:
    """Feature maps `[b k h w]` and the gradients of the classes' logits in them, `[b m k h w]`."""
    if layer is None:
        network = _network(model)
        with given(model, x, classes, ndim=2, count=network.head.out_features):
            a = network.features(x)
        return a, (network.head.weight[classes] / (a.shape[2] * a.shape[3]))[..., None, None].expand(
            -1, -1, -1, *a.shape[2:]
        )
    differentiable = torch.is_grad_enabled()
    with given(model, x, classes, ndim=2), torch.enable_grad(), _watched(model, layer) as seen:
        x = x if x.requires_grad else x.detach().requires_grad_()
        logits = model(x)
        if not seen or seen[-1].dim() != 4:
            raise PellucidError(f"layer {layer!r} gives no feature maps [b k h w]: name a convolutional layer")
        a = seen[-1]
        gradients = [
            torch.autograd.grad(
                logits.gather(1, classes[:, [m]]).sum(), a, create_graph=differentiable, retain_graph=True
            )[0]
            for m in range(classes.shape[1])
        ]
    stacked = torch.stack(gradients, 1)
    return (a, stacked) if differentiable else (a.detach(), stacked.detach())


@contextmanager
def _watched(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """The outputs of a layer while the block runs."""
    modules = dict(model.named_modules())
    if layer not in modules:
        raise PellucidError(f"no layer {layer!r}: there are {', '.join(name for name in modules if name)}")
    seen: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        seen.append(output)
        return output.clone()  # what follows may write over it

    handle = modules[layer].register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
