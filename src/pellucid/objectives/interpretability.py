"""Interpretability-aware training: Int and Int2 (Boopathy et al. 2020), with and without the adversarial loss."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.balls import Ball, Linf
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.mapping import drawing_from, logits_and_all_maps
from pellucid.memory import Memory
from pellucid.metrics import pearson, weighted_discrepancy
from pellucid.network import frozen
from pellucid.objectives.standard import standard
from pellucid.schedules import Schedule, check_share, weight
from pellucid.types import Generator, Images, Interpreter, Labels, Logits, Maps, PerExample, Reading
from pellucid.worst import Search, Start


@dataclass(frozen=True)
class _Discrepancy:
    """D~ of eq. 8 in one of its readings, or its true-class term alone."""

    interpreter: Interpreter
    reading: Reading
    one_class: bool
    detach_weights: bool

    def __post_init__(self) -> None:
        if self.reading not in get_args(Reading):
            raise PellucidError(f"reading (={self.reading!r}) must be one of {', '.join(get_args(Reading))}")
        if self.reading == "as_coded" and self.interpreter is not cam:
            raise PellucidError("reading='as_coded' is of class activation maps: other maps were never divided by u")

    def __call__(self, clean: Maps, attacked: Maps, logits_attacked: Logits, y: Labels) -> PerExample:
        if self.one_class:
            own = (clean - attacked).flatten(2).abs().sum(2).gather(1, y[:, None])[:, 0]
            return own * (clean[0, 0].numel() if self.reading == "as_coded" else 0.5)
        return weighted_discrepancy(
            clean, attacked, logits_attacked, y, reading=self.reading, detach_weights=self.detach_weights
        )

    def maps(self, model: nn.Module, x: Images) -> tuple[Logits, Maps]:
        return logits_and_all_maps(model, x, self.interpreter)


def int_(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    steps: int = 10,
    step_size: float | None = None,
    gamma: Schedule = 1.0,
    correlation: Schedule = 0.0,
    adversarial: bool = False,
    clean: float = 0.0,
    one_class: bool = False,
    reading: Reading = "as_written",
    interpreter: Interpreter = cam,
    detach_weights: bool = False,
    start: Start = "uniform",
    memory: Memory | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Int: `CE(f(x), y) + gamma · max_{x'} D~(x, x')`, D~ of eq. 8; the maximum by projected steepest ascent.

    `adversarial` (Int-Adv): `max_{x'} [CE(f(x'), y) + gamma D~(x, x')]`, and no clean loss but for the share `clean` of
    it, 0 as published. `one_class` keeps only the true class's term (Int-1-class). `correlation` is the weight of
    `1 - r(I(x, y), I(x', y))` in the loss, r being Pearson's, in [-1, 1]: D~ asks a map to keep its values, r only its
    shape. `eps` is the radius at this training step, a number or a schedule, by default the ball's; `gamma` and
    `correlation` may follow a schedule too. The published networks come from `reading="as_coded"` and gamma 0.01, about
    gamma 1 as written. `start` is where searches begin: "uniform" in the ball, for half of them at a corner of it
    ("blocks"), or where the last one for the same image ended ("persistent", Zheng et al. 2020: 3 steps do).
    Source: Boopathy et al. 2020, eqs. 8 and 9. Deviations: x' is sought on the network in eval mode; the correlation is
    ours. Raises where an option says nothing: `clean` without `adversarial`.
    """
    share = _clean_share(clean, adversarial)
    weights = weight("gamma", gamma, step), weight("correlation", correlation, step)
    if weights == (0, 0) and not adversarial:
        return standard(model, x, y, step=step)
    distance = _Discrepancy(drawing_from(interpreter, generator), reading, one_class, detach_weights)
    search = Search(ball, eps, steps, step_size, start, memory)
    with frozen(model):
        with torch.no_grad():
            maps_clean = distance.maps(model, x)[1]

        def worst(there: Images) -> PerExample:
            logits, maps = distance.maps(model, there)
            found = distance(maps_clean, maps, logits, y)
            return weights[0] * found + F.cross_entropy(logits, y, reduction="none") if adversarial else found

        attacked = search(worst, x, step, generator)
    return _loss(model, x, attacked, y, distance, weights, share)


def int2(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    steps: int = 10,
    step_size: float | None = None,
    gamma: Schedule = 1.0,
    correlation: Schedule = 0.0,
    adversarial: bool = False,
    clean: float = 0.0,
    one_class: bool = False,
    reading: Reading = "as_written",
    interpreter: Interpreter = cam,
    detach_weights: bool = False,
    start: Start = "uniform",
    memory: Memory | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Int2: `CE(f(x), y) + gamma · D~(x, x')` at `x' = argmax CE(f(x'), y)`: the inner attack is on the prediction.

    `adversarial` (Int2-Adv) replaces the clean loss by `(1 - clean) CE(f(x'), y) + clean CE(f(x), y)`, `clean` being 0
    as published. Options as for Int.
    Source: Boopathy et al. 2020 (ICML version), with D~ of eq. 8.
    """
    share = _clean_share(clean, adversarial)
    weights = weight("gamma", gamma, step), weight("correlation", correlation, step)
    if weights == (0, 0) and not adversarial:
        return standard(model, x, y, step=step)
    distance = _Discrepancy(drawing_from(interpreter, generator), reading, one_class, detach_weights)
    search = Search(ball, eps, steps, step_size, start, memory)
    with frozen(model):
        attacked = search(lambda there: F.cross_entropy(model(there), y, reduction="none"), x, step, generator)
    return _loss(model, x, attacked, y, distance, weights, share)


def _clean_share(clean: float, adversarial: bool) -> float:
    """Of the loss on predictions; all of it, unless the attacked images' is there too."""
    check_share("clean", clean)
    if clean and not adversarial:
        raise PellucidError(f"clean (={clean:g}) shares the loss with the adversarial one: add adversarial=True")
    return clean if adversarial else 1.0


def _loss(
    model: nn.Module,
    x: Images,
    attacked: Images,
    y: Labels,
    distance: _Discrepancy,
    weights: tuple[float, float],
    clean: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Share `clean` of the clean loss, the rest of the attacked one, and what the maps' change costs."""
    gamma, correlation = weights
    logits, maps = distance.maps(model, x)
    logits_attacked, maps_attacked = distance.maps(model, attacked)
    loss, terms = logits.new_zeros(()), {}
    if gamma:
        apart = distance(maps, maps_attacked, logits_attacked, y).mean()
        loss, terms = gamma * apart, {"discrepancy": apart.detach()}
    if correlation:
        own, own_attacked = (each[torch.arange(len(y)), y].flatten(1) for each in (maps, maps_attacked))
        alike = pearson(own, own_attacked).mean()
        loss, terms = loss + correlation * (1 - alike), terms | {"map_correlation": alike.detach()}
    for name, share, answer in (
        ("cross_entropy", clean, logits),
        ("adversarial_cross_entropy", 1 - clean, logits_attacked),
    ):
        if share:
            fit = F.cross_entropy(answer, y)
            loss, terms = share * fit + loss, {name: fit.detach()} | terms
    return loss, terms
