"""Numbers -> inline SVG. Pure strings: text stays text, and every colour is a class that the page's style sheet sets,
so that one figure serves light, dark and print. Geometry is in user units; the page scales it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup, escape

from pellucid.report.words import radius, shorten, significant, telling

TONES = 6  # distinct model colours, each with its own marker; from the seventh model on, lines are dashed too
_WIDTH, _HEIGHT = 520.0, 345.0
_LEFT, _TOP, _BOTTOM = 50.0, 34.0, 46.0
_NAME_LENGTH = 16
_LABEL_GAP = 17.0
_CHARACTER = 8.3  # a generous width of one character of a label
_MARKERS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z",
    "M-3.8-3.8H3.8V3.8H-3.8Z",
    "M0-5.2L5.2 0L0 5.2L-5.2 0Z",
    "M0-5L4.9 3.8H-4.9Z",
    "M0 5L4.9-3.8H-4.9Z",
    "M-1.6-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
)


@dataclass(frozen=True)
class Point:
    """One measured value with its interval; `note` is what a pointer resting on it reads."""

    x: float
    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Line:
    """The values of one model along x; `tone` numbers its colour, marker and dashes, `doubtful` draws it dotted."""

    name: str
    tone: int
    points: Sequence[Point]
    doubtful: bool = False


@dataclass(frozen=True)
class Spread:
    """The distribution of one quantity for one model: quantiles (5, 25, 50, 75, 95 per cent) and mean."""

    name: str
    tone: int
    quantiles: tuple[float, float, float, float, float]
    mean: float
    note: str


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_ticks: Sequence[tuple[float, str]],
    reference: tuple[float, str] | None = None,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> Markup:
    """Lines with interval bands and labels at their ends; `reference` is a dashed level with its own label.

    The x axis starts at 0; its ticks are 0 and the measured values, or `x_ticks`, places with words of their own.
    `y_ticks`, (value, text) ascending, span the axis.
    """
    shorts = telling([line.name for line in lines], _NAME_LENGTH)
    drawn = [replace(line, name=short) for line, short in zip(lines, shorts, strict=True) if line.points]
    xs = sorted({point.x for line in drawn for point in line.points})
    texts = [*(line.name for line in drawn), *([reference[1]] if reference else [])]
    right = _WIDTH - 16 - max((len(text) for text in texts), default=0) * _CHARACTER
    frame = _Frame(right, max(xs, default=1.0) or 1.0, y_ticks[0][0], y_ticks[-1][0])
    ticks = [(0.0, "0"), *((x, radius(x)) for x in xs if x > 0)] if x_ticks is None else x_ticks
    parts = [*_axes(frame, ticks, x_label, y_ticks), _text(y_label, "axis", 2.0, 13.0)]
    if reference is not None:
        parts.append(_rule(_LEFT, frame.y(reference[0]), right, frame.y(reference[0]), "reference"))
    parts += [_band(line, frame) for line in drawn]
    parts += [_stroke(line, frame) for line in drawn]
    return _svg(_WIDTH, _HEIGHT, title, parts + _labels(drawn, frame, reference))


def spreads(rows: Sequence[Spread], *, title: str, x_label: str) -> Markup:
    """One row per model: 5-95 per cent as a line, 25-75 as a bar, the median as a stroke, the mean as the marker.

    The axis is logarithmic where the quantiles are positive and span more than a factor of twenty.
    """
    values = [value for row in rows for value in (*row.quantiles, row.mean)]
    logarithmic = min(values) > 0 and max(values) / min(values) > 20
    ticks = _log_ticks(min(values), max(values)) if logarithmic else _linear_ticks(max(values))
    scale = np.log10 if logarithmic else np.asarray
    first, last = float(scale(ticks[0])), float(scale(ticks[-1]))
    row_height, left, right = 46.0, 14.0, _WIDTH - 24
    bottom = 10 + row_height * len(rows)

    def place(value: float) -> float:
        share = (float(scale(value)) - first) / ((last - first) or 1.0)
        return left + min(max(share, 0.0), 1.0) * (right - left)

    parts = [_rule(place(tick), 6, place(tick), bottom, "grid") for tick in ticks]
    parts += [_text(significant(tick), "tick mid", place(tick), bottom + 17) for tick in ticks]
    parts.append(_text(x_label, "axis mid", (left + right) / 2, bottom + 38))
    parts += [_box(row, place, 10 + row_height * i) for i, row in enumerate(rows)]
    return _svg(_WIDTH, bottom + 46, title, parts)


def meter(
    value: float,
    low: float,
    high: float,
    *,
    tone: int,
    span: tuple[float, float] = (0.0, 1.0),
    mark: float | None = None,
) -> Markup:
    """A bar as wide as its container: filled from the start of `span` (or from 0 inside it) to `value`, the interval on
    top, and a notch at `mark`, the level to compare with."""
    width, (first, last) = 300.0, span

    def place(v: float) -> float:
        return width * (min(max(v, first), last) - first) / (last - first)

    zero = place(max(0.0, first))
    start, end = min(zero, place(value)), max(zero, place(value))
    shown = max(place(high) - place(low), 1.0)
    parts = [
        f'<rect class="track" x="0" y="3" width="{width:g}" height="6"/>',
        f'<rect class="fill" x="{start:.1f}" y="3" width="{end - start:.1f}" height="6"/>',
        f'<rect class="interval" x="{place(low):.1f}" y="5" width="{shown:.1f}" height="2"/>',
    ]
    if mark is not None:
        parts.append(f'<rect class="notch" x="{place(mark) - 0.75:.1f}" y="0" width="1.5" height="12"/>')
    return Markup(
        f'<svg class="meter tone{tone % TONES}" viewBox="0 0 {width:g} 12" preserveAspectRatio="none" '
        f'aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
    )


def swatch(tone: int) -> Markup:
    """The colour and marker by which a model is known on the whole page, with its dashes where colours come again."""
    repeated = tone >= TONES
    half = 21 if repeated else 7
    dashes = f'<line class="line"{_dashes(tone)} x1="-20" y1="0" x2="20" y2="0"/>' if repeated else ""
    return Markup(
        f'<svg class="swatch{" long" if repeated else ""} tone{tone % TONES}" viewBox="{-half} -7 {2 * half} 14" '
        f'aria-hidden="true" focusable="false">{dashes}<path class="marker" d="{_MARKERS[tone % TONES]}"/></svg>'
    )


def spread_out(heights: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """`heights` moved as little as a sweep down and a sweep up need to stand `gap` apart within [low, high]."""
    order = np.argsort(heights, kind="stable")
    placed = np.clip(np.asarray(heights, float)[order], low, high)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if len(placed):
        placed[-1] = min(placed[-1], high)
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    result = np.empty(len(placed))
    result[order] = placed
    return [float(height) for height in result]


@dataclass(frozen=True)
class _Frame:
    """User units of a value in a chart whose x axis runs from 0 to `span`."""

    right: float
    span: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return _LEFT + value / self.span * (self.right - _LEFT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.y_low), self.y_high) - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _axes(
    frame: _Frame, x_ticks: Sequence[tuple[float, str]], x_label: str, y_ticks: Sequence[tuple[float, str]]
) -> list[str]:
    parts = [_text(text, "tick end", _LEFT - 8, frame.y(y) + 4) for y, text in y_ticks]
    parts += [_rule(_LEFT, frame.y(y), frame.right, frame.y(y), "grid") for y, _ in y_ticks]
    (first, start), *others = x_ticks
    parts.append(_text(start, "tick mid", frame.x(first), _HEIGHT - _BOTTOM + 18))
    last = np.inf
    for x, text in reversed(others):  # from the right: the last one always has its tick
        at = frame.x(x)
        width = 9.0 + _CHARACTER * len(text)
        if last - at >= width and at - frame.x(first) >= width / 2 + 8:
            parts.append(_text(text, "tick mid", at, _HEIGHT - _BOTTOM + 18))
            last = at
    parts.append(_text(x_label, "axis mid", (_LEFT + frame.right) / 2, _HEIGHT - 6))
    return parts


def _labels(lines: Sequence[Line], frame: _Frame, reference: tuple[float, str] | None) -> list[str]:
    """Names beside the right ends, moved apart; a line that ends early is named where it ends."""
    early = [line for line in lines if frame.x(line.points[-1].x) < frame.right - 1]
    ending = [line for line in lines if line not in early]
    parts = [
        _text(
            line.name,
            f"label halo tone{line.tone % TONES}",
            frame.x(p.x) + 9,
            frame.y(p.value) + 4,
        )
        for line in early
        for p in line.points[-1:]
    ]
    levels = [frame.y(line.points[-1].value) for line in ending] + ([frame.y(reference[0])] if reference else [])
    heights = spread_out(levels, gap=_LABEL_GAP, low=_TOP, high=_HEIGHT - _BOTTOM)
    names = [(line.name, f"label tone{line.tone % TONES}") for line in ending]
    names += [(reference[1], "tick")] if reference else []
    for (name, kind), level, height in zip(names, levels, heights, strict=True):
        if abs(level - height) > 3:
            parts.append(_rule(frame.right + 5, level, frame.right + 10, height, f"leader {kind}"))
        parts.append(_text(name, kind, frame.right + 13, height + 4))
    return parts


def _band(line: Line, frame: _Frame) -> str:
    tone = f"tone{line.tone % TONES}"
    if len(line.points) == 1:
        point = line.points[0]
        return _rule(frame.x(point.x), frame.y(point.low), frame.x(point.x), frame.y(point.high), f"whisker {tone}")
    there = [f"{frame.x(p.x):.1f},{frame.y(p.high):.1f}" for p in line.points]
    back = [f"{frame.x(p.x):.1f},{frame.y(p.low):.1f}" for p in reversed(line.points)]
    return f'<polygon class="band {tone}" points="{" ".join(there + back)}"/>'


def _dashes(tone: int, *, doubtful: bool = False) -> str:
    """A pattern per round through the colours: solid, dash, dash-dot, dash-dot-dot; doubtful: dots, pairs, threes."""
    cycle = tone // TONES
    if doubtful:
        return f' stroke-dasharray="{"1.5 5 " * cycle}1.5 {5 + 6 * bool(cycle)}"'
    return f' stroke-dasharray="9 4{" 2 4" * (cycle - 1)}"' if cycle else ""


def _stroke(line: Line, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.value):.1f}" for p in line.points)
    markers = "".join(
        f'<path class="marker" d="{_MARKERS[line.tone % TONES]}" '
        f'transform="translate({frame.x(p.x):.1f} {frame.y(p.value):.1f})"><title>{escape(p.note)}</title></path>'
        for p in line.points
    )
    kind = "line doubtful" if line.doubtful else "line"
    dashes = _dashes(line.tone, doubtful=line.doubtful)
    return f'<g class="tone{line.tone % TONES}"><polyline class="{kind}"{dashes} points="{path}"/>{markers}</g>'


def _box(row: Spread, place: Callable[[float], float], top: float) -> str:
    q05, q25, q50, q75, q95 = (place(q) for q in row.quantiles)
    middle = top + 33
    marker = _MARKERS[row.tone % TONES]
    return (
        f'<g class="tone{row.tone % TONES}"><title>{escape(row.note)}</title>'
        f"{_text(shorten(row.name, 40), 'label halo', 6.0, top + 16)}"
        f"{_rule(q05, middle, q95, middle, 'whisker')}"
        f'<rect class="box" x="{q25:.1f}" y="{middle - 6:.1f}" width="{max(q75 - q25, 1):.1f}" height="12" rx="2"/>'
        f"{_rule(q50, middle - 8, q50, middle + 8, 'median')}"
        f'<path class="marker" d="{marker}" transform="translate({place(row.mean):.1f} {middle:.1f})"/>'
        "</g>"
    )


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    first = max((i for i, tick in enumerate(ticks) if tick <= low), default=0)
    last = min((i for i, tick in enumerate(ticks) if tick >= high), default=len(ticks) - 1)
    return ticks[first : last + 1]


def _linear_ticks(high: float) -> list[float]:
    if high <= 0:
        return [0.0, 1.0]
    step = 10.0 ** np.floor(np.log10(high / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if high / (m * step) <= 5)
    return [float(f"{step * i:.12g}") for i in range(int(np.ceil(high / step - 1e-9)) + 1)]


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, kind: str, x: float, y: float) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="figure" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
