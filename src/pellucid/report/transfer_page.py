"""The page of a transfer matrix: who is fooled by examples made on whom, and who falls together."""

from collections.abc import Mapping
from typing import Any

from pellucid.report import figures, sections, words
from pellucid.report.html import assets, environment

Found = Mapping[str, Any]

_JOINED = "\u2060"  # no line break here


def transfer_page(found: Found) -> str:
    """The page, from what `pellucid transfer --json` prints. The same input gives the same bytes."""
    names: list[str] = found["models"]
    levels: list[float | None] = found["eps"] or [None]
    last = levels[-1]
    shorts = _shorts(names)
    legend = sections.legend(names, shorts)
    context = {
        "title": " · ".join(entry["short"] for entry in legend),
        "lead": _lead(found, last),
        "n": found["n"],
        "data": found["data"],
        "attack": found["attack"],
        "seed": found["seed"],
        "legend": legend,
        "matrix": [
            ("clean", [_cell(found["clean"][t]) for t in names]),
            *((e["short"], [_cell(_entry(found, e["name"], last, t)) for t in names]) for e in legend),
        ],
        "matrix_caption": "Accuracy on transferred examples" + _at(last),
        "sources": [_source(found, entry, legend, levels) for entry in legend],
    }
    return environment().get_template("transfer.html").render(context | assets())


def _shorts(names: list[str]) -> list[str]:
    """The same short names wherever the page speaks of a model; no line ends between an ellipsis and its word."""
    return [name.replace("…", f"{_JOINED}…{_JOINED}") for name in words.short_names(names)]


def _entry(found: Found, source: str, eps: float | None, target: str) -> Found:
    return next(e for e in found["accuracy"] if e["source"] == source and e["eps"] == eps and e["target"] == target)


def _at(eps: float | None) -> str:
    return "" if eps is None else f" at ε {words.radius(eps)}"


def _lead(found: Found, eps: float | None) -> str:
    """The strongest transfer between different models, in a sentence."""
    pairs = [e for e in found["accuracy"] if e["eps"] == eps and e["source"] != e["target"]]
    if not pairs:
        return "One model alone: its own examples."
    worst = min(pairs, key=lambda e: e["value"])
    shorts = dict(zip(found["models"], _shorts(found["models"]), strict=True))
    return (
        f"The strongest transfer{_at(eps)}: examples made on {shorts[worst['source']]} leave "
        f"{shorts[worst['target']]} right on {words.percent(worst['value'])}, from "
        f"{words.percent(found['clean'][worst['target']]['value'])} on clean images."
    )


def _source(
    found: Found, source: dict[str, Any], legend: list[dict[str, Any]], levels: list[float | None]
) -> dict[str, Any]:
    name, names = source["name"], found["models"]
    overlaps = [e for e in found["overlaps"] if e["source"] == name and e["eps"] == levels[-1]]
    rows = [("clean", [_cell(found["clean"][t]) for t in names])]
    rows += [
        (found["attack"] if eps is None else words.radius(eps), [_cell(_entry(found, name, eps, t)) for t in names])
        for eps in levels
    ]
    return {
        **source,
        "figure": "" if levels[0] is None else _figure(found, name, levels),
        "head": "attack" if levels[0] is None else "ε",
        "rows": rows,
        "at": _at(levels[-1]),
        "size": _size(found, name, levels[-1]),
        "overlaps": [
            {
                "wrong": [entry for entry in legend if entry["name"] in e["wrong"]],
                "count": e["count"],
                "share": e["count"] / found["n"],
            }
            for e in overlaps
        ],
    }


def _figure(found: Found, source: str, levels: list[float | None]) -> str:
    names = found["models"]
    entries = {t: [found["clean"][t] | {"eps": 0.0}] for t in names}
    for target in names:
        entries[target] += [_entry(found, source, eps, target) for eps in levels if eps is not None]
    lines = [
        figures.Line(short, tone, [_point(t, e) for e in entries[t]], doubtful=t == source)
        for tone, (t, short) in enumerate(zip(names, words.short_names(names), strict=True))
    ]
    return figures.curves(
        lines,
        title=f"Accuracy on examples made on {source}, one line per model; dotted: {source} itself",
        x_label="ε, in pixel units",
        y_label="still right",
        y_ticks=[(share / 100, f"{share} %") for share in range(0, 101, 25)],
    )


def _size(found: Found, source: str, eps: float | None) -> str:
    """How far the images were moved, in the median: what an attack without a radius leaves open."""
    for e in found.get("sizes", []):
        if e["source"] == source and e["eps"] == eps:
            sizes = {norm: words.significant(e[f"median_{norm}"]) for norm in ("linf", "l2", "l1")}
            changed = words.plural(round(e["median_l0"]), "pixel")
            return f"Linf {sizes['linf']}, L2 {sizes['l2']}, L1 {sizes['l1']}, {changed}"
    return ""


def _point(name: str, entry: Found) -> figures.Point:
    note = f"{name}, ε {words.radius(entry['eps'])}: {words.rate(entry)}"
    return figures.Point(entry["eps"], entry["value"], entry["low"], entry["high"], note)


def _cell(entry: Found) -> dict[str, str]:
    return {"main": words.percent(entry["value"]), "more": f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"}
