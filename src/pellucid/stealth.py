"""How well explanations resist the sneaking attack: NDS and NSL, from what `isa` notes on each image."""

from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX = "isa_"
SLACK = 1e-4  # of the bound: sums of single-precision maps


def sneaking_scores(rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`nds`, `nsl` as written and as coded, who counts, and whether Proposition 1 held.

    As written (Boopathy et al. 2020, sec. 5): NDS is the mean of D_norm over images and radii, NSL the mean over
    images of `(|D_first - D_last| / D_first) / ((eps_last - eps_first) / eps_first)`; images whose explanation never
    gave way count as slope 0. As coded: those images are left out of both, and the slopes are divided by the number of
    points (images times radii) instead of images. Only attacks that bring t' above t count, on images that had t
    above t' before. Images that gave way although their realised radius did not grow have no slope (`no_slope`).
    `bound_holds` is None where nobody reached t' or the maps are not complete, so that Proposition 1 says nothing.
    Larger NDS and smaller NSL: harder to sneak past. NaN where nobody counts.
    """
    levels = sum(name.startswith(f"{PREFIX}nds_") for name in rows)
    column = {
        name: np.stack([np.asarray(rows[f"{PREFIX}{name}_{k}"]) for k in range(levels)], 1)
        for name in ("nds", "eps", "counts", "reached", "two_class", "bound")
    }
    counts = column["counts"].all(1) & np.asarray(rows["found"])
    nds = np.minimum.accumulate(column["nds"][counts].astype(float), 1)  # an attack at a smaller radius still holds
    eps = np.maximum.accumulate(column["eps"][counts].astype(float), 1)
    moved = nds[:, 0] > nds[:, -1]
    grew = eps[:, -1] > eps[:, 0]
    slope = _slope(nds, eps)  # NaN where the explanation gave way within the same radius
    judged = column["reached"].astype(bool) & np.isfinite(column["bound"].astype(float))
    held = column["two_class"] >= column["bound"] * (1 - SLACK) - SLACK
    return {
        "nds": _mean(nds),
        "nsl": _mean(slope[grew | ~moved]) if levels > 1 else float("nan"),
        "nds_as_coded": _mean(nds[moved]),
        "nsl_as_coded": _mean(slope[moved & grew]) / levels if levels > 1 else float("nan"),
        "n_isa": int(counts.sum()),
        "never_gave_way": int((~moved).sum()) if levels > 1 else 0,
        "no_slope": int((moved & ~grew).sum()),
        "dropped": int((~counts).sum()),
        "bound_holds": bool(held[judged].all()) if judged.any() else None,
        "bound_violations": int((~held[judged]).sum()),
    }


def _slope(nds: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """Per image; 0 where nothing moved, NaN where the radius did not grow."""
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (nds[:, 0] - nds[:, -1]) / nds[:, 0] * eps[:, 0] / (eps[:, -1] - eps[:, 0])
    return np.where(nds[:, 0] > nds[:, -1], slope, 0.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
