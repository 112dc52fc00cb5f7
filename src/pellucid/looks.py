"""What a classifier looks at: accuracy on images without texture, shape or some frequencies, and its maps.

Zhang & Zhu 2019 show curves over the levels of each transform, and SmoothGrad maps in pictures. Beside the pictures
stand numbers here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid import registry
from pellucid.data import ImageSet
from pellucid.data.cues import CueConflict, cue_conflict
from pellucid.data.groups import SIXTEEN
from pellucid.data.names import how_to_get
from pellucid.data.sources import data_folder
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, chunk_size, evaluate, transformed
from pellucid.interpreters.gradients import smoothgrad
from pellucid.metrics import edges, gini, kendall_tau, share_within
from pellucid.network import device_of, frozen, full_precision
from pellucid.outcome import on_correct
from pellucid.protocol import Looks
from pellucid.results import Rows, bootstrap, holm, rate, wilson
from pellucid.summary import FEWEST_MAPS, paired
from pellucid.transforms.frequency import high_pass, low_pass, random_fourier
from pellucid.transforms.shape import patch_shuffle
from pellucid.transforms.texture import saturate
from pellucid.types import Images, Labels, Transform

Tick = Callable[[int], None]
Levels = Mapping[str, tuple[str, Mapping[str, Transform]]]  # {family: (what the level is, {level: transform})}

SATURATIONS = (0.25, 0.5, 1, 2, 4, 8, 16, 64, 1024)  # of the paper
SHUFFLES = (2, 4, 8)
DROPPED = (0.1, 0.3, 0.5)
OCTAVES = (16, 8, 4, 2)  # radii: the image's side over these, so a filter of an octave each
SAMPLES, NOISE = 25, 0.1  # of SmoothGrad: the paper has 100 samples; its noise
EDGES = 0.2  # of the pixels count as edges
FINEST = 28  # maps are compared at this many places a side at most
PER_PASS = 16  # images whose maps are made at once
IMAGENET, STIMULI, WORDNET = 1000, "cue-conflict", re.compile(r"n\d{8}")


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


def work(shape: tuple[int, int, int], n: int, looks: Looks) -> int:
    """How many passes are made for one model."""
    kinds = 1 + len(changes(shape, looks.style))
    return n * (1 + sum(len(made) for _, made in levels(shape, looks.style).values())) + SAMPLES * kinds * min(
        n, looks.map_images
    )


def look(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    indices: Tensor,
    looks: Looks,
    *,
    seed: int = 0,
    cells: Path | None = None,
    tick: Tick | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The figures of several models on the same images, and the arrays of their gallery by `looks/...` keys.

    `curves`: of every transform and level, per model, accuracy over all images and among those right before, with
    Wilson intervals. `pairs`: of two models each the paired difference of accuracy, Newcombe's interval, McNemar's p
    and that corrected for all of them (Holm). `maps`: SmoothGrad of the true class on clean and changed images.
    """
    plan, stimuli = levels(images.shape, looks.style), fitting_stimuli(images)
    rows: dict[tuple[str, str, str], Rows] = {}
    clean: dict[str, Rows] = {}
    for name, model in models.items():
        clean[name] = evaluate(model, images, indices, Measurement(), seed=seed, cells=cells, tick=tick)
        for family, (_, made) in plan.items():
            for level, transform in made.items():
                measurement = Measurement(transform=transform)
                rows[name, family, level] = evaluate(
                    model, images, indices, measurement, seed=seed, cells=cells, tick=tick
                )
    curves = [
        {"transform": family, "level": level, "unit": unit, "of": registry.describe(transform)}
        | {"models": [_figures(name, clean[name], rows[name, family, level]) for name in models]}
        for family, (unit, made) in plan.items()
        for level, transform in made.items()
    ]
    maps, pictures, shown = _of_maps(models, images, indices[: looks.map_images], looks, seed, tick)
    found: dict[str, Any] = {"curves": curves, "pairs": _pairs(list(models), rows), "maps": maps, "shown": shown}
    found |= {"noise_gini": noise_gini(images.shape[0]), "protocol": _described(looks, images.shape)}
    if isinstance(stimuli, CueConflict):
        found["shape_bias"] = [{"name": name} | shape_bias(model, stimuli) for name, model in models.items()]
    elif stimuli:
        found["no_shape_bias"] = stimuli
    return found, pictures


def _described(looks: Looks, shape: tuple[int, int, int]) -> dict[str, Any]:
    """How the maps were made, exactly enough to make them again."""
    kinds = {name: registry.describe(change) for name, change in changes(shape, looks.style).items()}
    made = f"smoothgrad(samples={SAMPLES}, sigma={NOISE}, of='log_probability')"
    return {"maps": made, "map_images": looks.map_images, "edges": EDGES, "finest": FINEST, "images": kinds}


def check_transforms(images: ImageSet, indices: Tensor, looks: Looks, seed: int) -> None:
    """Every transform on one image, and the stimuli: what is wrong with their files is said before hours of attacks."""
    try:
        fitting_stimuli(images)
    except PellucidError as error:
        raise PellucidError(f"{error}; or leave out what models look at: --no-looks") from None
    x, _ = images.batch(indices[:1])
    for _, made in levels(images.shape, looks.style).values():
        for transform in made.values():
            transformed(transform, x, indices[:1], seed)


def _figures(name: str, clean: Rows, rows: Rows) -> dict[str, Any]:
    return {"name": name, **rate(rows["correct"]), **on_correct(clean, rows)}


def _pairs(names: Sequence[str], rows: Mapping[tuple[str, str, str], Rows]) -> list[dict[str, Any]]:
    """Every two models at every level that changes something, on the same images; corrected for all of these."""
    places = dict.fromkeys((family, level) for _, family, level in rows if (family, level) != ("saturation", "2"))
    found: list[dict[str, Any]] = [
        {"a": a, "b": b, "transform": family, "level": level}
        | paired(rows[a, family, level]["correct"], rows[b, family, level]["correct"])
        for a, b in combinations(names, 2)
        for family, level in places
    ]
    corrected = holm([entry["p"] for entry in found])
    return [entry | {"p_holm": p} for entry, p in zip(found, corrected, strict=True)]


def shape_bias(model: nn.Module, stimuli: CueConflict) -> dict[str, Any]:
    """Of the answers that name the shape or the texture of a cue-conflict image, the share that name the shape.

    The model gives logits of the 16 classes, or of ImageNet's 1,000: then each class is given the mean probability of
    those it is made of (`SIXTEEN`). Only images count whose shape and texture differ. `shape` and `texture` are how
    often each was named, of `n`; `low` and `high` Wilson's 95 % interval of `shape_bias`, NaN where neither ever was.
    Source: Geirhos et al. 2019, sec. 3.2. Raises `PellucidError` for any other number of classes.
    """
    rows = stimuli.conflicting.nonzero()[:, 0]
    named = []
    with frozen(model), full_precision(), torch.no_grad():
        for chunk in rows.split(chunk_size(stimuli.images.shape)):
            logits = model(stimuli.images.batch(chunk)[0].to(device_of(model))).cpu()
            named.append(_of_sixteen(logits, stimuli.class_names).argmax(1))
    answers = torch.cat(named) if named else torch.zeros(0, dtype=torch.int64)
    shape = int((answers == stimuli.images.labels[rows]).sum())
    texture = int((answers == stimuli.texture[rows]).sum())
    low, high = wilson(shape, shape + texture)
    bias = shape / (shape + texture) if shape + texture else float("nan")
    return {"shape_bias": bias, "low": low, "high": high, "shape": shape, "texture": texture, "n": len(rows)}


def _of_sixteen(logits: Tensor, names: Sequence[str]) -> Tensor:
    if logits.shape[1] == len(names):
        return logits
    if logits.shape[1] != IMAGENET:
        raise PellucidError(
            f"the stimuli have {len(names)} classes, and the model answers in {logits.shape[1]}: it must be in theirs, "
            f"or in the {IMAGENET} of ImageNet"
        )
    probabilities = logits.double().softmax(1)
    return torch.stack([probabilities[:, list(SIXTEEN[name])].mean(1) for name in names], 1)


def fitting_stimuli(images: ImageSet) -> CueConflict | str:
    """The cue-conflict stimuli, where they are here and of the images' shape, and the classes are ImageNet's.

    Else why a model of these classes cannot be asked for its shape bias: "" where the classes are others.
    """
    root = data_folder()
    if not _imagenet(images):
        return ""
    if root is None or not (root / STIMULI).is_dir():
        return f"the stimuli are not here: {how_to_get(STIMULI, f'$PELLUCID_DATA/{STIMULI}')}"
    stimuli = cue_conflict(STIMULI)
    if stimuli.images.shape == images.shape:
        return stimuli
    theirs, ours = (" x ".join(map(str, each.shape)) for each in (stimuli.images, images))
    return f"the stimuli are {theirs}, and these images {ours}"


def _imagenet(images: ImageSet) -> bool:
    """Said by the names of the classes: a thousand WordNet ids in ascending order, as `n01440764 tench`."""
    ids = [name.split()[0] if name.split() else "" for name in images.class_names]
    return len(ids) == IMAGENET and all(WORDNET.fullmatch(each) for each in ids) and ids == sorted(set(ids))


def changes(shape: tuple[int, int, int], style: Transform | None) -> dict[str, Transform]:
    """What maps are drawn of beside the clean images: saturated, shuffled, stylised."""
    plan = levels(shape, style)
    found: dict[str, Transform] = {"saturated": partial(saturate, p=1024.0)}
    if "patch shuffling" in plan:
        shuffles = plan["patch shuffling"][1]
        found["shuffled"] = shuffles.get("4") or next(iter(shuffles.values()))
    return found | ({} if style is None else {"stylised": style})


def _of_maps(
    models: Mapping[str, nn.Module], images: ImageSet, indices: Tensor, looks: Looks, seed: int, tick: Tick | None
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], list[dict[str, Any]]]:
    """Of each model and kind of image the Gini index of its SmoothGrad maps, the share of them on edges, that on the
    edges of *another* image (chance, for such maps), and tau to the clean image's map; the maps of a few; and what
    these are and are taken for."""
    x, y = images.batch(indices)
    shown = {"clean": x} | {
        name: transformed(change, x, indices, seed) for name, change in changes(images.shape, looks.style).items()
    }
    pictures = {
        f"looks/{kind}/{i}": at[i].numpy() for kind, at in shown.items() for i in range(min(looks.shown, len(x)))
    }
    found, names = [], images.class_names
    few: list[dict[str, Any]] = [{"label": names[label], "answers": {}} for label in y[: looks.shown].tolist()]
    for name, model in models.items():
        clean: Tensor | None = None
        for kind, at in shown.items():
            maps = smooth_maps(model, at, y, seed=seed)
            clean = maps if clean is None else clean
            before = None if kind in ("clean", "shuffled") else clean  # what was shuffled lies elsewhere
            found.append({"name": name, "images": kind} | map_figures(maps, at, before, seed))
            pictures |= {f"looks/{kind}/{i}/{name}": maps[i].numpy() for i in range(len(few))}
            with frozen(model), full_precision(), torch.no_grad():
                answers = model(at[: len(few)].to(device_of(model))).argmax(1).tolist()
            for entry, answer in zip(few, answers, strict=True):
                entry["answers"].setdefault(kind, {})[name] = names[answer]
            if tick is not None:
                tick(SAMPLES * len(x))
    return found, pictures, few


def smooth_maps(model: nn.Module, x: Images, y: Labels, *, seed: int) -> Float[Tensor, "b h w"]:
    """`Σ_channels |SmoothGrad|` of the true class's log-probability, as Zhang & Zhu draw it; on the CPU."""
    device, parts = device_of(model), []
    with frozen(model), full_precision(), torch.no_grad():
        for first in range(0, len(x), PER_PASS):
            part = slice(first, first + PER_PASS)
            generator = torch.Generator(device).manual_seed(seed)  # the same noise for every model and kind of image
            maps = smoothgrad(
                model,
                x[part].to(device),
                y[part, None].to(device),
                samples=SAMPLES,
                sigma=NOISE,
                of="log_probability",
                generator=generator,
            )
            parts.append(maps[:, 0].abs().sum(1).cpu())
    return torch.cat(parts)


def map_figures(
    maps: Float[Tensor, "b h w"], x: Images, before: Float[Tensor, "b h w"] | None, seed: int
) -> dict[str, Any]:
    """Means over images, with how many and 95 % bootstrap intervals: `gini`; `edges`, the share on the image's edges;
    `edges_more`, how much more than on the next image's; `tau` to the maps before, averaged to at most 28 x 28.

    Maps of zeros count in none of them, no interval is given of fewer than ten, and no `edges_more` of one image.
    """
    places = edges(x, share=EDGES)
    own = share_within(maps, places)
    values = {"gini": gini(maps.flatten(1)), "edges": own}
    if len(maps) > 1:
        values["edges_more"] = own - share_within(maps, places.roll(1, 0))
    if before is not None:
        side = min(FINEST, maps.shape[1], maps.shape[2])
        small = [F.adaptive_avg_pool2d(each[:, None], side).flatten(1) for each in (before, maps)]
        values["tau"] = kendall_tau(small[0], small[1])
    return {name: _mean(value, seed) for name, value in values.items()}


def _mean(value: Float[Tensor, " n"], seed: int) -> dict[str, Any]:
    finite = value[value.isfinite()].double().numpy()
    low, high = bootstrap(finite, seed=seed) if len(finite) >= FEWEST_MAPS else (None, None)
    return {"value": float(finite.mean()) if len(finite) else None, "low": low, "high": high, "n": len(finite)}


def noise_gini(channels: int) -> float:
    """The Gini index of a map that is nothing but Gaussian noise, its magnitudes added over channels."""
    noise = torch.empty(channels, 1, 100_000).normal_(generator=torch.Generator().manual_seed(0))
    return float(gini(noise.abs().sum(0)))
