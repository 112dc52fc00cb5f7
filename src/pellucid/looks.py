"""What a classifier looks at: accuracy on images without texture, shape or some frequencies, its maps, its shape bias.

Zhang & Zhu 2019 show curves over the levels of each transform, and SmoothGrad maps in pictures. Beside the pictures
stand numbers here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import registry, salience
from pellucid.data import ImageSet
from pellucid.data.cues import CueConflict
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate, transformed
from pellucid.gallery import choose
from pellucid.network import device_of, frozen, full_precision
from pellucid.outcome import on_correct
from pellucid.protocol import Looks
from pellucid.results import Rows, holm, rate
from pellucid.seeds import derive_seed
from pellucid.shape_bias import Named, bias, fitting_stimuli, named
from pellucid.summary import paired_means, paired_on_correct
from pellucid.transforms.frequency import high_pass, low_pass, random_fourier
from pellucid.transforms.shape import patch_shuffle
from pellucid.transforms.texture import saturate
from pellucid.types import Images, Transform

Tick = Callable[[int], None]
Levels = Mapping[str, tuple[str, Mapping[str, Transform]]]  # {family: (what the level is, {level: transform})}
Level = tuple[str, str]  # family, level

SATURATIONS = (0.25, 0.5, 1, 2, 4, 8, 16, 64, 1024)  # of the paper
SHUFFLES = (2, 4, 8)
DROPPED = (0.1, 0.3, 0.5)
OCTAVES = (16, 8, 4, 2)  # radii: the image's side over these, so a filter of an octave each
COMPARED = ("gini", "edges_more", "tau_more")  # figures of maps that two models are compared by


@dataclass(frozen=True)
class Looked:
    """Figures (JSON-able), the arrays of their gallery by `looks/...` keys, and the rows of transformed images, by
    model and transform."""

    figures: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(repr=False)
    rows: dict[tuple[str, str], Rows] = field(repr=False)


def levels(shape: tuple[int, int, int], style: Transform | None = None) -> Levels:
    """The transforms that fit images of a shape, each at its levels."""
    _, h, w = shape
    side = min(h, w)
    radii = [max(1, side // share) for share in OCTAVES]
    found: dict[str, tuple[str, Mapping[str, Transform]]] = {
        "saturation": ("p", {f"{p:g}": partial(saturate, p=float(p)) for p in SATURATIONS}),
        "patch shuffling": (
            "patches a side",
            {str(k): partial(patch_shuffle, k=k) for k in SHUFFLES if h % k == 0 and w % k == 0},
        ),
        "low frequencies": ("up to, cycles per image", {str(r): partial(low_pass, radius=float(r)) for r in radii}),
        "high frequencies": (
            "beyond, cycles per image",
            {str(r): partial(high_pass, radius=float(r), keep_mean=True) for r in radii},
        ),
        "random frequencies": ("share dropped", {f"{p:g}": partial(random_fourier, p=p) for p in DROPPED}),
    }
    if style is not None:
        found["style"] = ("", {"stylised": style})
    return {family: made for family, made in found.items() if made[1]}


def work(images: ImageSet, n: int, looks: Looks) -> int:
    """How many passes are made for one model."""
    kinds, stimuli = 1 + len(changes(images.shape, looks.style)), _stimuli(images)
    asked = int(stimuli.conflicting.sum()) if isinstance(stimuli, CueConflict) else 0
    curves = n * (1 + sum(len(made) for _, made in levels(images.shape, looks.style).values()))
    return asked + curves + salience.SAMPLES * kinds * min(n, looks.map_images)


def look(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    indices: Tensor,
    looks: Looks,
    *,
    seed: int = 0,
    cells: Path | None = None,
    tick: Tick | None = None,
) -> Looked:
    """What several models look at, on the same images.

    `curves`: of every transform and level, per model, accuracy over all images and among those right before, with 95 %
    intervals. `maps`: SmoothGrad of the true class on clean and changed images, of a sample of them. `shape_bias`, for
    models of ImageNet's classes where the stimuli are. `pairs`: of two models each the paired differences of all these.
    """
    plan, stimuli = levels(images.shape, looks.style), _stimuli(images)
    rows: dict[str, dict[Level, Rows]] = {}
    clean: dict[str, Rows] = {}
    for name, model in models.items():
        measured = partial(evaluate, model, images, indices, seed=seed, cells=cells, tick=tick)
        clean[name] = measured(Measurement())
        rows[name] = {
            (family, level): measured(Measurement(transform=transform))
            for family, (_, made) in plan.items()
            for level, transform in made.items()
        }
    curves: list[dict[str, Any]] = [
        {"transform": family, "level": level, "unit": unit, "of": registry.describe(transform)}
        | {"models": [_figures(name, clean[name], rows[name][family, level]) for name in models]}
        for family, (unit, made) in plan.items()
        for level, transform in made.items()
    ]
    values, maps, pictures, shown = _of_maps(models, images, indices, clean, looks, seed, tick)
    answers: dict[str, Named] = {}
    if isinstance(stimuli, CueConflict):
        answers = {name: named(model, stimuli, tick=tick) for name, model in models.items()}
    figures: dict[str, Any] = {"curves": curves, "pairs": _pairs(list(models), clean, rows, values, answers)}
    figures |= {"maps": maps, "shown": shown, "noise_gini": salience.noise_gini(images.shape[0])}
    figures |= {"protocol": _described(looks, images.shape)}
    if answers:
        figures["shape_bias"] = [{"name": name} | bias(given) for name, given in answers.items()]
    elif isinstance(stimuli, str) and stimuli:
        figures["no_shape_bias"] = stimuli
    kept = {(name, curve["of"]): rows[name][curve["transform"], curve["level"]] for name in models for curve in curves}
    return Looked(figures, pictures, kept)


def _described(looks: Looks, shape: tuple[int, int, int]) -> dict[str, Any]:
    """How the maps were made, exactly enough to make them again."""
    kinds = {name: registry.describe(change) for name, change in changes(shape, looks.style).items()}
    how = {"maps": salience.MADE, "map_images": looks.map_images, "edges": salience.EDGES, "finest": salience.FINEST}
    return how | {"images": kinds}


def check_transforms(images: ImageSet, indices: Tensor, looks: Looks, seed: int, device: torch.device) -> None:
    """Every transform on one image, and the stimuli: what is wrong with their files is said before hours of attacks."""
    _stimuli(images)
    x = images.batch(indices[:1])[0].to(device)
    for _, made in levels(images.shape, looks.style).values():
        for transform in made.values():
            transformed(transform, x, indices[:1], seed)


def _stimuli(images: ImageSet) -> CueConflict | str:
    try:
        return fitting_stimuli(images)
    except PellucidError as error:
        raise PellucidError(f"{error}; or leave out what models look at: --no-looks") from None


def _figures(name: str, clean: Rows, rows: Rows) -> dict[str, Any]:
    return {"name": name, **rate(rows["correct"]), **on_correct(clean, rows)}


def _pairs(
    names: Sequence[str],
    clean: Mapping[str, Rows],
    rows: Mapping[str, Mapping[Level, Rows]],
    values: Mapping[tuple[str, str], salience.Values],
    answers: Mapping[str, Named],
) -> list[dict[str, Any]]:
    """Every two models on the same images, corrected for all of these comparisons (Holm): their accuracy on correct at
    every level that changes something, the figures of their maps, and their shape bias. `kind` says which."""
    found: list[dict[str, Any]] = [
        {"a": a, "b": b, "kind": kind, "of": of, "level": level} | difference
        for a, b in combinations(names, 2)
        for kind, of, level, difference in _differences(a, b, clean, rows, values, answers)
    ]
    corrected = holm([entry["p"] for entry in found])
    return [entry | {"p_holm": p} for entry, p in zip(found, corrected, strict=True)]


def _differences(
    a: str,
    b: str,
    clean: Mapping[str, Rows],
    rows: Mapping[str, Mapping[Level, Rows]],
    values: Mapping[tuple[str, str], salience.Values],
    answers: Mapping[str, Named],
) -> Iterable[tuple[str, str, str, dict[str, float]]]:
    for family, level in rows[a]:
        if (family, level) != ("saturation", "2"):
            changed = rows[a][family, level], rows[b][family, level]
            yield "accuracy", family, level, paired_on_correct(clean[a], changed[0], clean[b], changed[1])
    for name, kind in values:
        if name == a:
            one, two = values[a, kind], values[b, kind]
            for figure in COMPARED:
                if figure in one:
                    yield "maps", figure, kind, paired_means(one[figure], two[figure])
    if answers:
        (shape_a, texture_a), (shape_b, texture_b) = answers[a], answers[b]
        decided: list[Rows] = [{"correct": shape_a | texture_a}, {"correct": shape_b | texture_b}]
        yield (
            "shape bias",
            "",
            "",
            paired_on_correct(decided[0], {"correct": shape_a}, decided[1], {"correct": shape_b}),
        )


def changes(shape: tuple[int, int, int], style: Transform | None) -> dict[str, Transform]:
    """What maps are drawn of beside the clean images: saturated, shuffled, stylised."""
    plan = levels(shape, style)
    found: dict[str, Transform] = {"saturated": partial(saturate, p=1024.0)}
    if "patch shuffling" in plan:
        shuffles = plan["patch shuffling"][1]
        found["shuffled"] = shuffles.get("4") or next(iter(shuffles.values()))
    return found | ({} if style is None else {"stylised": style})


def _of_maps(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    indices: Tensor,
    clean: Mapping[str, Rows],
    looks: Looks,
    seed: int,
    tick: Tick | None,
) -> tuple[dict[tuple[str, str], salience.Values], list[dict[str, Any]], dict[str, np.ndarray], list[dict[str, Any]]]:
    """The numbers of maps of a sample of the images, per image and summed up; pictures of a few, and what these are
    and are taken for."""
    sample = _sample(len(indices), looks.map_images, seed)
    few = _few(clean, sample, looks.shown)
    rows = indices[sample]
    x, y = images.batch(rows)
    there = x.to(device_of(next(iter(models.values()))))
    kinds = {salience.CLEAN: x} | {
        kind: transformed(change, there, rows, seed).cpu()
        for kind, change in changes(images.shape, looks.style).items()
    }
    values, maps = salience.of_models(models, kinds, y, rows=rows.tolist(), seed=seed, tick=tick)
    summed = [
        {"name": name, "images": kind} | salience.summed_up(found, seed) for (name, kind), found in values.items()
    ]
    pictures = {f"looks/{kind}/{i}": at[place].numpy() for kind, at in kinds.items() for i, place in enumerate(few)}
    pictures |= {
        f"looks/{kind}/{i}/{name}": found[place].numpy()
        for (name, kind), found in maps.items()
        for i, place in enumerate(few)
    }
    return values, summed, pictures, _answers(models, kinds, y, few, images.class_names)


def _sample(n: int, count: int, seed: int) -> Tensor:
    """Positions of as many of n images, drawn by the seed, in order: the first ones may all be of one class."""
    generator = torch.Generator().manual_seed(derive_seed("maps", seed))
    return torch.randperm(n, generator=generator)[:count].sort().values


def _few(clean: Mapping[str, Rows], sample: Tensor, count: int) -> list[int]:
    """Places in the sample of images to show: of distinct classes, and right by every model, as far as there are."""
    found = {name: {("clean", 0.0): {key: rows[key][sample.numpy()] for key in rows}} for name, rows in clean.items()}
    return choose(found, count)


def _answers(
    models: Mapping[str, nn.Module], kinds: Mapping[str, Images], y: Tensor, few: list[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each shown image its class, and what every model takes each kind of it for."""
    found: list[dict[str, Any]] = [{"label": names[int(y[place])], "answers": {}} for place in few]
    for name, model in models.items():
        for kind, at in kinds.items():
            with frozen(model), full_precision(), torch.no_grad():
                answers = model(at[few].to(device_of(model))).argmax(1).tolist()
            for entry, answer in zip(found, answers, strict=True):
                entry["answers"].setdefault(kind, {})[name] = names[answer]
    return found
