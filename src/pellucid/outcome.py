"""What an attack did, in figures: from its rows, and from the rows of the same images without it."""

from typing import Any

import numpy as np

from pellucid.results import Rows, bootstrap, rate
from pellucid.stealth import sneaking_scores

BATCH = 32  # of Zhang & Zhu's evaluation
NORMS = ("linf", "l2", "l1", "l0")


def outcome(clean: Rows, rows: Rows, *, sizes: bool = False) -> dict[str, Any]:
    """Robust accuracy over all images, with its 95 % Wilson interval, and what the attack's own notes add up to.

    A point that is wrong without the attack is lost. With maps: Kendall's tau and the top-k intersection over the
    images that keep their class (as published), tau's 95 % bootstrap interval, and both over all. Attacks that seek the
    smallest perturbation bring the median sizes of those that fooled, and the median of what they note as `eps`, the
    size found in their own norm; so does `sizes`, but for the latter, for attacks that no ball bounds. `by_attack`
    counts which member of an ensemble broke how many images; ISA adds NDS, NSL and whether Proposition 1 held.
    """
    robust = rate(clean["correct"] & rows["correct"])
    found: dict[str, Any] = {
        "robust_accuracy": robust["value"],
        "clean_accuracy": float(clean["correct"].mean()) if robust["n"] else None,
        "n": robust["n"],
        "interval": [robust["low"], robust["high"]],
    }
    if "tau" in rows:
        found |= _maps(rows)
    if sizes or "found" in rows:
        found |= _sizes(clean, rows)
    if "found" in rows and "eps" in rows:
        found |= _smallest(clean, rows)
    if "broken_by" in rows:
        found["by_attack"] = tally(rows["broken_by"])
    if "target" in rows:
        found["reached_target"] = int((rows["prediction"] == rows["target"]).sum())
    if "gradient_underflow" in rows:
        found["gradient_underflow"] = int(rows["gradient_underflow"].sum())
    if "isa_nds_0" in rows:
        found |= sneaking_scores(rows)
        tau = rows["tau_target"][rows["found"] & np.isfinite(rows["tau_target"])]
        found["kendall_tau_target"] = float(tau.mean()) if len(tau) else None
    return found


def on_correct(clean: Rows, rows: Rows) -> dict[str, Any]:
    """Accuracy under a change among the images that were right before it (Zhang & Zhu 2019, sec. 4.2).

    `accuracy_on_correct`: those right before and after, over those right before, with a 95 % Wilson interval;
    `_batch_mean` the mean of that ratio over batches of 32, as their code has it, batches with none right left out.
    """
    before, both = clean["correct"], clean["correct"] & rows["correct"]
    found = rate(both[before])
    parts = [slice(first, first + BATCH) for first in range(0, len(before), BATCH)]
    ratios = [both[part].sum() / before[part].sum() for part in parts if before[part].any()]
    return {
        "accuracy_on_correct": found["value"],
        "interval_on_correct": [found["low"], found["high"]],
        "n_correct": found["n"],
        "accuracy_on_correct_batch_mean": float(np.mean(ratios)) if ratios else None,
    }


def tally(broken_by: np.ndarray) -> dict[str, int]:
    """How many images each member of an ensemble broke; `standing` are those that none did."""
    names, counts = np.unique(broken_by.astype(str), return_counts=True)
    return {str(name) or "standing": int(count) for name, count in zip(names, counts, strict=True)}


def _maps(rows: Rows) -> dict[str, Any]:
    kept = rows["unchanged"] & np.isfinite(rows["tau"])
    finite = rows["tau"][np.isfinite(rows["tau"])]
    return {
        "kendall_tau": float(rows["tau"][kept].mean()) if kept.any() else None,
        "kendall_tau_interval": list(bootstrap(rows["tau"][kept])) if kept.any() else None,
        "survivors": int(rows["unchanged"].sum()),
        "n_tau": int(kept.sum()),
        "kendall_tau_all": float(finite.mean()) if len(finite) else None,
        "top_k_intersection": float(rows["top_k_overlap"][kept].mean()) if kept.any() else None,
        "top_k_intersection_all": float(rows["top_k_overlap"].mean()) if len(rows["tau"]) else None,
    }


def _sizes(clean: Rows, rows: Rows) -> dict[str, Any]:
    fooled = clean["correct"] & ~rows["correct"]
    medians = {f"median_{norm}": float(np.median(rows[norm][fooled])) if fooled.any() else None for norm in NORMS}
    return {"fooled": int(fooled.sum())} | medians


def _smallest(clean: Rows, rows: Rows) -> dict[str, Any]:
    """Of the images right without the attack: for how many one was found, in the ball or not, and the median size."""
    found = clean["correct"] & rows["found"]
    return {"found": int(found.sum()), "median_eps": float(np.median(rows["eps"][found])) if found.any() else None}
