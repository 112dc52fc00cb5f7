"""Evaluation: network x images x (attack) x (interpreter) -> one row per example, judged anew in fp32.

Nothing an attack says is believed: the returned images are checked against box and ball and classified again,
outside the attack. Work goes in fixed chunks, each with its own seed, and each finished chunk is a file:
an interrupted evaluation goes on where it stopped and ends with the rows it would have had.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid import registry
from pellucid.balls import Ball
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.metrics import correct, discrepancy, input_gradient_norm, kendall_tau, margin, top_k_overlap
from pellucid.network import frozen
from pellucid.results import Rows, concatenate, fingerprint, model_digest, read_rows, write_rows
from pellucid.types import Attack, Images, Interpreter, Labels

CHUNK = 100  # images per chunk, fixed: the seeds hang on it
TOLERANCE = 1e-6  # x + δ in fp32 may miss eps by 2^-24


@dataclass(frozen=True)
class Measurement:
    """What to measure: an attack (or none), the interpreter whose maps are compared, input-gradient norms or not."""

    attack: Attack | None = None
    interpreter: Interpreter | None = None
    gradient_norm: bool = False
    top_k: int = 8

    @property
    def spec(self) -> str:
        parts = [registry.describe(self.attack) if self.attack else "clean"]
        parts += [f"maps of {registry.describe(self.interpreter)}"] if self.interpreter else []
        return ", ".join(parts)


def evaluate(
    model: nn.Module,
    images: ImageSet,
    indices: Tensor,
    measurement: Measurement,
    *,
    seed: int = 0,
    cells: Path | None = None,
    tick: Callable[[int], None] | None = None,
) -> Rows:
    """One row per image: index, label, prediction, correct, confidence, margin, size of the perturbation, and maps.

    With an interpreter also `tau`, `top_k_overlap` and `discrepancy` between the true class's map before and after,
    and whether the prediction was `unchanged`. `cells` is a folder for finished chunks; `tick` is told how many
    images were done. Raises `PellucidError` where an attack leaves its ball or the box.
    """
    key = fingerprint(
        model_digest(model), measurement.spec, measurement.gradient_norm, images.digest, indices.tolist(), seed, CHUNK
    )
    parts = []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with frozen(model):
        for first in range(0, len(indices), CHUNK):
            chunk = indices[first : first + CHUNK]
            stored = cells / key / f"{first:06d}.parquet" if cells else None
            if stored is not None and stored.is_file():
                parts.append(read_rows(stored))
            else:
                x, y = images.batch(chunk)
                generator = torch.Generator(device).manual_seed(seed * 1_000_003 + first)
                rows = _measure(model, x.to(device), y.to(device), measurement, generator)
                parts.append({"index": chunk.numpy()} | rows)
                if stored is not None:
                    write_rows(stored, parts[-1])
            if tick is not None:
                tick(len(chunk))
    return concatenate(parts)


def _measure(
    model: nn.Module, x: Images, y: Labels, measurement: Measurement, generator: torch.Generator
) -> dict[str, np.ndarray]:
    attacked = x
    if measurement.attack is not None:
        attacked = measurement.attack(model, x, y, generator=generator)
        _check(attacked, x, measurement.attack)
    with torch.no_grad():
        logits = model(attacked).float()
        delta = attacked - x
        rows: dict[str, Tensor] = {
            "label": y,
            "prediction": logits.argmax(1),
            "correct": correct(logits, y),
            "confidence": logits.softmax(1).amax(1),
            "margin": margin(logits, y),
            "linf": delta.flatten(1).abs().amax(1),
            "l2": delta.flatten(1).norm(dim=1),
        }
        if measurement.interpreter is not None:
            rows |= _compare_maps(model, x, attacked, y, rows["prediction"], measurement)
    if measurement.gradient_norm:
        rows["gradient_norm"] = input_gradient_norm(model, attacked, y)
    return {name: tensor.cpu().numpy() for name, tensor in rows.items()}


def _compare_maps(
    model: nn.Module, x: Images, attacked: Images, y: Labels, prediction: Labels, measurement: Measurement
) -> dict[str, Tensor]:
    interpreter = measurement.interpreter
    assert interpreter is not None
    before, after = interpreter(model, x, y[:, None]), interpreter(model, attacked, y[:, None])
    flat_before: Float[Tensor, "n d"] = before.flatten(1)
    flat_after: Float[Tensor, "n d"] = after.flatten(1)
    return {
        "unchanged": model(x).argmax(1) == prediction,
        "tau": kendall_tau(flat_before, flat_after),
        "top_k_overlap": top_k_overlap(flat_before, flat_after, k=measurement.top_k),
        "discrepancy": discrepancy(before, after),
    }


def _check(attacked: Images, x: Images, attack: Attack) -> None:
    """What an attack returns must be images, in the box, in the ball. Judged here, not by the attack."""
    name = registry.describe(attack)
    if attacked.shape != x.shape or attacked.dtype != x.dtype:
        raise PellucidError(f"{name} returned {attacked.dtype} {tuple(attacked.shape)} for {x.dtype} {tuple(x.shape)}")
    if not bool(((attacked >= 0) & (attacked <= 1)).all()):
        raise PellucidError(f"{name} left the box: its pixels lie in [{attacked.min():.4g}, {attacked.max():.4g}]")
    ball = registry.option(attack, "ball")
    if isinstance(ball, Ball):
        # The norm of many pixels adds up many roundings; Linf needs only one.
        slack = TOLERANCE * (1 if registry.describe(ball).startswith("Linf") else x[0].numel() ** 0.5)
        excess = float((ball.norm(attacked - x) - ball.eps).max())
        if excess > slack:
            raise PellucidError(f"{name} left its ball by {excess:.3g}")
