"""Pellucid: can a classifier be fooled, can its explanation be fooled, and what does it look at?

import pellucid as pe

images = pe.load("digits")
model, _ = pe.load_model("runs/a")
x, y = images.batch(range(100))
attacked = pe.attack("pgd(ball=Linf(0.2), steps=40)")(model, x, y)
before, after = (pe.interpreter("cam")(model, z, y[:, None]).flatten(1) for z in (x, attacked))
print(pe.metrics.correct(model(attacked), y).float().mean().item(), pe.metrics.kendall_tau(before, after).mean().item())
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid import metrics
    from pellucid.audit import run_audit
    from pellucid.balls import L1, L2, Linf
    from pellucid.contract import check_contract
    from pellucid.data import ImageSet, load, subset
    from pellucid.errors import PellucidError
    from pellucid.evaluation import Measurement, evaluate
    from pellucid.foreign import as_network
    from pellucid.models import load_model, save_model
    from pellucid.network import Network, Normalise, frozen, softplus
    from pellucid.pretrained import zoo
    from pellucid.protocol import Protocol, Subject
    from pellucid.recipe import Recipe
    from pellucid.search import ascend, bisect
    from pellucid.training import train

__all__ = [
    "L1",
    "L2",
    "ImageSet",
    "Linf",
    "Measurement",
    "Network",
    "Normalise",
    "PellucidError",
    "Protocol",
    "Recipe",
    "Subject",
    "as_network",
    "ascend",
    "attack",
    "bisect",
    "check_contract",
    "evaluate",
    "frozen",
    "interpreter",
    "load",
    "load_model",
    "metrics",
    "objective",
    "run_audit",
    "save_model",
    "softplus",
    "subset",
    "train",
    "transform",
    "zoo",
]


# Imported at first use, so that `pellucid --help` does not wait for torch.
_HOMES = {
    "audit": ("run_audit",),
    "balls": ("L1", "L2", "Linf"),
    "contract": ("check_contract",),
    "data": ("ImageSet", "load", "subset"),
    "errors": ("PellucidError",),
    "evaluation": ("Measurement", "evaluate"),
    "foreign": ("as_network",),
    "models": ("load_model", "save_model"),
    "network": ("Network", "Normalise", "frozen", "softplus"),
    "pretrained": ("zoo",),
    "protocol": ("Protocol", "Subject"),
    "recipe": ("Recipe",),
    "search": ("ascend", "bisect"),
    "training": ("train",),
}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("pellucid.metrics")
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"pellucid.{home}"), name)
            return value
    raise AttributeError(f"module 'pellucid' has no attribute {name!r}")


def attack(spec: str) -> Callable[..., Any]:
    """An attack from its specification, such as `pgd(ball=Linf(8/255), steps=40)`."""
    from pellucid import registry

    return registry.parse(spec, "attacks")


def interpreter(spec: str) -> Callable[..., Any]:
    """An interpreter from its specification, such as `smoothgrad(samples=100)`."""
    from pellucid import registry

    return registry.parse(spec, "interpreters")


def objective(spec: str) -> Callable[..., Any]:
    """A training objective from its specification, such as `int(gamma=1, steps=7)`."""
    from pellucid import registry

    return registry.parse(spec, "objectives")


def transform(spec: str) -> Callable[..., Any]:
    """A transform of images from its specification, such as `patch_shuffle(k=4)`."""
    from pellucid import registry

    return registry.parse(spec, "transforms")
