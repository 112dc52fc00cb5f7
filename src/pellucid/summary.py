"""The figures of an audit, from its rows: pure."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest, t

from pellucid.checks import Check
from pellucid.outcome import tally
from pellucid.protocol import Protocol, Subject
from pellucid.results import Rows, bootstrap, holm, rate, wilson

AllRows = Mapping[tuple[str, float], Rows]

ROUNDING = 1e-12  # a smaller spread is the arithmetic's
FEWEST = 10  # of fewer values a bootstrap or a normal interval is much too narrow, and of one it has no width at all


def survivors(rows: AllRows, eps: tuple[float, ...]) -> dict[float, np.ndarray]:
    """Per radius, which images withstood: classified correctly clean and under every attack of at most this radius.

    Every attack of the audit counts: on the prediction, on the explanation (whose images may change the class too), and
    the worst case. An adversarial image of a smaller ball lies in the larger one, so the curve cannot rise.
    """
    standing = rows["clean", 0.0]["correct"].copy()
    found = {}
    for radius in sorted(eps):
        for kind in ("attack", "aai", "worst"):
            if (kind, radius) in rows:
                standing = standing & rows[kind, radius]["correct"]
        found[radius] = standing
    return found


def figures(subject: Subject, rows: AllRows, protocol: Protocol, checks: list[Check]) -> dict[str, Any]:
    """The figures of one model, from its rows."""
    clean = rows["clean", 0.0]
    standing = survivors(rows, protocol.eps)
    norms = clean["gradient_norm"]
    quantiles = np.quantile(norms, [0.05, 0.25, 0.5, 0.75, 0.95])
    found: dict[str, Any] = {
        "name": subject.name,
        "path": subject.path,
        "architecture": subject.facts.get("architecture", type(subject.model).__name__),
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "trained": subject.facts.get("objective") or subject.facts.get("source"),
        "clean": rate(clean["correct"]),
        "robust": [{"eps": eps, **rate(standing[eps])} for eps in protocol.eps],
        "input_gradient_norm": {
            "mean": float(norms.mean()),
            "median": float(quantiles[2]),
            **{name: float(q) for name, q in zip(("q05", "q25", "q75", "q95"), quantiles[[0, 1, 3, 4]], strict=True)},
            "n": len(norms),
            "zero": int((norms == 0).sum()),
        },
        "checks": [vars(check) for check in checks],
    }
    if ("worst", protocol.gallery_eps) in rows:
        found["worst"] = _worst(rows["worst", protocol.gallery_eps], protocol.gallery_eps)
    if subject.has_cam:
        found["aai"] = [_interpretation(rows["aai", eps], eps, protocol.seed) for eps in protocol.eps]
    else:
        reason = subject.facts.get("no_maps") or f"{type(subject.model).__name__} has no class activation maps"
        found |= {"aai": None, "aai_refused": reason}
    return found


def _worst(rows: Rows, eps: float) -> dict[str, Any]:
    """Which member of the ensemble broke how many images."""
    return {"eps": eps} | ({"by_attack": tally(rows["broken_by"])} if "broken_by" in rows else {})


def compare(all_rows: Mapping[str, AllRows], protocol: Protocol) -> list[dict[str, Any]] | None:
    """Paired differences in robust accuracy of every two models at every radius, on the same images; None of one model.

    Each with Newcombe's interval and McNemar's exact p; `p_holm` is corrected for all of these comparisons.
    """
    standing = {name: survivors(rows, protocol.eps) for name, rows in all_rows.items()}
    found = [
        {"a": a, "b": b, "eps": eps} | paired(standing[a][eps], standing[b][eps])
        for a, b in combinations(standing, 2)
        for eps in protocol.eps
    ]
    corrected = holm([entry["p"] for entry in found])
    return [entry | {"p_holm": p} for entry, p in zip(found, corrected, strict=True)] or None


def paired(one: Bool[np.ndarray, " n"], two: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """Difference of two shares counted on the same things, its 95 % interval, and the p-value of no difference.

    The interval is method 10 of Newcombe 1998 (Wilson's intervals of the two shares, joined by their correlation);
    p is McNemar's exact test: of the things that tell the two apart, as many speak for the one as for the other.
    """
    n = len(one)
    only_one, only_two = int((one & ~two).sum()), int((two & ~one).sum())
    both, neither = int((one & two).sum()), int((~one & ~two).sum())
    difference = (only_one - only_two) / n
    (low_1, high_1), (low_2, high_2) = (wilson(count, n) for count in (both + only_one, both + only_two))
    share_1, share_2 = (both + only_one) / n, (both + only_two) / n
    phi = _correlation(both, only_one, only_two, neither)
    below = _joined(share_1 - low_1, high_2 - share_2, phi)
    above = _joined(high_1 - share_1, share_2 - low_2, phi)
    telling = only_one + only_two
    p = float(binomtest(only_one, telling, 0.5).pvalue) if telling else 1.0
    return {
        "difference": difference,
        "low": max(difference - below, -1.0),
        "high": min(difference + above, 1.0),
        "p": p,
    }


def paired_on_correct(clean_one: Rows, one: Rows, clean_two: Rows, two: Rows) -> dict[str, float]:
    """Difference of two models' accuracies on correct, its 95 % interval and the p-value of no difference.

    Each is a ratio over the same images, `r = Σ b / Σ c` of those right before and after over those right before, whose
    influence by image is `(b - r c) / mean(c)` (the delta method): the difference over the spread of the difference of
    influences is Student's t, with as many degrees of freedom as the fewer right before, less one. Where no influence
    differs, as with ratios of 0 and 1, it is `paired` on the images right before by both. NaN where either model is
    right on no image; of fewer than ten such images the interval has no width and p is 1.
    Source: the delta method, as for one ratio in Cochran 1977, sec. 6.3.
    """
    ratios, influences, counts = [], [], []
    for clean, changed in ((clean_one, one), (clean_two, two)):
        before = clean["correct"].astype(float)
        both = before * changed["correct"]
        ratio = both.sum() / before.sum() if before.any() else math.nan
        ratios.append(ratio)
        counts.append(int(before.sum()))
        influences.append((both - ratio * before) / before.mean() if before.any() else before * math.nan)
    both = clean_one["correct"].astype(bool) & clean_two["correct"].astype(bool)
    apart = influences[0] - influences[1]
    if both.sum() >= FEWEST and np.ptp(apart) < ROUNDING:
        return paired(one["correct"].astype(bool)[both], two["correct"].astype(bool)[both])
    return _by_spread(float(ratios[0] - ratios[1]), apart, min(counts))


def paired_means(one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Difference of two means over the same things, those left out where either is NaN; interval and p by the paired
    t test. The interval has no width and p is 1 of fewer than ten."""
    apart = (one - two)[np.isfinite(one - two)]
    return _by_spread(float(apart.mean()) if len(apart) else math.nan, apart, len(apart))


def _by_spread(value: float, influence: Float[np.ndarray, " n"], count: int) -> dict[str, float]:
    spread = float(influence.std(ddof=1)) / math.sqrt(len(influence)) if count >= FEWEST else math.nan
    if not spread > ROUNDING * max(1.0, abs(value)):  # NaN too
        return {"difference": value, "low": value, "high": value, "p": 1.0}
    reach = float(t.ppf(0.975, count - 1)) * spread
    return {
        "difference": value,
        "low": value - reach,
        "high": value + reach,
        "p": 2 * float(t.sf(abs(value) / spread, count - 1)),
    }


def _correlation(both: int, only_one: int, only_two: int, neither: int) -> float:
    """Newcombe's phi: 0 where a margin is empty, corrected for continuity where positive."""
    margins = (both + only_one) * (only_two + neither) * (both + only_two) * (only_one + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - only_one * only_two
    n = both + only_one + only_two + neither
    return (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(margins)


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def _interpretation(rows: Rows, eps: float, seed: int) -> dict[str, Any]:
    """Tau over the images whose prediction did not change, and over all. A constant map has no tau (NaN)."""
    usable = np.isfinite(rows["tau"])
    kept = rows["unchanged"] & usable
    tau = rows["tau"][kept]
    low, high = bootstrap(tau, seed=seed) if len(tau) >= FEWEST else (None, None)
    return {
        "eps": eps,
        "tau": float(tau.mean()) if len(tau) else float("nan"),
        "low": low,
        "high": high,
        "survivors": int(rows["unchanged"].sum()),
        "n_tau": len(tau),
        "n": len(rows["tau"]),
        "tau_all": float(rows["tau"][usable].mean()) if usable.any() else float("nan"),
        "top_k_overlap": float(rows["top_k_overlap"][kept].mean()) if kept.any() else float("nan"),
    }
