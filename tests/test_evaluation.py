"""Evaluation and audits: rows that do not depend on interruptions, attacks that are not believed, checks that fail."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pellucid.evaluation
from pellucid.architectures.small import small
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.attacks.interpretation import aai
from pellucid.audit import run_audit, total_work
from pellucid.balls import L1, Linf
from pellucid.checks import masking_checks
from pellucid.contract import check_contract
from pellucid.data import ImageSet, load
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate, model_key
from pellucid.interpreters.activations import cam
from pellucid.interpreters.gradients import smoothgrad
from pellucid.network import Network
from pellucid.outcome import on_correct
from pellucid.protocol import Protocol, Subject, at_radius
from pellucid.recipe import Recipe
from pellucid.results import Rows, bootstrap, long_table, rate, read_rows, wilson
from pellucid.training import train
from pellucid.transforms.texture import saturate
from pellucid.types import Attack, Generator, Images, Labels


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load("digits", "test")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Small, trained for a moment: it is right about most digits and falls to small perturbations."""
    torch.set_num_threads(1)
    return train(Recipe(steps=150, batch_size=32), load("digits", "train"), tmp_path_factory.mktemp("run"))


PROTOCOL = Protocol(eps=(0.05, 0.2), attack=partial(pgd, steps=5), aai=partial(aai, steps=5), gallery_images=3)


class Signed(nn.Module):
    def __init__(self, network: nn.Module, sign: int) -> None:
        super().__init__()
        self.network, self.sign = network, sign

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.network(x)


def test_rows_in_cells_know_what_the_model_computes(tmp_path: Path, images: ImageSet) -> None:
    """Two models of the same weights and another `forward` do not share rows; nor do two top-k."""

    network = small(generator=torch.Generator().manual_seed(0))
    rows = torch.arange(8)
    for sign in (1, -1):
        found = evaluate(Signed(network, sign), images, rows, Measurement(), cells=tmp_path)
        assert equal(found, evaluate(Signed(network, sign), images, rows, Measurement()))
    for k in (2, 8):
        torn = Measurement(partial(pgd, ball=Linf(0.1), steps=1), cam, top_k=k)
        assert equal(evaluate(network, images, rows, torn, cells=tmp_path), evaluate(network, images, rows, torn))


def test_maps_that_draw_noise_are_compared_under_the_same_noise(images: ImageSet) -> None:
    """SmoothGrad of an unchanged image has tau 1, whatever its noise; and the rows are the same twice."""
    network = small(generator=torch.Generator().manual_seed(0))
    still = Measurement(partial(pgd, ball=Linf(0.0), steps=1, random_start=False), partial(smoothgrad, samples=2))
    one, two = (evaluate(network, images, torch.arange(4), still) for _ in range(2))
    np.testing.assert_allclose(one["tau"], 1, atol=1e-6)
    assert equal(one, two)
    torn = Measurement(partial(aai, ball=Linf(0.1), steps=2, interpreter=smoothgrad), partial(smoothgrad, samples=2))
    assert equal(*(evaluate(network, images, torch.arange(4), torn) for _ in range(2)))


def test_l1_attacks_do_not_stand_still_at_the_box(network: nn.Module, images: ImageSet) -> None:
    """PGD in an L1 ball of 20 breaks a plainly trained network: its pixels that cannot move are passed over."""
    rows = evaluate(network, images, torch.arange(60), Measurement(partial(pgd, ball=L1(20.0), steps=40)))
    assert rows["correct"].mean() < 0.2


def equal(one: Rows, two: Rows) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[k], two[k], equal_nan=one[k].dtype.kind == "f") for k in one
    )


def test_rows_by_hand(network: nn.Module, images: ImageSet) -> None:
    """Every column equals its definition, computed here from the attack's own output."""
    indices = torch.arange(20)
    attack = partial(fgsm, ball=Linf(0.1))
    rows = evaluate(network, images, indices, Measurement(attack, cam))
    x, y = images.batch(indices)
    attacked = attack(network, x, y)
    logits = network(attacked).detach()
    taus = [
        float(np.asarray(scipy.stats.kendalltau(a, b))[0])
        for a, b in zip(
            cam(network, x, y[:, None]).detach().flatten(1).numpy(),
            cam(network, attacked, y[:, None]).detach().flatten(1).numpy(),
            strict=True,
        )
    ]
    assert np.array_equal(rows["prediction"], logits.argmax(1).numpy())
    assert np.array_equal(rows["correct"], (logits.argmax(1) == y).numpy())
    assert np.array_equal(rows["unchanged"], (logits.argmax(1) == network(x).argmax(1)).numpy())
    assert np.array_equal(rows["clean_prediction"], network(x).argmax(1).numpy())
    clean = evaluate(network, images, indices, Measurement())
    assert np.array_equal(clean["clean_prediction"], clean["prediction"])
    np.testing.assert_allclose(rows["tau"], taus, atol=1e-6)
    np.testing.assert_allclose(rows["linf"], (attacked - x).abs().flatten(1).amax(1).numpy(), atol=1e-7)


def test_transformed_rows_know_the_prediction_of_the_image_itself(network: nn.Module, images: ImageSet) -> None:
    """`clean_prediction` is before transform and attack; `unchanged` and the norms are those of the attack alone."""
    indices, attack, change = torch.arange(120), partial(fgsm, ball=Linf(0.1)), partial(saturate, p=1024.0)
    clean = evaluate(network, images, indices, Measurement())
    rows = evaluate(network, images, indices, Measurement(transform=change))
    attacked = evaluate(network, images, indices, Measurement(attack, cam, transform=change))
    assert np.array_equal(rows["clean_prediction"], clean["prediction"])
    assert np.array_equal(attacked["clean_prediction"], clean["prediction"])
    assert not np.array_equal(rows["clean_prediction"], rows["prediction"])
    assert np.array_equal(attacked["unchanged"], attacked["prediction"] == rows["prediction"])
    assert attacked["linf"].max() == pytest.approx(0.1)
    assert (
        on_correct(clean, rows)["accuracy_on_correct"]
        == rows["correct"][rows["clean_prediction"] == rows["label"]].mean()
    )


def test_transformed_rows_of_another_edition_are_made_anew(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of transformed images alone; the others stay."""
    network, change = small(generator=torch.Generator().manual_seed(0)), Measurement(transform=partial(saturate, p=8.0))
    for edition, folders in ((1, 2), (2, 3), (2, 3)):
        monkeypatch.setattr("pellucid.evaluation.TRANSFORMED", edition)
        for measurement in (Measurement(), change):
            evaluate(network, images, torch.arange(4), measurement, cells=tmp_path)
        assert len(list(tmp_path.iterdir())) == folders


def test_a_long_table_says_of_each_row_whose_it_is() -> None:
    """In the order of the parts; what a part lacks is missing there, and a note of such a name gives way."""
    one = {"index": np.array([3, 4]), "correct": np.array([True, False]), "eps": np.array([0.1, 0.2])}
    two = {"index": np.array([3]), "correct": np.array([True]), "norm": np.array([0.5])}
    found = long_table([({"transform": "", "eps": 0.0}, one), ({"transform": "flip", "eps": 1.0}, two)])
    assert found["index"].tolist() == [3, 4, 3]
    assert found["correct"].tolist() == [True, False, True]
    assert found["transform"].tolist() == ["", "", "flip"]
    assert found["eps"].tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_array_equal(found["norm"], [np.nan, np.nan, 0.5])


def test_rows_of_other_columns_are_made_anew(tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that another edition stored lie in a folder of their own."""
    network = small(generator=torch.Generator().manual_seed(0))
    for edition, folders in ((1, 1), (2, 2), (2, 2)):
        monkeypatch.setattr("pellucid.evaluation.COLUMNS", edition)
        rows = evaluate(network, images, torch.arange(4), Measurement(), cells=tmp_path)
        assert len(list(tmp_path.iterdir())) == folders
    assert "clean_prediction" in rows


def test_a_model_is_named_by_what_it_computes(images: ImageSet) -> None:
    """The same layers and weights, another forward: another model. The same again, though asked elsewhere: the same."""
    network, rows = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), torch.arange(4)
    keys = [model_key(Signed(network, sign), images, rows) for sign in (1, -1, 1)]
    assert keys[0] == keys[2] != keys[1]


def test_interrupted_evaluation_goes_on(tmp_path: Path, network: nn.Module, images: ImageSet) -> None:
    """An evaluation stopped after a chunk ends with the rows of an uninterrupted one; finished chunks stay."""
    indices = torch.arange(250)
    measurement = Measurement(partial(pgd, ball=Linf(0.1), steps=2))
    whole = evaluate(network, images, indices, measurement)

    def stop(count: int) -> None:
        del count
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(network, images, indices, measurement, cells=tmp_path, tick=stop)
    assert len(list(tmp_path.glob("*/*.parquet"))) == 1
    assert equal(whole, evaluate(network, images, indices, measurement, cells=tmp_path))


def test_stored_rows_belong_to_their_model_and_attack(tmp_path: Path, images: ImageSet) -> None:
    """Other weights, another attack, other images, another seed: other cells. The same: the same ones."""
    one, two = (small(generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    attack = partial(pgd, ball=Linf(0.1), steps=1)
    rows = torch.arange(10)
    evaluate(one, images, rows, Measurement(attack), cells=tmp_path)
    evaluate(one, images, rows, Measurement(attack), cells=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    evaluate(two, images, rows, Measurement(attack), cells=tmp_path)
    evaluate(one, images, rows, Measurement(partial(attack, steps=2)), cells=tmp_path)
    evaluate(one, images, rows + 1, Measurement(attack), cells=tmp_path)
    evaluate(one, images, rows, Measurement(attack), seed=1, cells=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def outside_the_ball(
    model: nn.Module, x: Images, y: Labels, *, ball: Linf = Linf(0.1), generator: Generator = None
) -> Images:
    del model, y, generator
    return (x + 2 * ball.eps).clamp(0, 1)


def outside_the_box(model: nn.Module, x: Images, y: Labels, *, generator: Generator = None) -> Images:
    del model, y, generator
    return x + 0.5


def not_a_number(model: nn.Module, x: Images, y: Labels, *, generator: Generator = None) -> Images:
    del model, y, generator
    return x * torch.nan


@pytest.mark.parametrize("cheat", [outside_the_ball, outside_the_box, not_a_number])
def test_an_attack_that_cheats_is_caught(network: nn.Module, images: ImageSet, cheat: Attack) -> None:
    """Images outside the ball or the box, or not numbers, are refused whatever the attack says."""
    with pytest.raises(PellucidError, match=r"left its ball|left the box"):
        evaluate(network, images, torch.arange(4), Measurement(cheat))


def test_audit_is_the_same_when_interrupted(tmp_path: Path, network: nn.Module, images: ImageSet) -> None:
    """An audit stopped twice and started again writes the same figures and rows as one that ran through."""
    subject = Subject("net", network, "runs/a", {})
    common = {"title": "t", "data": {"name": "digits", "split": "test", "images": "first:120"}}
    run_audit([subject], images, torch.arange(120), PROTOCOL, tmp_path / "whole", **common)
    ticks = 0

    def stop(count: int) -> None:
        nonlocal ticks
        del count
        ticks += 1
        if ticks in (3, 9):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_audit([subject], images, torch.arange(120), PROTOCOL, tmp_path / "b", tick=stop, **common)
    assert not (tmp_path / "b" / "report.html").exists()
    run_audit([subject], images, torch.arange(120), PROTOCOL, tmp_path / "b", **common)
    assert (tmp_path / "whole" / "audit.json").read_bytes() == (tmp_path / "b" / "audit.json").read_bytes()
    assert equal(read_rows(tmp_path / "whole" / "rows.parquet"), read_rows(tmp_path / "b" / "rows.parquet"))


def test_audit_figures_follow_from_its_rows(tmp_path: Path, network: nn.Module, images: ImageSet) -> None:
    """Every robust accuracy and tau of audit.json can be computed again from rows.parquet; curves never rise."""
    subject = Subject("net", network, "runs/a", {})
    ticks: list[int] = []
    found = run_audit(
        [subject],
        images,
        torch.arange(120),
        PROTOCOL,
        tmp_path,
        title="t",
        data={"name": "digits", "split": "test", "images": "first:120"},
        tick=ticks.append,
    ).figures
    assert sum(ticks) == total_work([subject], 120, PROTOCOL, images)
    rows = read_rows(tmp_path / "rows.parquet")
    stands = rows["correct"][rows["measurement"] == "clean"].astype(bool)
    model = json.loads((tmp_path / "audit.json").read_text())["models"][0]
    assert model["clean"]["count"] == stands.sum()
    for entry, torn in zip(model["robust"], model["aai"], strict=True):
        here = rows["eps"] == entry["eps"]
        stands = stands & rows["correct"][here & (rows["measurement"] == "attack")].astype(bool)
        assert (entry["count"], entry["n"]) == (stands.sum(), 120)
        maps = here & (rows["measurement"] == "aai")
        kept = rows["unchanged"][maps].astype(bool)
        assert torn["survivors"] == kept.sum()
        tau = rows["tau"][maps][kept]
        assert torn["tau"] == pytest.approx(tau[np.isfinite(tau)].mean())
    assert found["models"][0]["checks"]
    shutil.rmtree(tmp_path / "cells")


class Quantised(nn.Module):
    """Rounds its input to quarters, and passes back a gradient whose signs are as good as random."""

    signs: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        coins = torch.empty(1, 28, 28).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        self.register_buffer("signs", coins.sign())

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 4).round() / 4 + 1e-12 * self.signs * x)


class Saturated(nn.Module):
    """Logits so large that the loss gradient underflows to zero wherever the model is right."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.network(x)


def verdicts(
    model: nn.Module, images: ImageSet, attack: Attack = partial(pgd, steps=10), **others: nn.Module
) -> dict[str, str]:
    indices, eps = torch.arange(100), 0.2
    rows = {
        ("clean", 0.0): evaluate(model, images, indices, Measurement(gradient_norm=True)),
        ("attack", eps): evaluate(model, images, indices, Measurement(at_radius(attack, eps))),
    }
    return {c.name: c.verdict for c in masking_checks(model, others, images, indices, rows, attack, eps, 0)}


def test_checks_pass_on_an_honest_network(network: nn.Module, images: ImageSet) -> None:
    """A plainly trained network has honest gradients: nothing fails."""
    assert set(verdicts(network, images).values()) == {"pass"}


def test_checks_fail_on_planted_masks(network: nn.Module, images: ImageSet) -> None:
    """Saturated logits, a quantised input and a random answer make the checks that name them fail."""
    saturated = verdicts(Saturated(network), images, attack=partial(pgd, steps=10, underflow="keep"))
    assert saturated["gradients do not underflow"] == "fail"
    repaired = verdicts(Saturated(network), images)
    assert repaired["gradients do not underflow"] == "pass"
    assert repaired["an unbounded attack reaches zero"] == "pass"
    quantised = verdicts(Quantised(network), images, honest=network)
    assert quantised["an unbounded attack reaches zero"] == "fail"
    assert quantised["transfer from honest does not beat the direct attack"] == "fail"
    assert quantised["an attack without gradients does not beat one"] == "fail"
    assert verdicts(Restless(), images)["the model answers the same twice"] == "fail"


def test_a_model_that_is_right_on_nothing_passes_no_check_of_an_attack(network: nn.Module, images: ImageSet) -> None:
    """Nobody withstands, and that shows nothing: only what asks for no attack is answered."""
    x, _ = images.batch(torch.arange(len(images)))
    wrong = replace(images, labels=(network(x).argmax(1) + 1) % 10)
    found = verdicts(network, wrong)
    asked_alone = {"gradients do not underflow", "the model answers the same twice"}
    assert {name for name, verdict in found.items() if verdict == "pass"} == asked_alone
    assert set(found.values()) == {"pass", "undecided"}


def test_a_larger_radius_that_helps_the_defender_fails(network: nn.Module, images: ImageSet) -> None:
    """Rows in which more images stand at a larger radius are a sign of a search that went astray."""
    indices, eps = torch.arange(40), 0.2
    clean = evaluate(network, images, indices, Measurement(gradient_norm=True))
    fallen, standing = ({**clean, "correct": np.full(40, value)} for value in (False, True))
    rows = {("clean", 0.0): clean, ("attack", eps): fallen, ("attack", 0.3): standing}
    found = masking_checks(network, {}, images, indices, rows, partial(pgd, steps=5), eps, 0)
    assert {c.name: c.verdict for c in found}["a larger radius never helps the defender"] == "fail"


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_against_scipy(n: int, share: float) -> None:
    """The interval equals scipy's to 1e-12 and holds the proportion."""
    count = round(share * n)
    low, high = wilson(count, n)
    reference = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert math.isclose(low, reference.low, abs_tol=1e-12)
    assert math.isclose(high, reference.high, abs_tol=1e-12)
    assert low <= count / n <= high


def test_bootstrap_and_rate_of_nothing_and_of_something() -> None:
    """Empty: nan. A constant: the constant. Many normal draws: within 5 % of the normal interval."""
    assert all(math.isnan(v) for v in bootstrap(np.array([])))
    assert bootstrap(np.full(5, 0.3)) == pytest.approx((0.3, 0.3))
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(2000), rel=0.05)
    assert rate(np.array([], bool))["n"] == 0


class Probabilities(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10].softmax(1)


class Restless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] + torch.empty(1).normal_()


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :10] * 7


class Batchwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * len(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Probabilities(), "probabilities"),
        (Restless(), "differently each time"),
        (Detached(), "no gradient"),
        (Batchwise(), "depends on its batch"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), "it must give logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 10)), "does not take images"),
    ],
)
def test_the_model_contract_is_checked_loudly(model: nn.Module, message: str) -> None:
    """Each way of breaking the contract has its own message."""
    with pytest.raises(PellucidError, match=message):
        check_contract(model, torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)), classes=10)


def test_chunks_are_independent_of_how_many_images_follow(images: ImageSet) -> None:
    """The rows of the first chunk are the same whether or not others follow: seeds hang on the chunk."""
    model = small(generator=torch.Generator().manual_seed(0))
    measurement = Measurement(partial(pgd, ball=Linf(0.1), steps=2))
    n = pellucid.evaluation.CHUNK
    few, many = (evaluate(model, images, torch.arange(k), measurement) for k in (n, n + 30))
    assert all(np.array_equal(few[k], many[k][:n]) for k in few)
    assert isinstance(model, Network)


def test_targeted_attacks_have_no_robust_accuracy() -> None:
    """Goals cannot be the true labels: a targeted attack is refused, and not reported as robustness."""
    with pytest.raises(PellucidError, match="goals"):
        Measurement(partial(pgd, targeted=True))


def test_a_damaged_cell_is_made_anew(tmp_path: Path, images: ImageSet) -> None:
    """A torn file among the finished chunks costs its chunk, not the evaluation."""
    model = small(generator=torch.Generator().manual_seed(0))
    whole = evaluate(model, images, range(12), Measurement(), cells=tmp_path)
    (cell,) = tmp_path.glob("*/*.parquet")
    cell.write_bytes(cell.read_bytes()[:50])
    assert equal(whole, evaluate(model, images, range(12), Measurement(), cells=tmp_path))


class Rounded(nn.Module):
    """Rounds its input: the gradient in the pixels is exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(((x * 255).round() / 255).flatten(1))


class Tupled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1)[:, :10], x


@pytest.mark.parametrize(("model", "message"), [(Rounded(), "round its input"), (Tupled(), "tuple")])
def test_models_that_cannot_be_judged_by_gradients(model: nn.Module, message: str) -> None:
    """A rounding model would look robust to every gradient attack: the contract refuses it."""
    with pytest.raises(PellucidError, match=message):
        check_contract(model, torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)), classes=10)
