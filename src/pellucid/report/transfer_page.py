"""The page of a transfer matrix: who is fooled by examples made on whom, and who falls together."""

from collections.abc import Mapping
from typing import Any

from pellucid.report import figures, sections, words
from pellucid.report.html import assets, environment

Found = Mapping[str, Any]


def transfer_page(found: Found) -> str:
    """The page, from what `pellucid transfer --json` prints. The same input gives the same bytes."""
    names: list[str] = found["models"]
    levels: list[float | None] = found["eps"] or [None]
    last = levels[-1]
    context = {
        "title": " · ".join(words.shorten(name, 30) for name in names),
        "lead": _lead(found, last),
        "n": found["n"],
        "data": found["data"],
        "attack": found["attack"],
        "seed": found["seed"],
        "legend": sections.legend(names),
        "matrix": [(words.shorten(s, 24), [_cell(_entry(found, s, last, t)) for t in names]) for s in names],
        "matrix_caption": "Accuracy on transferred examples" + _at(last),
        "sources": [_source(found, source, levels) for source in names],
    }
    return environment().get_template("transfer.html").render(context | assets())


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
    return (
        f"The strongest transfer{_at(eps)}: examples made on {words.shorten(worst['source'], 40)} leave "
        f"{words.shorten(worst['target'], 40)} right on {words.percent(worst['value'])}, from "
        f"{words.percent(found['clean'][worst['target']]['value'])} on clean images."
    )


def _source(found: Found, source: str, levels: list[float | None]) -> dict[str, Any]:
    names = found["models"]
    entries = {t: [found["clean"][t] | {"eps": 0.0}] for t in names}
    for target in names:
        entries[target] += [_entry(found, source, eps, target) for eps in levels if eps is not None]
    lines = [
        figures.Line(t, tone, [_point(t, e) for e in entries[t]], doubtful=t == source) for tone, t in enumerate(names)
    ]
    figure = figures.curves(
        lines,
        title=f"Accuracy on examples made on {source}, one line per model; dotted: {source} itself",
        x_label="ε, in pixel units",
        y_label="still right",
        y_ticks=[(share / 100, f"{share} %") for share in range(0, 101, 25)],
    )
    rows = [("0 (clean)", [_cell(found["clean"][t]) for t in names])]
    rows += [
        ("as given" if eps is None else words.radius(eps), [_cell(_entry(found, source, eps, t)) for t in names])
        for eps in levels
    ]
    overlaps = [e for e in found["overlaps"] if e["source"] == source and e["eps"] == levels[-1]]
    return {
        "name": source,
        "figure": figure if levels[0] is not None else "",
        "rows": rows,
        "at": _at(levels[-1]),
        "overlaps": [
            {"wrong": " + ".join(e["wrong"]) or "nobody", "count": e["count"], "share": e["count"] / found["n"]}
            for e in overlaps
        ],
    }


def _point(name: str, entry: Found) -> figures.Point:
    note = f"{name}, ε {words.radius(entry['eps'])}: {words.rate(entry)}"
    return figures.Point(entry["eps"], entry["value"], entry["low"], entry["high"], note)


def _cell(entry: Found) -> dict[str, str]:
    return {"main": words.percent(entry["value"]), "more": f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"}
