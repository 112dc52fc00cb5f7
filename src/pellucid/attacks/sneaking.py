"""The interpretability sneaking attack: fool the classifier, and leave its explanation as it was."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pellucid import surrogates, targets
from pellucid.balls import Ball, Linf, checked
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam, gradcam, gradcam_plus_plus, representation
from pellucid.mapping import drawing_from, underlying
from pellucid.metrics import discrepancy, kendall_tau, margin, normalised_discrepancy, proposition_1_bound
from pellucid.network import frozen
from pellucid.search import ascend, bisect, check_counts, select
from pellucid.surrogates import Surrogate, View
from pellucid.targets import Goal
from pellucid.types import Classes, Generator, Images, Interpreter, Labels, Maps, Mask, Notes, PerExample, Reading

LOG_LAMBDA = (-3.0, 3.0)  # log10 of where lambda is sought: a logit of margin costs about half a unit of D at least
GAMMA = (5e-5, 1.0)  # as coded: where the weight of D starts, and where it would end
EPS = (0.05, 1.0)  # as coded: the same of the smallest radius


def isa(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    interpreter: Interpreter = cam,
    classes: Literal[1, 2, "all"] = 2,
    p: int = 1,
    squared: bool = False,
    ball: Ball | None = None,
    multipliers: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6),
    target: Goal = "random",
    steps: int | None = None,
    search: int = 10,
    tau: float = 0.1,
    reading: Reading = "as_written",
    surrogate: Surrogate = "auto",
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Interpretability sneaking attack: reach class t' and move the maps as little as that allows.

    Minimises `λ max(max_{j≠t'} f_j(x') - f_t'(x'), -tau) + D(x, x')` in the ball, with `D = (1/|C|) Σ_{i in C}
    ‖L(x, i) - L(x', i)‖_p` (p in {1, 2}, `squared` or not) over C = {t}, {t, t'} or all `classes`, and bisects lambda
    per image for the smallest that still succeeds. Of all iterates that reach t', the one of smallest D is returned.

    Without a `ball` the radii are `multipliers · eps*` in Linf, eps* being each image's smallest radius at which the
    attack on the prediction alone reaches t'. `notes` then holds, per level of radius, what the normalised discrepancy
    score (NDS: how far the maps move even so) and the normalised slope (NSL: how much of that a larger radius saves)
    are made from: see `pellucid.stealth`. Images that cannot be fooled at eps* = 1 come back unchanged.

    There are 40 `steps` of `2.5 eps / steps`. As coded there are 10, of `0.2 eps clip(1000 g, -1, 1)`, and the last
    iterate counts; D is of CAMs not divided by u, squared for p = 2; one weight on D, in place of lambda on the margin,
    is doubled or halved from 5e-5. Source: Boopathy et al. 2020, eqs. 3, 4, 6.
    Deviation: maps of input gradients are followed on a softplus twin (`surrogate`) and judged on the network.
    """
    if p not in (1, 2) or classes not in (1, 2, "all") or not multipliers or min(multipliers) < 1:
        raise PellucidError(
            f"isa(p={p!r}, classes={classes!r}, multipliers={multipliers!r}): p is 1 or 2, classes 1, 2 or 'all', "
            "multipliers (of the smallest radius that succeeds) at least one number >= 1, rising"
        )
    check_counts(search=search, steps=1 if steps is None else steps)
    interpreter = drawing_from(interpreter, generator)
    with frozen(model, x, y):
        goal = targets.choose(target, model, x, y, generator)
        view = surrogates.view(model, x, y, interpreter, surrogate)
        with frozen(view.twin):
            coded = reading == "as_coded"
            kind, default = (_AsCoded, 10) if coded else (_AsWritten, 40)
            count = default if steps is None else steps
            chosen = _chosen(model, x, y, goal, classes)
            with torch.no_grad():
                real = interpreter(model, x, chosen)
                smooth = real if view.twin is model else interpreter(view.twin, x, chosen)
            unit = _unit(interpreter, real) if coded else 1.0
            square = squared or (coded and p == 2)
            sneak = kind(view, x.detach(), y, goal, chosen, real, smooth, p, square, tau, count, search, unit)
            return _levels(sneak, ball, multipliers, notes)


def _complete(interpreter: Interpreter) -> bool:
    """Whether the sum of a map is the logit, but for a constant: what Proposition 1 asks."""
    function, options = underlying(interpreter)
    return function in (cam, gradcam) and not (options.get("relu") or options.get("layer"))


def _unit(interpreter: Interpreter, maps: Maps) -> float:
    """As coded, class activation maps are not divided by their u positions; others never are."""
    function, options = underlying(interpreter)
    divided = function in (cam, gradcam) or (function is gradcam_plus_plus and options.get("reading") == "as_coded")
    return float(maps[0, 0].numel()) if divided and len(maps) else 1.0


def _chosen(model: nn.Module, x: Images, y: Labels, goal: Labels, classes: Literal[1, 2, "all"]) -> Classes:
    if classes == "all":
        with torch.no_grad():
            count = model(x).shape[1]
        return torch.arange(count, device=y.device).expand(len(y), -1)
    return torch.stack([y, goal][:classes], 1)


def _levels(sneak: "_Sneak", ball: Ball | None, multipliers: tuple[float, ...], notes: Notes) -> Images:
    if ball is None:
        smallest, plain, found = sneak.smallest()
        balls: list[Ball] = [sneak.ball(factor * smallest) for factor in multipliers]
    else:
        (plain, found), balls = sneak.plain(checked(ball, sneak.x)), [ball]
    best, least = plain, torch.where(found, sneak.moved(plain), torch.inf)
    records = [sneak.record(plain)] if sneak.counts_plain else []
    for level in balls:
        images, success = sneak.attack(level)
        nearer = sneak.moved(images)
        better = success & (nearer < least)  # the balls are nested: an earlier attack may still be the best
        best, least = select(better, images, best), torch.where(better, nearer, least)
        found = found | success
        records.append(sneak.record(images if sneak.counts_plain else best))
    best = select(found, best, sneak.x)
    if notes is not None:
        for k, record in enumerate(records):
            notes |= {f"isa_{name}_{k}": value for name, value in record.items()}
        notes |= {"target": sneak.goal, "found": found, "tau_target": sneak.tau_target(best)}
    return best


@dataclass(frozen=True)
class _Sneak:
    view: View
    x: Images
    y: Labels
    goal: Labels
    classes: Classes
    real: Maps  # the clean maps of the network,
    smooth: Maps  # and of its twin
    p: int
    squared: bool
    tau: float
    steps: int
    search: int

    unit: float  # what maps are multiplied by in D

    counts_plain = False
    keep_best = True

    def ball(self, eps: PerExample) -> Ball:
        return Linf(eps)

    def step_size(self, ball: Ball) -> Tensor | float:
        return 2.5 * ball.eps / max(1, self.steps)

    def maps(self, x: Images, classes: Classes) -> Maps:
        with torch.no_grad():
            return self.view.interpreter(self.view.model, x, classes)

    def distance(self, clean: Maps, maps: Maps) -> PerExample:
        return discrepancy(self.unit * clean, self.unit * maps, p=self.p, squared=self.squared)

    def climb(self, ball: Ball, on_margin: PerExample, on_map: PerExample) -> tuple[Images, Mask]:
        """Images found with these weights of the two terms, and which of them reach the goal."""

        def loss(at: Images) -> tuple[Tensor, Tensor]:
            if not bool(on_map.any()):
                logits = self.view.model(at)
                ahead = margin(logits, self.goal)
                return ahead.clamp_max(self.tau), ahead.detach()
            logits, maps = self.view.attacked(at, self.classes)
            ahead = margin(logits, self.goal)
            apart = (
                self.distance(self.real, self.view.judged(at, self.classes, maps)) if self.keep_best else ahead.detach()
            )
            score = torch.where(ahead.detach() > 0, 1 / (1 + apart), ahead.detach())
            return on_margin * ahead.clamp_max(self.tau) - on_map * self.distance(self.smooth, maps), score

        images = ascend(loss, self.x, ball, steps=self.steps, step_size=self.step_size(ball), keep_best=self.keep_best)
        with torch.no_grad():
            return images, margin(self.view.model(images), self.goal) > 0

    def moved(self, images: Images) -> PerExample:
        """How far the maps moved."""
        return discrepancy(self.real, self.maps(images, self.classes), p=self.p, squared=self.squared)

    def plain(self, ball: Ball) -> tuple[Images, Mask]:
        """The attack on the prediction alone."""
        one = torch.ones(len(self.x), dtype=self.x.dtype, device=self.x.device)
        return self.climb(ball, one, torch.zeros_like(one))

    def smallest(self) -> tuple[PerExample, Images, Mask]:
        raise NotImplementedError

    def attack(self, ball: Ball) -> tuple[Images, Mask]:
        raise NotImplementedError

    def record(self, images: Images) -> dict[str, Tensor]:
        """What NDS, NSL and Proposition 1 need to know of an attack at one radius."""
        pair = torch.stack([self.y, self.goal], 1)
        clean, maps = self.real, self.maps(images, self.classes)
        if underlying(self.view.interpreter)[0] is representation:  # each channel is a map of its own
            clean, maps = clean[:, 0], maps[:, 0]
        with torch.no_grad():
            logits, attacked = self.view.model(self.x), self.view.model(images)
            reached = margin(attacked, self.goal) > 0
        ahead = (logits.gather(1, pair) * torch.tensor([1, -1], device=pair.device)).sum(1)
        behind = (attacked.gather(1, pair) * torch.tensor([1, -1], device=pair.device)).sum(1)
        bound = proposition_1_bound(logits, self.y, self.goal)
        return {
            "nds": normalised_discrepancy(clean, maps, p=self.p),
            "eps": (images - self.x).flatten(1).abs().amax(1),
            "reached": reached,
            "counts": (ahead >= 0) & (behind <= 0),
            "two_class": discrepancy(self.maps(self.x, pair), self.maps(images, pair)),
            "bound": bound if _complete(self.view.interpreter) else torch.full_like(bound, torch.nan),
        }

    def tau_target(self, images: Images) -> PerExample:
        goal = self.goal[:, None]
        return kendall_tau(self.maps(self.x, goal).flatten(1), self.maps(images, goal).flatten(1))


class _AsWritten(_Sneak):
    def smallest(self) -> tuple[PerExample, Images, Mask]:
        low = torch.zeros(len(self.x), dtype=self.x.dtype, device=self.x.device)
        images, eps, found = bisect(
            lambda eps: self.plain(self.ball(eps)), low, torch.ones_like(low), steps=self.search
        )
        return eps, images, found

    def attack(self, ball: Ball) -> tuple[Images, Mask]:
        best, least = self.x, torch.full((len(self.x),), torch.inf, dtype=self.x.dtype, device=self.x.device)

        def attempt(exponent: PerExample) -> tuple[Images, Mask]:
            nonlocal best, least
            images, reached = self.climb(ball, 10**exponent, torch.ones_like(exponent))
            apart = torch.where(reached, self.moved(images), torch.inf)
            best, least = select(apart < least, images, best), torch.minimum(apart, least)
            return images, reached

        low, high = (torch.full_like(least, value) for value in LOG_LAMBDA)
        bisect(attempt, low, high, steps=self.search)
        return best, least.isfinite()


@dataclass(frozen=True)
class _SoftSign(Linf):
    """As coded, a step follows `clip(1000 g, -1, 1)`."""

    def resized(self, eps: float | PerExample) -> "_SoftSign":
        return _SoftSign(eps)

    def steepest(self, gradient: Images) -> Images:
        return (1000 * gradient).clamp(-1, 1)


class _AsCoded(_Sneak):
    counts_plain = True
    keep_best = False

    def ball(self, eps: PerExample) -> Ball:
        return _SoftSign(eps)

    def step_size(self, ball: Ball) -> Tensor | float:
        return 0.2 * ball.eps

    def smallest(self) -> tuple[PerExample, Images, Mask]:
        eps, found = self.hunt(lambda eps: self.plain(self.ball(eps))[1], EPS, rising=False)
        eps = torch.where(found, eps, EPS[1])
        return eps, self.plain(self.ball(eps))[0], found

    def attack(self, ball: Ball) -> tuple[Images, Mask]:
        one = torch.ones(len(self.x), dtype=self.x.dtype, device=self.x.device)
        gamma, found = self.hunt(lambda gamma: self.climb(ball, one, gamma)[1], GAMMA, rising=True)
        return self.climb(ball, one, torch.where(found, gamma, 0))

    def hunt(
        self, succeeds: Callable[[PerExample], Mask], bounds: tuple[float, float], *, rising: bool
    ) -> tuple[PerExample, Mask]:
        """The last value that succeeded: doubled (at most to the middle of what is left) or moved to the middle."""
        value = torch.full((len(self.x),), bounds[0], dtype=self.x.dtype, device=self.x.device)
        low, high, last = torch.zeros_like(value), torch.full_like(value, bounds[1]), torch.zeros_like(value)
        found = torch.zeros_like(value, dtype=torch.bool)
        for _ in range(self.search):
            success = succeeds(value)
            last, found = torch.where(success, value, last), found | success
            up = success if rising else ~success
            low, high = torch.where(up, value, low), torch.where(up, high, value)
            value = torch.where(up, torch.minimum(2 * value, (value + high) / 2), (low + value) / 2)
        return last, found
