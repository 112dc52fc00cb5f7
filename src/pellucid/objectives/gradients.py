"""Penalties on gradients in the input: double backpropagation and its kin, attributions of the loss (IG-Norm)."""

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.balls import Ball, Linf
from pellucid.errors import PellucidError
from pellucid.metrics import attribution_norm
from pellucid.network import frozen
from pellucid.schedules import Schedule
from pellucid.schedules import weight as weighed
from pellucid.teachers import Teacher, teacher_probabilities
from pellucid.types import Attack, Generator, Images, Labels, PerExample, Reading
from pellucid.worst import Search, within

Of = Literal["label", "uniform", "entropy", "distilled"]


def double_backprop(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    lam: Schedule = 1.0,
    of: Of = "label",
    teacher: Teacher = None,
    temperature: float = 50.0,
    attack: Attack | None = None,
    eps: Schedule | None = None,
    reading: Reading = "as_written",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Input-gradient regularisation: `mean_i H(y_i, ŷ_i) + λ · mean_i ‖∇_x H(q_i, ŷ_i)‖_2²`, ŷ = softmax(f(x)).

    The penalised cross entropy is `of` the label (q = y, double backpropagation), the uniform distribution (q = 1/K,
    certainty sensitivity), the prediction itself (q = ŷ, its entropy) or a distilled prediction (q = softmax(g(x)/T), g
    the `teacher`, a path or a network, T the `temperature`). `lam`, a number or a schedule, is λ per example; pixels
    are in [0, 1]. With `attack` (both defences) the mean of that and of `H(y, ŷ(x'))`, x' from the attack,
    at this step's `eps`.

    `reading="as_coded"` has `λ/2 · ‖∇_X mean_i H_i‖²` of the whole batch: λ per example is then `lam / (2 b)`, so that
    their 56,234 at b = 256 is 110. Source: Ross & Doshi-Velez 2018, eq. 6 and sec. 4 (fig. 9); Drucker & LeCun 1992.
    Raises for a negative `lam`, for "distilled" without a teacher, and where an option says nothing: `eps` without an
    attack, a teacher of anything else.
    """
    weight = weighed("lam", lam, step)
    if eps is not None and attack is None:
        raise PellucidError(f"eps (={eps!r}) is the radius of an attack, and there is none: add attack=fgsm(), say")
    if of not in get_args(Of) or reading not in get_args(Reading):
        allowed = f"{', '.join(get_args(Of))}; {', '.join(get_args(Reading))}"
        raise PellucidError(f"of (={of!r}) and reading (={reading!r}) must be of: {allowed}")
    if teacher is not None and of != "distilled":
        given = repr(teacher) if isinstance(teacher, str | Path) else f"a {type(teacher).__name__}"
        raise PellucidError(f"a teacher (={given}) is asked by of='distilled' alone, and of is {of!r}")
    with torch.enable_grad():
        seen = x.detach().requires_grad_(weight > 0)
        logits = model(seen)
        fit = F.cross_entropy(logits, y)
        terms = {"cross_entropy": fit.detach()}
        loss = fit
        if weight > 0:
            entropy = _cross_entropies(logits, y, of, x, teacher, temperature)
            (gradient,) = torch.autograd.grad(entropy.sum(), seen, create_graph=True)
            penalty = gradient.flatten(1).square().sum(1).mean()
            terms["input_gradient"] = penalty.detach()
            loss = fit + (weight / (2 * len(x)) if reading == "as_coded" else weight) * penalty
        if attack is None:
            return loss, terms
        fit_attacked = F.cross_entropy(model(within(attack, eps, step)(model, x, y, generator=generator)), y)
    return (loss + fit_attacked) / 2, terms | {"adversarial_cross_entropy": fit_attacked.detach()}


def _cross_entropies(logits: Tensor, y: Labels, of: Of, x: Images, teacher: Teacher, temperature: float) -> PerExample:
    """`H(q, ŷ)` per example."""
    log_probabilities = logits.log_softmax(1)
    if of == "label":
        return F.nll_loss(log_probabilities, y, reduction="none")
    if of == "uniform":
        return -log_probabilities.mean(1)
    if of == "entropy":
        return -(log_probabilities.exp() * log_probabilities).sum(1)
    return -(teacher_probabilities(teacher, x, temperature) * log_probabilities).sum(1)


def ig_norm(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    steps: int = 10,
    step_size: float | None = None,
    lam: Schedule = 1.0,
    points: int = 5,
    adversarial: bool = False,
    reading: Reading = "as_written",
) -> tuple[Tensor, dict[str, Tensor]]:
    """IG-Norm: `CE(f(x), y) + λ · max_{x'} ‖IG(x, x')‖_1`, the attribution of the loss along the way from x to x'.

    `IG(x, x')_i = (x'_i - x_i) · (1/m) Σ_{k=1}^{m} ∂CE(f(z_k), y)/∂z_i` at `z_k = x + (k/m)(x' - x)`, m = `points`.
    With λ = 1 and m -> ∞ the loss bounds `CE(f(x'), y)` from above, by completeness. `adversarial` (IG-Sum-Norm): the
    maximum and the minimum are of `CE(f(x'), y) + λ ‖IG‖_1`, with no clean loss. x' is sought by projected steepest
    ascent from a random point, through the second derivative; it costs about 2m passes a step.

    The bound wants a network without batch norm: in training that takes its statistics over all points of all ways.

    `reading="as_coded"`: Boopathy et al. attribute the *mean* loss of the batch, which hides a factor `1/b` in λ: 0.02
    at their batch of 50, where Chen et al. have 1 and 0.1. Sources: Chen et al. 2019, eqs. 7 and 8; Boopathy et al.
    2020, sec. 5 (as baselines).
    Raises for `points < 1` and a negative `lam`.
    """
    weight = weighed("lam", lam, step)
    if points < 1 or reading not in get_args(Reading):
        allowed = ", ".join(get_args(Reading))
        raise PellucidError(f"points (={points}) must be at least 1, and reading (={reading!r}) one of {allowed}")
    weight = weight / max(1, len(x)) if reading == "as_coded" else weight

    def worst(there: Images) -> PerExample:
        found = weight * attribution_norm(model, x, there, y, points=points)
        return found + F.cross_entropy(model(there), y, reduction="none") if adversarial else found

    attacked = x
    with frozen(model):
        if weight > 0 or adversarial:
            attacked = Search(ball, eps, steps, step_size)(worst, x, step, generator)
    fit = F.cross_entropy(model(attacked if adversarial else x), y)
    terms = {"adversarial_cross_entropy" if adversarial else "cross_entropy": fit.detach()}
    if weight == 0:
        return fit, terms
    norm = attribution_norm(model, x, attacked, y, points=points).mean()
    return fit + weight * norm, terms | {"attribution": norm.detach()}
