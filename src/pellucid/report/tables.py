"""An audit as text: one Markdown table, aligned, so that it reads well in a terminal too."""

from collections.abc import Mapping
from typing import Any

from pellucid.report import words

TELLING = {"saturation": "1024", "patch shuffling": "4"}  # the level that is told; else the one in the middle


def markdown(audit: Mapping[str, Any]) -> str:
    """Rows are measurements with their 95 % intervals, columns are models; a line below says what they bound."""
    models = audit["models"]
    rows = [["", *(words.shorten(_plain(model["name"]), 32) for model in models)]]
    rows.append(["clean accuracy", *(words.rate(model["clean"]) for model in models)])
    for eps in words.radii(audit, "robust"):
        entries = [words.at_radius(model.get("robust"), eps) for model in models]
        rows.append([f"robust, eps {words.radius(eps)}", *(words.rate(entry) for entry in entries)])
    for eps in words.radii(audit, "aai"):
        entries = [words.at_radius(model.get("aai"), eps) for model in models]
        rows.append([f"explanation tau, eps {words.radius(eps)}", *(words.tau(entry) for entry in entries)])
    rows.append(["masking checks", *(_checks(model) for model in models)])
    rows += _looks(audit.get("looks") or {}, [model["name"] for model in models])
    data = audit["data"]
    about = f"{_plain(data['name'])} ({_plain(data['split'])}), n = {data['n']}, 95 % intervals. "
    bound = "Robust accuracy is what the attacks leave: an upper bound."
    worst = sorted({model["worst"]["eps"] for model in models if model.get("worst")})
    joined = (
        [f"From eps {words.radius(worst[0])} on the ensemble counts too: a step down there is its."] if worst else []
    )
    return "\n".join([_aligned(rows), "", about + bound, *joined, *_tau_notes(audit), ""])


def _looks(looks: Mapping[str, Any], names: list[str]) -> list[list[str]]:
    """A row of every transform, at the level that tells most: the share still right of those right before."""
    rows = []
    curves = looks.get("curves") or []
    for family in dict.fromkeys(entry["transform"] for entry in curves):
        entries, level = [entry for entry in curves if entry["transform"] == family], TELLING.get(family)
        told = next((entry for entry in entries if entry["level"] == level), entries[len(entries) // 2])
        by_name = {each["name"]: each for each in told["models"]}
        rows.append([f"still right, {family}, {words.level(told)}", *(_still(by_name[name]) for name in names)])
    if biases := {entry["name"]: entry for entry in looks.get("shape_bias") or []}:
        rows.append(["shape bias", *(_bias(biases[name]) for name in names)])
    return rows


def _still(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval_on_correct"]
    found = {"value": entry["accuracy_on_correct"], "low": low, "high": high}
    return words.rate(found) if words.number(found["value"]) is not None else "right on none"


def _bias(entry: Mapping[str, Any]) -> str:
    return words.rate({**entry, "value": entry["shape_bias"]}) if entry["shape"] + entry["texture"] else "names neither"


def _tau_notes(audit: Mapping[str, Any]) -> list[str]:
    entries = [entry for model in audit["models"] for entry in model.get("aai") or []]
    notes = ["Explanation tau is a mean over the n images that kept their class."] if entries else []
    if any(words.number(e.get("tau")) is None and words.tau_missing(e) == words.CONSTANT for e in entries):
        notes.append("A constant map (such as one with a single position) carries no location: it has no tau.")
    notes += [
        f"{words.shorten(_plain(m['name']), 32)}: explanation not measured: {_plain(m['aai_refused'])}"
        for m in audit["models"]
        if not m.get("aai") and m.get("aai_refused")
    ]
    return notes


def _checks(model: Mapping[str, Any]) -> str:
    failed = [_plain(check["name"]) for check in words.failures(model)]
    if failed:
        return f"FAIL: {', '.join(failed)}"
    undecided = sum(check["verdict"] == "undecided" for check in model.get("checks") or [])
    passed = len(model.get("checks") or []) - undecided
    return f"{passed} passed" + (f", {undecided} undecided" if undecided else "") if passed + undecided else "not run"


def _plain(text: str) -> str:
    """`text` on one line with nothing that Markdown would take for a cell, a tag or a control sequence."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    return " ".join(printable.replace("|", "/").replace("<", "‹").replace(">", "›").split())


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)
