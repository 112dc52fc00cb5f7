"""The zoo's recipes: one table of training objectives, for each architecture that they fit."""

from collections.abc import Mapping
from typing import Any

from pellucid.recipe import Recipe


def _small(objective: str, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "objective": objective,
        "architecture": "small",
        "data": "mnist",
        "steps": 12_000,
        "batch_size": 50,
        "lr": 3e-3,
        "decay": "linear",
        "ramp": 0.5,
    }
    return Recipe(**(settings | changes))


_FGSM = "attack=fgsm(ball=Linf(0.3))"
_PGD = "attack=pgd(ball=Linf(0.3), steps=5, keep_best=False)"
_INT = "ball=Linf(0.3), steps=5"
_OBJECTIVES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "standard": ("standard", {"steps": 6000}),
    "distilled": ("distilled(temperature=50)", {"steps": 6000}),
    "fgsm": (f"adversarial({_FGSM}, clean=0.5, labels='predicted')", {}),
    "double-backprop": ("double_backprop(lam=10)", {}),
    "certainty": ("double_backprop(lam=2, of='uniform')", {}),
    "entropy": ("double_backprop(lam=10, of='entropy')", {}),
    "double-backprop-fgsm": (f"double_backprop(lam=10, {_FGSM})", {}),
    "fast": ("fast(ball=Linf(0.3))", {}),
    "n-fgsm": ("fast(ball=Linf(0.3), length=1, noise=2, project=False)", {}),
    "free": ("free(ball=Linf(0.3))", {"replays": 4}),
    "spatial": ("adversarial(attack=spatial(steps=5, step_size=0.5), clean=0.5)", {"steps": 1500}),
    "adversarial": (f"adversarial({_PGD})", {}),
    "adversarial-half": (f"adversarial({_PGD}, alternate=True)", {}),
    "trades": (f"trades({_INT})", {}),
    "ig-norm": (f"ig_norm({_INT}, reading='as_coded')", {"steps": 6000}),
    "ig-norm-1": (f"ig_norm({_INT})", {"steps": 3000}),  # each step takes eight of Int's
    "ig-sum-norm": (f"ig_norm({_INT}, adversarial=True, reading='as_coded')", {"steps": 3000}),
    "int": (f"int({_INT})", {}),
    "int-one-class": (f"int({_INT}, one_class=True)", {}),
    "int-adv": (f"int({_INT}, adversarial=True)", {}),
    "int2": (f"int2({_INT})", {}),
    "int2-adv": (f"int2({_INT}, adversarial=True)", {}),
    # Ours: a larger radius, clean loss too, and searches that remember. Beside int2-adv, what each of these brings.
    "persistent": (
        "int2(ball=Linf(0.41), steps=3, gamma=0, correlation=4, adversarial=True, clean=0.15, start='persistent')",
        {"steps": 24_000, "batch_size": 64, "ramp": 0.35, "lr": 4e-3, "ema": 0.999},
    ),
}

_INTS = tuple(name for name in _OBJECTIVES if name.startswith("int"))
_OF_POOL = ("standard", "adversarial", "trades", "ig-norm", "ig-sum-norm", *_INTS, "persistent")  # published, and ours


def recipes() -> dict[str, Recipe]:
    """`{name: recipe}` of every classifier of the zoo, such as `mnist/small/int2-adv`."""
    found = {f"mnist/small/{name}": _small(spec, **changes) for name, (spec, changes) in _OBJECTIVES.items()}
    for name, (spec, changes) in _OBJECTIVES.items():
        steps = 1500 if name in ("standard", "distilled") else 1000  # most others' cost two to five of these each
        ross = {"architecture": "ross", "batch_size": 128, "lr": 1e-3, "steps": steps}
        if not name.startswith(("int", "ig", "persistent")):  # they train on CAM, which has one position here
            found[f"mnist/ross/{name}"] = _small(spec, **(dict(changes) | ross))
        if name in _OF_POOL:
            steps = 500 if name.startswith("ig") else 3000  # of which each takes 13 of the others
            found[f"mnist/pool/{name}"] = _small(spec, **(dict(changes) | {"architecture": "pool", "steps": steps}))
    return found
