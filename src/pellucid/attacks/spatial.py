"""The spatial attack: no pixel changes its value, only its place."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.distortions.elastic import warp
from pellucid.errors import PellucidError
from pellucid.metrics import margin
from pellucid.network import frozen
from pellucid.search import check_counts, select
from pellucid.targets import Goal, choose
from pellucid.types import Generator, Images, Labels, Notes, PerExample, Reading

Flow = Float[Tensor, "b h w 2"]
SMOOTH = 1e-7  # under the root of the variation, which has no gradient at zero without it
TAU, TAU_AS_CODED = 0.005, 0.05
ADAPT = 1.1
ROUNDS, CURVATURES, RATE = 5, 10, 0.5  # as coded: of L-BFGS


def spatial(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    tau: float | None = None,
    steps: int = 200,
    step_size: float = 0.05,
    reading: Reading = "as_written",
    target: Goal | None = None,
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """`x'(p) = x(p + flow(p))`, bilinear, where `flow` minimises `max(margin, 0) + tau · TV(flow)` per image.

    The margin is `f_y - max_{j≠y} f_j`, or with a `target` (a rule or class of `targets.choose`) that of all others
    over it; `TV = Σ_{neighbours p, q} sqrt(‖flow(p) - flow(q)‖² + 1e-7)`, flow in pixels. From zero flow, `steps` of
    Adam of `step_size` pixels, per pixel, so that no image feels another; of all iterates the smoothest that fools,
    and where none does the one nearest to it. There is no ball: judge it by success and by TV, which goes into
    `notes` as `flow_variation`. Where we deviate: tau, by default 0.005, is only where each image's own weight begins,
    which falls by a tenth at every step that does not fool and rises at one that does; at Xiao et al.'s fixed 0.05 a
    robust network is not reached at all.

    As coded (Zhang & Zhu 2019): minimise the batch's mean of `log p_y + tau · TV`, tau 0.05, flow in units of half an
    image, by 5 rounds of L-BFGS (10 iterations, rate 0.5) over the whole batch, which couples its images; black beyond
    the border; the last iterate. **Its identity grid has its axes swapped, so that zero flow transposes the image**,
    and so does this reading: square images only. `steps` and `step_size` have no part in it.
    Raises for negative options. Source: Xiao et al. 2018, eqs. 1 to 4.
    """
    tau = (TAU_AS_CODED if reading == "as_coded" else TAU) if tau is None else tau
    check_counts(0, steps=steps)
    if not (tau >= 0 and step_size > 0):
        raise PellucidError(f"tau (={tau}) must not be negative, and step_size (={step_size}) must be above 0")
    with frozen(model, x, y):
        x = x.detach()
        aim = None if target is None else choose(target, model, x, y, generator)
        if reading == "as_coded":
            found, rough = _as_coded(model, x, y, aim, tau)
        else:
            found, rough = _by_adam(model, x, y, aim, tau, steps, step_size)
    if notes is not None:
        notes["flow_variation"] = rough
    return found


def _variation(flow: Flow) -> PerExample:
    """`Σ sqrt(‖flow(p) - flow(q)‖² + 1e-7)` over all pairs of neighbours, each once."""
    down, right = flow.diff(dim=1), flow.diff(dim=2)
    jumps = torch.cat([d.flatten(1, 2) for d in (down, right)], 1)  # [b pairs 2]
    return (jumps.square().sum(2) + SMOOTH).sqrt().sum(1)


def _by_adam(
    model: nn.Module, x: Images, y: Labels, aim: Labels | None, tau: float, steps: int, step_size: float
) -> tuple[Images, PerExample]:
    b, _, h, w = x.shape
    flow = x.new_zeros(b, h, w, 2).requires_grad_()
    smoothest = x.new_zeros(b)
    best, highest, weight = x.clone(), x.new_full((b,), -torch.inf), x.new_full((b,), tau)
    adam = torch.optim.Adam([flow], lr=step_size)
    for step in range(steps + 1):
        with torch.enable_grad():
            moved = warp(x, flow)
            logits = model(moved)
            lead = margin(logits, y) if aim is None else -margin(logits, aim)
            rough = _variation(flow)
            loss = lead.clamp_min(0) + weight * rough
            (flow.grad,) = torch.autograd.grad(loss.sum(), flow)
        weight = torch.where(lead < 0, weight * ADAPT, weight / ADAPT).detach()
        score = torch.where(lead < 0, 1 / (1 + rough), -lead).detach()
        better = score > highest
        best, highest = select(better, moved.detach(), best), torch.where(better, score, highest)
        smoothest = torch.where(better, rough.detach(), smoothest)
        if step < steps:
            adam.step()
    return best.clamp(0, 1), smoothest


def _as_coded(model: nn.Module, x: Images, y: Labels, aim: Labels | None, tau: float) -> tuple[Images, PerExample]:
    b, _, h, w = x.shape
    if h != w:
        raise PellucidError(f"spatial(reading='as_coded') transposes images, and these are {h} x {w}: use square ones")
    flow = x.new_zeros(b, h, w, 2).requires_grad_()
    lbfgs = torch.optim.LBFGS([flow], lr=RATE, max_iter=CURVATURES)

    def transposed() -> Images:
        return warp(x, flow * ((h - 1) / 2), outside="zeros", transposed=True)

    def closure() -> Tensor:
        with torch.enable_grad():
            logits = model(transposed())
            surprise = F.cross_entropy(logits, y if aim is None else aim, reduction="none")
            loss = (tau * _variation(flow) + (-surprise if aim is None else surprise)).mean()
            (flow.grad,) = torch.autograd.grad(loss, flow)
        return loss.detach()

    for _ in range(ROUNDS if b else 0):
        lbfgs.step(closure)
    with torch.no_grad():
        return transposed().clamp(0, 1), _variation(flow * ((h - 1) / 2))
