"""Masking checks: signs that a robust accuracy is owed to gradients that mislead, not to robustness.

Athalye et al. 2018 and Carlini et al. 2019 list them. Each compares two attacks on the same images by an exact
sign test, and can fail: a failed check says that the robust accuracy is not to be trusted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from pellucid import registry
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.square import square
from pellucid.balls import Ball, Linf
from pellucid.data import ImageSet
from pellucid.evaluation import Measurement, chunk_size, evaluate
from pellucid.metrics import margin
from pellucid.network import device_of, frozen
from pellucid.protocol import PHOTOGRAPH
from pellucid.results import Rows, holm, wilson
from pellucid.search import select
from pellucid.types import Attack, Generator, Images, Labels

SIGNIFICANCE = 0.05
DRAWS = 20  # random perturbations per image
QUERIES, QUERIES_OF_PHOTOGRAPHS = 500, 250  # per image, of the attack without gradients: half where they take minutes
CHECKS_ALONE = 6  # measurements that the checks of one model add, beside one per other model
IMAGES = 200  # at most so many images are checked
UNDERFLOW_SHARE = 0.05  # a larger share of exactly zero gradients fails

Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Check:
    """One check: its verdict, the figures behind it, why it matters, and what to do about a failure."""

    name: str
    verdict: Verdict
    detail: str
    why: str
    remedy: str


def masking_checks(
    model: nn.Module,
    others: Mapping[str, nn.Module],
    images: ImageSet,
    indices: Tensor,
    rows: Mapping[tuple[str, float], Rows],
    attack: Attack,
    eps: float,
    seed: int,
    *,
    cells: Path | None = None,
    tick: Callable[[int], None] | None = None,
) -> list[Check]:
    """All checks of one model at one radius. `rows` holds what the audit measured already."""
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(IMAGES, len(indices))).astype(int))  # sorted sets too
    indices = indices[torch.from_numpy(chosen)]
    run = partial(evaluate, model, images, indices, seed=seed, cells=cells, tick=tick)
    ball = registry.option(attack, "ball")
    ball = (ball if isinstance(ball, Ball) else Linf(0.0)).resized(eps)
    clean = rows["clean", 0.0]["correct"][chosen]
    strong = rows["attack", eps]["correct"][chosen] & clean

    def under(attack: Attack) -> np.ndarray:
        return run(Measurement(attack))["correct"] & clean

    search = partial(pgd, stop_when_fooled=True)
    few, many = (under(partial(search, ball=ball, steps=n)) for n in (10, 100))
    single, noisy = under(partial(fgsm, ball=ball)), under(partial(random_noise, ball=ball))
    queries = QUERIES if min(images.shape[1:]) < PHOTOGRAPH else QUERIES_OF_PHOTOGRAPHS
    blind = under(partial(square, ball=ball, queries=queries))
    # All pixels free: an Linf ball of radius 1 holds every image.
    unbounded = run(Measurement(partial(search, ball=Linf(1.0), steps=100)))["correct"]
    duels = [
        _Duel("more steps never help the defender", many, few, "100 steps", "10 steps", eps, _WHY_STEPS),
        _Duel("one step does not beat many", strong, single, "the attack", "one step", eps, _WHY_SINGLE),
        _Duel("random noise does not beat gradients", strong, noisy, "the attack", "noise", eps, _WHY_NOISE),
        _Duel(
            "an attack without gradients does not beat one",
            strong,
            blind,
            "the attack",
            f"Square ({queries} queries)",
            eps,
            _WHY_BLIND,
        ),
    ]
    largest = max(radius for kind, radius in rows if kind == "attack")
    if largest > eps:
        wide = rows["attack", largest]["correct"][chosen] & clean
        title = "a larger radius never helps the defender"
        duels.append(_Duel(title, wide, strong, f"eps {largest:.4g}", f"eps {eps:.4g}", eps, _WHY_RADIUS))
    for name, other in others.items():
        carried = under(partial(transfer, source=other, ball=ball))
        title = f"transfer from {name} does not beat the direct attack"
        duels.append(_Duel(title, strong, carried, "the attack", "transfer", eps, _WHY_TRANSFER))
    attacked = [*_decided(duels), _reaches_zero(unbounded)]
    if not clean.any():  # whoever withstood nothing was not shown to be attacked well
        detail = f"the model is right on none of the {len(clean)} images: there is nothing to attack"
        attacked = [replace(check, verdict="undecided", detail=detail) for check in attacked]
    return [
        *attacked,
        _underflow(rows["clean", 0.0]["gradient_norm"][chosen], registry.option(attack, "underflow") == "repair"),
        _same_twice(model, images, indices),
    ]


def random_noise(
    model: nn.Module, x: Images, y: Labels, *, ball: Ball = Linf(0.3), draws: int = DRAWS, generator: Generator = None
) -> Images:
    """Per image the most harmful (smallest margin) of some uniform draws from the ball: an attack without gradients."""
    best, best_margin = x, torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    with frozen(model), torch.no_grad():
        for _ in range(draws):
            tried = ball.sample(x, generator).clamp(0, 1)
            found = margin(model(tried), y)
            better = found < best_margin
            best = select(better, tried, best)
            best_margin = torch.where(better, found, best_margin)
    return best


def transfer(
    model: nn.Module, x: Images, y: Labels, *, source: nn.Module, ball: Ball = Linf(0.3), generator: Generator = None
) -> Images:
    """PGD images of another network."""
    del model
    return pgd(source, x, y, ball=ball, steps=40, generator=generator)


_WHY_STEPS = "A longer search can only find more; where it finds less, the search is stuck or the gradient is noise."
_WHY_SINGLE = "One step that beats many means the loss surface misleads the iterated attack."
_WHY_NOISE = "Blind noise that beats a gradient attack means the gradients point nowhere."
_WHY_BLIND = (
    "A search that only asks for scores has less to go by than a gradient: where it wins, the gradient misleads."
)
_WHY_RADIUS = "The larger ball holds the smaller one: whatever fools in the one fools in the other."
_WHY_TRANSFER = "Images made on another network that beat the direct attack mean its own gradients are useless."
_REMEDY = "Read the robust accuracy as unproven: attack without gradients, with a margin loss, or from other networks."


@dataclass(frozen=True)
class _Duel:
    """Two attacks on the same images: who withstood the one that ought to be stronger, and who the weaker."""

    name: str
    stronger: np.ndarray
    weaker: np.ndarray
    strong_name: str
    weak_name: str
    eps: float
    why: str

    @property
    def only_weak(self) -> int:
        """Images that only the weaker attack broke."""
        return int((self.stronger & ~self.weaker).sum())

    @property
    def only_strong(self) -> int:
        return int((~self.stronger & self.weaker).sum())

    @property
    def p(self) -> float:
        """One-sided exact sign test: could the weaker attack's lead be luck?"""
        if not self.only_weak:
            return 1.0
        return float(binomtest(self.only_weak, self.only_weak + self.only_strong, 0.5, alternative="greater").pvalue)


def _decided(duels: list[_Duel]) -> list[Check]:
    """Fails where the attack that ought to be weaker broke significantly more images, after Holm's correction."""
    return [_check(duel, p) for duel, p in zip(duels, holm([duel.p for duel in duels]), strict=True)]


def _check(duel: _Duel, p: float) -> Check:
    detail = (
        f"at eps {duel.eps:.4g}, accuracy {duel.stronger.mean():.3f} under {duel.strong_name}, "
        f"{duel.weaker.mean():.3f} under {duel.weak_name}; {duel.only_weak} images only {duel.weak_name} broke, "
        f"{duel.only_strong} only {duel.strong_name} (n = {len(duel.stronger)}, p = {p:.2g} after Holm)"
    )
    return Check(duel.name, "fail" if p < SIGNIFICANCE else "pass", detail, duel.why, _REMEDY)


def _reaches_zero(correct: np.ndarray) -> Check:
    count, n = int(correct.sum()), len(correct)
    low, _ = wilson(count, n)
    verdict: Verdict = "pass" if count <= 0.01 * n else ("fail" if low > 0.01 else "undecided")
    return Check(
        "an unbounded attack reaches zero",
        verdict,
        f"with every pixel free to take any value in [0, 1], {count} of {n} images withstood 100 steps",
        "With no bound any image can be turned into any other: whatever still withstands shows the attack fails.",
        _REMEDY,
    )


def _underflow(norms: np.ndarray, repaired: bool) -> Check:
    zero = int((norms == 0).sum())
    after = "; the attack follows the log-odds there, which do not underflow" if repaired and zero else ""
    return Check(
        "gradients do not underflow",
        "fail" if zero > UNDERFLOW_SHARE * len(norms) and not repaired else "pass",
        f"the input gradient of the cross-entropy is exactly zero for {zero} of {len(norms)} images{after}",
        "A confident network's loss gradient can round to zero: attacks that follow it leave the image as it was.",
        "Attack with pgd(underflow='repair') or a margin loss: an attack that keeps the zero did not attack these.",
    )


def _same_twice(model: nn.Module, images: ImageSet, indices: Tensor) -> Check:
    """Whether the model gives an image the same logits when asked again, to rounding."""
    device, size = device_of(model), chunk_size(images.shape)
    differ = 0
    with frozen(model), torch.no_grad():
        for first in range(0, len(indices), size):
            x, _ = images.batch(indices[first : first + size])
            one, two = model(x.to(device)), model(x.to(device))
            differ += int((~torch.isclose(one, two, rtol=1e-3, atol=1e-5)).any(1).sum())
    return Check(
        "the model answers the same twice",
        "fail" if differ else "pass",
        f"asked twice in eval mode, the logits of {differ} of {len(indices)} images differ",
        "A random defence turns every attack into a guess: one draw of the attack says little about the next answer.",
        "Attack the expectation: average logits or gradients over many draws, and judge every image more than once.",
    )
