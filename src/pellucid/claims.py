"""What papers claim, judged by comparisons: holds, does not hold, or undecided; and the claims that a zoo can judge.

The zoo's comparisons are paired, image by image: of one seed the 95 % interval is Newcombe's (`paired`); of several it
is t's, of each image's mean difference over the seeds that both have. A claim holds where every comparison that it
makes, and every single seed, speaks for it; it does not hold where one speaks against it at 5 %, corrected for their
number (Holm). The interval is that of the test images: with one seed it says nothing of how another training run would
have ended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest
from scipy.stats import norm as normal
from scipy.stats import t as student

from pellucid.results import holm, wilson
from pellucid.summary import paired
from pellucid.transfer import Transfer
from pellucid.zoo_card import EPS, unpacked

Judgement = Literal["holds", "does not hold", "undecided", "not measured"]
Cards = Mapping[str, Mapping[str, Any]]
Stands = Bool[np.ndarray, " n"]

SMALL, ROSS = "mnist/small", "mnist/ross"
TRANSFERRED = ("standard", "distilled", "fgsm", "double-backprop")  # of Ross & Doshi-Velez's fig. 1
TRANSFER_EPS = (0.3, 0.5)
HALF, TENTH = 0.5, 0.1
LEVEL = 0.05
RIVALS = ("adversarial", "trades", "ig-norm", "ig-sum-norm", "int", "int-one-class", "int-adv", "int2")


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
        verdict(
            "Int without adversarial loss is robust: more than half the images stand at ε 0.3",
            "Boopathy et al. 2020, Table 3",
            [_share(cards, "int", kind, 0.3, HALF) for kind in ("pgd", "ensemble")],
        ),
        verdict(
            "one class's map is not enough: Int stands above Int-1-class at ε 0.3",
            "Boopathy et al. 2020, Tables 2 and 3",
            [_above(cards, "int", "int-one-class", kind, 0.3) for kind in ("pgd", "ensemble")],
        ),
        *(
            verdict(
                f"IG-Norm collapses, {how}: fewer than a tenth stand under PGD-200 at ε 0.3",
                "Boopathy et al. 2020, Table 3",
                [_share(cards, name, "pgd", 0.3, TENTH, "below")],
            )
            for name, how in (("ig-norm", "as coded"), ("ig-norm-1", "as written at λ 1"))
        ),
        verdict(
            "Int2-Adv is the best of the published beyond ε 0.3",
            "Boopathy et al. 2020 (ICML), Table 1",
            [_above(cards, "int2-adv", other, "pgd", eps) for eps in EPS[3:] for other in RIVALS],
        ),
        *_of_transfer(cards, transferred),
    ]


def table(verdicts: Iterable[Verdict]) -> str:
    """The verdicts in Markdown."""
    lines = [f"- **{each.judgement}**: {each.claim} ({each.source}). {each.shown}" for each in verdicts]
    return "\n".join(lines)


@dataclass(frozen=True)
class Finding:
    """Whether one comparison speaks for the claim or against it, the p-value of neither, and how it reads."""

    speaks: Literal["for", "against", "neither", "not measured"]
    shown: str
    p: float = 1.0


def verdict(claim: str, source: str, findings: Sequence[Finding]) -> Verdict:
    """Holds where every comparison speaks for it, does not where one speaks against it for all their number."""
    if not findings:
        raise ValueError(f"no comparison for {claim!r}")
    corrected = holm([finding.p for finding in findings])
    refuted = any(f.speaks == "against" and p < LEVEL for f, p in zip(findings, corrected, strict=True))
    judgement: Judgement
    if any(finding.speaks == "not measured" for finding in findings):
        judgement = "not measured"
    elif all(finding.speaks == "for" for finding in findings):
        judgement = "holds"
    else:
        judgement = "does not hold" if refuted else "undecided"
    shown = "; ".join(finding.shown for finding in findings if finding.speaks != "not measured")
    missing = sum(finding.speaks == "not measured" for finding in findings)
    lacks = [f"{missing} of {len(findings)} comparisons lack their networks or cards here"] if missing else []
    return Verdict(claim, source, judgement, "; ".join(([shown] if shown else []) + lacks) + ".")


def _standing(cards: Cards, name: str, kind: str, eps: float) -> dict[str, Stands]:
    """Which images stand, of each seed whose card says so."""
    found = {}
    for full in cards:
        base, _, seed = full.partition("@")
        if base == name and "standing" in cards[full].get(kind, {}).get(str(eps), {}):
            found[seed] = unpacked(cards[full], kind, eps)
    return found


def _share(
    cards: Cards, name: str, kind: str, eps: float, border: float, side: Literal["above", "below"] = "above"
) -> Finding:
    """Speaks for more (or fewer) than the border standing, at every seed."""
    what = f"{name} under {kind} {eps}"
    parts = list(_standing(cards, f"{SMALL}/{name}", kind, eps).values())
    if not parts:
        return Finding("not measured", f"{what}: not measured")
    return _beside(what, parts, border, side)


def _beside(what: str, parts: Sequence[Stands], border: float, side: Literal["above", "below"]) -> Finding:
    """Speaks for shares on a side of a border where all their Wilson intervals are; p is the largest two-sided one."""
    intervals = [wilson(int(part.sum()), len(part)) for part in parts]
    above, below = all(low > border for low, _ in intervals), all(high < border for _, high in intervals)
    figures = ", ".join(
        f"{part.mean():.3f} [{low:.3f}, {high:.3f}]" for part, (low, high) in zip(parts, intervals, strict=True)
    )
    p = max(float(binomtest(int(part.sum()), len(part), border).pvalue) for part in parts)
    return Finding(_speaks(*((above, below) if side == "above" else (below, above))), f"{what} {figures}", p)


def _speaks(fits: bool, refutes: bool) -> Literal["for", "against", "neither"]:
    return "for" if fits else "against" if refutes else "neither"


def _above(cards: Cards, one: str, two: str, kind: str, eps: float) -> Finding:
    """Speaks for `one` above `two`, over the seeds that both have, on the images that both were measured on."""
    ones, twos = (_standing(cards, f"{SMALL}/{name}", kind, eps) for name in (one, two))
    pairs = []
    for seed in sorted(ones.keys() & twos.keys(), key=lambda seed: int(seed or 0)):
        n = min(len(ones[seed]), len(twos[seed]))  # cards are of the first images
        pairs.append((ones[seed][:n], twos[seed][:n]))
    what = f"{one} - {two} under {kind} {eps}"
    return _seeds_apart(what, pairs) if pairs else Finding("not measured", f"{what}: not measured")


def _seeds_apart(what: str, pairs: Sequence[tuple[Stands, Stands]]) -> Finding:
    each = [float(one.mean() - two.mean()) for one, two in pairs]
    return difference(what, paired(*pairs[0]) if len(pairs) == 1 else _over_seeds(pairs), each)


def difference(what: str, found: Mapping[str, float], seeds: Sequence[float] = ()) -> Finding:
    """Speaks for a claim that a difference is positive where its interval, and that of every seed, is above zero.

    `found` has `difference`, `low`, `high` and `p`, the p-value of none. An interval without a width, of too few images
    or of images that do not vary, speaks for nothing.
    """
    if not found["low"] < found["high"]:  # NaN too
        return Finding("neither", f"{_apart(what, found)}: these images cannot tell")
    above = found["low"] > 0 and min(seeds, default=1) > 0
    below = found["high"] < 0 and max(seeds, default=-1) < 0
    of_each = f" ({', '.join(f'{value:+.3f}' for value in seeds)})" if len(seeds) > 1 else ""
    return Finding(_speaks(above, below), f"{_apart(what, found)}{of_each}", found["p"])


def alike(what: str, found: Mapping[str, float], margin: float) -> Finding:
    """Speaks for a claim that two are alike where the whole interval of their difference is within the margin.

    Against it where the interval is all beyond it; then p is that of a difference no larger than the margin, by the
    normal distribution whose interval this is. An interval without a width speaks for nothing.
    """
    if not found["low"] < found["high"]:  # NaN too
        return Finding("neither", f"{_apart(what, found)}: these images cannot tell")
    within = -margin < found["low"] and found["high"] < margin
    beyond = found["low"] > margin or found["high"] < -margin
    spread = (found["high"] - found["low"]) / (2 * float(normal.ppf(0.975)))
    p = float(normal.sf((abs(found["difference"]) - margin) / spread)) if beyond else 1.0
    return Finding(_speaks(within, beyond), _apart(what, found), p)


def fewer(what: str, hits: Stands, border: float) -> Finding:
    """Speaks for a claim that a share is below a border where its Wilson interval is; p is the exact two-sided one."""
    return _beside(what, [hits], border, "below")


def _apart(what: str, found: Mapping[str, float]) -> str:
    return f"{what} {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _over_seeds(pairs: Sequence[tuple[Stands, Stands]]) -> dict[str, float]:
    """Of each image's mean difference over the seeds: the mean, its 95 % t interval and p. Seeds share their images."""
    n = min(len(one) for one, _ in pairs)
    per_image = np.mean([one[:n].astype(float) - two[:n] for one, two in pairs], axis=0)
    mean, spread = float(per_image.mean()), float(per_image.std(ddof=1)) / math.sqrt(n)
    if spread == 0:
        return {"difference": mean, "low": mean, "high": mean, "p": 1.0}
    reach = float(student.ppf(0.975, n - 1)) * spread
    p = 2 * float(student.sf(abs(mean) / spread, n - 1))
    return {"difference": mean, "low": mean - reach, "high": mean + reach, "p": p}


def _of_transfer(cards: Cards, found: Transfer | None) -> list[Verdict]:
    """The claims on one network's images shown to another."""

    def stands(source: str, eps: float, target: str) -> Stands:
        assert found is not None
        places = [found.names.index(name) for name in (source, target)]
        return found.clean[places[1]] & found.correct[places[0], found.eps.index(eps), places[1]]

    def compare(one: tuple[str, float, str], two: tuple[str, float, str], what: str) -> Finding:
        if found is None:
            return Finding("not measured", f"{what}: not measured")
        return _seeds_apart(what, [(stands(*one), stands(*two))])

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
    many = _standing(cards, f"{ROSS}/distilled", "pgd", low).get("")
    hides = (
        Finding("not measured", "FGSM and PGD-200 on distilled: not measured")
        if found is None or many is None
        else _hides(stands("distilled", low, "distilled"), many)
    )
    return [
        verdict(
            f"double backprop resists FGSM images of the standard network better than FGSM training at ε {high}",
            "Ross & Doshi-Velez 2018, fig. 1",
            [
                compare(
                    ("standard", high, "double-backprop"),
                    ("standard", high, "fgsm"),
                    f"on images of standard at ε {high}, double-backprop - fgsm",
                )
            ],
        ),
        verdict(
            "images made on double backprop fool the others, more than those of anyone else",
            "Ross & Doshi-Velez 2018, fig. 1",
            fools,
        ),
        verdict(
            "distillation only hides gradients: most images stand under FGSM, hardly one under PGD-200",
            "Ross & Doshi-Velez 2018, figs. 1 and 4; Carlini & Wagner 2017",
            [hides],
        ),
    ]


def _hides(one_step: Stands, many: Stands) -> Finding:
    first, last = (wilson(int(part.sum()), len(part)) for part in (one_step, many))
    hidden = first[0] > HALF and last[1] < TENTH
    refuted = first[1] < HALF or last[0] > TENTH
    shown = (
        f"FGSM {one_step.mean():.3f} [{first[0]:.3f}, {first[1]:.3f}], "
        f"PGD-200 on the log-odds {many.mean():.3f} [{last[0]:.3f}, {last[1]:.3f}]"
    )
    return Finding(_speaks(hidden, refuted), shown, p=0.0 if refuted else 1.0)
