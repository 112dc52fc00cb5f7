"""The section "What it looks at": curves over transforms, numbers of maps, and the maps themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pellucid.report import figures, images, words

Audit = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]

ABOUT = {
    "saturation": "Towards black and white (p above 2) contours stay and fine texture goes; below 2 contrast goes.",
    "patch shuffling": "Patches in random order keep their texture; the shape of the whole is gone.",
    "low frequencies": "Only what is coarser stays: shapes, no texture.",
    "high frequencies": "Only what is finer stays, about the mean colour: texture and sharp edges, no surfaces.",
    "random frequencies": "Some frequencies of each channel are gone, whichever.",
    "style": "Another picture's texture on the same shapes.",
}
FIGURES = {
    "gini": "Gini index of the maps",
    "edges_more": "share on edges, more than another image's",
    "tau_more": "τ to the clean map, more than to another image's",
}


def looks(audit: Audit, arrays: Arrays) -> dict[str, Any] | None:
    """None where the audit did not ask what its models look at."""
    found = audit.get("looks")
    if not found:
        return None
    tones = {model["name"]: tone for tone, model in enumerate(audit["models"])}
    families = list(dict.fromkeys(entry["transform"] for entry in found["curves"]))
    return {
        "families": [_family(family, found["curves"], tones) for family in families],
        "pairs": _pairs(found["pairs"], tones),
        "maps": _maps(found["maps"], tones),
        "noise_gini": words.decimal(found["noise_gini"]),
        "protocol": found["protocol"],
        "gallery": _gallery(found["maps"], found.get("shown") or [], arrays, tones),
        "shapes": _shapes(found.get("shape_bias") or [], tones),
        "no_shapes": found.get("no_shape_bias", ""),
        "unstyled": "style" not in families,
    }


def _family(family: str, curves: Sequence[Mapping[str, Any]], tones: Mapping[str, int]) -> dict[str, Any]:
    """A figure of the share still right among those right before, and both shares as a table."""
    entries = [entry for entry in curves if entry["transform"] == family]
    lines = []
    for name, tone in tones.items():
        points = []
        for place, entry in enumerate(entries):
            mine = next(each for each in entry["models"] if each["name"] == name)
            value, (low, high) = words.number(mine["accuracy_on_correct"]), mine["interval_on_correct"]
            if value is not None:
                note = f"{name}, {words.level(entry)}: {words.percent(value)} of {mine['n_correct']}"
                points.append(figures.Point(float(place), value, low, high, note))
        lines.append(figures.Line(name, tone, points))
    rows = [
        (words.level(entry), [_cell(next(e for e in entry["models"] if e["name"] == n)) for n in tones])
        for entry in entries
    ]
    figure = ""
    if len(entries) > 1 and any(line.points for line in lines):
        figure = figures.curves(
            lines,
            title=f"Accuracy under {family}, one line per model",
            x_label=entries[0]["unit"],
            y_label="still right, of those right before",
            y_ticks=[(share / 100, f"{share} %") for share in range(0, 101, 25)],
            x_ticks=[(float(place), entry["level"]) for place, entry in enumerate(entries)],
        )
    return {"name": family, "about": ABOUT.get(family, ""), "figure": figure, "rows": rows}


def _cell(entry: Mapping[str, Any]) -> dict[str, str]:
    low, high = entry["interval_on_correct"]
    among = f"[{words.percent(low)}, {words.percent(high)}] of {entry['n_correct']} right before"
    return {
        "main": words.percent(entry["accuracy_on_correct"]),
        "more": f"{among}; of all {words.percent(entry['value'])}",
    }


def _pairs(pairs: Sequence[Mapping[str, Any]], tones: Mapping[str, int]) -> list[dict[str, Any]]:
    """Paired differences whose corrected p bears one: of accuracies, then of maps, the largest first."""
    telling = [pair for pair in pairs if pair["p_holm"] < words.SIGNIFICANT]
    return [
        {
            "a": pair["a"],
            "b": pair["b"],
            "tones": (tones[pair["a"]], tones[pair["b"]]),
            "what": _compared(pair),
            "difference": _difference(pair, "difference"),
            "interval": f"[{_difference(pair, 'low')}, {_difference(pair, 'high')}]",
            "p": words.p_value(pair["p_holm"]),
        }
        for pair in sorted(telling, key=lambda pair: (pair["kind"] == "maps", -abs(pair["difference"])))
    ]


def _compared(pair: Mapping[str, Any]) -> str:
    if pair["kind"] == "maps":
        return f"{FIGURES[pair['of']]}, {pair['level']} images"
    if pair["kind"] == "accuracy":
        return f"{pair['of']}, {words.level({'transform': pair['of'], 'level': pair['level']})}"
    return str(pair["kind"])


def _difference(pair: Mapping[str, Any], key: str) -> str:
    """Shares in points, figures of maps as they are."""
    return words.signed(pair[key]) if pair["kind"] == "maps" else words.points(pair[key])


def _maps(maps: Sequence[Mapping[str, Any]], tones: Mapping[str, int]) -> list[tuple[str, list[dict[str, str]]]]:
    """Rows of the table of numbers: measure and kind of images; a cell per model."""
    kinds = list(dict.fromkeys(entry["images"] for entry in maps))
    rows = []
    for key, title in (("gini", "Gini index"), ("edges", "share on edges"), ("tau", "τ to the clean map")):
        for kind in kinds:
            found = [next(e for e in maps if e["name"] == name and e["images"] == kind) for name in tones]
            if not all(key in entry for entry in found):
                continue
            cells = [_number(entry[key], entry.get(f"{key}_more")) for entry in found]
            rows.append((f"{title}, {kind} images", cells))
    return rows


def _number(found: Mapping[str, Any], more: Mapping[str, Any] | None) -> dict[str, str]:
    """A mean with its interval and number of maps, and how much more it is than with another image's edges or map."""
    value = words.number(found["value"])
    if value is None:
        return {"main": words.ABSENT, "more": "every map is zero"}
    detail = f"{_interval(found)} {found['n']} maps".strip()
    if more is not None and words.number(more["value"]) is not None:
        detail += f"; {words.signed(more['value'])} {_interval(more)} beside another image's"
    return {"main": words.decimal(value), "more": detail}


def _interval(found: Mapping[str, Any]) -> str:
    if words.number(found["low"]) is None:
        return ""
    return f"[{words.decimal(found['low'])}, {words.decimal(found['high'])}]"


def _gallery(
    maps: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    arrays: Arrays,
    tones: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Per image its class, and per kind: the image, and every model's map of it on its own scale, with its answer."""
    kinds = list(dict.fromkeys(entry["images"] for entry in maps))
    shorts = words.telling(list(tones), 16)
    rows, number = [], 0
    while kinds and f"looks/{kinds[0]}/{number}" in arrays:
        entry = shown[number] if number < len(shown) else {"label": "", "answers": {}}
        strips = []
        for kind in kinds:
            image = arrays[f"looks/{kind}/{number}"]
            tiles = [_tile(kind, images.photograph(image), image)]
            for name, short in zip(tones, shorts, strict=True):
                field = arrays[f"looks/{kind}/{number}/{name}"]
                answer = entry["answers"].get(kind, {}).get(name, "")
                mark = "" if not answer else "✓ " if answer == entry["label"] else "✗ "
                tile = _tile(short, images.photograph(_brightness(field)[None]), field)
                tiles.append(tile | {"text": mark + words.shorten(words.class_name(answer), 22)})
            strips.append(tiles)
        rows.append({"label": words.class_name(entry["label"]), "strips": strips})
        number += 1
    return rows


def _brightness(field: np.ndarray) -> np.ndarray:
    """Magnitudes from 0 to their 99th percentile, where the paper cuts them."""
    top = float(np.quantile(field, 0.99)) or 1.0
    return np.clip(field / top, 0, 1)


def _tile(title: str, uri: str, array: np.ndarray) -> dict[str, Any]:
    return {
        "title": words.shorten(title, 22),
        "uri": uri,
        "pixelated": images.is_pixelated(array),
        "answer": None,
        "text": "",
        "alt": title,
    }


def _shapes(found: Sequence[Mapping[str, Any]], tones: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "name": entry["name"],
            "tone": tones.get(entry["name"], 0),
            "bias": words.percent(entry["shape_bias"]),
            "interval": words.rate_interval(entry),
            "decided": f"{entry['shape']} for the shape, {entry['texture']} for the texture, of {entry['n']} stimuli",
        }
        for entry in found
    ]
