"""Transfer: which adversarial examples, made on one model, fool another (Ross & Doshi-Velez 2018, figs. 1, 3, 10).

Each adversarial set is made once, on its source, and shown to every target; a finished set is kept under the hash of
all that decides it, so that another target, or another day, costs no attack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor, nn

from pellucid import metrics
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, attack_images, chunk_size, content_key
from pellucid.metrics import correct
from pellucid.network import device_of, frozen, full_precision
from pellucid.outcome import NORMS
from pellucid.protocol import at_radius
from pellucid.results import Rows, concatenate, rate
from pellucid.seeds import derive_seed
from pellucid.types import Attack, Images, Labels
from pellucid.weights import read_safetensors, write_atomically


@dataclass(frozen=True)
class Transfer:
    """Per image: which target has it right, clean (`clean`) and as each source's adversarial example of each eps."""

    names: tuple[str, ...]
    eps: tuple[float, ...]  # empty where the attack went as it was given
    clean: Bool[np.ndarray, "targets n"]
    correct: Bool[np.ndarray, "sources levels targets n"]
    moved: Float[np.ndarray, "sources levels norms n"] | None = None  # how far each image, in the norms of `outcome`

    def accuracy(self) -> list[dict[str, Any]]:
        """One entry per source, eps and target: the target's accuracy with its 95 % Wilson interval."""
        return [
            {"source": source, "eps": eps, "target": target} | rate(self.correct[s, e, t])
            for s, source in enumerate(self.names)
            for e, eps in enumerate(self.eps or (None,))
            for t, target in enumerate(self.names)
        ]

    def sizes(self) -> list[dict[str, Any]]:
        """One entry per source and eps: the median size of the change, in every norm."""
        return [
            {"source": source, "eps": eps}
            | {f"median_{norm}": float(np.median(values)) for norm, values in zip(NORMS, self.moved[s, e], strict=True)}
            for s, source in enumerate(self.names)
            for e, eps in enumerate(self.eps or (None,))
            if self.moved is not None and self.moved.shape[-1]
        ]

    def overlaps(self) -> list[dict[str, Any]]:
        """Per source and eps, how many images exactly these targets get wrong: the areas of a Venn diagram.

        Every image counts in one entry, those that nobody gets wrong under `wrong: []`; most frequent first.
        """
        found: list[dict[str, Any]] = []
        for s, source in enumerate(self.names):
            for e, eps in enumerate(self.eps or (None,)):
                sets, counts = np.unique(~self.correct[s, e].T, axis=0, return_counts=True)
                for members, count in sorted(zip(sets, counts, strict=True), key=lambda entry: -int(entry[1])):
                    wrong = [name for name, is_wrong in zip(self.names, members, strict=True) if is_wrong]
                    found.append({"source": source, "eps": eps, "wrong": wrong, "count": int(count)})
        return found


def transfer(
    models: Mapping[str, nn.Module],
    images: ImageSet,
    indices: Tensor | Sequence[int],
    attack: Attack,
    eps: Sequence[float] = (),
    *,
    seed: int = 0,
    cells: Path | None = None,
    tick: Callable[[int], None] | None = None,
) -> Transfer:
    """Every model's adversarial examples, at every radius, judged by every model.

    Without `eps` the attack goes as it is. `cells` keeps finished sets; `tick` is told how many images were attacked.
    Examples are checked against box and ball, and judged in eval mode and full precision, as in `evaluate`.
    """
    if not models:
        raise PellucidError("transfer needs at least one model")
    indices = torch.as_tensor(indices, dtype=torch.long)
    levels = [Measurement(at_radius(attack, radius)) for radius in eps] or [Measurement(attack)]
    verdicts: dict[str, list[Rows]] = {}
    sizes: dict[str, list[np.ndarray]] = {}
    for name, source in models.items():
        for e, measurement in enumerate(levels):
            column = f"{name}\0{e}"
            for x, y, attacked in adversarial_set(source, images, indices, measurement, seed=seed, cells=cells):
                verdicts.setdefault(column, []).append(judged(models, attacked, y))
                sizes.setdefault(column, []).append(_moved(attacked - x))
                if name == next(iter(models)) and e == 0:
                    verdicts.setdefault("", []).append(judged(models, x, y))
                if tick is not None:
                    tick(len(y))
    found = {column: concatenate(parts) for column, parts in verdicts.items()}

    def table(column: str) -> np.ndarray:
        return np.stack([found[column][name] for name in models]) if len(indices) else np.ones((len(models), 0), bool)

    correct_, moved = (_matrix(part, models, len(levels)) for part in (table, partial(_joined, sizes)))
    return Transfer(tuple(models), tuple(eps), table(""), correct_, moved)


def _joined(sizes: Mapping[str, list[np.ndarray]], column: str) -> Float[np.ndarray, "norms n"]:
    return np.concatenate([np.ones((len(NORMS), 0)), *sizes.get(column, [])], 1)


def _matrix(part: Callable[[str], np.ndarray], names: Iterable[str], levels: int) -> np.ndarray:
    """What a part says of each source, at each level."""
    return np.stack([np.stack([part(f"{name}\0{e}") for e in range(levels)]) for name in names])


def adversarial_set(
    model: nn.Module,
    images: ImageSet,
    indices: Tensor,
    measurement: Measurement,
    *,
    seed: int = 0,
    cells: Path | None = None,
) -> Iterator[tuple[Images, Labels, Images]]:
    """Images, labels and adversarial images, chunk by chunk: the very ones that `evaluate` judges with this seed."""
    assert measurement.attack is not None
    device, size = device_of(model), chunk_size(images.shape)
    with frozen(model), full_precision():
        key = content_key(model, images, indices, measurement, seed, device) if cells and len(indices) else ""
        for first in range(0, len(indices), size):
            x, y = images.batch(indices[first : first + size])
            stored = cells / f"set-{key}" / f"{first:06d}.safetensors" if cells else None
            attacked = _stored(stored, x)
            if attacked is None:
                generator = torch.Generator(device).manual_seed(derive_seed("evaluate", seed, first))
                here = x.to(device), y.to(device)
                attacked = attack_images(measurement.attack, model, *here, generator=generator).cpu()
                if stored is not None:
                    write_atomically(stored, save({"attacked": attacked.contiguous()}))
            yield x, y, attacked


def _stored(path: Path | None, x: Images) -> Images | None:
    """A finished chunk, or None where there is none, or a damaged one: that is made anew."""
    try:
        found = read_safetensors(path)[0].get("attacked") if path is not None and path.is_file() else None
    except PellucidError:
        return None
    return found if found is not None and found.shape == x.shape else None


def judged(models: Mapping[str, nn.Module], x: Images, y: Labels) -> Rows:
    verdicts = {}
    for name, model in models.items():
        device = device_of(model)
        with frozen(model), full_precision(), torch.no_grad():
            verdicts[name] = correct(model(x.to(device)), y.to(device)).cpu().numpy()
    return verdicts


def _moved(delta: Images) -> Float[np.ndarray, "norms b"]:
    """How far each image was moved, in every norm."""
    found = metrics.sizes(delta.double())
    return torch.stack([found[norm].double() for norm in NORMS]).numpy()
