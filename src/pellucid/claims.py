"""What the papers claim of training objectives, judged by the zoo's cards: holds, does not hold, or undecided.

Comparisons are paired, image by image and over all seeds that both have: the 95 % interval is Newcombe's (`paired`).
A claim that one is above the other holds where that interval and every single seed say so. The interval is that of the
test images: with one seed it says nothing of how another training run would have ended.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from pellucid.pretrained import EPS, unpacked
from pellucid.results import wilson
from pellucid.summary import paired
from pellucid.transfer import Transfer

Judgement = Literal["holds", "does not hold", "undecided", "not measured"]
Cards = Mapping[str, Mapping[str, Any]]
Stands = Bool[np.ndarray, " n"]

SMALL, ROSS = "mnist/small", "mnist/ross"
TRANSFERRED = ("standard", "distilled", "fgsm", "double-backprop")  # of Ross & Doshi-Velez's fig. 1
TRANSFER_EPS = (0.3, 0.5)
HALF, TENTH = 0.5, 0.1


@dataclass(frozen=True)
class Verdict:
    """A claim, whose it is, what became of it here, and the figures."""

    claim: str
    source: str
    judgement: Judgement
    shown: str


def judge(cards: Cards, transferred: Transfer | None = None) -> list[Verdict]:
    """All claims; `transferred` are FGSM's images of `TRANSFER_EPS` between the Ross networks of `TRANSFERRED`."""
    return [
        _verdict(
            "Int without adversarial loss is robust: more than half the images stand at ε 0.3",
            "Boopathy et al. 2020, Table 3",
            [_share(cards, "int", kind, 0.3, HALF) for kind in ("pgd", "ensemble")],
        ),
        _verdict(
            "one class's map is not enough: Int stands above Int-1-class at ε 0.3",
            "Boopathy et al. 2020, Tables 2 and 3",
            [_above(cards, "int", "int-one-class", kind, 0.3) for kind in ("pgd", "ensemble")],
        ),
        *(
            _verdict(
                f"IG-Norm collapses, {how}: fewer than a tenth stand under PGD-200 at ε 0.3",
                "Boopathy et al. 2020, Table 3",
                [_flipped(_share(cards, name, "pgd", 0.3, TENTH))],
            )
            for name, how in (("ig-norm", "as coded"), ("ig-norm-1", "as written at λ 1"))
        ),
        _verdict(
            "Int2-Adv is the best of the published beyond ε 0.3",
            "Boopathy et al. 2020 (ICML), Table 1",
            [
                _above(cards, "int2-adv", other, "pgd", eps)
                for eps in EPS[3:]
                for other in ("adversarial", "trades", "int", "int-adv", "int2")
            ],
        ),
        *_of_transfer(cards, transferred),
    ]


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts in Markdown."""
    lines = [f"- **{each.judgement}**: {each.claim} ({each.source}). {each.shown}" for each in verdicts]
    return "\n".join(lines)


def seeds_of(cards: Cards, name: str) -> list[str]:
    """The cards of a recipe, one per seed."""
    return [full for full in cards if full.partition("@")[0] == name]


@dataclass(frozen=True)
class _Finding:
    """Whether one comparison speaks for (1), against (-1) or neither, and how it reads. None: not measured."""

    sign: int | None
    shown: str


def _verdict(claim: str, source: str, findings: Sequence[_Finding]) -> Verdict:
    """Holds where every comparison speaks for it, does not where one speaks against it."""
    signs = [finding.sign for finding in findings]
    judgement: Judgement
    if any(sign is None for sign in signs):
        judgement = "not measured"
    elif all(sign == 1 for sign in signs):
        judgement = "holds"
    else:
        judgement = "does not hold" if -1 in signs else "undecided"
    return Verdict(claim, source, judgement, "; ".join(finding.shown for finding in findings) + ".")


def _share(cards: Cards, name: str, kind: str, eps: float, border: float) -> _Finding:
    """Speaks for more than the border standing, at every seed."""
    what = f"{name} under {kind} {eps}"
    parts = [unpacked(cards[full], kind, eps) for full in seeds_of(cards, f"{SMALL}/{name}")]
    if not parts:
        return _Finding(None, f"{what}: no card")
    intervals = [wilson(int(part.sum()), len(part)) for part in parts]
    above, below = all(low > border for low, _ in intervals), all(high < border for _, high in intervals)
    figures = ", ".join(
        f"{part.mean():.3f} [{low:.3f}, {high:.3f}]" for part, (low, high) in zip(parts, intervals, strict=True)
    )
    return _Finding(above - below, f"{what} {figures}")


def _flipped(finding: _Finding) -> _Finding:
    return _Finding(None if finding.sign is None else -finding.sign, finding.shown)


def _above(cards: Cards, one: str, two: str, kind: str, eps: float) -> _Finding:
    """Speaks for `one` above `two`, over the seeds that both have."""
    pairs = []
    for full in seeds_of(cards, f"{SMALL}/{one}"):
        _, at, seed = full.partition("@")
        other = f"{SMALL}/{two}{at}{seed}"
        if other in cards:
            pairs.append((unpacked(cards[full], kind, eps), unpacked(cards[other], kind, eps)))
    what = f"{one} - {two} under {kind} {eps}"
    return _difference(what, pairs) if pairs else _Finding(None, f"{what}: no cards")


def _difference(what: str, pairs: Sequence[tuple[Stands, Stands]]) -> _Finding:
    one, two = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    found = paired(one, two)
    each = [float(a.mean() - b.mean()) for a, b in pairs]
    above = found["low"] > 0 and min(each) > 0
    below = found["high"] < 0 and max(each) < 0
    seeds = f" ({', '.join(f'{value:+.3f}' for value in each)})" if len(each) > 1 else ""
    shown = f"{what} {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]{seeds}"
    return _Finding(above - below, shown)


def _of_transfer(cards: Cards, found: Transfer | None) -> list[Verdict]:
    """The claims on one network's images shown to another."""

    def stands(source: str, eps: float, target: str) -> Stands:
        assert found is not None
        places = [found.names.index(name) for name in (source, target)]
        return found.clean[places[1]] & found.correct[places[0], found.eps.index(eps), places[1]]

    def compare(one: tuple[str, float, str], two: tuple[str, float, str], what: str) -> _Finding:
        if found is None:
            return _Finding(None, f"{what}: no cards")
        return _difference(what, [(stands(*one), stands(*two))])

    low, high = TRANSFER_EPS
    others = [name for name in TRANSFERRED if name != "double-backprop"]
    fools = [
        compare(
            (rival, low, target),
            ("double-backprop", low, target),
            f"{target} on images of {rival} - on those of double-backprop at ε {low}",
        )
        for target in others
        for rival in others
        if rival != target
    ]
    hides = (
        _Finding(None, "no cards")
        if found is None or f"{ROSS}/distilled" not in cards
        else _hides(stands("distilled", low, "distilled"), unpacked(cards[f"{ROSS}/distilled"], "pgd", low))
    )
    return [
        _verdict(
            f"double backprop resists transferred FGSM better than FGSM training at ε {high}",
            "Ross & Doshi-Velez 2018, fig. 1",
            [
                compare(
                    ("standard", high, "double-backprop"),
                    ("standard", high, "fgsm"),
                    f"on images of standard at ε {high}, double-backprop - fgsm",
                )
            ],
        ),
        _verdict(
            "images made on double backprop fool the others, more than those of anyone else",
            "Ross & Doshi-Velez 2018, fig. 1",
            fools,
        ),
        _verdict(
            "distillation only hides gradients: most images stand under FGSM, hardly one under PGD-200",
            "Ross & Doshi-Velez 2018, figs. 1 and 4; Carlini & Wagner 2017",
            [hides],
        ),
    ]


def _hides(one_step: Stands, many: Stands) -> _Finding:
    first, last = (wilson(int(part.sum()), len(part)) for part in (one_step, many))
    hidden = first[0] > HALF and last[1] < TENTH
    refuted = first[1] < HALF or last[0] > TENTH
    shown = (
        f"FGSM {one_step.mean():.3f} [{first[0]:.3f}, {first[1]:.3f}], "
        f"PGD-200 on the log-odds {many.mean():.3f} [{last[0]:.3f}, {last[1]:.3f}]"
    )
    return _Finding(hidden - refuted, shown)
