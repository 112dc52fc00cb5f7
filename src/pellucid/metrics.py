"""Measures per image: `[b]`, never reduced. The caller averages, and says over whom."""

import numpy as np
import scipy.stats
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.network import frozen
from pellucid.types import Images, Labels, Logits, Maps, Mask, PerExample, Reading

SIGN_TENSOR_LIMIT = 64  # values per map: above it, sorting (scipy) beats the signs of all pairs
CONSTANT = 1e-6  # of a map's norm: what is off its mean by less is rounding
SIGN_TENSOR_VALUES = 1 << 18  # at once: what stays in a processor's cache

PerPair = Float[Tensor, " n"]


def correct(logits: Logits, y: Labels) -> Mask:
    """`argmax_j f_j = y`, and no logit is NaN: a model that says nothing does not say y."""
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def margin(logits: Logits, y: Labels) -> PerExample:
    """`f_y - max_{j≠y} f_j`, in logits; negative where another class wins."""
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def log_odds(logits: Logits, y: Labels) -> PerExample:
    """`log p_y / (1 - p_y) = f_y - log Σ_{j≠y} exp f_j`: a smooth margin, whose gradient does not underflow.

    Since `CE = log(1 + exp(-log_odds))`, CE's gradient is that of `-log_odds` times a positive number.
    """
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)


def discrepancy(maps: Maps, other: Float[Tensor, "b m *map"], *, p: int = 1, squared: bool = False) -> PerExample:
    """`D = (1/|C|) Σ_{i in C} ‖L(x, i) - L(x', i)‖_p` over the m classes of the maps, p in {1, 2}.

    `squared` takes `‖·‖_2²`, as the authors' code does in attacks. Source: Boopathy et al. 2020, eqs. 3 and 4.
    """
    if p not in (1, 2):
        raise PellucidError(f"p (={p}) must be 1 or 2")
    delta = (maps - other).flatten(2)
    per_class = (delta**2).sum(2) if squared and p == 2 else _norm(delta, p)
    return per_class.mean(1)


def normalised_discrepancy(maps: Maps, other: Float[Tensor, "b m *map"], *, p: int = 1) -> PerExample:
    """`D_norm = (1/|C|) Σ_{i in C} ‖L(x, i) - L(x', i)‖_p / (max_j L(x, i)_j - min_j L(x, i)_j)`.

    Classes whose clean map is constant have no scale and are left out; 0 where all are. Free of the maps' units.
    Source: Boopathy et al. 2020, sec. 5 (the NDS of one attack on one image).
    """
    if p not in (1, 2):
        raise PellucidError(f"p (={p}) must be 1 or 2")
    clean = maps.flatten(2)
    spread = clean.amax(2) - clean.amin(2)
    per_class = _norm(clean - other.flatten(2), p) / torch.where(spread > 0, spread, 1)
    return (per_class * (spread > 0)).sum(1) / (spread > 0).sum(1).clamp_min(1)


def weighted_discrepancy(
    maps: Maps,
    attacked: Float[Tensor, "b m *map"],
    logits_attacked: Float[Tensor, "b m"],
    y: Labels,
    *,
    reading: Reading = "as_written",
    detach_weights: bool = False,
) -> PerExample:
    """Boopathy et al. 2020, eq. 8, over maps of all classes: the label-free, worst-case-weighted discrepancy.

    As written, `½ ‖ΔL_t‖_1 + ½ Σ_{i≠t} softmax(f(x'))_i ‖ΔL_i‖_1`. As coded, `‖ΔL_t‖_1 + Σ_{i≠t} w_i ‖ΔL_i‖_1` with
    w the softmax renormalised over `i≠t`, on maps not divided by their u positions. The gradient flows through the
    weights, as in both, unless `detach_weights`.
    """
    distances = (maps - attacked).flatten(2).abs().sum(2)  # [b m]
    own = F.one_hot(y, distances.shape[1]).to(torch.bool)
    as_coded = reading == "as_coded"
    # The softmax over i≠t alone *is* the renormalised one, without dividing by what may underflow to zero.
    scores = logits_attacked.masked_fill(own, -torch.inf) if as_coded else logits_attacked
    weights = scores.softmax(1)
    weights = weights.detach() if detach_weights else weights
    total = torch.where(own, distances, weights * distances).sum(1)
    return total * (maps.flatten(2).shape[2] if as_coded else 0.5)


def proposition_1_bound(logits: Logits, t: Labels, t_attacked: Labels) -> PerExample:
    """`½ (f_t(x) - f_t'(x))`: for a complete interpreter no successful attack t -> t' has a smaller `D_{2,l1}`.

    Source: Boopathy et al. 2020, Proposition 1 (eq. 5).
    """
    return (logits.gather(1, t[:, None]) - logits.gather(1, t_attacked[:, None]))[:, 0] / 2


def sizes(delta: Images) -> dict[str, Tensor]:
    """How far each image was moved: `linf`, `l2`, `l1`, and `l0`, the pixels that changed in any channel."""
    flat = delta.flatten(1).abs()
    changed = (delta != 0).any(1).flatten(1).sum(1)
    return {"linf": flat.amax(1), "l2": flat.norm(dim=1), "l1": flat.sum(1), "l0": changed}


def input_gradient_norm(model: nn.Module, x: Images, y: Labels) -> PerExample:
    """`‖∂ CE(f(x), y) / ∂x‖_2`, the model in eval mode. Exactly 0 where the gradient underflows."""
    with frozen(model), torch.enable_grad():
        at = x.detach().requires_grad_()
        loss = F.cross_entropy(model(at), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, at)
    flat = gradient.flatten(1)
    # Scaled by the largest entry, so that the squares of a tiny gradient do not underflow: zero means zero.
    largest = flat.abs().amax(1).clamp_min(torch.finfo(flat.dtype).tiny)
    return (flat / largest[:, None]).norm(dim=1) * largest


def top_k_overlap(maps: Float[Tensor, "n d"], other: Float[Tensor, "n d"], *, k: int) -> Float[Tensor, " n"]:
    """`|top_k(a) ∩ top_k(b)| / k`, the share of the k largest values two maps have in common, in [0, 1].

    Ties are broken by position, lowest first. Source: Ghorbani et al. 2019.
    """
    k = min(k, maps.shape[1])
    one, two = (
        torch.zeros_like(m).scatter(1, m.argsort(dim=1, descending=True, stable=True)[:, :k], 1.0)
        for m in (maps, other)
    )
    return (one * two).sum(1) / k


def kendall_tau(maps: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Kendall's tau-b of each pair of rows: `(P - Q) / sqrt((P + Q + T) (P + Q + U))`, ties exact, in [-1, 1].

    NaN where a map is constant, as scipy has it. Up to 64 values by the signs of all pairs, in chunks;
    above that by scipy's sort. Equal to `scipy.stats.kendalltau` to 1e-6. Source: Kendall 1945.
    """
    n, d = maps.shape
    if d > SIGN_TENSOR_LIMIT:
        pairs = zip(maps.detach().cpu().numpy(), other.detach().cpu().numpy(), strict=True)
        with np.errstate(invalid="ignore"):
            taus = np.array([scipy.stats.kendalltau(a, b)[0] for a, b in pairs])
        return torch.as_tensor(taus, dtype=maps.dtype, device=maps.device)
    i, j = torch.triu_indices(d, d, 1, device=maps.device)
    chunk = max(1, SIGN_TENSOR_VALUES // max(1, len(i)))
    parts = [_tau_by_signs(maps[k : k + chunk], other[k : k + chunk], i, j) for k in range(0, max(1, n), chunk)]
    return torch.cat(parts)


def pearson(maps: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Pearson's correlation of two maps: the cosine of what each is off its mean; in [-1, 1], at any scale.

    0, with no gradient, where a map is constant to rounding. Differentiable elsewhere, unlike Kendall's tau.
    """
    units = []
    varied = torch.ones(len(maps), 1, dtype=torch.bool, device=maps.device)
    for each in (maps, other):
        off = each - each.mean(1, keepdim=True)
        size = off.detach().norm(dim=1, keepdim=True)
        varied = varied & (size > CONSTANT * each.detach().norm(dim=1, keepdim=True))
        off = torch.where(varied, off / size.clamp_min(torch.finfo(each.dtype).tiny), torch.ones_like(off))
        units.append(off / off.norm(dim=1, keepdim=True))
    return torch.where(varied[:, 0], (units[0] * units[1]).sum(1), 0)


def _tau_by_signs(maps: Float[Tensor, "n d"], other: Float[Tensor, "n d"], i: Tensor, j: Tensor) -> PerPair:
    one, two = (m.index_select(1, i).sub_(m.index_select(1, j)).sign_() for m in (maps, other))
    # Counts of up to d²/2 <= 2048 signs are exact in fp32.
    return (one * two).sum(1) / ((one * one).sum(1) * (two * two).sum(1)).sqrt()


def _norm(delta: Float[Tensor, "b m d"], p: int) -> Float[Tensor, "b m"]:
    return delta.abs().sum(2) if p == 1 else delta.norm(dim=2)


def attribution_norm(model: nn.Module, x: Images, attacked: Images, y: Labels, *, points: int) -> PerExample:
    """`‖IG(x, x')‖_1` of the cross entropy, differentiable in the weights and in x'. All points go in one batch."""
    with torch.enable_grad():
        delta = attacked - x
        shares = torch.arange(1, points + 1, device=x.device, dtype=x.dtype)[:, None, None, None, None] / points
        way = (x + shares * delta).flatten(0, 1)
        way = way if way.requires_grad else way.requires_grad_()
        loss = F.cross_entropy(model(way), y.repeat(points), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, way, create_graph=True)
        return (delta * gradient.unflatten(0, (points, len(x))).mean(0)).flatten(1).abs().sum(1)


def gini(maps: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """`1 - 2 Σ_k (v_k / ‖v‖₁) (d - k + 1/2) / d`, v the magnitudes in ascending order: how unequal a map is, in [0, 1).

    0 where all values are alike, `1 - 1/d` where one of d has it all; of Gaussian noise √2 - 1 on average. A map of
    zeros has none (NaN). Source: Hurley & Rickard 2009, eq. 4, there the best of the measures of sparsity.
    """
    values = maps.detach().double().abs().sort(1).values
    d = values.shape[1]
    weights = (d - torch.arange(1, d + 1, dtype=values.dtype, device=values.device) + 0.5) / d
    return 1 - 2 * (values * weights).sum(1) / values.sum(1)


def edges(x: Images, *, share: float = 0.2) -> Bool[Tensor, "b h w"]:
    """The share of pixels where the image changes most, by Sobel's gradient of the mean over channels, ties by place.

    Fewer where it changes at fewer: flat pixels are none. Borders are mirrored.
    Source: Sobel & Feldman 1968; the share is ours. Raises `PellucidError` unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise PellucidError(f"share (={share!r}) of the pixels must be above 0 and below 1")
    grey = F.pad(x.detach().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    slopes = F.conv2d(grey, torch.stack([across, across.t()])[:, None])
    size = slopes.square().sum(1).flatten(1)
    count = max(1, round(share * size.shape[1]))
    order = torch.sort(size, dim=1, descending=True, stable=True).indices[:, :count]
    found = torch.zeros(size.shape, dtype=torch.bool, device=x.device).scatter_(1, order, True) & (size > 0)
    return found.view(len(x), *x.shape[2:])


def share_within(maps: Float[Tensor, "b h w"], places: Bool[Tensor, "b h w"]) -> PerExample:
    """`Σ_places |m| / Σ |m|`: how much of a map's magnitude lies at some places; NaN for a map of zeros.

    A map that knows nothing of the places has their share of the image, on average.
    """
    size = maps.detach().double().abs()
    return (size * places).sum((1, 2)) / size.sum((1, 2))
