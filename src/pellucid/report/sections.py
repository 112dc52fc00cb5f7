"""The sections between summary and gallery: curves with their tables, gradient lengths, comparisons, checks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pellucid.report import figures, words

Audit = Mapping[str, Any]

_NO_LOCATION = " (a map with one position, or the same value everywhere, carries no location)"


def robustness(audit: Audit, chance: float) -> dict[str, Any]:
    """Accuracy against radius, radius 0 being the clean images, and the same figures as a table."""
    models, eps = audit["models"], words.radii(audit)
    lines = []
    for tone, model in enumerate(models):
        entries = [{**model["clean"], "eps": 0.0}, *sorted(model.get("robust") or [], key=lambda e: e["eps"])]
        points = [point for e in entries if (point := _rate_point(model["name"], e))]
        lines.append(figures.Line(model["name"], tone, points, doubtful=bool(words.failures(model))))
    figure = figures.curves(
        lines,
        title="Accuracy under attack against the size of the change, one line per model",
        x_label=words.axis(audit["protocol"]["ball"]),
        y_label="still right",
        y_ticks=[(share / 100, f"{share} %") for share in range(0, 101, 25)],
        reference=(chance, f"guessing {100 * chance:.3g} %"),
    )
    rows = [("0 (clean)", [_rate_cell(model["clean"]) for model in models])]
    rows += [(words.radius(e), [_rate_cell(words.at_radius(m.get("robust"), e)) for m in models]) for e in eps]
    return {"figure": figure if eps and models else "", "rows": rows, "any": bool(eps and models)}


def explanation(audit: Audit) -> dict[str, Any]:
    """Rank correlation of maps against radius; models without maps are listed with the reason."""
    models, eps = audit["models"], words.radii(audit, "aai")
    lines, lost = [], []
    for tone, model in enumerate(models):
        entries = sorted(model.get("aai") or [], key=lambda entry: entry["eps"])
        lines.append(figures.Line(model["name"], tone, [p for e in entries if (p := _tau_point(model["name"], e))]))
        lost += _lost(model["name"], entries)
    lowest = min((point.low for line in lines for point in line.points), default=0.0)
    ticks = [-1, -0.5, 0, 0.5, 1] if lowest < 0 else [0, 0.25, 0.5, 0.75, 1]
    figure = figures.curves(
        lines,
        title="Agreement of the explanation before and after the attack on it, one line per model",
        x_label=words.axis(audit["protocol"]["ball"]),
        y_label="agreement τ",
        y_ticks=[(tick, words.decimal(tick)) for tick in ticks],
        reference=(0.0, "unrelated"),
    )
    return {
        "figure": figure if any(line.points for line in lines) else "",
        "rows": [(words.radius(e), [_tau_cell(words.at_radius(m.get("aai"), e)) for m in models]) for e in eps],
        "lost": lost,
        "refused": [(m["name"], m.get("aai_refused") or words.ABSENT) for m in models if not m.get("aai")],
    }


def _lost(name: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a model has no rank correlation, and why: one line per reason."""
    gone = [entry for entry in entries if words.number(entry.get("tau")) is None]
    lines = []
    for reason, more in ((words.NO_SURVIVOR, ""), (words.CONSTANT, _NO_LOCATION)):
        here = [words.radius(entry["eps"]) for entry in gone if words.tau_missing(entry) == reason]
        lines += [f"{name} at ε {', '.join(here)}: {reason}{more}."] if here else []
    return lines


def sensitivity(audit: Audit) -> dict[str, Any]:
    """How long the gradient with respect to the image is, per model, and how often it is exactly zero."""
    spreads, rows = [], []
    for tone, model in enumerate(audit["models"]):
        norm = model.get("input_gradient_norm") or {}
        found = [words.number(norm.get(key)) for key in ("q05", "q25", "median", "q75", "q95", "mean")]
        q05, q25, median, q75, q95, mean = found
        zero = f"{words.count(norm['zero'])} of {words.count(norm['n'])}" if "zero" in norm else words.ABSENT
        cells = [words.significant(value) for value in (mean, median)]
        spans = [f"{words.significant(a)} – {words.significant(b)}" for a, b in ((q25, q75), (q05, q95))]
        rows.append({"tone": tone, "name": model["name"], "cells": [*cells, *spans, zero], "zero": norm.get("zero", 0)})
        if None in (q05, q25, median, q75, q95, mean):
            continue
        note = f"{model['name']}: mean {cells[0]}, median {cells[1]}"
        quantiles = (float(q05 or 0), float(q25 or 0), float(median or 0), float(q75 or 0), float(q95 or 0))
        spreads.append(figures.Spread(model["name"], tone, quantiles, float(mean or 0), note))
    title = "Length of the gradient with respect to the image, one row per model"
    figure = figures.spreads(spreads, title=title, x_label="length of the gradient per image") if spreads else ""
    return {"figure": figure, "rows": rows}


def comparison(audit: Audit) -> list[dict[str, Any]]:
    """Paired differences of robust accuracy with intervals; a winner only where the corrected p-value bears one."""
    tones = {model["name"]: tone for tone, model in enumerate(audit["models"])}
    doubtful = {model["name"] for model in audit["models"] if words.failures(model)}
    rows = []
    for pair in audit.get("comparison") or []:
        value, low, high = (words.number(pair.get(key)) for key in ("difference", "low", "high"))
        if value is None or low is None or high is None:
            continue
        p = words.number(pair.get("p_holm"))
        first, second = pair["a"], pair["b"]
        better = first if value > 0 else second
        rows.append(
            {
                "a": first,
                "b": second,
                "tones": (tones.get(first, 0), tones.get(second, 0)),
                "eps": words.radius(pair["eps"]),
                "difference": words.points(value),
                "interval": f"[{words.points(low)}, {words.points(high)}]",
                "meter": figures.meter(value, low, high, tone=tones.get(better, 0), span=(-1.0, 1.0), mark=0.0),
                "p": words.p_value(p),
                "better": better if p is not None and p < words.SIGNIFICANT else None,
                "doubtful": not doubtful.isdisjoint((first, second)),
            }
        )
    return rows


def checks(audit: Audit) -> dict[str, Any]:
    """Check x model verdicts as a grid, then every check that does not pass with its reason and remedy."""
    models = audit["models"]
    every = [
        {**check, "title": _title(check["name"], models), "model": model["name"], "tone": tone}
        for tone, model in enumerate(models)
        for check in model.get("checks") or []
    ]
    grid = []
    for title in dict.fromkeys(check["title"] for check in every):
        found = [check for check in every if check["title"] == title]
        cells = [_worst([check for check in found if check["tone"] == tone]) for tone in range(len(models))]
        grid.append({"name": title, "why": found[0]["why"], "cells": cells, "found": found})
    troubles = [check for verdict in ("fail", "undecided") for check in every if check["verdict"] == verdict]
    failed = [model["name"] for model in models if words.failures(model)]
    return {"grid": grid, "troubles": troubles, "failed": failed, "unchecked": not every}


def _title(name: str, models: Sequence[Mapping[str, Any]]) -> str:
    """One row for the transfers from every other model, which are a check each."""
    for model in models:
        if name.startswith(f"transfer from {model['name']} "):
            return name.replace(model["name"], "another model", 1)
    return name


def _worst(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    verdicts = [check["verdict"] for check in found]
    worst = next((verdict for verdict in ("fail", "undecided", "pass") if verdict in verdicts), None)
    return None if worst is None else {"verdict": worst, "of": len(found), "count": verdicts.count(worst)}


def legend(names: Sequence[str], shorts: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Names, what of them fits into a table's head, and tones, in the order of the audit."""
    shorts = words.telling(names, 24) if shorts is None else shorts
    return [
        {"name": name, "short": shorts[tone], "cut": shorts[tone] != name, "tone": tone}
        for tone, name in enumerate(names)
    ]


def _rate_point(name: str, entry: Mapping[str, Any]) -> figures.Point | None:
    value, low, high = (words.number(entry.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    note = f"{name}, ε {words.radius(entry['eps'])}: {words.rate(entry)}"
    return figures.Point(
        float(entry["eps"]), value, value if low is None else low, value if high is None else high, note
    )


def _tau_point(name: str, entry: Mapping[str, Any]) -> figures.Point | None:
    point = _rate_point(name, {**entry, "value": entry.get("tau")})
    return point and replace(point, note=f"{name}, ε {words.radius(entry['eps'])}: τ {words.tau(entry)}")


def _rate_cell(entry: Mapping[str, Any] | None) -> dict[str, str]:
    if entry is None:
        return {"main": words.ABSENT, "more": ""}
    more = f"{words.rate_interval(entry)} {words.count(entry['count'])} of {words.count(entry['n'])}"
    return {"main": words.percent(entry.get("value")), "more": more.strip()}


def _tau_cell(entry: Mapping[str, Any] | None) -> dict[str, str]:
    if entry is None:
        return {"main": words.ABSENT, "more": ""}
    rest = []
    if words.number(entry.get("tau_all")) is not None:
        rest.append(f"all images: τ {words.decimal(entry['tau_all'])}")
    if words.number(entry.get("top_k_overlap")) is not None:
        rest.append(f"top overlap {words.percent(entry['top_k_overlap'])}")
    has = words.number(entry.get("tau")) is not None
    main = f"τ {words.decimal(entry['tau'])}" if has else words.tau_missing(entry)
    interval = f"{words.tau_interval(entry)} " if has else ""
    return {"main": main, "more": "; ".join([interval + words.tau_detail(entry), *rest])}
