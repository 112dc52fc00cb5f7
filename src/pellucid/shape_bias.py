"""Shape or texture: by which of the two a classifier decides where they disagree."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pellucid.data import ImageSet
from pellucid.data.cues import CueConflict, cue_conflict
from pellucid.data.groups import IMAGENET, SIXTEEN, is_imagenet
from pellucid.data.names import how_to_get
from pellucid.data.sources import data_folder
from pellucid.errors import PellucidError
from pellucid.evaluation import chunk_size
from pellucid.network import device_of, frozen, full_precision
from pellucid.results import wilson

STIMULI = "cue-conflict"
PLAIN = 3  # channels of the stimuli

Named = tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]  # where an answer names the shape, and the texture


def shape_bias(
    model: nn.Module, stimuli: CueConflict, *, tick: Callable[[int], None] | None = None
) -> dict[str, float]:
    """Of the answers that name the shape or the texture of a cue-conflict image, the share that name the shape.

    The model gives logits of the 16 classes, or of ImageNet's 1,000: then each class is given the mean probability of
    those it is made of (`SIXTEEN`). Only images count whose shape and texture differ. `shape` and `texture` are how
    often each was named, of `n`; `low` and `high` Wilson's 95 % interval of `shape_bias`, NaN where neither ever was.
    Source: Geirhos et al. 2019, sec. 3.2. Raises `PellucidError` for any other number of classes.
    """
    return bias(named(model, stimuli, tick=tick))


def named(model: nn.Module, stimuli: CueConflict, *, tick: Callable[[int], None] | None = None) -> Named:
    """Which of the conflicting stimuli's answers name the shape, and which the texture."""
    rows = stimuli.conflicting.nonzero()[:, 0]
    answers = []
    with frozen(model), full_precision(), torch.no_grad():
        for chunk in rows.split(chunk_size(stimuli.images.shape)):
            logits = model(stimuli.images.batch(chunk)[0].to(device_of(model))).cpu()
            answers.append(_of_sixteen(logits, stimuli.class_names).argmax(1))
            if tick is not None:
                tick(len(chunk))
    given = torch.cat(answers) if answers else torch.zeros(0, dtype=torch.int64)
    return (given == stimuli.images.labels[rows]).numpy(), (given == stimuli.texture[rows]).numpy()


def bias(answers: Named) -> dict[str, float]:
    """The figures of `shape_bias`."""
    shape, texture = (int(each.sum()) for each in answers)
    low, high = wilson(shape, shape + texture)
    value = shape / (shape + texture) if shape + texture else float("nan")
    return {"shape_bias": value, "low": low, "high": high, "shape": shape, "texture": texture, "n": len(answers[0])}


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
    """The cue-conflict stimuli at the images' size, where they are here and the classes are ImageNet's.

    Else why a model of these classes cannot be asked for its shape bias: "" where the classes are others.
    """
    root = data_folder()
    if not is_imagenet(images):
        return ""
    if root is None or not (root / STIMULI).is_dir():
        return f"the stimuli are not here: {how_to_get(STIMULI, f'$PELLUCID_DATA/{STIMULI}')}"
    channels, h, w = images.shape
    if channels != PLAIN or h != w:
        return f"the stimuli are square and in colour, and these images {channels} x {h} x {w}"
    return cue_conflict(STIMULI, size=h)
