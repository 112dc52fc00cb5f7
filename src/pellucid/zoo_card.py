"""A card: what a network of the zoo withstands, how thoroughly that was measured, and whether it may be taken over."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import nn

from pellucid import registry
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.interpreters.activations import cam
from pellucid.network import Network, device_of
from pellucid.outcome import outcome
from pellucid.recipe import Recipe
from pellucid.results import fingerprint

EPS = (0.1, 0.2, 0.3, 0.35, 0.4)
ENSEMBLE_EPS = 0.3
PGD = "pgd(ball=Linf({eps}), steps=200, step_size=0.01, stop_when_fooled=True)"
ENSEMBLE = "ensemble(ball=Linf({eps}))"
SHORT = "ensemble(ball=Linf({eps}), steps=30, targets=2, queries=500)"  # for networks on which ENSEMBLE takes an hour
LAYOUT = 2  # of a card: a higher number has cards made anew
AAI = "aai(ball=Linf({eps}), reading='as_coded')"
# The last feature maps of the Ross CNN are one position, and so is its CAM. Its maps are those of GradCAM one layer
# before, 7 x 7, and its attack is shorter: on 128 images it left tau at .795 where AAI's steps left .780.
AAI_ROSS = "aai(ball=Linf({eps}), reading='as_coded', interpreter=gradcam(layer='trunk.7'), steps=25, step_size=0.02)"

Say = Callable[[str, int, int], None]  # what is done, how far, of how much
Plan = list[tuple[str, float, str, bool]]  # kind, radius, specification, and whether maps are compared


@dataclass(frozen=True)
class Effort:
    """How thoroughly a card is measured."""

    images: int = 1000
    ensemble: str = ENSEMBLE  # its specification; empty for none
    maps: str = AAI  # of the attack on maps, whose interpreter draws them

    def __post_init__(self) -> None:
        if self.images < 1:
            raise PellucidError(f"images (={self.images}) must be at least 1: test images per measurement")


def effort_for(recipe: Recipe, images: int = 1000) -> Effort:
    """What a card takes: minutes on Small, and elsewhere with the shorter ensemble."""
    maps = AAI_ROSS if recipe.architecture == "ross" else AAI
    return Effort(images, ENSEMBLE if recipe.architecture == "small" else SHORT, maps)


def measured(
    model: nn.Module,
    test: ImageSet,
    effort: Effort,
    *,
    cells: Path | None = None,
    say: Say | None = None,
    name: str = "model",
) -> dict[str, Any]:
    """Clean accuracy; at each eps accuracy under PGD-200 and tau under the attack on maps; under the ensemble at 0.3.

    On the first images of the test set. tau is over the images that keep their class and whose maps have an order
    (`n_tau`), and over all.
    """
    indices = range(min(effort.images, len(test)))
    plan = planned(model, test, effort)
    done, whole = 0, len(indices) * (len(plan) + 1)

    def tick(images: int) -> None:
        nonlocal done
        done += images
        if say is not None:
            say(f"{name}: measuring", done, whole)

    clean = evaluate(model, test, indices, Measurement(), cells=cells, tick=tick)
    found: dict[str, Any] = {"n": len(indices), "clean": float(clean["correct"].mean())}
    for kind, eps, spec, maps in plan:
        attack = registry.parse(spec.format(eps=eps), "attacks")
        measurement = Measurement(attack, interpreter=registry.option(attack, "interpreter") if maps else None)
        rows = evaluate(model, test, indices, measurement, cells=cells, tick=tick)
        figures = outcome(clean, rows)
        if maps:
            names = ("kendall_tau", "kendall_tau_interval", "n_tau", "survivors", "kendall_tau_all")
            kept = {"attack": spec.format(eps=eps)} | {key: figures[key] for key in names}
            found.setdefault(kind, {})[str(eps)] = kept
        else:
            robust = {"attack": spec.format(eps=eps), "robust": figures["robust_accuracy"]}
            robust["interval"] = figures["interval"]
            robust["standing"] = packed(clean["correct"] & rows["correct"])
            found.setdefault(kind, {})[str(eps)] = robust | (
                {"by_attack": figures["by_attack"]} if "by_attack" in figures else {}
            )
    return found


def planned(model: nn.Module, test: ImageSet, effort: Effort) -> Plan:
    """What a card of this model holds beside clean accuracy."""
    return asked(effort, maps=_has_maps(model, test, effort.maps))


def asked(effort: Effort, *, maps: bool = True) -> Plan:
    """What a card holds beside clean accuracy; `maps` is whether the model has any with places."""
    plan: Plan = [("pgd", eps, PGD, False) for eps in EPS]
    plan += [("aai", eps, effort.maps, True) for eps in EPS] if maps else []
    return plan + ([("ensemble", ENSEMBLE_EPS, effort.ensemble, False)] if effort.ensemble else [])


def measured_so(card: Mapping[str, Any], plan: Plan, test_digest: str, n: int) -> bool:
    """Whether a card is of this plan on the first `n` of these images, or on more."""
    return card.get("n", 0) >= n and card.get("how_measured") == how_measured(plan, test_digest, card["n"])


def how_measured(plan: Plan, test_digest: str, n: int) -> str:
    """A content hash of attacks with every option, images, and how a card is laid out."""
    attacks = [
        (kind, eps, registry.describe(registry.complete(registry.parse(spec.format(eps=eps), "attacks"))), maps)
        for kind, eps, spec, maps in plan
    ]
    return fingerprint(attacks, test_digest, n, LAYOUT)


def packed(standing: np.ndarray) -> str:
    """Which of the images stand, a bit each, in hexadecimal: so that cards can be compared image by image."""
    return np.packbits(standing).tobytes().hex()


def unpacked(card: Mapping[str, Any], kind: str, eps: float) -> Bool[np.ndarray, " n"]:
    """Which of the card's images stand under an attack."""
    return bits(card[kind][str(eps)]["standing"], card["n"])


def bits(text: str, n: int) -> Bool[np.ndarray, " n"]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(bool)


def _has_maps(model: nn.Module, test: ImageSet, attack: str) -> bool:
    """Whether the maps of the attack's interpreter have places; CAM has none of what is no `Network`."""
    x, y = test.batch(range(1))
    interpreter = registry.option(registry.parse(attack.format(eps=0.1), "attacks"), "interpreter")
    if interpreter is cam and not isinstance(model, Network):
        return False
    return interpreter(model, x.to(device_of(model)), y[:, None].to(device_of(model)))[0, 0].numel() > 3


@dataclass(frozen=True)
class Wanted:
    """What a card must be of, to be taken over without its network."""

    recipe: Recipe
    data_digest: str
    plan: Plan
    test_digest: str
    n: int

    def is_of(self, card: Mapping[str, Any]) -> bool:
        """Whether it was trained so, on these images, and measured so. Settings unknown to it were at their default."""
        now = asdict(self.recipe)
        then = asdict(Recipe()) | card.get("recipe", {})
        same = json.dumps(then, sort_keys=True) == json.dumps(now, sort_keys=True)
        measured = measured_so(card, self.plan, self.test_digest, self.n)
        return same and measured and card.get("data_digest") == self.data_digest
