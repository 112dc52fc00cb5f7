"""How an attack looks at maps: through a smooth twin where the network's own maps have no useful gradient.

The input gradient of a ReLU network is constant in each linear piece: its own gradient, which an attack on the map
must follow, is zero. The twin with softplus in place of ReLU has curvature (Dombrowski et al. 2019); the map that
counts is the real network's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.interpreters import activations, gradients
from pellucid.mapping import logits_and_maps, underlying
from pellucid.network import softplus
from pellucid.types import Classes, Images, Interpreter, Logits, Maps

Surrogate = Literal["auto"] | float | None
BETA = 20.0  # of the twin that "auto" makes, measured on MNIST: 5 to 80 differ little


@dataclass(frozen=True)
class View:
    """A network's logits, with its maps or its smooth twin's."""

    model: nn.Module
    twin: nn.Module
    interpreter: Interpreter

    def attacked(self, x: Images, classes: Classes) -> tuple[Logits, Maps]:
        """The logits, and the maps to differentiate."""
        if self.twin is self.model:
            return logits_and_maps(self.model, x, classes, self.interpreter)
        return self.model(x), self.interpreter(self.twin, x, classes)

    def judged(self, x: Images, classes: Classes, attacked: Maps) -> Maps:
        """The real network's maps, detached. `attacked` are those just seen at x."""
        if self.twin is self.model:
            return attacked.detach()
        with torch.no_grad():
            return self.interpreter(self.model, x.detach(), classes)


def view(model: nn.Module, x: Images, y: Tensor, interpreter: Interpreter, surrogate: Surrogate) -> View:
    """The view of a frozen model that `surrogate` asks for: a beta, None for the network itself, or "auto".

    "auto" takes the twin for maps from input gradients if the model holds ReLU modules. Raises where a map's gradient
    is zero everywhere and no twin can be made: an attack would only wander, and its failure would prove nothing.
    """
    itself = View(model, model, interpreter)
    if surrogate is None:
        return itself
    if surrogate != "auto":
        return View(model, softplus(model, beta=float(surrogate)), interpreter)
    home = underlying(interpreter)[0].__module__
    if home == activations.__name__:
        return itself
    rectified = any(isinstance(module, nn.ReLU) for module in model.modules())
    if not (rectified and home == gradients.__name__) and not _flat(model, x, y, interpreter):
        return itself
    if rectified:
        return View(model, softplus(model, beta=BETA), interpreter)
    raise PellucidError(
        "the gradient of this map is zero everywhere, so an attack on it would find nothing: a network of ReLUs "
        "needs a smooth twin, which is made from nn.ReLU modules (not F.relu); surrogate=None attacks as it is"
    )


def _flat(model: nn.Module, x: Images, y: Tensor, interpreter: Interpreter) -> bool:
    """Whether the map's gradient in the first image is exactly zero."""
    if not len(x):
        return False
    with torch.enable_grad():
        at = x[:1].detach().requires_grad_()
        maps = interpreter(model, at, y[:1, None])
        if not maps.requires_grad:
            return True
        (gradient,) = torch.autograd.grad((maps**2).sum(), at, materialize_grads=True)
    return not bool(gradient.any())
