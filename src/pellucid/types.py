"""The nouns of Pellucid and the call protocols that pass between its rooms."""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.draws import Draws

Images = Float[Tensor, "b c h w"]  # pixels in [0, 1]; the network normalises
Labels = Int[Tensor, " b"]
Classes = Int[Tensor, "b m"]  # m = 1 (AAI), 2 (ISA), C (eq. 8): one shape, no special cases
Logits = Float[Tensor, "b classes"]
PerExample = Float[Tensor, " b"]
Mask = Bool[Tensor, " b"]
RowNumbers = Int[Tensor, " n"]  # which images of a batch
Maps = Float[Tensor, "b m *map"]  # signed and un-normalised: Proposition 1 needs completeness

Generator = torch.Generator | None
Reading = Literal["as_written", "as_coded"]  # where a paper and its code disagree
Notes = dict[str, Tensor | np.ndarray] | None  # where an attack that is given it writes one value per image and name

LUMA = (0.299, 0.587, 0.114)  # of R, G and B in a grey image (ITU-R BT.601, and JPEG)


@runtime_checkable
class Attack(Protocol):
    """`(model, x, y) -> adversarial images`; everything else is keyword-only."""

    def __call__(self, model: nn.Module, x: Images, y: Labels, *, generator: Generator = None) -> Images: ...


@runtime_checkable
class Interpreter(Protocol):
    """`(model, x, classes) -> maps`, differentiable exactly when grad mode is on."""

    def __call__(self, model: nn.Module, x: Images, classes: Classes) -> Maps: ...


@runtime_checkable
class Objective(Protocol):
    """`(model, x, y, step) -> (scalar loss, its detached terms by name)`."""

    def __call__(
        self, model: nn.Module, x: Images, y: Labels, *, step: int, generator: Generator = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]: ...


@runtime_checkable
class Transform(Protocol):
    """`x -> images` of the same shape; what is random of it comes from `generator`, image by image."""

    def __call__(self, x: Images, *, generator: Draws = None) -> Images: ...
