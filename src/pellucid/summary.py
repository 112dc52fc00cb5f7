"""The figures of an audit, from its rows: pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pellucid.checks import Check
from pellucid.protocol import Protocol, Subject
from pellucid.results import Rows, bootstrap, rate

AllRows = Mapping[tuple[str, float], Rows]


def survivors(rows: AllRows, eps: tuple[float, ...]) -> dict[float, np.ndarray]:
    """Per radius, which images withstood: classified correctly clean and under every attack of at most this radius.

    An adversarial image of a smaller ball lies in the larger one, so the curve cannot rise.
    """
    standing = rows["clean", 0.0]["correct"].copy()
    found = {}
    for radius in sorted(eps):
        standing = standing & rows["attack", radius]["correct"]
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
    if subject.has_cam:
        found["aai"] = [_interpretation(rows["aai", eps], eps, protocol.seed) for eps in protocol.eps]
    else:
        found |= {"aai": None, "aai_refused": f"{type(subject.model).__name__} has no class activation maps"}
    return found


def _interpretation(rows: Rows, eps: float, seed: int) -> dict[str, Any]:
    """Tau over the images whose prediction did not change, and over all."""
    usable = np.isfinite(rows["tau"])
    kept = rows["unchanged"] & usable
    tau = rows["tau"][kept]
    low, high = bootstrap(tau, seed=seed)
    return {
        "eps": eps,
        "tau": float(tau.mean()) if len(tau) else float("nan"),
        "low": low,
        "high": high,
        "survivors": int(rows["unchanged"].sum()),
        "n": len(rows["tau"]),
        "tau_all": float(rows["tau"][usable].mean()) if usable.any() else float("nan"),
        "top_k_overlap": float(rows["top_k_overlap"][kept].mean()) if kept.any() else float("nan"),
    }


def compare(all_rows: Mapping[str, AllRows], protocol: Protocol) -> list[dict[str, Any]] | None:
    """Paired differences in robust accuracy, on the same images, with bootstrap intervals."""
    names = list(all_rows)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = []
    for a, b in pairs:
        for eps in protocol.eps:
            one, two = (survivors(all_rows[name], protocol.eps)[eps].astype(float) for name in (a, b))
            low, high = bootstrap(one - two, seed=protocol.seed)
            found.append(
                {"a": a, "b": b, "eps": eps, "difference": float((one - two).mean()), "low": low, "high": high}
            )
    return found or None
