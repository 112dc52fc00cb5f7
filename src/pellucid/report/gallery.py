"""The pictures of an audit: per image and model what was shown, what it answered, and where it looked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pellucid.report import images, words

Arrays = Mapping[str, np.ndarray]


def rows(audit: Mapping[str, Any], arrays: Arrays) -> list[dict[str, Any]]:
    """One entry per gallery row whose image is there; what is missing from `arrays` is left out."""
    tones = {model["name"]: i for i, model in enumerate(audit["models"])}
    found = []
    for row in audit.get("gallery") or []:
        image = arrays.get(f"{row['row']}/image")
        if image is None:
            continue
        shown = [_model(row, answers, tones.get(answers["name"], 0), image, arrays) for answers in row["models"]]
        picture = {"uri": images.photograph(image), "pixelated": images.is_pixelated(image)}
        about = {"index": row["index"], "label": words.class_name(row["label"]), "eps": words.radius(row["eps"])}
        found.append({**about, **picture, "models": shown})
    return found


def _model(
    row: Mapping[str, Any], answers: Mapping[str, Any], tone: int, image: np.ndarray, arrays: Arrays
) -> dict[str, Any]:
    attacked = _answer(answers.get("attacked"), row["label"])
    return {
        "name": answers["name"],
        "tone": tone,
        "clean": _answer(answers.get("clean"), row["label"]),
        "attacked": attacked,
        "seen": _images(row, answers, image, arrays),
        "maps": _maps(row, answers, arrays),
    }


def _images(
    row: Mapping[str, Any], answers: Mapping[str, Any], image: np.ndarray, arrays: Arrays
) -> list[dict[str, Any]]:
    name, label = answers["name"], row["label"]
    attacked, misled = (arrays.get(f"{row['row']}/{name}/{kind}") for kind in ("attacked", "aai"))
    tiles = [_tile("Original", images.photograph(image), image, _answer(answers.get("clean"), label))]
    if attacked is not None:
        uri, factor = images.perturbation(image, attacked, eps=float(row["eps"]))
        tiles.append(_tile("Attacked", images.photograph(attacked), image, _answer(answers.get("attacked"), label)))
        tiles.append(_tile("Change", uri, image, text=f"× {factor:.3g}"))
    if misled is not None:
        answer = _answer(answers.get("interpretation_attacked"), label)
        tiles.append(_tile("Explanation attacked", images.photograph(misled), image, answer))
    return [
        {**tile, "alt": f"Image {row['index']} ({words.class_name(label)}), {name}: {tile['title'].lower()}"}
        for tile in tiles
    ]


def _maps(row: Mapping[str, Any], answers: Mapping[str, Any], arrays: Arrays) -> list[dict[str, Any]]:
    name, label = answers["name"], row["label"]
    kinds = {"map_clean": "Original", "map_attacked": "Attacked", "map_aai": "Explanation attacked"}
    found = {kind: arrays.get(f"{row['row']}/{name}/{kind}") for kind in kinds}
    scale = images.common_scale(*found.values())
    torn = answers.get("interpretation_attacked")
    tau = words.number((torn or {}).get("tau"))
    told = f"τ {words.decimal(tau)}" if tau is not None else ("constant: no τ" if torn else "")
    tiles = [
        _tile(
            kinds[kind],
            images.signed_map(field, scale=scale),
            field,
            text=told if kind == "map_aai" else "",
        )
        for kind, field in found.items()
        if field is not None
    ]
    gradient = arrays.get(f"{row['row']}/{name}/gradient")
    if gradient is not None:
        uri = images.signed_map(gradient, scale=images.common_scale(gradient))
        tiles.append({**_tile("Gradient", uri, gradient, text="own scale"), "pixelated": True})
    return [
        {**tile, "alt": f"Image {row['index']} ({words.class_name(label)}), {name}: map, {tile['title'].lower()}"}
        for tile in tiles
    ]


def _tile(
    title: str, uri: str, array: np.ndarray, answer: dict[str, Any] | None = None, *, text: str = ""
) -> dict[str, Any]:
    return {"title": title, "uri": uri, "pixelated": images.is_pixelated(array), "answer": answer, "text": text}


def _answer(answer: Mapping[str, Any] | None, label: str) -> dict[str, Any] | None:
    if answer is None:
        return None
    confidence = words.number(answer.get("confidence"))
    return {
        "prediction": words.class_name(answer["prediction"]),
        "confidence": "" if confidence is None else f"{100 * confidence:.0f}\u00a0%",
        "right": answer["prediction"] == label,
    }
