"""SmoothGrad maps of clean and changed images, and what can be counted of them, each beside its chance value.

Zhang & Zhu 2019 show such maps in pictures; here are numbers of the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.draws import PerImage
from pellucid.interpreters.gradients import smoothgrad
from pellucid.metrics import edges, gini, kendall_tau, share_within
from pellucid.network import device_of, frozen, full_precision
from pellucid.results import bootstrap
from pellucid.seeds import derive_seed
from pellucid.summary import FEWEST
from pellucid.types import Images, Labels

SAMPLES, NOISE = 25, 0.1  # of SmoothGrad: the paper has 100 samples; its noise
EDGES = 0.2  # of the pixels count as edges
FINEST = 28  # maps are compared at this many places a side at most
PER_PASS = 16  # images whose maps are made at once
MADE = f"smoothgrad(samples={SAMPLES}, sigma={NOISE}, of='log_probability')"
CLEAN, SHUFFLED = "clean", "shuffled"  # kinds of images: maps of shuffled ones are not compared, all lies elsewhere

Values = Mapping[str, Float[np.ndarray, " n"]]  # {figure: of each image}


def smooth_maps(
    model: nn.Module, x: Images, y: Labels, *, rows: Sequence[int], seed: int, kind: str = CLEAN
) -> Float[Tensor, "b h w"]:
    """`Σ_channels |SmoothGrad|` of the true class's log-probability, as Zhang & Zhu draw it; on the CPU.

    The noise hangs on the seed, on which image it is (`rows`) and on the kind of images: every model sees the same,
    and maps of two kinds are no more alike than they are without noise in common.
    """
    device, parts = device_of(model), []
    with frozen(model), full_precision(), torch.no_grad():
        for first in range(0, len(x), PER_PASS):
            part = slice(first, first + PER_PASS)
            maps = smoothgrad(
                model,
                x[part].to(device),
                y[part, None].to(device),
                samples=SAMPLES,
                sigma=NOISE,
                of="log_probability",
                generator=PerImage(seed, rows[part], f"smoothgrad of {kind} images"),
            )
            parts.append(maps[:, 0].abs().sum(1).cpu())
    return torch.cat(parts)


def numbers(
    maps: Float[Tensor, "b h w"], x: Images, before: Float[Tensor, "b h w"] | None, *, seed: int
) -> dict[str, Any]:
    """Of every image's map: its `gini` index; `edges`, the share on the image's edges; `edges_more`, how much more than
    on another image's; `tau`, Kendall's, to the map before, averaged to at most 28 x 28; `tau_more`, how much more than
    to another image's. The other image is drawn by the seed. NaN for maps of zeros, and no `_more` of a single image.
    """
    other = _others(len(maps), seed)
    places = edges(x, share=EDGES)
    own = share_within(maps, places)
    found = {"gini": gini(maps.flatten(1)), "edges": own}
    if len(maps) > 1:
        found["edges_more"] = own - share_within(maps, places[other])
    if before is not None:
        side = min(FINEST, maps.shape[1], maps.shape[2])
        now, then = (F.adaptive_avg_pool2d(each[:, None], side).flatten(1) for each in (maps, before))
        found["tau"] = kendall_tau(then, now)
        if len(maps) > 1:
            found["tau_more"] = found["tau"] - kendall_tau(then[other], now)
    return {name: value.double().numpy() for name, value in found.items()}


def _others(n: int, seed: int) -> Tensor:
    """For each of n another one, the next in a drawn order: the order they stand in, by class say, decides nothing."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed("another image", seed)))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def summed_up(values: Values, seed: int) -> dict[str, dict[str, Any]]:
    """Of each figure its mean, 95 % bootstrap interval, and over how many maps: those of zeros count in none.

    No interval is given of fewer than ten.
    """
    return {name: _mean(value, seed) for name, value in values.items()}


def _mean(value: Float[np.ndarray, " n"], seed: int) -> dict[str, Any]:
    finite = value[np.isfinite(value)]
    low, high = bootstrap(finite, seed=seed) if len(finite) >= FEWEST else (None, None)
    return {"value": float(finite.mean()) if len(finite) else None, "low": low, "high": high, "n": len(finite)}


def noise_gini(channels: int) -> float:
    """The Gini index of a map that is nothing but Gaussian noise, its magnitudes added over channels."""
    noise = torch.empty(channels, 1, 100_000).normal_(generator=torch.Generator().manual_seed(0))
    return float(gini(noise.abs().sum(0)))


def of_models(
    models: Mapping[str, nn.Module],
    kinds: Mapping[str, Images],
    y: Labels,
    *,
    rows: Sequence[int],
    seed: int,
    tick: Callable[[int], None] | None = None,
) -> tuple[dict[tuple[str, str], Values], dict[tuple[str, str], Float[Tensor, "b h w"]]]:
    """Of each model and kind of images the numbers of its maps, and the maps. Clean images come first."""
    values: dict[tuple[str, str], Values] = {}
    maps: dict[tuple[str, str], Float[Tensor, "b h w"]] = {}
    for name, model in models.items():
        for kind, x in kinds.items():
            maps[name, kind] = smooth_maps(model, x, y, rows=rows, seed=seed, kind=kind)
            before = None if kind in (CLEAN, SHUFFLED) else maps[name, CLEAN]
            values[name, kind] = numbers(maps[name, kind], x, before, seed=seed)
            if tick is not None:
                tick(SAMPLES * len(x))
    return values, maps
