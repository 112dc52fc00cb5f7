"""The zoo's table: what every network withstands, with intervals, the published figures beneath."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pellucid.results import wilson
from pellucid.zoo_card import AAI, ENSEMBLE, ENSEMBLE_EPS, EPS, PGD

# Boopathy et al. 2020: paper, Tables 2, 3, A1 and A4; slides, Tables 1 and 3 (all at 0.4, and Int2).
# A dash: not printed.
_PRINTED = "clean", "pgd 0.1", "pgd 0.2", "pgd 0.3", "pgd 0.4", "tau 0.1", "tau 0.2", "tau 0.3", "tau 0.4"
_ROWS = {
    "mnist/small/standard": "1.000 .045 .000 .000 .000 .797 .366 -.085 -",
    "mnist/small/adversarial": ".980 .940 .925 .890 .000 .955 .910 .857 .136",
    "mnist/small/trades": ".970 .955 .930 .885 .000 .955 .905 .847 -",
    "mnist/small/ig-norm": ".985 .895 .410 .005 - .894 .662 .278 -",
    "mnist/small/ig-sum-norm": ".975 .935 .910 .880 .000 .951 .901 .850 .389",
    "mnist/small/int-one-class": ".975 .330 .140 .125 .080 .818 .754 .692 .278",
    "mnist/small/int": ".935 .905 .840 .790 .140 .968 .941 .913 .320",
    "mnist/small/int-adv": ".950 .905 .880 .855 .175 .965 .936 .912 .348",
    "mnist/small/int2": ".950 - - .845 .385 - - .918 .351",
    "mnist/small/int2-adv": ".955 - - .840 .620 - - .931 .503",
    "mnist/pool/standard": ".990 .070 .000 .000 - .876 .719 .482 -",
    "mnist/pool/adversarial": ".930 .835 .695 .535 - .951 .896 .824 -",
    "mnist/pool/trades": ".955 .870 .720 .455 - .952 .891 .815 -",
    "mnist/pool/ig-norm": ".980 .660 .050 .000 - .872 .648 .341 -",
    "mnist/pool/ig-sum-norm": ".920 .840 .700 .540 - .951 .895 .824 -",
    "mnist/pool/int-one-class": ".975 .720 .200 .130 - .871 .779 .704 -",
    "mnist/pool/int": ".950 .875 .680 .390 - .928 .852 .771 -",
    "mnist/pool/int-adv": ".870 .810 .755 .690 - .957 .921 .891 -",
}
PUBLISHED: Mapping[str, Mapping[str, str]] = {
    name: {column: figure for column, figure in zip(_PRINTED, row.split(), strict=True) if figure != "-"}
    for name, row in _ROWS.items()
}

MEASURED = [("pgd", str(eps)) for eps in EPS] + [("ensemble", str(ENSEMBLE_EPS))]
MAPS = [("tau", str(eps)) for eps in EPS]
FEW = 10  # images: of fewer an interval would say nothing
COLUMNS = [("clean", ""), *MEASURED, *MAPS]

Card = Mapping[str, Any]


def table(cards: Mapping[str, Card], *, width: float = math.inf) -> str:
    """The cards in Markdown, `value ±w`: w is the wider half of the 95 % interval, Wilson's, and tau's by bootstrap.

    Behind a tau stands over how many images it is taken, those that keep their class; of fewer than ten no interval is
    given. Of several seeds comes their mean too, with the least and the greatest in brackets, where all were measured
    alike; then what was published, of 200 other images. Starred are figures of a shorter ensemble, and tau of other
    maps than CAM.
    Where it is wider than `width` characters, its columns come one part beneath the other, each with the names.
    """
    lines = [["name", *(f"{kind} {eps}".strip() for kind, eps in COLUMNS), "n", "seconds"]]
    seeds: dict[str, list[str]] = defaultdict(list)
    for name in sorted(cards):
        seeds[name.partition("@")[0]].append(name)
    for base, names in seeds.items():
        for name in names:
            seconds = cards[name].get("train_seconds")
            figures = [_cell(cards[name], kind, eps) for kind, eps in COLUMNS]
            on = cards[name].get("device", "cpu")
            took = "" if seconds is None else f"{seconds:.0f}" + (f" ({on})" if on != "cpu" else "")
            lines.append([name, *figures, str(cards[name]["n"]), took])
        if len(names) > 1:
            figures = [_over_seeds([cards[name] for name in names], kind, eps) for kind, eps in COLUMNS]
            lines.append([f"{base}, mean of {len(names)}", *figures, "", ""])
        if base in PUBLISHED:
            figures = [PUBLISHED[base].get(f"{kind} {eps}".strip(), "") for kind, eps in COLUMNS]
            lines.append([f"{base}, as published", *figures, "200", ""])
    others = {_other(card, kind, eps) for card in cards.values() for kind, eps in COLUMNS} - {""}
    note = [f"\\* {spec}" for spec in sorted(others)]
    parts = "\n\n".join(_aligned(part) for part in _fitting(lines, width))
    return "\n".join([parts, *(["", *note] if note else [])])


def _fitting(lines: Sequence[Sequence[str]], width: float) -> list[list[list[str]]]:
    """The lines in parts that are no wider, as far as a name and one column allow; in each the first column again."""
    name, *columns = list(zip(*lines, strict=True))
    groups: list[list[tuple[str, ...]]] = []
    for column in columns:
        if not groups or _wide([name, *groups[-1], column]) > width:
            groups.append([])
        groups[-1].append(column)
    return [[list(line) for line in zip(name, *group, strict=True)] for group in groups]


def _wide(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 3 for column in columns) + 1


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def _value(card: Card, kind: str, eps: str) -> float | None:
    if kind == "clean":
        return card["clean"]
    if kind == "tau":
        return card.get("aai", {}).get(eps, {}).get("kendall_tau")
    return card.get(kind, {}).get(eps, {}).get("robust")


def _interval(card: Card, kind: str, eps: str) -> Sequence[float] | None:
    if kind == "clean":
        return wilson(round(card["clean"] * card["n"]), card["n"])
    if kind == "tau":
        return card["aai"][eps]["kendall_tau_interval"] if card["aai"][eps].get("n_tau", 0) >= FEW else None
    return card[kind][eps]["interval"]


def _cell(card: Card, kind: str, eps: str) -> str:
    value = _value(card, kind, eps)
    interval = None if value is None else _interval(card, kind, eps)
    found = _figure(value)
    if value is not None and interval is not None and None not in interval:
        found += f" ±{max(interval[1] - value, value - interval[0]):.3f}".replace("0.", ".")
    star = "\\*" if value is not None and _other(card, kind, eps) else ""
    if kind == "tau":
        n = card.get("aai", {}).get(eps, {}).get("n_tau")
        return found + star if n is None else f"{found}{star} ({n})".strip()
    return found + star


def _other(card: Card, kind: str, eps: str) -> str:
    """The attack behind a figure, where it is not the usual one; older cards, which had that, say none."""
    usual = {"pgd": PGD, "ensemble": ENSEMBLE, "tau": AAI}.get(kind)
    if usual is None:
        return ""
    spec = card.get("aai" if kind == "tau" else kind, {}).get(eps, {}).get("attack", "")
    return "" if spec == usual.format(eps=eps) else spec.replace(f"({eps})", "(ε)") if kind == "tau" else spec


def _over_seeds(cards: Sequence[Card], kind: str, eps: str) -> str:
    values = [value for card in cards if (value := _value(card, kind, eps)) is not None]
    others = {_other(card, kind, eps) for card in cards}
    if len(values) < len(cards) or len(others) > 1 or len({card["n"] for card in cards}) > 1:
        return ""
    star = "" if others == {""} else "\\*"
    return f"{_figure(fmean(values))} [{_figure(min(values))}, {_figure(max(values))}]{star}"


def _figure(value: float | None) -> str:
    """`.914`, `-.085`, `1.000`."""
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3f}"
