"""The figures of an audit from hand-made rows: exact tests, intervals with a width, and honest counts."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel
from torch import Tensor, nn

from pellucid.architectures.small import small
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.interpretation import aai
from pellucid.balls import Linf
from pellucid.data.imageset import ImageSet, resident
from pellucid.errors import PellucidError
from pellucid.gallery import choose, gallery
from pellucid.interpreters.gradients import smoothgrad
from pellucid.protocol import Protocol, Subject
from pellucid.results import Rows, holm
from pellucid.summary import FEWEST, compare, figures, paired, paired_means, paired_on_correct, survivors
from pellucid.types import Generator, Images, Labels

EPS = (0.1, 0.2)
PROTOCOL = Protocol(eps=EPS)


def table(both: int, only_one: int, only_two: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_one, only_two, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def rows_of(stands: np.ndarray, *, tau: np.ndarray | None = None, unchanged: np.ndarray | None = None) -> dict:
    n = len(stands)
    clean: Rows = {"correct": np.ones(n, bool), "label": np.zeros(n, int), "gradient_norm": np.ones(n)}
    found: dict[tuple[str, float], Rows] = {("clean", 0.0): clean}
    for eps in EPS:
        found["attack", eps] = {"correct": stands}
        if tau is not None:
            kept = np.ones(n, bool) if unchanged is None else unchanged
            found["aai", eps] = {"correct": stands, "tau": tau, "unchanged": kept, "top_k_overlap": np.full(n, 0.5)}
    return found


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    # The first is the example 36, 12, 2, 0 of Newcombe 1998, method 10; the second was worked out by hand.
    [((36, 12, 2, 0), 0.0569, 0.3404), ((0, 1, 0, 0), -0.1221, 1.0)],
)
def test_paired_intervals_against_known_ones(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    found = paired(*table(*counts))
    assert found["low"] == pytest.approx(low, abs=5e-5)
    assert found["high"] == pytest.approx(high, abs=5e-5)


@given(counts=st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_a_paired_interval_has_a_width_holds_the_difference_and_turns_with_its_sides(counts: tuple[int, ...]) -> None:
    one, two = table(*counts)
    there, back = paired(one, two), paired(two, one)
    assert -1 <= there["low"] <= there["difference"] <= there["high"] <= 1
    assert there["high"] - there["low"] > 0.001
    assert there["difference"] == pytest.approx(one.mean() - two.mean())
    assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert there["p"] == pytest.approx(back["p"])
    telling = counts[1] + counts[2]
    assert there["p"] == (pytest.approx(binomtest(counts[2], telling).pvalue) if telling else 1.0)


def test_one_image_tells_nothing() -> None:
    """One image that only the first model withstood: no winner, and an interval that holds zero."""
    entries = compare({"a": rows_of(np.array([True])), "b": rows_of(np.array([False]))}, PROTOCOL)
    assert entries is not None
    assert [entry["difference"] for entry in entries] == [1.0, 1.0]
    assert all(entry["low"] < 0 < entry["high"] and entry["p"] == entry["p_holm"] == 1.0 for entry in entries)


def test_comparisons_are_corrected_over_all_pairs_and_radii() -> None:
    shares = {"a": 40, "b": 34, "c": 33}
    rows = {name: rows_of(np.arange(40) < count) for name, count in shares.items()}
    entries = compare(rows, PROTOCOL)
    assert entries is not None
    assert [(e["a"], e["b"], e["eps"]) for e in entries] == [(*pair, eps) for pair in ("ab", "ac", "bc") for eps in EPS]
    assert set(entries[0]) == {"a", "b", "eps", "difference", "low", "high", "p", "p_holm"}
    assert [e["p_holm"] for e in entries] == holm([e["p"] for e in entries])
    # 6 of 6 telling images: 0.03125 alone, nothing among six comparisons.
    assert entries[0]["p"] == pytest.approx(2 / 64)
    assert entries[0]["p_holm"] > 0.05
    assert compare({"a": rows["a"]}, PROTOCOL) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(ps=st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_keeps_the_order_and_is_at_most_bonferroni(ps: list[float]) -> None:
    corrected = holm(ps)
    assert all(p <= c <= min(1.0, len(ps) * p) + 1e-12 for p, c in zip(ps, corrected, strict=True))
    order = np.argsort(ps, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def interpretation(tau: np.ndarray, unchanged: np.ndarray) -> dict[str, Any]:
    rows = rows_of(np.ones(len(tau), bool), tau=tau, unchanged=unchanged)
    return figures(Subject("m", nn.Identity(), "", {}), rows, PROTOCOL, [])["aai"][0]


def test_tau_has_no_interval_below_ten_maps_and_says_how_many_it_averages() -> None:
    tau = np.linspace(0.2, 0.9, FEWEST + 2)
    tau[0] = math.nan
    unchanged = np.ones(len(tau), bool)
    enough = interpretation(tau, unchanged)
    assert (enough["survivors"], enough["n_tau"], enough["n"]) == (12, 11, 12)
    assert enough["low"] < enough["tau"] < enough["high"]
    unchanged[-2:] = False
    few = interpretation(tau, unchanged)
    assert (few["survivors"], few["n_tau"], few["n"]) == (10, 9, 12)
    assert few["low"] is None
    assert few["high"] is None
    assert few["tau"] == pytest.approx(tau[1:-2].mean())


def test_a_constant_map_leaves_survivors_and_no_tau() -> None:
    found = interpretation(np.full(5, math.nan), np.ones(5, bool))
    assert (found["survivors"], found["n_tau"]) == (5, 0)
    assert math.isnan(found["tau"])


def test_a_refusal_gives_its_reason() -> None:
    subject = Subject("m", nn.Identity(), "", {"no_maps": "a map of 1 value"})
    found = figures(subject, rows_of(np.ones(3, bool)), PROTOCOL, [])
    assert (found["aai"], found["aai_refused"]) == (None, "a map of 1 value")


def test_the_curve_of_survivors_cannot_rise() -> None:
    rows = rows_of(np.array([True, False]))
    rows["attack", 0.2] = {"correct": np.array([True, True])}
    assert survivors(rows, EPS)[0.2].tolist() == [True, False]


def test_the_gallery_takes_the_first_of_each_class_that_every_model_has_right() -> None:
    """Class 0: its first image is wrong for one model; its second is taken. Doubles and wrong ones come last."""
    labels = np.array([0, 1, 1, 0, 2])
    one = {("clean", 0.0): {"correct": np.array([False, True, True, True, True]), "label": labels}}
    two = {("clean", 0.0): {"correct": np.array([True, True, True, True, False]), "label": labels}}
    both = {"one": one, "two": two}
    assert [choose(both, n) for n in range(1, 6)] == [[1], [3, 1], [3, 1, 2], [0, 3, 1, 2], [0, 3, 1, 2, 4]]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.randint(256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    names = [f"class {i}" for i in range(10)]
    return resident(pixels, torch.arange(6), name="noise", split="test", class_names=names, source="made here")


def shown(images: ImageSet, protocol: Protocol) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    model = small(generator=torch.Generator().manual_seed(0))
    return gallery([Subject("m", model, "", {})], images, torch.arange(6), [0, 1, 2], protocol)


def too_far(model: nn.Module, x: Images, y: Labels, *, ball: Linf = Linf(0.1), generator: Generator = None) -> Tensor:
    del model, y, generator
    return (x - 2 * ball.eps * (x > 0.5) + 2 * ball.eps * (x <= 0.5)).clamp(0, 1)


@pytest.mark.parametrize("which", ["attack", "aai"])
def test_pictures_are_of_attacks_that_keep_to_their_ball(images: ImageSet, which: str) -> None:
    honest = Protocol(eps=EPS, attack=fgsm, aai=partial(aai, steps=1))
    shown(images, honest)
    cheating = replace(honest, attack=too_far) if which == "attack" else replace(honest, aai=too_far)
    with pytest.raises(PellucidError, match="left its ball"):
        shown(images, cheating)


def test_a_random_interpreter_draws_the_same_noise_before_and_after(images: ImageSet) -> None:
    """An attack that changes nothing leaves maps that agree exactly, whatever noise they are made with."""
    interpreter = partial(smoothgrad, samples=2)
    still = partial(aai, steps=0, interpreter=interpreter)
    entries, arrays = shown(images, Protocol(eps=(0.0,), attack=fgsm, aai=still))
    assert all(np.array_equal(arrays[f"{r}/m/map_clean"], arrays[f"{r}/m/map_aai"]) for r in range(3))
    assert [e["models"][0]["interpretation_attacked"]["tau"] for e in entries] == pytest.approx([1.0] * 3)


def test_every_attack_of_the_audit_counts() -> None:
    """An image that the explanation's attack or the worst case felled is fallen, here and at every larger radius."""

    def rows(*right: bool) -> dict[str, np.ndarray]:
        return {"correct": np.array(right)}

    found = survivors(
        {
            ("clean", 0.0): rows(True, True, True, True),
            ("attack", 0.1): rows(True, True, True, True),
            ("aai", 0.1): rows(False, True, True, True),
            ("attack", 0.2): rows(True, True, True, True),
            ("worst", 0.2): rows(True, False, True, True),
            ("attack", 0.3): rows(True, True, False, True),
        },
        (0.1, 0.2, 0.3),
    )
    assert [int(found[eps].sum()) for eps in (0.1, 0.2, 0.3)] == [3, 2, 1]


def two_models(n: int, seed: int) -> tuple[Rows, Rows, Rows, Rows]:
    """Clean and changed rows of two models whose hits hang together, image by image."""
    generator = np.random.default_rng(seed)
    hard = generator.uniform(size=n)
    before_one, before_two = ({"correct": hard + 0.3 * generator.uniform(size=n) < ease} for ease in (0.9, 0.7))
    after_one, after_two = ({"correct": hard + 0.5 * generator.uniform(size=n) < ease} for ease in (0.7, 0.6))
    return before_one, after_one, before_two, after_two


def test_a_difference_of_accuracies_on_correct_against_the_bootstrap() -> None:
    """The value is that of the two ratios; the interval that of 4,000 resamplings of images, to a twentieth of it."""
    rows = two_models(2000, seed=0)
    found = paired_on_correct(*rows)

    def ratio(before: Rows, after: Rows, places: np.ndarray) -> float:
        both = before["correct"][places] & after["correct"][places]
        return both.sum() / before["correct"][places].sum()

    def apart(places: np.ndarray) -> float:
        return ratio(rows[0], rows[1], places) - ratio(rows[2], rows[3], places)

    assert found["difference"] == pytest.approx(apart(np.arange(2000)), abs=1e-12)
    generator = np.random.default_rng(1)
    drawn = [apart(generator.integers(2000, size=2000)) for _ in range(4000)]
    width = found["high"] - found["low"]
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([found["low"], found["high"]], abs=0.05 * width)


def test_a_difference_of_accuracies_on_correct_turns_with_its_sides_and_may_be_undefined() -> None:
    one, two, three, four = two_models(300, seed=2)
    found, turned = paired_on_correct(one, two, three, four), paired_on_correct(three, four, one, two)
    assert turned["difference"] == pytest.approx(-found["difference"])
    assert turned["low"] == pytest.approx(-found["high"])
    assert turned["p"] == pytest.approx(found["p"])
    never = {"correct": np.zeros(300, bool)}
    assert math.isnan(paired_on_correct(never, two, three, four)["difference"])


def test_the_largest_difference_of_accuracies_on_correct_is_one() -> None:
    """All kept against none: no influence differs, and the images that both had right before decide; so do they where
    both keep all. Of fewer than ten nothing is told."""
    all_, none = {"correct": np.ones(50, bool)}, {"correct": np.zeros(50, bool)}
    found = paired_on_correct(all_, all_, all_, none)
    assert found == paired(all_["correct"], none["correct"])
    assert found["p"] < 1e-10
    assert 0.8 < found["low"] < found["high"] == 1
    same = paired_on_correct(all_, all_, all_, all_)
    assert same["low"] < same["difference"] == 0 < same["high"]
    few = {"correct": np.arange(50) < 9}
    assert paired_on_correct(few, all_, few, none) == {"difference": 1.0, "low": 1.0, "high": 1.0, "p": 1.0}


def test_few_images_right_before_reject_no_more_than_they_may() -> None:
    """Two models alike, right on some twelve of 1,000 before: p below .0019 comes as rarely as that, or nearly."""
    generator, rejected, tried = np.random.default_rng(5), 0, 4000
    for _ in range(tried):
        before: list[Rows] = [{"correct": generator.uniform(size=1000) < 0.015} for _ in range(2)]
        after: list[Rows] = [{"correct": generator.uniform(size=1000) < 0.5} for _ in range(2)]
        rejected += paired_on_correct(before[0], after[0], before[1], after[1])["p"] < 0.0019
    assert rejected <= 0.0019 * tried + 4 * math.sqrt(0.0019 * tried)


def test_a_difference_of_means_is_the_paired_t_test() -> None:
    """Of many and of few; pairs with a NaN are left out, and fewer than ten tell nothing."""
    generator = np.random.default_rng(3)
    one, two = generator.normal(size=500), generator.normal(loc=0.1, size=500)
    for n in (500, 10):
        test = ttest_rel(one[:n], two[:n])
        found, interval = paired_means(one[:n], two[:n]), test.confidence_interval()
        assert found["p"] == pytest.approx(test.pvalue)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert paired_means(one[:9], two[:9])["p"] == 1
    found = paired_means(one, two)
    one_more = paired_means(np.append(one, math.nan), np.append(two, 5.0))
    assert one_more == found


def test_pictures_are_of_the_whole_attack(images: ImageSet) -> None:
    """An audit's attack leaves an image as it falls; its gallery shows what the attack makes of it in the end."""
    short, whole = (
        shown(images, replace(PROTOCOL, attack=partial(pgd, steps=5, stop_when_fooled=stops)))[1]
        for stops in (True, False)
    )
    assert (short["0/m/attacked"] == whole["0/m/attacked"]).all()
    assert (short["0/m/attacked"] != short["0/image"]).any()
