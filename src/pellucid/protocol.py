"""What an audit measures: the classifiers, the protocol, and the rows of each. Figures follow in `summary`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pellucid import registry
from pellucid.attacks.ensemble import ensemble
from pellucid.attacks.gradient import pgd
from pellucid.attacks.interpretation import aai
from pellucid.balls import Ball, Linf
from pellucid.data import ImageSet
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.interpreters.activations import cam
from pellucid.network import device_of, frozen
from pellucid.results import Rows
from pellucid.types import Attack, Transform

PHOTOGRAPH = 128  # pixels along a side: from here on audits take fewer images, radii and maps
MAP_VALUES = 4  # a map of fewer values has no order worth a rank correlation
DEFAULT_ATTACK = partial(pgd, steps=40, stop_when_fooled=True)  # verdicts are all that an audit asks of it
DEFAULT_AAI = partial(aai, steps=50)
DEFAULT_WORST = partial(ensemble, steps=50, queries=1000)


@dataclass(frozen=True)
class Subject:
    """A classifier under audit."""

    name: str
    model: torch.nn.Module
    path: str
    facts: Mapping[str, str]

    @property
    def has_cam(self) -> bool:
        """Whether the audit's maps of this model can be compared: see `prepared`."""
        return "no_maps" not in self.facts


@dataclass(frozen=True)
class Looks:
    """How thoroughly an audit asks what its classifiers look at: of how many images maps are made and shown, and the
    transform that stylises (none: no stylised images)."""

    map_images: int = 64
    shown: int = 4
    style: Transform | None = None


@dataclass(frozen=True)
class Protocol:
    """How an audit attacks: the ladder of radii, and the attacks whose ball is set to each of them.

    `worst` is run once, at the headline radius, in the attack's kind of ball: the worst case of all attacks. None: not.
    `looks` is how thoroughly it is asked what the classifiers look at; None: not at all.
    """

    eps: tuple[float, ...]
    attack: Attack = DEFAULT_ATTACK
    aai: Attack = DEFAULT_AAI
    worst: Attack | None = DEFAULT_WORST
    seed: int = 0
    gallery_images: int = 6
    looks: Looks | None = None

    @property
    def gallery_eps(self) -> float:
        return self.eps[len(self.eps) // 2]


def prepared(subject: Subject, protocol: Protocol, images: ImageSet) -> Subject:
    """The subject, with the reason noted (`facts["no_maps"]`) where the protocol's maps of it cannot be compared."""
    x, y = images.batch(torch.arange(1))
    device = device_of(subject.model)
    interpreter = registry.option(protocol.aai, "interpreter") or cam
    try:
        with frozen(subject.model), torch.no_grad():
            values = interpreter(subject.model, x.to(device), y.to(device)[:, None])[0].numel()
    except PellucidError as reason:
        return replace(subject, facts={"no_maps": str(reason)} | dict(subject.facts))
    if values < MAP_VALUES:
        why = (
            f'a map of {values} value{"s" * (values != 1)} says nothing of where: try --aai "aai(interpreter=gradient)"'
        )
        return replace(subject, facts=dict(subject.facts) | {"no_maps": why})
    return subject


def default_ladder(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Radii that tell networks apart: of the papers' MNIST tables for grey images, of their CIFAR tables for colour.

    Of photographs, which cost fifty times as much, three.
    """
    channels, *sides = shape
    if channels == 1:
        return (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    if min(sides) >= PHOTOGRAPH:
        return tuple(k / 255 for k in (1, 4, 8))
    return tuple(k / 255 for k in (1, 2, 4, 6, 8, 10))


def at_radius(attack: Attack, eps: float) -> Attack:
    """An attack in its own kind of ball, of another radius."""
    if "ball" not in inspect.signature(attack).parameters:
        raise PellucidError(
            f"{registry.describe(attack)} takes no ball, so it cannot be given a radius of {eps:g}: choose an attack "
            "with the option ball (pellucid list attacks), or leave the radii out"
        )
    ball = registry.option(attack, "ball")
    resized: Attack = partial(attack, **{"ball": (ball if isinstance(ball, Ball) else Linf(0.0)).resized(eps)})
    return resized


def measurements(
    protocol: Protocol, *, maps: bool, others: Sequence[torch.nn.Module] = ()
) -> dict[tuple[str, float], Measurement]:
    """Every measurement of one model, by what it is and its radius; the worst case draws on the `others` too."""
    made = {("clean", 0.0): Measurement(gradient_norm=True)}
    for eps in protocol.eps:
        made["attack", eps] = Measurement(at_radius(protocol.attack, eps))
        if maps:
            interpreter = registry.option(protocol.aai, "interpreter") or cam
            made["aai", eps] = Measurement(at_radius(protocol.aai, eps), interpreter)
    if protocol.worst is not None and protocol.eps:
        kind = registry.option(protocol.attack, "ball")
        worst: Attack = partial(protocol.worst, **{"ball": kind}) if isinstance(kind, Ball) else protocol.worst
        if others and "others" in inspect.signature(worst).parameters:
            worst = partial(worst, **{"others": tuple(others)})
        made["worst", protocol.gallery_eps] = Measurement(at_radius(worst, protocol.gallery_eps))
    return made


def measure(
    subject: Subject,
    images: ImageSet,
    indices: Tensor,
    protocol: Protocol,
    *,
    others: Sequence[torch.nn.Module] = (),
    cells: Path | None = None,
    tick: Callable[[int], None] | None = None,
) -> dict[tuple[str, float], Rows]:
    """All rows of one model; `others` are the models audited beside it."""
    todo = measurements(protocol, maps=subject.has_cam, others=others)
    return {
        key: evaluate(subject.model, images, indices, what, seed=protocol.seed, cells=cells, tick=tick)
        for key, what in todo.items()
    }
