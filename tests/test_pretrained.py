"""The zoo: built once, gone on with, described by cards; every recipe can be trained."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pe
from pellucid import claims, pretrained, registry, zoo_card, zoo_table
from pellucid.architectures.small import ross as ross_cnn
from pellucid.cli import run
from pellucid.cli.zoo import _verdicts as verdicts
from pellucid.data import load, resident
from pellucid.errors import PellucidError
from pellucid.recipe import Recipe
from pellucid.results import wilson
from pellucid.run_folder import locked
from pellucid.training import train
from pellucid.transfer import Transfer
from pellucid.zoo_recipes import recipes

Seeded = Callable[[int], torch.Generator]

QUICK = Recipe(data="digits", objective="int2(ball=Linf(0.1), steps=2)", steps=30, batch_size=16)
MAPS = "aai(ball=Linf({eps}), reading='as_coded', steps=3)"
EFFORT = zoo_card.Effort(images=10, ensemble="", maps=MAPS)
PAUSE = 0.3  # seconds


@pytest.fixture
def one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo of one animal, at two radii."""
    monkeypatch.setattr(pretrained, "recipes", lambda: {"digits/small/int2": QUICK})
    monkeypatch.setattr(zoo_card, "EPS", (0.1, 0.4))
    for module in (zoo_card, zoo_table):
        monkeypatch.setattr(module, "PGD", "pgd(ball=Linf({eps}), steps=3)")


@pytest.mark.usefixtures("one_recipe")
def test_the_zoo_is_built_once_and_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards say recipe, seed, whose code trained and what was measured; a second build, by later code, trains nothing;
    an unknown name is named."""
    monkeypatch.setattr(pretrained, "commit", lambda: "aaaaaaa")
    made = pretrained.build(["digits/small/int2"], tmp_path, seeds=2, effort=EFFORT)
    assert list(made) == ["digits/small/int2", "digits/small/int2@1"]
    weights = tmp_path / "digits/small/int2@1/model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(pretrained, "commit", lambda: "bbbbbbb")
    again = pretrained.build(["digits/small/int2"], tmp_path, seeds=2, effort=EFFORT)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(made))
    assert weights.stat().st_mtime_ns == before
    card = pretrained.cards(tmp_path)["digits/small/int2@1"]
    assert card["recipe"]["seed"] == 1
    assert card["commit"] == "aaaaaaa"
    assert card["n"] == 10
    assert card["train_seconds"] > 0
    assert card["device"] == "cpu"
    assert set(card["pgd"]) == set(card["aai"]) == {"0.1", "0.4"}
    assert card["pgd"]["0.4"]["robust"] <= card["clean"]
    assert zoo_card.unpacked(card, "pgd", 0.4).mean() == card["pgd"]["0.4"]["robust"]
    network = pretrained.zoo("digits/small/int2@1", tmp_path)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(PellucidError, match="trains it"):
        pretrained.zoo("digits/small/int2")
    with pytest.raises(PellucidError, match="recipes for digits/small/int2"):
        pe.zoo("digits/small/int3")


@pytest.mark.usefixtures("one_recipe")
def test_what_the_package_brings_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the same recipe, with its card: nothing is trained, nor measured but for more images, which a call
    for fewer does not replace. Of another recipe it is trained anew."""
    made = pretrained.build(["digits/small/int2"], tmp_path / "package", effort=EFFORT)
    monkeypatch.setattr(pretrained, "_places", lambda folder: [tmp_path / "package"] if folder is None else [folder])
    said: list[str] = []

    def say(what: str, done: int, whole: int) -> None:
        del done, whole
        said.append(what.partition(": ")[2])

    again = pretrained.build(["digits/small/int2"], tmp_path / "zoo", effort=EFFORT, say=say)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(made))
    assert not said
    pretrained.build(["digits/small/int2"], tmp_path / "zoo", effort=zoo_card.Effort(5, "", MAPS), say=say)
    assert not said
    pretrained.build(["digits/small/int2"], tmp_path / "zoo", effort=zoo_card.Effort(12, "", MAPS), say=say)
    assert set(said) == {"measuring"}
    monkeypatch.setattr(pretrained, "recipes", lambda: {"digits/small/int2": replace(QUICK, steps=2)})
    pretrained.build(["digits/small/int2"], tmp_path / "other", effort=EFFORT, say=say)
    assert set(said) == {"measuring", "training"}
    monkeypatch.setattr(pretrained, "recipes", lambda: {"digits/small/int2": QUICK})
    said.clear()
    pretrained.build(["digits/small/int2"], tmp_path / "fresh", effort=EFFORT, adopt=False, say=say)
    assert set(said) == {"measuring", "training"}
    said.clear()
    monkeypatch.setattr(pretrained.data_sets, "load", lambda name, split: load(name, split).select(range(100)))
    pretrained.build(["digits/small/int2"], tmp_path / "others' images", effort=EFFORT, say=say)
    assert set(said) == {"measuring", "training"}


@pytest.mark.usefixtures("one_recipe")
def test_a_card_is_of_what_its_attacks_do_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option's default has changed: the card is made anew; the same, it is read."""
    said: list[str] = []

    def say(what: str, done: int, whole: int) -> None:
        del done, whole
        said.append(what)

    pretrained.build(["digits/small/int2"], tmp_path, effort=EFFORT)
    pretrained.build(["digits/small/int2"], tmp_path, effort=EFFORT, say=say)
    assert not said
    complete = registry.complete
    monkeypatch.setattr(registry, "complete", lambda attack: partial(complete(attack), top_k=3))
    pretrained.build(["digits/small/int2"], tmp_path, effort=EFFORT, say=say)
    assert said


@pytest.mark.usefixtures("one_recipe")
def test_a_card_alone_is_shown_and_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are not in the package: the error says so, and how to make them."""
    pretrained.build(["digits/small/int2"], tmp_path, effort=EFFORT)
    (tmp_path / "digits/small/int2/model.safetensors").unlink()
    monkeypatch.setattr(pretrained, "_places", lambda _: [tmp_path])
    assert list(pretrained.cards()) == ["digits/small/int2"]
    with pytest.raises(PellucidError, match=r"the card alone.*--only digits/small/int2"):
        pretrained.zoo("digits/small/int2")


@pytest.mark.usefixtures("one_recipe")
def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in training and in measuring: the same card in the end but for the time, which adds up, and whose code
    trained: both, where it changed between."""
    monkeypatch.setattr(pretrained, "commit", lambda: "aaaaaaa")
    whole = pretrained.build(["digits/small/int2"], tmp_path / "whole", effort=EFFORT)["digits/small/int2"]
    for phase, at in (("training", 12), ("measuring", 25)):

        def stop(what: str, done: int, whole: int, phase: str = phase, at: int = at) -> None:
            del whole
            if phase in what and done >= at:
                time.sleep(PAUSE)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pretrained.build(["digits/small/int2"], tmp_path / phase, effort=EFFORT, say=stop)
        before = json.loads((tmp_path / phase / "digits/small/int2/seconds.json").read_text())["seconds"]
        monkeypatch.setattr(pretrained, "commit", lambda: "bbbbbbb")
        card = pretrained.build(["digits/small/int2"], tmp_path / phase, effort=EFFORT)["digits/small/int2"]
        monkeypatch.setattr(pretrained, "commit", lambda: "aaaaaaa")
        if phase == "training":
            assert before >= PAUSE
            assert card.pop("train_seconds") > before
            assert card.pop("commit") == "aaaaaaa+bbbbbbb"
        else:
            assert card.pop("train_seconds") == before
            assert card.pop("commit") == "aaaaaaa"
        assert card == {name: value for name, value in whole.items() if name not in ("train_seconds", "commit")}


@pytest.mark.usefixtures("one_recipe")
def test_the_table_has_a_row_for_every_card(tmp_path: Path) -> None:
    """Every figure with the wider half of its interval, tau with its survivors; the mean of seeds; the published."""
    card = pretrained.build(["digits/small/int2"], tmp_path, effort=EFFORT)["digits/small/int2"]
    other = {**card, "clean": 1 - card["clean"]}
    name = "mnist/small/int2"
    lines = zoo_table.table({name: card, f"{name}@1": other}).split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1
    head, one, two, mean, published = ([cell.strip() for cell in lines[i].split("|")[1:-1]] for i in (0, 2, 3, 4, 5))
    assert [row[0] for row in (one, two, mean, published)] == [
        name,
        f"{name}@1",
        f"{name}, mean of 2",
        f"{name}, as published",
    ]
    robust = head.index("pgd 0.4")
    value, half = (float(part) for part in one[robust].split(" ±"))
    low, high = wilson(round(card["pgd"]["0.4"]["robust"] * 10), 10)
    assert value == pytest.approx(card["pgd"]["0.4"]["robust"], abs=5e-4)
    assert half == pytest.approx(max(value - low, high - value), abs=1e-3)
    tau, n = one[head.index("tau 0.1")].replace(r"\*", "").split(" (")
    entry = card["aai"]["0.1"]
    assert float(tau.split(" ±")[0]) == pytest.approx(entry["kendall_tau"], abs=5e-4)
    assert int(n[:-1]) == entry["n_tau"]
    assert ("±" in tau) == (entry["n_tau"] >= 10)
    clean = [float(part) for part in mean[1].replace("[", "").replace("]", "").replace(",", "").split()]
    assert clean == pytest.approx([0.5, *sorted([card["clean"], other["clean"]])], abs=1e-3)
    assert published[robust] == ".385"
    assert published[1] == ".950"


def test_other_attacks_are_starred_and_a_seed_without_a_figure_leaves_no_mean() -> None:
    """Two attacks never stand in one column unmarked; a mean of 2 is of 2."""
    short = zoo_card.SHORT.format(eps=0.3)
    ensemble = {"0.3": {"attack": short, "robust": 0.5, "interval": [0.4, 0.6]}}
    card: dict[str, Any] = {"clean": 0.9, "n": 100, "ensemble": ensemble, "aai": {}}
    few = {"attack": zoo_card.AAI.format(eps=0.1), "kendall_tau": 0.5, "kendall_tau_interval": [0.4, 0.6], "n_tau": 9}
    many = {**few, "attack": zoo_card.AAI_ROSS.format(eps=0.2), "n_tau": 10}
    lines = zoo_table.table({"a": card | {"aai": {"0.1": few, "0.2": many}}, "a@1": card}).splitlines()
    assert r".500 ±.100\*" in lines[2]
    assert ".500 (9)" in lines[2]
    assert r".500 ±.100\* (10)" in lines[2]
    assert lines[-2:] == [rf"\* {zoo_card.AAI_ROSS.format(eps='ε')}", rf"\* {short}"]
    assert ".500 [.500, .500]" in lines[4]  # the ensemble's, which both have
    assert lines[4].count("[") == 2  # and clean: no tau
    assert r"[.500, .500]\*" in lines[4]
    whole = card | {"ensemble": {"0.3": ensemble["0.3"] | {"attack": zoo_card.ENSEMBLE.format(eps=0.3)}}}
    mixed = zoo_table.table({"a": card, "a@1": whole}).splitlines()[4]
    assert mixed.count("[") == 1  # a mean of what two attacks left would be of neither
    assert zoo_table.table({"a": card, "a@1": card | {"n": 20}}).splitlines()[4].count("[") == 0
    weak = {"pgd": {"0.3": ensemble["0.3"] | {"attack": "pgd(ball=Linf(0.3), steps=1)"}}}
    shown = zoo_table.table({"a": card | weak}).splitlines()
    assert shown[2].count(r"\*") == 2
    assert r"\* pgd(ball=Linf(0.3), steps=1)" in shown


def test_a_table_wider_than_the_terminal_comes_in_parts() -> None:
    """Every part fits and begins with the names; together they hold what the whole table holds."""

    def tables(**how: float) -> list[list[str]]:
        blocks = zoo_table.table(pretrained.cards(None), **how).split("\n\n")
        return [block.splitlines() for block in blocks if block.startswith("| name")]  # else a note

    (whole,), parts = tables(), tables(width=100)
    assert len(whole[0]) > 100 >= max(len(line) for part in parts for line in part)
    for row, line in enumerate(whole):
        if row != 1:
            cells = [[cell.strip() for cell in part[row].split("|")[1:-1]] for part in parts]
            assert len({name for name, *_ in cells}) == 1
            joined = [cells[0][0], *(cell for _, *rest in cells for cell in rest)]
            assert joined == [cell.strip() for cell in line.split("|")[1:-1]]


def test_every_recipe_is_of_what_there_is() -> None:
    """Specifications parse, with the options that their functions have; every objective but none is in the zoo."""
    known = recipes()
    for recipe in known.values():
        registry.parse(recipe.objective, "objectives")
        registry.parse(recipe.architecture, "architectures")
    used = {recipe.objective.partition("(")[0] for recipe in known.values()}
    assert used == set(registry.public("objectives"))
    assert set(zoo_table.PUBLISHED) <= set(known)


@pytest.mark.parametrize("name", ["ig-norm-1", "double-backprop-fgsm", "trades", "n-fgsm", "int-one-class"])
def test_recipes_take_steps(name: str, tmp_path: Path) -> None:
    """On digits, one step and three: the loss is a number, and all weights move."""
    recipe = replace(recipes()[f"mnist/small/{name}"], data="digits", decay="constant", batch_size=8)
    one, three = (
        train(replace(recipe, steps=steps), load("digits", "train"), tmp_path / str(steps)) for steps in (1, 3)
    )
    for before, after in zip(one.parameters(), three.parameters(), strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)


@pytest.mark.usefixtures("one_recipe")
def test_what_another_process_works_at_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over, waited for, and made once its folder is free."""
    monkeypatch.setattr(pretrained, "WAIT", 0.0)
    said: list[str] = []
    with ExitStack() as held:
        held.enter_context(locked(tmp_path / "digits/small/int2" / "cells"))

        def say(what: str, done: int, whole: int) -> None:
            del done, whole
            said.append(what)
            if "another process" in what:
                held.close()

        made = pretrained.build(["digits/small/int2"], tmp_path, seeds=2, effort=EFFORT, say=say)
    assert list(made) == ["digits/small/int2", "digits/small/int2@1"]
    order = list(dict.fromkeys(what.partition(":")[0] for what in said if "another" not in what))
    assert order == ["digits/small/int2@1", "digits/small/int2"]


def test_what_was_shown_around_is_kept_for_those_very_networks(tmp_path: Path, seeded: Seeded) -> None:
    """All bits come back, whatever their number; another key has none."""
    shapes = (3, 13), (3, 2, 3, 13)
    clean, correct = (torch.rand(shape, generator=seeded(len(shape))).numpy() < 0.5 for shape in shapes)
    found = Transfer(("a", "b", "c"), (0.3, 0.5), clean, correct)
    pretrained.keep_shown(found, "aaaa", tmp_path)
    again = pretrained.shown_around("aaaa", tmp_path)
    assert again is not None
    assert (again.names, again.eps) == (found.names, found.eps)
    assert (again.clean == clean).all()
    assert (again.correct == correct).all()
    assert pretrained.shown_around("bbbb", tmp_path) is None
    few = pretrained.shown_around("aaaa", tmp_path, 9)
    assert few is not None
    assert (few.clean == clean[:, :9]).all()
    assert (few.correct == correct[..., :9]).all()
    assert pretrained.shown_around("aaaa", tmp_path, 14) is None


def test_the_package_has_all_that_its_claims_need(capsys: pytest.CaptureFixture[str]) -> None:
    """What its networks' images did to each other is of those very networks."""
    assert run(["zoo", "--claims", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)["claims"]
    assert len(judged) > 5
    assert [each["claim"] for each in judged if each["judgement"] == "not measured"] == []


def test_of_further_seeds_the_package_says_what_trains_them() -> None:
    """And that command is taken."""
    with pytest.raises(PellucidError, match="--only mnist/small/int --seeds 2 --fresh"):
        pretrained.zoo("mnist/small/int@1")


def test_the_ross_cnn_has_maps_with_places() -> None:
    """Not by CAM, which is one position there."""
    network = ross_cnn().eval()
    images, labels = torch.zeros(2, 1, 28, 28), torch.tensor([0, 1])
    test = resident(images, labels, name="blank", split="test", class_names=("a", "b"), source="here")
    ross, small = (zoo_card.effort_for(recipes()[f"mnist/{each}/standard"]) for each in ("ross", "small"))
    assert any(maps for *_, maps in zoo_card.planned(network, test, ross))
    assert not any(maps for *_, maps in zoo_card.planned(network, test, small))
    with pytest.raises(PellucidError, match=r"no layer 'trunk\.77'"):
        zoo_card.planned(network, test, replace(ross, maps=ross.maps.replace("trunk.7", "trunk.77")))


def test_a_device_that_is_not_there_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was taken over or trained."""
    command = ["zoo", "--folder", str(tmp_path / "zoo"), "--build", "--only", "mnist/small/standard"]
    assert run([*command, "--device", "cuda:99"]) == 2
    assert "device 'cuda:99' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--images", "0"], ["--fresh"], ["--seeds", "3"]])
def test_a_zoo_of_nothing_is_refused(wrong: list[str], tmp_path: Path) -> None:
    """And what would be ignored; from Python too."""
    assert run(["zoo", *wrong]) == 2
    with pytest.raises(PellucidError, match="at least 1"):
        pretrained.build(["mnist/small/standard"], tmp_path, seeds=0)
    with pytest.raises(PellucidError, match="at least 1"):
        zoo_card.Effort(images=-5)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_zoo_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped folder is no empty zoo."""
    assert run(["zoo", "--folder", str(tmp_path / "zo")]) == 2
    assert f"no folder {tmp_path / 'zo'}" in " ".join(capsys.readouterr().err.split())


def test_of_an_empty_zoo_no_claim_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be trained is all there is to say."""
    assert run(["zoo", "--folder", str(tmp_path), "--claims"]) == 0
    said = capsys.readouterr()
    assert "None is here yet" in said.err
    assert said.out == ""
    assert run(["zoo", "--folder", str(tmp_path), "--claims", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cards": {}, "claims": []}


@pytest.mark.usefixtures("one_recipe")
def test_of_further_seeds_the_card_alone_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is all that a table needs; a first seed without weights, another recipe or more images are made anew."""
    package = tmp_path / "package"
    made = pretrained.build(["digits/small/int2"], package, seeds=2, effort=EFFORT)
    for name in ("int2", "int2@1"):
        (package / "digits/small" / name / "model.safetensors").unlink()
    monkeypatch.setattr(pretrained, "_places", lambda folder: [package] if folder is None else [folder])
    said: list[str] = []

    def say(what: str, done: int, whole: int) -> None:
        del done, whole
        said.append(what.partition(":")[0])

    again = pretrained.build(["digits/small/int2"], tmp_path / "zoo", seeds=2, effort=EFFORT, say=say)
    assert set(said) == {"digits/small/int2"}
    assert json.loads(json.dumps(again["digits/small/int2@1"])) == json.loads(json.dumps(made["digits/small/int2@1"]))
    assert "digits/small/int2@1" in pretrained.cards(tmp_path / "zoo")
    said.clear()
    pretrained.build(["digits/small/int2"], tmp_path / "zoo", seeds=2, effort=zoo_card.Effort(5, "", MAPS), say=say)
    assert not said  # a card of more images
    pretrained.build(["digits/small/int2"], tmp_path / "zoo", seeds=2, effort=zoo_card.Effort(12, "", MAPS), say=say)
    assert "digits/small/int2@1" in said
    said.clear()
    monkeypatch.setattr(pretrained, "recipes", lambda: {"digits/small/int2": replace(QUICK, steps=2)})
    pretrained.build(["digits/small/int2"], tmp_path / "other", seeds=2, effort=EFFORT, say=say)
    assert "digits/small/int2@1" in said
    said.clear()
    (tmp_path / "kept/digits/small/int2@1").mkdir(parents=True)
    (tmp_path / "kept/digits/small/int2@1/card.json").write_bytes(
        (package / "digits/small/int2@1/card.json").read_bytes()
    )
    pretrained.build(["digits/small/int2"], tmp_path / "kept", seeds=2, effort=EFFORT, say=say)
    assert "digits/small/int2@1" in said  # a card that was taken over before the recipe changed


@pytest.mark.usefixtures("one_recipe")
@pytest.mark.parametrize("other", [{"maps": MAPS.replace("steps=3", "steps=2")}, {"images": 11}])
def test_a_card_that_was_measured_otherwise_is_not_taken_over(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is trained, and measured anew."""
    package, name = tmp_path / "package", "digits/small/int2@1"
    pretrained.build(["digits/small/int2"], package, seeds=2, effort=EFFORT)
    (package / name / "model.safetensors").unlink()
    monkeypatch.setattr(pretrained, "_places", lambda folder: [package] if folder is None else [folder])
    pretrained.build(["digits/small/int2"], tmp_path / "zoo", seeds=2, effort=replace(EFFORT, **other))
    assert (tmp_path / "zoo" / name / "model.safetensors").is_file()


def test_a_card_is_of_all_that_decides_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thing other, and it is another's: recipe, images trained and measured on, how many, an attack, one attack
    less, no maps, an option's default, the layout. A setting that an older card does not know was at its default."""
    effort = zoo_card.effort_for(QUICK)

    def measured(test: str = "test", n: int = 1000, effort: zoo_card.Effort = effort, maps: bool = True) -> str:
        return zoo_card.how_measured(zoo_card.asked(effort, maps=maps), test, n)

    of = zoo_card.Wanted(QUICK, "train", zoo_card.asked(effort), "test", 1000)
    recipe = json.loads(QUICK.to_json())
    card = {"recipe": recipe, "data_digest": "train", "n": 1000, "how_measured": measured()}
    assert of.is_of(card)
    assert of.is_of(card | {"n": 2000, "how_measured": measured(n=2000)})
    assert not of.is_of(card | {"n": 999, "how_measured": measured(n=999)})
    assert of.is_of(card | {"recipe": {name: value for name, value in recipe.items() if name != "replays"}})
    assert not of.is_of({})
    assert not of.is_of(card | {"recipe": recipe | {"seed": 1}})
    assert not of.is_of(card | {"data_digest": "other"})
    others = [
        measured("other"),
        measured(n=999),
        measured(maps=False),
        measured(effort=replace(effort, ensemble="")),
        measured(effort=replace(effort, ensemble=zoo_card.SHORT)),
        measured(effort=replace(effort, maps=zoo_card.AAI_ROSS)),
    ]
    complete = registry.complete
    with monkeypatch.context() as patch:
        patch.setattr(registry, "complete", lambda attack: partial(complete(attack), top_k=3))
        others.append(measured())
    with monkeypatch.context() as patch:
        patch.setattr(zoo_card, "LAYOUT", zoo_card.LAYOUT + 1)
        others.append(measured())
    assert len({measured(), *others}) == len(others) + 1
    assert not any(of.is_of(card | {"how_measured": other}) for other in others)


def test_a_damaged_card_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the remedy, and no traceback."""
    (tmp_path / "mnist/small/int").mkdir(parents=True)
    (tmp_path / "mnist/small/int/card.json").write_text('{"n": 10')
    assert run(["zoo", "--folder", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "card.json cannot be read" in said
    assert "remove it" in said
    (tmp_path / "mnist/small/int/card.json").write_text("{}")
    assert run(["zoo", "--folder", str(tmp_path)]) == 2
    assert "card.json is no card" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(PellucidError, match="no folder"):
        pe.zoo("mnist/small/int", tmp_path / "mistyped")


def test_claims_are_judged_by_no_other_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of other networks, or of other test images, than the package's: what was not shown around stays so."""
    cards = {full: pretrained.cards()[full] for full in (f"{claims.ROSS}/{name}" for name in claims.TRANSFERRED)}
    monkeypatch.setattr(claims, "judge", lambda _, found=None: found)
    monkeypatch.setattr("pellucid.data.load", lambda *_: load("digits", "test"))
    monkeypatch.setattr(pretrained, "zoo", lambda *_: ross_cnn())

    def found(**other: str) -> object:
        return verdicts({full: card | other for full, card in cards.items()}, tmp_path, 1000, "cpu")

    assert found() is not None
    assert found(model_digest="other") is None
    assert found(test_digest="other") is None
    assert not (tmp_path / pretrained.SHOWN).exists()
