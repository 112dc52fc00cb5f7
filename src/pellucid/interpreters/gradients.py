"""Maps from input gradients: the gradient itself, SmoothGrad, integrated gradients. `[b m c h w]`, signed."""

from typing import Literal

import torch
from torch import Tensor, nn

from pellucid.draws import Draws, normal
from pellucid.errors import PellucidError
from pellucid.inputs import given
from pellucid.types import Classes, Images, Maps

Of = Literal["logit", "log_probability"]

CHUNK = 250  # images per pass at most: measured fastest on CPUs
CHUNK_VALUES = 1_000_000  # pixel values per pass: what bounds the memory of large images


def gradient(model: nn.Module, x: Images, classes: Classes, *, of: Of = "logit") -> Maps:
    """`∂f_c(x) / ∂x`, or of `log p_c`. Source: Simonyan et al. 2014."""
    with given(model, x, classes, ndim=2):
        rows = torch.arange(len(x), device=x.device).repeat_interleave(classes.shape[1])
        flat = _gradients(model, x, rows, classes.flatten(), of)
        return flat.reshape(*classes.shape, *x.shape[1:])


def smoothgrad(
    model: nn.Module,
    x: Images,
    classes: Classes,
    *,
    samples: int = 50,
    sigma: float = 0.1,
    of: Of = "logit",
    generator: Draws = None,
) -> Maps:
    """`(1/n) Σ_i ∂f_c(x + g_i) / ∂x`, `g_i ~ N(0, (sigma (max x - min x))²)`, the spread taken per image.

    Zhang & Zhu 2019 use `of="log_probability"`, n = 100 and (in their figures' code) sigma .10.
    Source: Smilkov et al. 2017. With `sigma=0` it is the gradient.
    """
    if samples < 1:
        raise PellucidError(f"samples (={samples}) must be at least 1")
    with given(model, x, classes, ndim=2):
        spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).detach()[:, None, None, None]
        total: Tensor | None = None
        per_pass = max(1, _per_pass(x) // max(1, len(x) * classes.shape[1]))
        for first in range(0, samples, per_pass):
            count = min(per_pass, samples - first)
            noise = normal(generator, x, count)
            noisy = (x + sigma * spread * noise).flatten(0, 1)  # [count·b c h w]
            part = gradient(model, noisy, classes.repeat(count, 1), of=of)
            part = part.reshape(count, len(x), *part.shape[1:]).sum(0)
            total = part if total is None else total + part
        assert total is not None
        return total / samples


def integrated_gradients(
    model: nn.Module,
    x: Images,
    classes: Classes,
    *,
    baseline: float = 0.0,
    steps: int = 100,
    rule: Literal["right", "midpoint"] = "right",
    of: Of = "logit",
) -> Maps:
    """`(x - a) ⊙ (1/m) Σ_k ∂f_c(a + t_k (x - a)) / ∂x` with `t_k = k/m` (right) or `(k - 1/2)/m` (midpoint).

    The baseline a is an image of one value, black by default. Completeness: as m grows the map's sum tends to
    `f_c(x) - f_c(a)`, and the midpoint rule gets there faster. Source: Sundararajan et al. 2017;
    Boopathy et al. 2020, eq. 2 (m = 100, right).
    """
    if steps < 1:
        raise PellucidError(f"steps (={steps}) must be at least 1")
    with given(model, x, classes, ndim=2):
        shift = 0.0 if rule == "right" else 0.5
        total: Tensor | None = None
        per_pass = max(1, _per_pass(x) // max(1, len(x) * classes.shape[1]))
        for first in range(1, steps + 1, per_pass):
            k = torch.arange(first, min(first + per_pass, steps + 1), dtype=x.dtype, device=x.device)
            t = ((k - shift) / steps)[:, None, None, None, None]
            points = (baseline + t * (x - baseline)).flatten(0, 1)  # [count·b c h w]
            part = gradient(model, points, classes.repeat(len(k), 1), of=of)
            part = part.reshape(len(k), len(x), *part.shape[1:]).sum(0)
            total = part if total is None else total + part
        assert total is not None
        return (x - baseline)[:, None] * total / steps


def _per_pass(x: Images) -> int:
    """How many images of this size go in one pass."""
    return max(1, min(CHUNK, CHUNK_VALUES // max(1, x.shape[1] * x.shape[2] * x.shape[3])))


def _gradients(model: nn.Module, x: Images, rows: Tensor, classes: Tensor, of: Of) -> Tensor:
    """Gradients of single logits at the images `x[rows]`, in chunks."""
    differentiable = torch.is_grad_enabled()
    parts = []
    per_pass = _per_pass(x)
    for first in range(0, max(1, len(rows)), per_pass):
        part = slice(first, first + per_pass)
        with torch.enable_grad():
            at = x[rows[part]]
            at = at if at.requires_grad else at.detach().requires_grad_()
            logits = model(at)
            values = logits if of == "logit" else logits.log_softmax(1)
            chosen = values.gather(1, classes[part, None]).sum()
            (gradients,) = torch.autograd.grad(chosen, at, create_graph=differentiable)
        parts.append(gradients if differentiable else gradients.detach())
    return torch.cat(parts)
