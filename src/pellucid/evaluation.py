"""Evaluation: network x images x (attack) x (interpreter) -> one row per example, judged anew in fp32.

Nothing an attack says is believed: the returned images are checked against box and ball and classified again,
outside the attack. Work goes in fixed chunks, each with its own seed, and each finished chunk is a file:
an interrupted evaluation goes on where it stopped and ends with the rows it would have had.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid import registry
from pellucid.balls import Ball, slack
from pellucid.data import ImageSet, load
from pellucid.draws import PerImage
from pellucid.errors import PellucidError
from pellucid.mapping import true_class_maps
from pellucid.metrics import correct, discrepancy, input_gradient_norm, kendall_tau, margin, sizes, top_k_overlap
from pellucid.network import device_of, frozen, full_precision
from pellucid.own_functions import source_digest
from pellucid.results import Rows, concatenate, fingerprint, model_digest, read_rows, write_rows
from pellucid.seeds import derive_seed
from pellucid.types import Attack, Generator, Images, Interpreter, Labels, Notes, Transform

CHUNK = 100  # images per chunk at most: the seeds hang on it, so it follows from the images' size alone
COLUMNS = 2  # the edition of the rows' columns: chunks stored with others are made anew
TRANSFORMED = 3  # the same of what only rows of transformed images have otherwise
CHUNK_VALUES = 1_300_000  # pixel values per chunk at most: what bounds the memory of large images
Look = Callable[[Images, Images, Rows], None]


@dataclass(frozen=True)
class Measurement:
    """What to measure: an attack (or none), the interpreter whose maps are compared, input-gradient norms or not; and
    the transform that comes before all of it, so that an attack begins at transformed images.
    """

    attack: Attack | None = None
    interpreter: Interpreter | None = None
    gradient_norm: bool = False
    top_k: int = 8
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if self.attack is not None and registry.option(self.attack, "targeted"):
            raise PellucidError(
                f"{registry.describe(self.attack)} aims at goals, and evaluation has only the true labels: leave out "
                "targeted=True, or call the attack yourself with your goals as y"
            )


def evaluate(
    model: nn.Module,
    images: ImageSet,
    indices: Tensor | Sequence[int],
    measurement: Measurement,
    *,
    seed: int = 0,
    cells: Path | None = None,
    tick: Callable[[int], None] | None = None,
    look: Look | None = None,
) -> Rows:
    """One row per image of `indices` (row numbers of `images`): what it is, what the model says, how far it was moved.

    Columns: index, label, prediction, clean_prediction (that of the image itself, neither transformed nor attacked),
    correct, confidence, margin, and how far the attack moved each image: linf, l2, l1, and l0 in pixels. What an attack
    notes on each image (its option `notes`) comes as further columns.

    With an interpreter also `tau`, `top_k_overlap` and `discrepancy` between the true class's map before the attack
    and after, and whether it left the prediction `unchanged`. `cells` is a folder for finished chunks; `tick` is told
    how many images were done; `look` is shown the first chunk when it is made: images, attacked images, and their rows.
    Raises `PellucidError` where an attack leaves its ball or the box.
    """
    indices = torch.as_tensor(indices, dtype=torch.long)
    parts = []
    device = device_of(model)
    size = chunk_size(images.shape)
    with frozen(model), full_precision():
        key = content_key(model, images, indices, measurement, seed, device) if cells else ""
        for first in range(0, len(indices), size):
            chunk = indices[first : first + size]
            stored = cells / key / f"{first:06d}.parquet" if cells else None
            found = _stored(stored)
            if found is not None:
                parts.append(found)
            else:
                clean, y = (part.to(device) for part in images.batch(chunk))
                change = measurement.transform
                x = clean if change is None else transformed(change, clean, chunk, seed)
                generator = torch.Generator(device).manual_seed(derive_seed("evaluate", seed, first))
                attacked, rows = _measure(model, x, y, measurement, generator)
                if change is not None:
                    with torch.no_grad():
                        rows["clean_prediction"] = model(clean).argmax(1).cpu().numpy()
                parts.append({"index": chunk.numpy()} | rows)
                if look is not None and first == 0:
                    look(x.cpu(), attacked.cpu(), parts[-1])
                if stored is not None:
                    write_rows(stored, parts[-1])
            if tick is not None:
                tick(len(chunk))
    return concatenate(parts)


def _stored(path: Path | None) -> Rows | None:
    """A finished chunk, or None where there is none, or a damaged one: that is made anew."""
    try:
        return read_rows(path) if path is not None and path.is_file() else None
    except PellucidError:
        return None


def transformed(transform: Transform, x: Images, rows: Tensor | Sequence[int], seed: int) -> Images:
    """What a transform makes of images, each with a stream of random numbers of its own: of its row and the seed.

    Raises `PellucidError` where that is not finite, or of another shape, type or device.
    """
    random = "generator" in inspect.signature(transform).parameters
    name = registry.describe(transform)
    with registry.telling(transform):
        found = transform(x, **({"generator": PerImage(seed, torch.as_tensor(rows).tolist())} if random else {}))
    if not isinstance(found, Tensor):
        raise PellucidError(f"{name} returned a {type(found).__name__}, and must return images")
    if found.shape != x.shape or found.dtype != x.dtype:
        raise PellucidError(f"{name} returned {found.dtype} {tuple(found.shape)} for {x.dtype} {tuple(x.shape)}")
    if found.device != x.device:
        raise PellucidError(f"{name} returned images on {found.device} for images on {x.device}")
    if not bool(found.isfinite().all()):
        raise PellucidError(f"{name} returned pixels that are not finite")
    return found


def chunk_size(shape: tuple[int, ...]) -> int:
    """How many images of a shape are measured at once."""
    return max(4, min(CHUNK, CHUNK_VALUES // max(1, math.prod(shape))))


def content_key(
    model: nn.Module, images: ImageSet, indices: Tensor, measurement: Measurement, seed: int, device: torch.device
) -> str:
    """Names the rows by all that decides them. What a model computes cannot be read off its weights: it is asked."""
    x, _ = images.batch(indices[:4])
    with torch.no_grad():
        answers = [round(v, 4) for v in model(x.to(device)).flatten().tolist()]
    attack, interpreter = (
        registry.describe(registry.complete(f)) if f else None for f in (measurement.attack, measurement.interpreter)
    )
    what = [attack, interpreter, measurement.gradient_norm, measurement.top_k]
    if measurement.transform is not None:
        complete = registry.complete(measurement.transform)
        what += [registry.describe(complete), _materials(complete), TRANSFORMED]
    own = registry.own(measurement.attack, measurement.interpreter, measurement.transform)
    what += [source_digest(f) for f in own]
    where = [version("pellucid"), torch.__version__, device.type, chunk_size(images.shape), COLUMNS]
    return fingerprint(model_digest(model), answers, what, images.digest, indices.tolist(), seed, where)


def _materials(transform: Callable[..., Any]) -> list[str]:
    """Content hashes of the files and data sets that a transform's options name: weights, and paintings."""
    options = transform.keywords if isinstance(transform, partial) else {}
    files = [Path(value).expanduser() for value in options.values() if isinstance(value, str) and value]
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    return found + ([load(options["styles"], options["split"], size=64).digest] if "styles" in options else [])


def model_key(model: nn.Module, images: ImageSet, indices: Tensor) -> str:
    """Names a model by its weights and its answers on a few images, to three digits: threads differ in the last."""
    x, _ = images.batch(indices[:4])
    with frozen(model), full_precision(), torch.no_grad():
        answers = model(x.to(device_of(model))).flatten().double()
    scale = float(answers.abs().max()) if answers.numel() else 0.0
    rounded = [round(value / (scale or 1.0), 3) + 0.0 for value in answers.tolist()]  # no -0.0
    return fingerprint(model_digest(model), rounded)[:12]


def _measure(
    model: nn.Module, x: Images, y: Labels, measurement: Measurement, generator: torch.Generator
) -> tuple[Images, Rows]:
    attacked, notes = x, {}
    if measurement.attack is not None:
        attacked = attack_images(measurement.attack, model, x, y, generator=generator, notes=notes)
    with torch.no_grad():
        logits = model(attacked).float()
        prediction = logits.argmax(1)
        rows: dict[str, Tensor] = {
            "label": y,
            "prediction": prediction,
            "clean_prediction": prediction if measurement.attack is None else model(x).argmax(1),
            "correct": correct(logits, y),
            "confidence": logits.softmax(1).amax(1),
            "margin": margin(logits, y),
            **sizes(attacked - x),
        }
        if measurement.interpreter is not None:
            noise = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
            rows["unchanged"] = prediction == rows["clean_prediction"]
            rows |= _compare_maps(model, x, attacked, y, measurement, noise)
    if measurement.gradient_norm:
        rows["gradient_norm"] = input_gradient_norm(model, attacked, y)
    return attacked, {name: v.cpu().numpy() if isinstance(v, Tensor) else v for name, v in (notes | rows).items()}


def attack_images(
    attack: Attack, model: nn.Module, x: Images, y: Labels, *, generator: Generator, notes: Notes = None
) -> Images:
    """What an attack returns, checked against box and ball. Judged here, not by the attack."""
    run = attack if notes is None else _noting(attack, notes)
    with registry.telling(attack, hint="; it is called with (model, x, y, generator=...)"):
        found = run(model, x, y, generator=generator)
    _check_attacked(found, x, attack)
    return found


def _noting(attack: Attack, notes: dict[str, Tensor | np.ndarray]) -> Attack:
    """The attack, its remarks on each image (if it makes any) going to `notes`, and from there into the rows."""
    if "notes" not in inspect.signature(attack).parameters:
        return attack
    noting: Attack = partial(attack, **{"notes": notes})
    return noting


def _compare_maps(
    model: nn.Module,
    x: Images,
    attacked: Images,
    y: Labels,
    measurement: Measurement,
    noise: int,
) -> dict[str, Tensor]:
    assert measurement.interpreter is not None
    before, after = (true_class_maps(measurement.interpreter, model, at, y, noise=noise) for at in (x, attacked))
    flat_before: Float[Tensor, "n d"] = before.flatten(1)
    flat_after: Float[Tensor, "n d"] = after.flatten(1)
    return {
        "tau": kendall_tau(flat_before, flat_after),
        "top_k_overlap": top_k_overlap(flat_before, flat_after, k=measurement.top_k),
        "discrepancy": discrepancy(before, after),
    }


def _check_attacked(attacked: Images, x: Images, attack: Attack) -> None:
    name = registry.describe(attack)
    if attacked.shape != x.shape or attacked.dtype != x.dtype:
        raise PellucidError(f"{name} returned {attacked.dtype} {tuple(attacked.shape)} for {x.dtype} {tuple(x.shape)}")
    if not bool(((attacked >= 0) & (attacked <= 1)).all()):
        raise PellucidError(f"{name} left the box: its pixels lie in [{attacked.min():.4g}, {attacked.max():.4g}]")
    ball = registry.option(attack, "ball")
    if isinstance(ball, Ball):
        excess = float((ball.norm(attacked - x) - ball.eps).max())
        if excess > slack(ball, x):
            raise PellucidError(f"{name} left its ball by {excess:.3g}")
