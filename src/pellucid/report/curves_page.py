"""The page of training curves: losses, gradient norms and held-out accuracies of runs, side by side.

After Ross & Doshi-Velez 2018, figs. 7 and 8: input gradients, accuracy under attack and clean accuracy over the steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.report import figures, sections, words
from pellucid.report.html import assets, environment

POINTS = 24  # per line: more values are averaged, their range is the band

_PANELS = (
    ("validation_accuracy", "Clean", "Clean accuracy on held-out images", "accuracy", "share"),
    ("validation_robust", "Attacked", "Accuracy under attack on held-out images", "accuracy", "share"),
    (
        "validation_gradient",
        "Input gradient",
        "Input gradient on held-out images, ‖∇ₓ CE‖₂",
        "norm (log scale)",
        "log",
    ),
    ("loss", "Loss", "Training loss", "loss", "value"),
    ("gradient_norm", "Parameter gradient", "Parameter gradient, ‖∇θ loss‖₂", "norm (log scale)", "log"),
)

Log = Sequence[Mapping[str, float]]


def curves_page(runs: Mapping[str, tuple[Mapping[str, Any], Log]]) -> str:
    """The page, from each run's name, recipe and log. The same input gives the same bytes."""
    names = list(runs)
    legend = sections.legend(names, words.short_names(names))
    panels = [
        {"nav": nav, "title": title, "figure": figure, "caption": _caption(runs, key)}
        for key, nav, title, label, kind in _PANELS
        if (figure := _figure({name: log for name, (_, log) in runs.items()}, key, title, label, kind))
    ]
    context = {
        "title": " · ".join(entry["short"] for entry in legend),
        "legend": legend,
        "objectives": [(entry, runs[entry["name"]][0].get("objective", "")) for entry in legend],
        "panels": panels,
        "last": [(entry, _last(runs[entry["name"]][1])) for entry in legend],
    }
    return environment().get_template("curves.html").render(context | assets())


def _last(log: Log) -> dict[str, str]:
    """The last value of each curve that a run has."""
    found: dict[str, str] = {}
    for key, _, title, _, _ in _PANELS:
        values = [entry[key] for entry in log if key in entry]
        if values:
            found[title] = words.significant(values[-1])
    return found


def _caption(runs: Mapping[str, tuple[Mapping[str, Any], Log]], key: str) -> str:
    """What a point is, and what may be compared."""
    counts = [sum(key in entry for entry in log) for _, log in runs.values()]
    said: list[str] = []
    if key.startswith("validation"):
        held = {recipe.get("held_out") for (recipe, _), count in zip(runs.values(), counts, strict=True) if count}
        sizes = sorted(n for n in held if n)
        said.append(f"Of {' or '.join(map(str, sizes))} images that were not trained on." if sizes else "")
    if key == "validation_robust":
        attacks = sorted({recipe["validate"] for recipe, _ in runs.values() if recipe.get("validate")})
        said.append(f"Under {' or '.join(attacks)}." if attacks else "")
    if key == "loss" and len({recipe.get("objective") for recipe, _ in runs.values()}) > 1:
        said.append("Of different objectives: the heights cannot be compared.")
    if max(counts) > POINTS:
        said.append("A point is the mean of its neighbours, the band their range.")
    return " ".join(filter(None, said))


def _figure(logs: Mapping[str, Log], key: str, title: str, label: str, kind: str) -> str:
    """One quantity of all runs; empty where none has it."""
    found = {
        name: [(e["step"], e[key]) for e in log if key in e and math.isfinite(e[key])] for name, log in logs.items()
    }
    if kind == "log":
        found = {name: [(step, math.log10(v)) for step, v in series if v > 0] for name, series in found.items()}
    values = [value for series in found.values() for _, value in series]
    if not values:
        return ""
    shorts = words.short_names(list(logs))
    lines = [
        figures.Line(short, tone, _points(short, found[name], kind))
        for tone, (name, short) in enumerate(zip(logs, shorts, strict=True))
        if found[name]
    ]
    ticks = _ticks(min(values), max(values), kind)
    last = max(step for series in found.values() for step, _ in series)
    whole = [round(at) for at, _ in _ticks(0, last, "linear") if at <= last and at == round(at)]
    steps = [(at, words.count(at)) for at in whole]
    return figures.curves(lines, title=title, x_label="step", y_label=label, y_ticks=ticks, x_ticks=steps)


def _points(name: str, series: Sequence[tuple[float, float]], kind: str) -> list[figures.Point]:
    """At most `POINTS` of them: means over neighbours, and their range."""
    size = max(1, math.ceil(len(series) / POINTS))
    points = []
    for first in range(0, len(series), size):
        part = series[first : first + size]
        values = [value for _, value in part]
        mean, step = sum(values) / len(values), part[-1][0]
        shown = words.significant(10**mean if kind == "log" else mean)
        points.append(figures.Point(step, mean, min(values), max(values), f"{name}, step {step:g}: {shown}"))
    return points


def _ticks(low: float, high: float, kind: str) -> list[tuple[float, str]]:
    if kind == "share":
        return [(share / 100, f"{share} %") for share in range(0, 101, 25)]
    if kind == "log":
        first, last = math.floor(low), max(math.floor(low) + 1, math.ceil(high))
        step = max(1, math.ceil((last - first) / 6))
        powers = range(first, last + step, step)
        return [(float(power), words.significant(10.0**power)) for power in powers]
    top = max(high, 1e-9)
    unit = 10 ** math.floor(math.log10(top))
    unit *= next(factor for factor in (0.2, 0.25, 0.5, 1, 2, 5, 10) if top / (unit * factor) <= 6)
    return [(unit * i, words.significant(unit * i)) for i in range(math.ceil(top / unit) + 1)]
