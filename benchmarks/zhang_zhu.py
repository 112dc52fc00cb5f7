"""Zhang & Zhu 2019 in small: what adversarially trained ResNet-18s look at, on CIFAR-10 or on twenty classes of Tiny
ImageNet, beside the paper's figures, and what became of its claims.

    python benchmarks/zhang_zhu.py --data cifar10 --device cuda --out runs/zz                # all of it, resumably
    python benchmarks/zhang_zhu.py --data cifar10 --device cuda --out runs/zz --together     # its networks side by side
    python benchmarks/zhang_zhu.py --data tiny-imagenet-20 --style rain_princess.safetensors --device cuda --out runs/zz

Four networks: standard; PGD in Linf of 8/255 and in L2 (1.2 on CIFAR-10, as the paper; on Tiny ImageNet its 12 at 224
px, by our reckoning the same per pixel), every second batch clean, as the paper's code has it; and underfit, a standard
one stopped at the clean accuracy of the Linf one on held-out images. Attacks take 7 steps where theirs take 20, from a
random start, and in L2 go along the gradient, not its sign. Accuracy on correct is right before and after over right
before; differences of it are paired over the test images. There is one seed: the intervals say nothing of how another
training run would have ended. Which levels a claim is judged at was fixed before any was measured: the three strongest
saturations, the two middle radii of four, and for "alike" a margin of 0.1 of accuracy on correct. The budget is a
fraction of the paper's, and so is the accuracy. PELLUCID_DATA must hold the data set.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import data, registry, run_folder
from pellucid.attacks.gradient import pgd
from pellucid.balls import Linf
from pellucid.claims import Finding, Verdict, alike, difference, fewer, table, verdict
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.looks import levels
from pellucid.models import load_model
from pellucid.outcome import on_correct
from pellucid.process import settle
from pellucid.recipe import Recipe
from pellucid.results import Rows, rate, write_json
from pellucid.salience import numbers, smooth_maps
from pellucid.summary import paired_means, paired_on_correct
from pellucid.training import train
from pellucid.transforms.frequency import high_pass
from pellucid.transforms.texture import fast_style
from pellucid.types import Transform

L2_RADII = {"cifar10": 1.2, "tiny-imagenet-20": 12 * 64 / 224}
MODELS = ("standard", "underfit", "pgd-linf", "pgd-l2")
TRAINED = MODELS[2:]  # adversarially
AT_ONCE = ("standard", *TRAINED)  # underfit's needs the Linf one to be finished
SPLITS = {"cifar10": "test", "tiny-imagenet-20": "valid"}
MARGIN = 0.1  # within which two are alike
MAPS = 256  # images
NONE = 0.01  # of robustness

# Zhang & Zhu 2019, in percent: Table 1 (accuracy, robustness), Tables 5 and 6 (saturation), 8 (shuffling), 2 (style).
SATURATIONS = ("0.25", "0.5", "1", "4", "8", "16", "64", "1024")
PAPER: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]] = {
    "cifar10": {
        "clean": {"standard": (94.52, 0), "underfit": (86.79, 0), "pgd-linf": (86.27, 44.81), "pgd-l2": (85.79, 34.61)},
        "saturation": {
            "standard": (27.36, 55.95, 91.03, 93.12, 69.98, 48.30, 34.39, 31.06),
            "underfit": (21.43, 50.28, 87.71, 89.89, 66.09, 43.35, 29.10, 26.13),
            "pgd-linf": (26.05, 46.96, 80.97, 89.16, 75.46, 69.08, 58.98, 64.64),
            "pgd-l2": (25.99, 46.92, 81.72, 88.44, 73.92, 66.03, 60.98, 59.41),
        },
    },
    "tiny-imagenet-20": {  # theirs: all 200 classes, at 224 px
        "clean": {
            "standard": (72.02, 0.01),
            "underfit": (60.05, 0.01),
            "pgd-linf": (54.42, 14.25),
            "pgd-l2": (53.44, 14.80),
        },
        "saturation": {
            "standard": (7.24, 25.88, 72.52, 72.73, 25.38, 8.24, 2.62, 1.93),
            "underfit": (7.34, 25.44, 69.80, 60.67, 18.01, 6.72, 3.16, 2.65),
            "pgd-linf": (11.07, 29.08, 67.11, 74.53, 49.8, 40.16, 35.44, 33.96),
            "pgd-l2": (11.30, 29.48, 66.94, 75.22, 52.26, 42.11, 37.20, 35.85),
        },
        "patch shuffling": {
            "standard": (66.73, 24.87, 4.48),
            "underfit": (59.22, 23.62, 4.38),
            "pgd-linf": (41.08, 16.05, 6.83),
            "pgd-l2": (42.23, 16.95, 7.66),
        },
        "style": {"standard": (7.25,), "underfit": (7.16,), "pgd-linf": (18.81,), "pgd-l2": (19.33,)},
    },
}
PAPER_LEVELS = {"saturation": SATURATIONS, "patch shuffling": ("2", "4", "8"), "style": ("stylised",)}

Measured = Mapping[str, Mapping[tuple[str, str], Rows]]  # {model: {(family, level): rows}}
Maps = Mapping[str, Mapping[str, np.ndarray]]  # {model: {figure: per image}}


def main() -> None:
    """Train what is not trained, measure what is not measured, print tables and verdicts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", choices=list(SPLITS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--style", type=Path, help="weights for fast_style; without, nothing is stylised")
    parser.add_argument("--images", type=int, help="test images; by default all")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", choices=MODELS, help="this network alone, and no tables")
    part.add_argument("--together", action="store_true", help="a process for each network, on the one device")
    given = parser.parse_args()
    out = given.out / given.data
    if given.together:
        side_by_side(given, out)
    names = (given.only,) if given.only else (*AT_ONCE, "underfit")
    for name in names:
        trained(name, given, out)
    test = data.load(given.data, SPLITS[given.data])
    style = None if given.style is None else partial(fast_style, weights=str(given.style))
    rows = measured(names, test, style, given, out)
    if given.only:
        return
    maps = mapped(test, given, out)
    text = report(given.data, rows, maps)
    (out / "tables.md").write_text(text)
    write_json(out / "figures.json", figures(rows, maps))
    print(text)


def side_by_side(given: argparse.Namespace, out: Path) -> None:
    """Every network trained and measured in a process of its own, underfit's once its model is finished.

    Nothing is handed back: what they measured lies in the cells. Ctrl-C reaches them all, and each keeps what it has.
    """
    command = [sys.executable, __file__, *(each for each in sys.argv[1:] if each != "--together"), "--only"]
    ready = partial(run_folder.finished, out / "pgd-linf", recipe("pgd-linf", given, out))
    ready()  # raises where the folder is another recipe's
    running = {name: subprocess.Popen([*command, name]) for name in AT_ONCE}
    try:
        while running["pgd-linf"].poll() is None and not ready():
            time.sleep(1)
        if ready():
            running["underfit"] = subprocess.Popen([*command, "underfit"])
        for process in running.values():
            process.wait()
    finally:  # after Ctrl-C too, of which each makes an end by itself
        failed = [name for name, process in running.items() if process.wait()]
    if failed:
        raise PellucidError(f"{', '.join(failed)} failed; what it said is above. The same command goes on from there")


def recipe(name: str, given: argparse.Namespace, out: Path) -> Recipe:
    """Of one network. Underfit's needs the Linf one to be finished."""
    common = Recipe(
        objective="standard",
        architecture="resnet18",
        data=given.data,
        steps=given.steps,
        batch_size=128,
        optimiser="sgd",
        lr=0.05,
        weight_decay=5e-4,
        decay="linear",
        ramp=0.25,
        augment=("crop", "flip"),
        precision=given.precision,
        validate="pgd(ball=Linf(8/255), steps=10)",
        validate_every=given.steps,
        seed=given.seed,
    )
    if name == "underfit":
        reached = clean_accuracy(out / "pgd-linf")
        return replace(common, validate="", stop_at=reached, validate_every=25, decay="constant", lr=0.02)
    balls = {"pgd-linf": "Linf(8/255)", "pgd-l2": f"L2({L2_RADII[given.data]:.3f})"}
    if name in balls:
        attack = f"pgd(ball={balls[name]}, steps=7, keep_best=False)"
        return replace(common, objective=f"adversarial(attack={attack}, alternate=True)")
    return common


def clean_accuracy(run: Path) -> float:
    """On held-out images, at the end of a finished run."""
    if not (run / "model.safetensors").is_file():
        raise PellucidError(f"underfit stops at the accuracy of {run.name}, which is not finished: leave out --only")
    log = json.loads((run / "metrics.json").read_text())
    return [entry["validation_accuracy"] for entry in log if "validation_accuracy" in entry][-1]


def trained(name: str, given: argparse.Namespace, out: Path) -> None:
    """Train a network, or go on with it; what is finished is left."""
    mine, where = recipe(name, given, out), out / name
    if not run_folder.finished(where, mine):
        _train(name, mine, where, given)
    if mine.stop_at is not None and (reached := clean_accuracy(where)) < mine.stop_at:
        raise PellucidError(
            f"{name} reached {reached:.3f} and not the {mine.stop_at:.3f} of pgd-linf: more --steps, in another --out"
        )


def _train(name: str, mine: Recipe, where: Path, given: argparse.Namespace) -> None:
    started, images = time.monotonic(), data.load(given.data, "train")

    def say(step: int, entry: Mapping[str, float]) -> None:
        if step % 100 == 0:
            spent = time.monotonic() - started
            print(f"{name} {step}/{mine.steps} {spent:.0f} s, loss {entry.get('loss', 0):.3f}", file=sys.stderr)

    train(mine, images, where, resume=(where / run_folder.RECIPE).exists(), device=given.device, report=say)


def measured(
    names: Sequence[str], test: data.ImageSet, style: Transform | None, given: argparse.Namespace, out: Path
) -> Measured:
    """These networks on every changed test set and under PGD."""
    indices = shown(test, given)
    plan = {
        (family, level): Measurement(transform=as_in_the_paper(family, transform))
        for family, (_, made) in levels(test.shape, style).items()
        for level, transform in made.items()
    }
    attack = partial(pgd, ball=Linf(8 / 255), steps=40, step_size=2 / 255, random_start=False, stop_when_fooled=True)
    plan = {("clean", ""): Measurement(), ("PGD", "8/255"): Measurement(attack=attack)} | plan
    rows: dict[str, dict[tuple[str, str], Rows]] = {}
    for name in names:
        model: nn.Module = load_model(out / name)[0].to(given.device)
        rows[name] = {}
        for (family, level), measurement in plan.items():
            rows[name][family, level] = evaluate(
                model, test, indices, measurement, seed=given.seed, cells=out / "cells"
            )
            print(f"{name} {family} {level}", file=sys.stderr)
    return rows


def mapped(test: data.ImageSet, given: argparse.Namespace, out: Path) -> Maps:
    """Figures of every network's SmoothGrad maps, per image."""
    indices = shown(test, given)[:MAPS]
    x, y = test.batch(indices)
    maps: dict[str, dict[str, np.ndarray]] = {}
    for name in MODELS:
        model: nn.Module = load_model(out / name)[0].to(given.device)
        drawn = smooth_maps(model, x, y, rows=indices.tolist(), seed=given.seed)
        maps[name] = {
            figure: value for figure, value in numbers(drawn, x, None, seed=given.seed).items() if figure != "edges"
        }
    return maps


def shown(test: data.ImageSet, given: argparse.Namespace) -> Tensor:
    """The test images that are measured on."""
    return torch.arange(len(test) if given.images is None else min(given.images, len(test)))


def as_in_the_paper(family: str, transform: Transform) -> Transform:
    """Audits keep the mean colour beside high frequencies; the paper's filter takes it too."""
    if family != "high frequencies":
        return transform
    return partial(high_pass, radius=registry.option(transform, "radius"))


def figures(rows: Measured, maps: Maps) -> dict[str, Any]:
    """Everything measured, with intervals."""
    shares = {
        name: {
            f"{family} {level}".strip(): rate(found["correct"]) | on_correct(each["clean", ""], found)
            for (family, level), found in each.items()
        }
        for name, each in rows.items()
    }
    per_image = {name: {figure: found.tolist() for figure, found in each.items()} for name, each in maps.items()}
    return {"rows": shares, "maps": per_image}


def report(name: str, rows: Measured, maps: Maps) -> str:
    """Tables beside the paper's figures, and the verdicts, in Markdown."""
    paper, clean = PAPER[name], ("clean", "")
    n = len(rows["standard"][clean]["correct"])
    lines = [
        f"### {name}, {n} test images",
        "",
        "| | clean | PGD-40, 8/255 | paper: clean | PGD |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        ours = [_rate(rows[model][place]["correct"]) for place in (clean, ("PGD", "8/255"))]
        theirs = [f"{value / 100:.3f}" for value in paper["clean"][model]]
        lines.append(f"| {model} | {' | '.join(ours + theirs)} |")
    lines += ["", "Accuracy on correct, and in brackets the paper's:", ""]
    lines += [f"| | {' | '.join(MODELS)} |", "|---|" + "---|" * len(MODELS)]
    for family, level in list(rows["standard"])[2:]:
        cells = []
        for model in MODELS:
            found = on_correct(rows[model][clean], rows[model][family, level])
            printed = PAPER_LEVELS.get(family, ())
            theirs = paper.get(family, {}).get(model)
            beside = f" ({theirs[printed.index(level)] / 100:.3f})" if theirs and level in printed else ""
            cells.append(f"{found['accuracy_on_correct']:.3f}{beside}")
        lines.append(f"| {family} {level} | {' | '.join(cells)} |")
    lines += [
        "",
        f"SmoothGrad maps of {min(n, MAPS)} images:",
        "",
        f"| | {' | '.join(MODELS)} |",
        "|---|" + "---|" * len(MODELS),
    ]
    for figure, words in (("gini", "Gini index"), ("edges_more", "more on own edges than on another's")):
        lines.append(f"| {words} | {' | '.join(f'{np.nanmean(maps[model][figure]):.3f}' for model in MODELS)} |")
    return "\n".join([*lines, "", table(judged(rows, maps)), ""])


def _rate(hits: np.ndarray) -> str:
    found = rate(hits)
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def judged(rows: Measured, maps: Maps) -> list[Verdict]:
    """The paper's claims, each by paired differences: of accuracy on correct, or of a figure of maps."""

    def apart(one: str, two: str, family: str, level: str) -> tuple[str, dict[str, float]]:
        a, b = rows[one], rows[two]
        found = paired_on_correct(a["clean", ""], a[family, level], b["clean", ""], b[family, level])
        return f"{one} - {two} at {level}", found

    def above(pairs: list[tuple[str, str]], family: str, at: list[str]) -> list[Finding]:
        return [difference(*apart(one, two, family, level)) for one, two in pairs for level in at]

    def same(family: str, at: list[str]) -> list[Finding]:
        return [alike(*apart(one, "standard", family, level), MARGIN) for one in TRAINED for level in at]

    over_standard = [(one, "standard") for one in TRAINED]
    over_underfit = [(one, "underfit") for one in TRAINED]
    under_standard = [("standard", one) for one in TRAINED]
    found = {family: [level for each, level in rows["standard"] if each == family] for family, _ in rows["standard"]}
    low, high = found["low frequencies"], found["high frequencies"]
    strong = ["16", "64", "1024"]
    halves = [level for level in found.get("patch shuffling", []) if level in ("2", "4")]
    eighths = [level for level in found.get("patch shuffling", []) if level == "8"]
    claims = [
        ("without adversarial training nothing stands (under 1 %)", "Table 1", _none(rows)),
        ("saturated images: PGD-trained above standard", "Tables 4-6", above(over_standard, "saturation", strong)),
        ("saturated images: PGD-trained above underfit", "Tables 4-6", above(over_underfit, "saturation", strong)),
        (
            "below p = 2 PGD-trained lose as standard does (within 0.1)",
            "sec. 4.2.2",
            same("saturation", ["0.25", "0.5"]),
        ),
        (
            "shuffled patches: PGD-trained below standard",
            "Tables 7, 8",
            above(under_standard, "patch shuffling", halves),
        ),
        (
            "at 8 x 8 patches PGD-trained are as standard (within 0.1)",
            "sec. 4.2.3",
            same("patch shuffling", eighths),
        ),
        ("stylised: PGD-trained above standard", "Table 2", above(over_standard, "style", found.get("style", []))),
        ("low frequencies: PGD-trained above standard", "Table 3", above(over_standard, "low frequencies", low[1:3])),
        (
            "high frequencies: PGD-trained below standard",
            "Table 3",
            above(under_standard, "high frequencies", high[1:3]),
        ),
        (
            "a tenth of the frequencies dropped: PGD-trained as standard (within 0.1)",
            "Table 3",
            same("random frequencies", ["0.1"]),
        ),
        *(
            (words, "figs. 2, 9", [difference(f"{one} - standard", _of_maps(maps, one, figure)) for one in TRAINED])
            for figure, words in (
                ("gini", "maps of PGD-trained networks are sparser (Gini)"),
                ("edges_more", "maps of PGD-trained networks lie more on the image's own edges"),
            )
        ),
    ]
    return [verdict(claim, f"Zhang & Zhu 2019, {where}", each) for claim, where, each in claims if each]


def _of_maps(maps: Maps, one: str, figure: str) -> dict[str, float]:
    return paired_means(maps[one][figure], maps["standard"][figure])


def _none(rows: Measured) -> list[Finding]:
    return [fewer(name, rows[name]["PGD", "8/255"]["correct"], NONE) for name in MODELS[:2]]


if __name__ == "__main__":
    settle()
    main()
