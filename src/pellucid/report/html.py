"""The page: one HTML file with everything in it, which asks nothing of any network."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pellucid.report import figures, sections, story, words
from pellucid.report.gallery import rows as gallery_rows
from pellucid.report.looks_section import looks


def build(audit: dict[str, Any], gallery: dict[str, np.ndarray], run: dict[str, Any] | None = None) -> str:
    """The report of an audit. The same input gives the same bytes.

    `gallery` holds the pictures by "row/image", "row/model/attacked", "row/model/map_clean" and so on: images
    are [c, h, w] in [0, 1], maps [h, w] and signed; what is missing is left out. `run` describes the one execution.
    """
    return environment().get_template("page.html").render(_context(audit, gallery, run))


def _context(audit: dict[str, Any], arrays: dict[str, np.ndarray], run: dict[str, Any] | None) -> dict[str, Any]:
    models, data, eps = audit["models"], audit["data"], story.headline_radius(audit)
    chance = 1 / max(len(data["classes"]), 1)
    return {
        "audit": audit,
        "run": run,
        "eps": None if eps is None else words.radius(eps),
        "worst_from": words.radius(eps) if eps and any(model.get("worst") for model in models) else None,
        "attacked": bool(words.radii(audit)),
        "significant": words.SIGNIFICANT,
        "map": words.map_name(audit["protocol"].get("interpreter")),
        "chance": chance,
        "lead": story.lead(audit, eps),
        "cards": [story.card(model, tone, eps=eps, chance=chance) for tone, model in enumerate(models)],
        "thresholds": {"holds": story.HOLDS, "kept": story.KEPT, "shifted": story.SHIFTED},
        "legend": sections.legend([model["name"] for model in models]),
        "robustness": sections.robustness(audit, chance),
        "explanation": sections.explanation(audit),
        "sensitivity": sections.sensitivity(audit),
        "comparison": sections.comparison(audit),
        "checks": sections.checks(audit),
        "looks": looks(audit, arrays),
        "gallery": gallery_rows(audit, arrays),
        **assets(),
    }


def assets() -> dict[str, Any]:
    """Style and script, and the script's hash: the page's policy lets no other script run."""
    script = _template_text("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(_template_text("style.css")), "script": Markup(script), "script_hash": digest}


@cache
def _template_text(name: str) -> str:
    return (files("pellucid.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pellucid.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"swatch": figures.swatch}
    environment.filters |= {
        "count": words.count,
        "percent": words.percent,
        "radius": words.radius,
        "shorten": words.shorten,
        "plural": words.plural,
    }
    return environment
