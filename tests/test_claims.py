"""The claims of the papers: judged from cards whose outcome is known."""

import re
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from pellucid import claims, zoo_card
from pellucid.claims import Cards, Verdict, judge
from pellucid.results import holm
from pellucid.summary import paired_means, paired_on_correct
from pellucid.transfer import Transfer

N = 1000


def card(shares: float | dict[float, float]) -> dict[str, Any]:
    """The first so many of a thousand images stand, at every radius or as each is given."""

    def entry(eps: float) -> dict[str, Any]:
        share = shares.get(eps, 0.0) if isinstance(shares, dict) else shares
        return {"standing": zoo_card.packed(np.arange(N) < share * N)}

    return {"n": N} | {kind: {str(eps): entry(eps) for eps in zoo_card.EPS} for kind in ("pgd", "ensemble")}


def verdict(cards: Cards, words: str) -> Verdict:
    """The one whose claim begins so."""
    (found,) = [each for each in judge(cards) if each.claim.startswith(words)]
    return found


@pytest.mark.parametrize(
    ("share", "judgement"), [(0.6, "holds"), (0.4, "does not hold"), (0.51, "undecided"), (0.5, "undecided")]
)
def test_a_share_is_judged_by_its_interval(share: float, judgement: str) -> None:
    """1000 images tell .6 and .4 from a half, but not .51."""
    found = verdict({"mnist/small/int": card(share)}, "Int without")
    assert found.judgement == judgement
    assert f"{share:.3f}" in found.shown


def test_seeds_are_told_in_their_order() -> None:
    """Not in that of a set, which changes from run to run."""
    cards: dict[str, Any] = {}
    for seed in (*range(9), 10):
        at = f"@{seed}" if seed else ""
        cards |= {f"mnist/small/int{at}": card(0.9), f"mnist/small/int-one-class{at}": card(min(seed, 9) / 10)}
    shown = verdict(cards, "one class").shown
    assert "(+0.900, +0.800, +0.700, +0.600, +0.500, +0.400, +0.300, +0.200, +0.100, +0.000)" in shown


@pytest.mark.parametrize(
    ("more", "judgement"),
    [
        ([0.02], "holds"),  # every difference speaks for it: pairs tell what two intervals of .04 cannot
        ([0.002], "undecided"),
        ([-0.02], "does not hold"),
        ([0.06, 0.02], "holds"),
        ([0.06, -0.02], "undecided"),  # seeds disagree
    ],
)
def test_a_comparison_is_paired_and_every_seed_must_agree(more: list[float], judgement: str) -> None:
    """Of networks with the same seed."""
    cards: dict[str, Any] = {"mnist/small/int@7": card(0.9)}
    for seed, difference in enumerate(more):
        at = f"@{seed}" if seed else ""
        cards |= {f"mnist/small/int{at}": card(0.7 + difference), f"mnist/small/int-one-class{at}": card(0.7)}
    assert verdict(cards, "one class").judgement == judgement


def test_the_best_must_be_above_all_at_every_radius() -> None:
    """One rival that is better at one radius refutes it; one that is missing leaves it open."""
    names = claims.RIVALS
    cards: dict[str, Any] = {f"mnist/small/{name}": card({0.35: 0.3, 0.4: 0.2}) for name in names}
    cards["mnist/small/int2-adv"] = card({0.35: 0.5, 0.4: 0.4})
    assert verdict(cards, "Int2-Adv").judgement == "holds"
    cards["mnist/small/trades"] = card({0.35: 0.3, 0.4: 0.5})
    assert verdict(cards, "Int2-Adv").judgement == "does not hold"
    del cards["mnist/small/trades"]["pgd"]
    assert verdict(cards, "Int2-Adv").judgement == "not measured"


def test_many_comparisons_refute_only_when_corrected() -> None:
    """One of sixteen at p = .02 is what chance brings."""
    cards: dict[str, Any] = {f"mnist/small/{name}": card(0.5) for name in (*claims.RIVALS, "int2-adv")}
    better = np.arange(N) < 0.5 * N
    better[[*range(5), *range(500, 516)]] = [False] * 5 + [True] * 16  # 16 for, 5 against
    cards["mnist/small/trades"]["pgd"]["0.4"]["standing"] = zoo_card.packed(better)
    assert verdict(cards, "Int2-Adv").judgement == "undecided"
    better[516:540] = True
    cards["mnist/small/trades"]["pgd"]["0.4"]["standing"] = zoo_card.packed(better)
    assert verdict(cards, "Int2-Adv").judgement == "does not hold"


def test_seeds_are_no_more_images(generator: torch.Generator) -> None:
    """The same outcome at three seeds has the interval of one, and that is t's of the differences."""
    one, two = (torch.rand(N, generator=generator).numpy() < share for share in (0.62, 0.6))
    found = {}
    for seeds in (1, 3):
        cards: dict[str, Any] = {}
        for seed in range(seeds):
            for name, stands in (("int", one), ("int-one-class", two)):
                cards[f"mnist/small/{name}{f'@{seed}' if seed else ''}"] = card(0.0)
                cards[f"mnist/small/{name}{f'@{seed}' if seed else ''}"]["pgd"]["0.3"] = {
                    "standing": zoo_card.packed(stands)
                }
        found[seeds] = verdict(cards, "one class").shown.partition(";")[0].partition(" (")[0]
    low, high = ([float(text) for text in re.findall(r"[+-]\d\.\d+", each)[1:]] for each in found.values())
    assert low == pytest.approx(high, abs=0.003)
    naive = scipy.stats.ttest_1samp(one.astype(float) - two, 0).confidence_interval(0.95)
    assert high == pytest.approx([naive.low, naive.high], abs=0.0006)


def test_cards_of_fewer_images_or_attacks_are_compared_as_far_as_they_go() -> None:
    """The first images that both have; what a card lacks is not measured."""
    few: dict[str, Any] = {"n": 200} | {
        kind: {"0.3": {"standing": zoo_card.packed(np.arange(200) < 50)}} for kind in ("pgd", "ensemble")
    }
    cards: dict[str, Any] = {"mnist/small/int": card(0.9), "mnist/small/int-one-class": few}
    assert verdict(cards, "one class").judgement == "holds"
    del few["ensemble"]
    assert verdict(cards, "one class").judgement == "not measured"


def test_claims_on_transfer() -> None:
    """A table in which double backprop resists, its images fool everyone most, and distillation hides gradients."""
    names = claims.TRANSFERRED
    share = np.full((4, 2, 4), 0.6)
    share[3] = 0.2  # images of double backprop
    share[:, :, 3] = 0.7  # shown to double backprop
    share[1, :, 1] = 0.95  # distilled, its own FGSM images
    correct = np.arange(N) < share[..., None] * N
    found = Transfer(names, claims.TRANSFER_EPS, np.ones((4, N), bool), correct)
    cards = {"mnist/ross/distilled": card(0.0)}
    assert [each.judgement for each in judge(cards, found)[-3:]] == ["holds"] * 3
    share[1, :, 1], share[3], share[:, :, 3] = 0.3, 0.9, 0.1
    refuted = Transfer(names, claims.TRANSFER_EPS, np.ones((4, N), bool), np.arange(N) < share[..., None] * N)
    assert [each.judgement for each in judge(cards, refuted)[-3:]] == ["does not hold"] * 3
    assert [each.judgement for each in judge({})] == ["not measured"] * 8
    assert "- **not measured**: distillation" in claims.table(judge({}))


def interval(low: float, high: float) -> dict[str, float]:
    """A difference in the middle of an interval."""
    return {"difference": (low + high) / 2, "low": low, "high": high, "p": 0.5}


@pytest.mark.parametrize(
    ("found", "speaks"),
    [
        (interval(-0.05, 0.05), "for"),
        (interval(-0.05, 0.15), "neither"),
        (interval(0.12, 0.2), "against"),
        (interval(-0.2, -0.12), "against"),
        (interval(0.5, 0.5), "neither"),
        (interval(0.0, 0.0), "neither"),  # of images that do not differ at all one learns nothing of its width
        (interval(float("nan"), float("nan")), "neither"),
    ],
)
def test_alike_is_an_interval_within_the_margin(found: dict[str, float], speaks: str) -> None:
    finding = claims.alike("a - b", found, 0.1)
    assert finding.speaks == speaks
    assert (finding.p < 0.05) == (speaks == "against")


def test_alike_has_the_p_of_a_difference_at_the_margin() -> None:
    """An interval that begins at the margin is significant at 2.5 % in one direction."""
    assert claims.alike("a - b", interval(0.1 + 1e-9, 0.2), 0.1).p == pytest.approx(0.025, abs=1e-6)


@pytest.mark.parametrize(("hits", "speaks"), [(0, "for"), (10, "neither"), (50, "against")])
def test_fewer_is_a_wilson_interval_below_the_border(hits: int, speaks: str) -> None:
    assert claims.fewer("a", np.arange(1000) < hits, 0.01).speaks == speaks


def test_a_difference_without_a_width_speaks_for_nothing() -> None:
    """Of one image kept and one lost the delta method says [1, 1], and of undefined ratios nothing: neither is news."""
    one, other = ({"correct": np.array(hits)} for hits in ([True, False, False], [False, True, False]))
    right = {"correct": np.array([True, False, False])}
    wrong = {"correct": np.array([False, True, False])}
    for found in (
        paired_on_correct(one, right, other, right),  # 1 - 0
        paired_on_correct({"correct": np.zeros(3, bool)}, right, other, wrong),
        paired_means(np.full(3, 0.1), np.zeros(3)),
        paired_means(np.full(3, np.nan), np.zeros(3)),
    ):
        finding = claims.difference("a - b", found)
        assert finding.speaks == "neither"
        assert finding.p == 1


def test_the_order_of_comparisons_decides_nothing() -> None:
    """One that says nothing beside one that refutes: refuted, whichever comes first; of no comparison no verdict."""
    nothing, against = (
        claims.difference("a - b", found)
        for found in (
            paired_means(np.full(3, np.nan), np.zeros(3)),
            {"difference": -1, "low": -1.1, "high": -0.9, "p": 0},
        )
    )
    for order in ([nothing, against], [against, nothing]):
        assert claims.verdict("x", "y", order).judgement == "does not hold"
    with pytest.raises(ValueError, match="no comparison"):
        claims.verdict("x", "y", [])
    with pytest.raises(ValueError, match="NaN"):
        holm([0.1, float("nan")])
