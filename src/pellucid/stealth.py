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
    above t' before. Larger NDS and smaller NSL: harder to sneak past. NaN where nobody counts.
    """
    levels = sum(name.startswith(f"{PREFIX}nds_") for name in rows)
    column = {
        name: np.stack([np.asarray(rows[f"{PREFIX}{name}_{k}"]) for k in range(levels)], 1)
        for name in ("nds", "eps", "counts", "reached", "two_class", "bound")
    }
    counts = column["counts"].all(1) & np.asarray(rows["found"])
    nds = np.minimum.accumulate(column["nds"][counts].astype(float), 1)  # an attack at a smaller radius still holds
    eps = column["eps"][counts].astype(float)
    slope = _slope(nds, eps)
    moved = nds[:, 0] > nds[:, -1]
    held = column["two_class"] >= column["bound"] * (1 - SLACK) - SLACK
    return {
        "nds": _mean(nds),
        "nsl": _mean(slope) if levels > 1 else float("nan"),
        "nds_as_coded": _mean(nds[moved]),
        "nsl_as_coded": _mean(slope[moved]) / levels if levels > 1 else float("nan"),
        "n_isa": int(counts.sum()),
        "never_gave_way": int((~moved).sum()) if levels > 1 else 0,
        "dropped": int((~counts).sum()),
        "bound_holds": bool(held[column["reached"]].all()),
        "bound_violations": int((~held[column["reached"]]).sum()),
    }


def _slope(nds: np.ndarray, eps: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (nds[:, 0] - nds[:, -1]) / nds[:, 0] * eps[:, 0] / (eps[:, -1] - eps[:, 0])
    return np.where(np.isfinite(slope), slope, 0.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
