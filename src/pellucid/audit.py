"""An audit from end to end: rows, checks, figures, gallery, and the files they become."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from torch import Tensor

from pellucid import registry
from pellucid.checks import CHECKS_ALONE, masking_checks
from pellucid.data import ImageSet
from pellucid.gallery import choose, gallery
from pellucid.interpreters.activations import cam
from pellucid.looks import Looked, check_transforms, look, work
from pellucid.network import device_of
from pellucid.protocol import Protocol, Subject, measure, measurements, prepared
from pellucid.report.html import build
from pellucid.results import Rows, long_table, run_facts, write_json, write_rows
from pellucid.summary import AllRows, compare, figures, survivors
from pellucid.weights import write_atomically

Tick = Callable[[int], None]

ATTACKED = 50  # passes: about what the attacks of an audit take of an image
NOTES = (
    "Robust accuracy counts every image: one that was wrong before the attack is lost.",
    "An image that fell at a smaller radius counts as fallen at every larger one: its adversarial image is there too.",
    "Every attack counts: {attacks}.",
    "Whatever an attack returned was checked against its ball and the box, and classified again, in fp32.",
)


@dataclass(frozen=True)
class Audit:
    """What an audit found: figures (JSON-able) and the arrays of its gallery."""

    figures: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(repr=False)


def total_work(subjects: list[Subject], n: int, protocol: Protocol, images: ImageSet) -> int:
    """The length of an audit's progress bar, in passes per image, as if every attack took `ATTACKED` of them."""
    checks = CHECKS_ALONE + len(subjects) - 1
    attacked = sum(n * len(measurements(protocol, maps=s.has_cam)) + min(n, 200) * checks for s in subjects)
    return ATTACKED * attacked + (0 if protocol.looks is None else len(subjects) * work(images, n, protocol.looks))


def run_audit(
    subjects: list[Subject],
    images: ImageSet,
    indices: Tensor,
    protocol: Protocol,
    out: Path,
    *,
    title: str,
    data: dict[str, Any],
    device: str = "cpu",
    tick: Tick | None = None,
) -> Audit:
    """Audit classifiers side by side and write `report.html`, `audit.json`, `rows.parquet`, `run.json` into `out`.

    Finished chunks are kept in `out/cells`: the same audit, started again, goes on where it was interrupted and ends
    with the same figures. `audit.json` and `rows.parquet` hold nothing that varies from run to run; `run.json` does.
    """
    attacked = None if tick is None else lambda n: tick(ATTACKED * n)
    started, now = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    cells = out / "cells"
    if protocol.looks is not None:
        check_transforms(images, indices, protocol.looks, protocol.seed, device_of(subjects[0].model))
    subjects = [prepared(s, protocol, images) for s in subjects]
    rows = {
        s.name: measure(
            s, images, indices, protocol, others=[o.model for o in subjects if o is not s], cells=cells, tick=attacked
        )
        for s in subjects
    }
    models = []
    for subject in subjects:
        others = {o.name: o.model for o in subjects if o is not subject}
        eps = _telling_radius(rows[subject.name], protocol)
        checks = masking_checks(
            subject.model,
            others,
            images,
            indices,
            rows[subject.name],
            protocol.attack,
            eps,
            protocol.seed,
            cells=cells,
            tick=attacked,
        )
        models.append(figures(subject, rows[subject.name], protocol, checks))
    entries, pictures = gallery(subjects, images, indices, choose(rows, protocol.gallery_images), protocol)
    looked = Looked({}, {}, {})
    if protocol.looks is not None:
        models_by_name = {s.name: s.model for s in subjects}
        looked = look(models_by_name, images, indices, protocol.looks, seed=protocol.seed, cells=cells, tick=tick)
        pictures |= looked.pictures
    found = {
        "title": title,
        "data": data
        | {
            "digest": images.digest,
            "n": len(indices),
            "classes": list(images.class_names),
            "shape": list(images.shape),
        },
        "protocol": _described(protocol),
        "models": models,
        "gallery": entries,
        "comparison": compare(rows, protocol),
    } | ({"looks": looked.figures} if looked.figures else {})
    facts = run_facts(started=now, seconds=time.monotonic() - started, device=device)
    write_rows(out / "rows.parquet", _long(rows, looked.rows))
    write_atomically(out / "gallery.safetensors", save({k: np.ascontiguousarray(v) for k, v in pictures.items()}))
    write_json(out / "audit.json", found)
    write_json(out / "run.json", facts)
    write_atomically(out / "report.html", build(found, pictures, facts).encode())
    return Audit(found, pictures)


def _telling_radius(rows: dict, protocol: Protocol) -> float:
    """The radius where the robust accuracy is nearest to half of the clean one: there checks can tell."""
    standing = survivors(rows, protocol.eps)
    half = rows["clean", 0.0]["correct"].mean() / 2
    return min(protocol.eps, key=lambda eps: abs(standing[eps].mean() - half))


def _described(protocol: Protocol) -> dict[str, Any]:
    ball = registry.option(protocol.attack, "ball")
    return {
        "seed": protocol.seed,
        "ball": type(ball).__name__,
        "eps": list(protocol.eps),
        "gallery_eps": protocol.gallery_eps,
        "attack": registry.describe(protocol.attack),
        "aai": registry.describe(protocol.aai),
        "worst": None if protocol.worst is None else registry.describe(protocol.worst),
        "interpreter": registry.describe(registry.option(protocol.aai, "interpreter") or cam),
        "reading": registry.option(protocol.aai, "reading"),
        "precision": "fp32",
        "notes": [note.format(attacks=_counted(protocol)) for note in NOTES],
    }


def _counted(protocol: Protocol) -> str:
    kinds = "on the prediction, on the explanation"
    return kinds if protocol.worst is None else f"{kinds}, and the worst case at the middle radius"


def _long(rows: Mapping[str, AllRows], transformed: Mapping[tuple[str, str], Rows]) -> Rows:
    """All rows as one long table, with the model, the measurement and its radius or transform beside each."""
    attacked = [
        ({"model": model, "measurement": what, "eps": eps, "transform": ""}, part)
        for model, found in rows.items()
        for (what, eps), part in found.items()
    ]
    changed = [
        ({"model": model, "measurement": "transformed", "eps": math.nan, "transform": transform}, part)
        for (model, transform), part in transformed.items()
    ]
    return long_table(attacked + changed)
