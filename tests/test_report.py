"""The report: self-contained, escaped, complete, the same for the same audit, and never "nan"."""

import base64
import copy
import hashlib
import html
import io
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pellucid.report import figures, images, sections, story, tables, words
from pellucid.report.html import build

EPS = (0.1, 0.2, 8 / 255)
VOID = {"meta", "link", "img", "br", "input", "hr"}
HOSTILE = "<script>alert(\"1\")</script>|`x` & 'y' {{ 7*7 }}"
COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(|(?:fill|stroke|color)\s*[=:]\s*[\"']?(?!none)[a-z#]")


def rate(count: int, n: int = 200) -> dict[str, Any]:
    value = count / n
    return {"value": value, "low": max(value - 0.05, 0), "high": min(value + 0.04, 1), "n": n, "count": count}


def interpretation(eps: float, tau: float) -> dict[str, Any]:
    alive = math.isfinite(tau)
    return {
        "eps": eps,
        "tau": tau,
        "low": tau - 0.03,
        "high": tau + 0.02,
        "survivors": 151 if alive else 0,
        "n_tau": 149 if alive else 0,
        "n": 200,
        "tau_all": tau - 0.1,
        "top_k_overlap": tau - 0.2,
    }


def check(verdict: str, name: str = "gradients do not vanish") -> dict[str, str]:
    return {
        "name": name,
        "verdict": verdict,
        "detail": "17 of 200 are zero",
        "why": "It would stand still.",
        "remedy": "Look.",
    }


def model(name: str, i: int) -> dict[str, Any]:
    norm = {"mean": 1.41, "median": 1.23, "q05": 0.0123, "q25": 0.456, "q75": 2.34, "q95": 5.67, "n": 200, "zero": 3}
    return {
        "name": name,
        "path": f"runs/{i}/model.safetensors",
        "architecture": "small",
        "parameters": 166_330 + i,
        "trained": "adversarial(eps=0.3)",
        "clean": rate(195 - i),
        "robust": [{"eps": eps, **rate(190 - 30 * k - 7 * i)} for k, eps in enumerate(EPS)],
        "aai": [interpretation(eps, 0.91 - 0.1 * k - 0.03 * i) for k, eps in enumerate(EPS)],
        "input_gradient_norm": {**norm, "mean": 1.41 + i},
        "checks": [check("pass")],
        "radius": None,
    }


def mean(value: float | None) -> dict[str, Any]:
    spread = (None, None) if value is None else (value - 0.02, value + 0.03)
    return {"value": value, "low": spread[0], "high": spread[1], "n": 0 if value is None else 64}


def the_looks(names: tuple[str, ...]) -> dict[str, Any]:
    """What models look at: curves of two transforms, numbers of maps, a bias, and one that never decides."""

    def curve(i: int, k: int) -> dict[str, Any]:
        value = 0.61 - 0.1 * k - 0.013 * i
        return {
            **rate(100 - 20 * k - i),
            "accuracy_on_correct": value,
            "interval_on_correct": [value - 0.031, value + 0.042],
            "n_correct": 187 - i,
        }

    levels = [("saturation", "2", "p"), ("saturation", "1024", "p"), ("style", "stylised", "")]
    difference = {"difference": -0.456, "low": -0.512, "high": -0.398, "p": 0.0001, "p_holm": 0.0042}
    kinds = [("accuracy", "saturation", "1024"), ("maps", "tau_more", "stylised"), ("shape bias", "", "")]
    maps: dict[str, Any] = {"edges": mean(0.31), "edges_more": mean(0.11)}
    return {
        "curves": [
            {"transform": family, "level": level, "unit": unit, "of": f"{family}({level})"}
            | {"models": [{"name": name, **curve(i, k)} for i, name in enumerate(names)]}
            for k, (family, level, unit) in enumerate(levels)
        ],
        "pairs": [
            {"a": a, "b": b, "kind": kind, "of": of, "level": level, **difference}
            for a, b in itertools.combinations(names, 2)
            for kind, of, level in kinds
        ],
        "maps": [
            {"name": name, "images": kind, "gini": mean(0.41 + 0.013 * i)} | maps | more
            for i, name in enumerate(names)
            for kind, more in (("clean", {}), ("stylised", {"tau": mean(0.62 - 0.03 * i), "tau_more": mean(0.27)}))
        ],
        "shown": [{"label": "seven", "answers": {"clean": dict.fromkeys(names, "three")}}],
        "noise_gini": 0.4142,
        "protocol": {"maps": "smoothgrad(samples=25)", "map_images": 64, "edges": 0.2, "finest": 28, "images": {}},
        "shape_bias": [
            {
                "name": name,
                "shape_bias": math.nan,
                "low": math.nan,
                "high": math.nan,
                "shape": 0,
                "texture": 0,
                "n": 176,
            }
            if i
            else {"name": name, "shape_bias": 0.369, "low": 0.285, "high": 0.462, "shape": 41, "texture": 70, "n": 176}
            for i, name in enumerate(names)
        ],
    }


def an_audit(names: tuple[str, ...] = ("standard", "int"), *, rows: int = 2, classes: int = 10) -> dict[str, Any]:
    def answer(name: str) -> dict[str, Any]:
        return {"prediction": name, "confidence": 0.87}

    answers = [
        {
            "name": name,
            "clean": answer("seven"),
            "attacked": answer("three"),
            "interpretation_attacked": {**answer("seven"), "tau": 0.77},
        }
        for name in names
    ]
    pairs = itertools.combinations(names, 2)
    return {
        "title": "An audit",
        "data": {
            "name": "digits",
            "split": "test",
            "images": "random:200",
            "n": 200,
            "classes": [f"class {i}" for i in range(classes)],
            "shape": [1, 8, 8],
        },
        "protocol": {
            "seed": 4242,
            "ball": "Linf",
            "eps": list(EPS),
            "gallery_eps": EPS[1],
            "attack": "pgd(steps=40)",
            "aai": "aai(steps=50)",
            "reading": "as_written",
            "precision": "fp32",
            "notes": ["A note."],
        },
        "models": [model(name, i) for i, name in enumerate(names)],
        "gallery": [{"row": r, "index": 30 + r, "label": "seven", "eps": 0.1, "models": answers} for r in range(rows)],
        "comparison": [
            {"a": a, "b": b, "eps": eps, "difference": 0.123, "low": 0.071, "high": 0.178, "p": 0.0123, "p_holm": 0.037}
            for a, b in pairs
            for eps in EPS
        ]
        or None,
        "looks": the_looks(names),
    }


def pictures(audit: dict[str, Any], shape: tuple[int, int, int] = (1, 8, 8)) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    found = {}
    for row in audit["gallery"]:
        found[f"{row['row']}/image"] = generator.random(shape)
        for name in (m["name"] for m in row["models"]):
            found |= {f"{row['row']}/{name}/{kind}": generator.random(shape) for kind in ("attacked", "aai")}
            maps = ("map_clean", "map_attacked", "map_aai")
            found |= {f"{row['row']}/{name}/{kind}": generator.normal(size=(4, 4)) for kind in maps}
            found[f"{row['row']}/{name}/gradient"] = generator.normal(size=shape[1:])
    for kind in ("clean", "stylised") if audit.get("looks") else ():
        found[f"looks/{kind}/0"] = generator.random(shape)
        found |= {f"looks/{kind}/0/{model['name']}": generator.random(shape[1:]) for model in audit["models"]}
    return found


RUN = {
    "command": "pellucid audit",
    "started": "2026-01-01",
    "seconds": 12.34,
    "commit": "abc1234",
    "versions": {"torch": "2.13"},
    "device": "cpu",
    "threads": 2,
}


class Reader(HTMLParser):
    """Collects tags and text, and asserts that every tag closes the one that is open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def text(page: str) -> str:
    return " ".join(" ".join(read(page).text).split())


@pytest.fixture(scope="module")
def page() -> str:
    audit = an_audit()
    return build(audit, pictures(audit), RUN)


def test_the_page_asks_nothing_of_any_network(page: str) -> None:
    for _, attributes in read(page).tags:
        for name, value in attributes.items():
            if name in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}:
                assert value is not None
                assert value.startswith(("#", "data:"))
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page


def test_its_policy_lets_its_own_script_run_and_no_other(page: str) -> None:
    script = page.split("<script>")[1].split("</script>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in html.unescape(page)
    assert page.count("<script") == 1


def test_every_image_has_alternative_text_and_every_id_is_unique(page: str) -> None:
    tags = read(page).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert targets <= {f"#{i}" for i in ids}


@pytest.mark.parametrize("where", ["name", "class", "check", "everything"])
def test_hostile_text_is_escaped_and_still_readable(where: str) -> None:
    audit = an_audit((HOSTILE, "int") if where in {"name", "everything"} else ("standard", "int"))
    if where in {"class", "everything"}:
        audit["gallery"][0]["label"] = audit["gallery"][0]["models"][0]["clean"]["prediction"] = HOSTILE
        audit["data"]["classes"][0] = HOSTILE
    if where in {"check", "everything"}:
        audit["models"][0]["checks"] = [
            dict.fromkeys(("name", "detail", "why", "remedy"), HOSTILE) | {"verdict": "fail"}
        ]
    if where == "everything":
        audit["title"] = audit["protocol"]["attack"] = audit["data"]["name"] = HOSTILE
        audit["models"][0] |= {"aai": None, "aai_refused": HOSTILE, "trained": HOSTILE, "path": HOSTILE}
    run = {**RUN, "command": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    page = build(audit, pictures(audit), run)
    reader = read(page)
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert HOSTILE in "".join(reader.text)
    assert "<script>" not in tables.markdown(audit)


def test_a_very_long_name_is_shortened_but_kept_as_a_title() -> None:
    name = "n" * 300 + "end"
    audit = an_audit((name, "int"))
    tags = read(build(audit, pictures(audit))).tags
    assert any(attributes.get("title") == name for _, attributes in tags)
    assert max(len(line) for line in tables.markdown(audit).splitlines()) < 160


@pytest.mark.parametrize("gone", [math.nan, None])
def test_no_survivor_is_said_in_words(gone: float | None) -> None:
    audit = an_audit(("standard",))
    for entry in audit["models"][0]["aai"]:
        entry |= {"tau": gone, "low": gone, "high": gone, "tau_all": gone, "top_k_overlap": gone, "survivors": 0}
    audit["gallery"][0]["models"][0]["interpretation_attacked"]["tau"] = gone
    page = text(build(audit, pictures(audit)))
    assert words.NO_SURVIVOR in page
    assert words.NO_SURVIVOR in tables.markdown(audit)
    assert not re.search(r"\b[nN][aA][nN]\b|\bNone\b", page + tables.markdown(audit))


def test_every_figure_of_the_audit_is_on_the_page(page: str) -> None:
    audit, shown = an_audit(), text(page)
    expected = [
        "random:200",
        "4242",
        "pgd(steps=40)",
        "aai(steps=50)",
        "as written",
        "fp32",
        "A note.",
        "12.3",
        "abc1234",
        "torch 2.13",
    ]
    for entry in audit["models"]:
        expected += [words.count(entry["parameters"]), entry["path"], entry["trained"]]
        for found in (entry["clean"], *entry["robust"]):
            expected += [words.percent(found["value"]), words.rate_interval(found), f"{found['count']} of {found['n']}"]
        for found in entry["aai"]:
            expected += [
                f"τ {words.decimal(found['tau'])}",
                words.tau_interval(found),
                "151 of 200",
                "n = 149",
            ]
            expected += [f"τ {words.decimal(found['tau_all'])}", words.percent(found["top_k_overlap"])]
        norm = entry["input_gradient_norm"]
        expected += [words.significant(norm[key]) for key in ("mean", "median", "q05", "q25", "q75", "q95")]
    expected += ["+12.3", "[+7.1, +17.8]", "p = 0.0370", "3 of 200", "8/255", "τ 0.77", "87 %"]
    for curve in audit["looks"]["curves"]:
        for found in curve["models"]:
            low, high = (words.percent(each) for each in found["interval_on_correct"])
            expected += [
                words.percent(found["accuracy_on_correct"]),
                f"[{low}, {high}] of {found['n_correct']} right before",
            ]
            expected.append(f"of all {words.percent(found['value'])}")
    for found in audit["looks"]["maps"]:
        expected += [words.decimal(found[key]["value"]) for key in ("gini", "edges", "tau") if key in found]
    expected += ["+0.11 [0.09, 0.14] beside another image's", "+0.27 [0.25, 0.30] beside another image's", "64 maps"]
    expected += ["36.9 %", "[28.5–46.2]", "41 for the shape, 70 for the texture, of 176 stimuli", "of 176 stimuli"]
    expected += [
        "−45.6",
        "[−51.2, −39.8]",
        "−0.46",
        "[−0.51, −0.40]",
        "τ to the clean map, stylised images",
        "shape bias",
    ]
    expected += ["0 for the shape, 0 for the texture", "saturation, p = 1024", "smoothgrad(samples=25)"]
    missing = [item for item in expected if " ".join(item.split()) not in shown]
    assert missing == []


def test_what_is_not_asked_is_said_and_why() -> None:
    """Stimuli that are not here, and no style given."""
    audit = an_audit()
    page = text(build(audit, pictures(audit), RUN))
    assert "not asked" not in page
    del audit["looks"]["shape_bias"]
    audit["looks"] |= {"no_shape_bias": "the stimuli are not here", "curves": audit["looks"]["curves"][:2]}
    page = text(build(audit, pictures(audit), RUN))
    assert "not asked, the stimuli are not here." in page
    assert "--style" in page
    del audit["looks"]
    assert "What does it look at?" not in text(build(audit, pictures(audit), RUN))


def test_the_text_table_says_what_models_look_at() -> None:
    """At a telling level, with intervals; what never decides has no bias."""
    found = tables.markdown(an_audit())
    row = next(line for line in found.splitlines() if "saturation, p = 1024" in line)
    assert "51.0" in row
    assert "[47.9–55.2]" in row
    assert "still right, style, stylised" in found
    assert "names neither" in next(line for line in found.splitlines() if "shape bias" in line)
    assert "36.9" in found


def test_the_same_audit_gives_the_same_bytes_and_is_left_as_it_was() -> None:
    audit = an_audit()
    arrays = pictures(audit)
    before = copy.deepcopy(audit)
    assert build(audit, arrays, RUN) == build(copy.deepcopy(audit), arrays, dict(RUN))
    assert audit == before


def test_a_failing_check_is_unmistakable_and_overrules_the_verdict() -> None:
    audit = an_audit()
    quiet = text(build(audit, {}))
    assert "Gradients mislead here" not in quiet
    assert "upper bound" in quiet
    audit["models"][1]["checks"] = [check("fail")]
    loud = build(audit, {})
    assert "Gradients mislead here: the robust figure is an upper bound." in text(loud)
    assert "Prediction: not established" in text(loud)
    assert 'class="line doubtful"' in loud
    assert "FAIL: gradients do not vanish" in tables.markdown(audit)


def test_checks_of_transfer_share_a_row_and_the_worst_verdict_stands() -> None:
    audit = an_audit(("a", "b", "c"))
    audit["models"][0]["checks"] = [
        check("pass", "transfer from b does not win"),
        check("fail", "transfer from c does not win"),
    ]
    grid = sections.checks(audit)["grid"]
    transfer = next(row for row in grid if row["name"] == "transfer from another model does not win")
    assert transfer["cells"] == [{"verdict": "fail", "of": 2, "count": 1}, None, None]


@pytest.mark.parametrize("names", [(), ("one",), tuple("abcdef"), tuple("abcdefgh")])
@pytest.mark.parametrize("classes", [2, 1000])
def test_any_number_of_models_and_classes(names: tuple[str, ...], classes: int) -> None:
    audit = an_audit(names, rows=1, classes=classes)
    read(build(audit, pictures(audit), RUN))
    tables.markdown(audit)


def test_missing_parts_leave_gaps_not_errors() -> None:
    audit = an_audit()
    arrays = pictures(audit)
    for key in ("0/standard/attacked", "0/int/map_aai", "1/image", "0/standard/gradient"):
        del arrays[key]
    audit["models"][0] |= {"robust": [], "aai": None, "aai_refused": "no linear head", "trained": None, "checks": []}
    audit["models"][1] |= {"robust": [], "aai": [], "checks": []}
    audit["gallery"][0]["models"][1]["interpretation_attacked"] = None
    audit["comparison"] = None
    shown = text(build(audit, arrays))
    assert "no linear head" in shown
    assert "No radius was attacked" in shown
    assert "No picture was kept" in text(build({**audit, "gallery": []}, {}))


def test_colour_and_large_images_stay_small() -> None:
    audit = an_audit(("a", "b", "c"), rows=8)
    arrays = pictures(audit, (3, 224, 224))
    smooth = np.sin(np.linspace(0, 9, 224))[:, None] * np.cos(np.linspace(0, 7, 224)) / 2 + 0.5
    for key, image in arrays.items():
        if image.ndim == 3:  # a photograph with a perturbation of 8/255
            arrays[key] = np.clip(smooth + np.sign(image - 0.5) * (0 if key.endswith("image") else 8 / 255), 0, 1)
    page = build(audit, arrays)
    assert len(page) < 2_000_000
    assert "data:image/jpeg" in page


def test_figures_take_every_colour_from_the_style_sheet() -> None:
    audit = an_audit(tuple("abcdef"))
    audit["models"][0]["checks"] = [check("fail")]
    shown = [sections.robustness(audit, 0.1)["figure"], sections.explanation(audit)["figure"]]
    shown += [sections.sensitivity(audit)["figure"], figures.meter(0.5, 0.4, 0.6, tone=9, mark=0.1), figures.swatch(7)]
    assert all(not COLOUR.search(figure) and "style=" not in figure for figure in shown)
    assert all("<text" in figure for figure in shown[:3])


def test_labels_keep_their_distance_and_their_order() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        heights = generator.uniform(0, 300, size=7).tolist()
        placed = figures.spread_out(heights, gap=17, low=0, high=300)
        assert np.diff(np.sort(placed)).min() >= 17 - 1e-9
        assert max(placed) <= 300
        assert np.argsort(heights).tolist() == np.argsort(placed).tolist()
    assert figures.spread_out([10, 100], gap=17, low=0, high=300) == [10, 100]


def test_a_map_is_white_at_zero_red_above_and_blue_below() -> None:
    uri = images.signed_map(np.array([[-2.0, 0.0, 2.0, math.nan]]), scale=2.0)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert pixels.shape == (1, 4, 3)
    assert pixels[0].tolist() == [[33, 102, 172], [247, 247, 247], [178, 24, 43], [247, 247, 247]]


@pytest.mark.parametrize(("shape", "n"), [((1, 8, 8), 1), ((3, 224, 160), 6)])
def test_a_sheet_holds_every_image_with_its_map(shape: tuple[int, int, int], n: int) -> None:
    photographs, maps = np.zeros((n, *shape)), np.ones((n, 4, 4))
    made = images.sheet(photographs, maps, ["χ\n" * 50] * n)
    pixels = np.asarray(Image.open(io.BytesIO(made)))
    assert (pixels == (178, 24, 43)).all(-1).sum() == n * 112 * 112
    assert made == images.sheet(photographs, maps, ["χ\n" * 50] * n)


def test_wordnet_ids_are_left_out_and_still_tell_classes_apart() -> None:
    """ImageNet has two cranes: the wrong one is wrong."""
    audit = an_audit()
    audit["gallery"][0]["label"] = audit["looks"]["shown"][0]["label"] = "n02012849 crane"
    for answers in audit["gallery"][0]["models"]:
        answers["clean"]["prediction"] = "n03126707 crane"
    audit["looks"]["shown"][0]["answers"]["clean"] = dict.fromkeys(("standard", "int"), "n03126707 crane")
    page = text(build(audit, pictures(audit), RUN))
    assert "n0" not in page
    assert "✗ crane" in page
    assert "✓ crane" not in page
    assert words.class_name("n02012849") == "n02012849"


def test_a_sheet_keeps_the_shape_of_images_and_maps() -> None:
    """Twice as wide as high: half of each square."""
    made = images.sheet(np.zeros((1, 3, 20, 40)), np.ones((1, 20, 40)), [""])
    pixels = np.asarray(Image.open(io.BytesIO(made)))
    assert (pixels == (178, 24, 43)).all(-1).sum() == (pixels == 0).all(-1).sum() == 112 * 56


def test_a_model_that_guesses_is_said_to_guess() -> None:
    audit = an_audit(("one",))
    audit["models"][0] |= {"clean": rate(21), "checks": [check("fail")]}
    assert "Prediction: guesses" in text(build(audit, {}))


def test_a_change_of_the_whole_radius_is_shown_black_and_white() -> None:
    image = np.full((1, 2, 2), 0.5)
    _, factor = images.perturbation(image, image + 0.1, eps=0.1)
    assert factor == pytest.approx(5.0)


def test_the_page_speaks_of_the_radius_of_the_protocol_whatever_was_found() -> None:
    audit = an_audit(("a", "b"))
    for share in (0, 100, 199):
        for entry in audit["models"]:
            entry["robust"] = [{"eps": eps, **rate(share)} for eps in EPS]
        assert story.headline_radius(audit) == 0.2
    audit["models"][1]["checks"] = [check("fail")]
    audit["protocol"]["gallery_eps"] = 8 / 255
    assert story.headline_radius(audit) == 8 / 255
    assert "The cards speak of ε 8/255, the middle of the radii tried, which the protocol fixed" in text(
        build(audit, {})
    )
    del audit["protocol"]["gallery_eps"]
    assert story.headline_radius(audit) == EPS[1]


def test_a_winner_is_named_by_the_corrected_p_alone() -> None:
    audit = an_audit(("first", "second"))
    for pair, p in zip(audit["comparison"], (0.049, 0.051, None), strict=True):
        pair["p_holm"] = p
    assert [row["better"] for row in sections.comparison(audit)] == ["first", None, None]
    shown = text(build(audit, {}))
    assert "Holm-corrected for all 3 comparisons of this audit (every pair at every ε)" in shown
    assert "cannot tell" in shown


def test_a_constant_map_is_not_said_to_be_a_lost_class() -> None:
    audit = an_audit(("standard",))
    for entry in audit["models"][0]["aai"]:
        entry.update(dict.fromkeys(("tau", "low", "high", "tau_all", "top_k_overlap"), math.nan), n_tau=0)
    page, table = text(build(audit, {})), tables.markdown(audit)
    assert words.NO_SURVIVOR not in page + table
    assert words.CONSTANT in table
    assert "the map is constant (a map with one position" in page
    assert "Explanation: the map is constant" in page
    assert "n = 0" not in page
    audit["models"][0]["aai"][0]["survivors"] = 0
    both = sections.explanation(audit)["lost"]
    assert [words.NO_SURVIVOR in line for line in both] == [True, False]


def test_too_few_maps_have_no_interval_and_it_is_said() -> None:
    audit = an_audit(("standard",))
    for entry in audit["models"][0]["aai"]:
        entry |= {"low": None, "high": None, "n_tau": 9}
    page, table = text(build(audit, {})), tables.markdown(audit)
    assert "too few for an interval" in page
    assert "(too few for an interval), n = 9" in table
    assert "n = 9; 151 of 200 kept their class" in page


def test_maps_are_called_by_the_interpreter_that_made_them() -> None:
    audit = an_audit()
    assert "class activation maps for the true class" in text(build(audit, {}))
    names = {"cam": "class activation map", "gradcam(relu=True)": "Grad-CAM map", "mine": "mine map"}
    for spec, name in names.items():
        audit["protocol"]["interpreter"] = spec
        page = text(build(audit, {}))
        assert f"its {name}s for the true class" in page
        assert spec in page
        assert ("lass activation map" in page) is (spec == "cam")


def test_an_absent_reading_and_a_reason_for_no_maps() -> None:
    audit = an_audit()
    audit["protocol"]["reading"] = None
    audit["models"][0] |= {"aai": None, "aai_refused": "a map of 1 value says nothing of where"}
    page, table = text(build(audit, {})), tables.markdown(audit)
    assert "None" not in page
    assert "Reading of the papers" not in page
    assert "a map of 1 value says nothing of where" in page
    assert "a map of 1 value says nothing of where" in table


def test_the_gallery_says_how_its_images_were_chosen_and_where_a_map_is_constant() -> None:
    audit = an_audit(("standard",))
    audit["gallery"][0]["models"][0]["interpretation_attacked"]["tau"] = math.nan
    page = text(build(audit, pictures(audit)))
    assert "the first of distinct classes that every model had right" in page
    assert "constant: no τ" in page


@pytest.mark.parametrize("doubtful", [False, True])
def test_no_two_of_many_models_look_alike(doubtful: bool) -> None:
    point = figures.Point(0.1, 0.5, 0.4, 0.6, "")
    shown = []
    for tone in range(30):
        line = figures.Line("same", tone, [replace(point), replace(point, x=0.2)], doubtful=doubtful)
        drawn = figures.curves([line], title="t", x_label="x", y_label="y", y_ticks=[(0, "0"), (1, "1")])
        shown.append(drawn + figures.swatch(tone))
    assert len(set(shown)) == 30
    polylines = [
        re.findall(r'(tone[0-5])"><polyline class="[^"]*"( stroke-dasharray="[^"]*")?', page) for page in shown
    ]
    assert len({str(found) for found in polylines}) == 30
    assert len({figures.swatch(tone) for tone in range(30)}) == 30


@pytest.mark.parametrize(
    ("eps", "written"), [(0.3, "0.3"), (8 / 255, "8/255"), (1 / 255, "1/255"), (0.2, "0.2"), (0.0, "0"), (2.5, "2.5")]
)
def test_radii_are_written_as_people_do(eps: float, written: str) -> None:
    assert words.radius(eps) == written


def test_numbers_have_true_minus_signs_and_no_exponent() -> None:
    assert words.significant(1.234e-5) == "1.23 × 10⁻⁵"
    assert words.significant(-0.5) == "−0.5"
    assert words.points(-0.052) == "−5.2"
    assert words.signed(-0.04) == "−0.04"
    assert words.percent(math.nan) == words.ABSENT
    shown = [words.p_value(p) for p in (1.0, 0.3, 0.0143, 9e-5, None)]
    assert shown == ["p = 1.00", "p = 0.30", "p = 0.0143", "p < 0.001", "p not measured"]


def test_the_text_table_has_a_cell_for_every_model_and_measurement() -> None:
    audit = an_audit()
    lines = tables.markdown(audit).splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 2 + 1 + 3 + 3 + 1 + 3
    assert len({line.count("|") for line in body}) == 1
    assert len({len(line) for line in body}) == 1
    assert words.rate(audit["models"][0]["clean"]) in body[2]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ["a", "b"]),
        (["runs/mnist_normal_epochs_100", "runs/mnist_adversarial_epochs_100"], ["…normal…", "…adversarial…"]),
        (["one_and_the_same_beginning_7", "one_and_the_same_beginning_8"], ["…7", "…8"]),
        (["nothing_in_common_with_the_other", "a_wholly_different_name_as_long"], ["nothing_…ther", "a_wholly…long"]),
        (["x" * 40 + "y" + "x" * 40, "x" * 40 + "z" + "x" * 40], ["xxxxxxx…xxx 1", "xxxxxxx…xxx 2"]),
        (["abc_" * 10, "abc_" * 12], ["abc_abc…bc_ 1", "abc_abc…bc_ 2"]),
        ([], []),
    ],
)
def test_long_names_keep_what_tells_them_apart(names: list[str], found: list[str]) -> None:
    """Within the room there is, no two alike; names that fit stay as they are."""
    assert words.telling(names, 13) == found
