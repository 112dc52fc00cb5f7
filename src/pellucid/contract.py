"""The model contract, checked loudly: float images in [0, 1] in, logits out, normalisation inside."""

import copy

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pellucid.errors import PellucidError
from pellucid.inputs import are_probabilities, explain_types
from pellucid.network import frozen
from pellucid.types import Images


def check_contract(model: nn.Module, x: Images, *, classes: int) -> None:
    """Run the model on a few images and raise, with the remedy, on whatever breaks the contract.

    Checked: it runs on these images; logits `[b, classes]`, finite, not probabilities; the same twice and whatever
    the batch (in eval mode); a gradient reaches the pixels.
    """
    check_initialised(model)
    try:
        with frozen(model):
            at = x.detach().requires_grad_()
            logits = model(at)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        _blame(model, x, error)
        raise
    with frozen(model):
        _check_logits(logits, len(x), classes)
        if not logits.requires_grad:
            raise PellucidError("no gradient reaches the pixels: does the model detach, or round its input?")
        (gradient,) = torch.autograd.grad(logits.square().sum(), at, allow_unused=True)
        unused: bool = gradient is None  # pyright: ignore[reportUnnecessaryComparison]  allow_unused gives None
        if unused or not bool(gradient.any()):
            raise PellucidError(
                "the logits' gradient in the pixels is exactly zero: does the model round its input? Gradient attacks "
                "would leave every image as it is, and call that robust"
            )
        with torch.no_grad():
            _check_repeatable(model, x, logits.detach())


def check_initialised(model: nn.Module) -> None:
    """Raise `PellucidError` where a lazy layer has no weights yet."""
    state = *model.named_parameters(), *model.named_buffers()
    lazy = next((name for name, tensor in state if is_lazy(tensor)), None)
    if lazy is not None:
        raise PellucidError(
            f"the model's {lazy} has no values yet (a lazy layer): run the model on an image once where it is built, "
            "as in model(torch.zeros(1, 3, 32, 32))"
        )


def _blame(model: nn.Module, x: Images, error: Exception) -> None:
    """Raise `PellucidError` where the pass fails without us too: what fails only while held still is our own bug."""
    explain_types(model, x, error)
    try:
        copy.deepcopy(model).eval()(x.detach().requires_grad_())  # a copy: its own mode and buffers stay as they are
    except Exception as bare:
        raise PellucidError(f"the model does not take images of shape {tuple(x.shape[1:])}: {bare}") from None


def _check_logits(logits: object, n: int, classes: int) -> None:
    if not isinstance(logits, torch.Tensor) or logits.shape != (n, classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise PellucidError(
            f"the model gives {got} for {n} images of {classes} classes: it must give logits {(n, classes)}"
        )
    values = logits.detach()
    if not bool(values.isfinite().all()):
        raise PellucidError("the model's logits are not finite: are its weights?")
    if bool(are_probabilities(values)):
        raise PellucidError("the model gives probabilities, not logits: leave out its final softmax")


def _check_repeatable(model: nn.Module, x: Images, logits: torch.Tensor) -> None:
    scale = 1e-3 * (1 + float(logits.abs().max()))
    if float((model(x) - logits).abs().max()) > scale:
        raise PellucidError("the model answers differently each time, in eval mode too: attacks would need averaging")
    if len(x) > 1 and float((model(x[:1]) - logits[:1]).abs().max()) > scale:
        raise PellucidError("the model's answer for an image depends on its batch: use BatchNorm in eval mode")
