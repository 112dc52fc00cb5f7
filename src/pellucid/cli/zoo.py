"""pellucid zoo"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.common import DeviceOption, JsonOption, err, examples, out, print_json, progress

if TYPE_CHECKING:
    from pellucid import claims as judged

EPILOGUE = examples(
    "pellucid zoo",
    "pellucid zoo --folder zoo --build --only mnist/small/int2-adv",
    "pellucid zoo --folder zoo --build --only mnist/small/int --seeds 3",
    "pellucid zoo --folder zoo --claims",
    "pellucid attack --model zoo/mnist/small/int2-adv --data mnist --attack pgd",
)


def zoo(
    folder: Annotated[
        Path | None, typer.Option(help="A zoo that was built. Without it: what the package brings.")
    ] = None,
    build: Annotated[
        bool, typer.Option("--build", help="Train and measure in --folder what is not there yet. Hours; resumable.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A name, or the beginning of several; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --build: networks per recipe, of seeds 0, 1, ...")] = 1,
    images: Annotated[
        int, typer.Option(min=1, help="With --build or --claims: test images per measurement, the first ones.")
    ] = 1000,
    fresh: Annotated[bool, typer.Option("--fresh", help="With --build: train also what the package brings.")] = False,
    claims: Annotated[bool, typer.Option("--claims", help="Judge what the papers claim by the cards.")] = False,
    device: DeviceOption = "cpu",
    json_: JsonOption = False,
) -> None:
    """Classifiers of every training objective, each with a card: list them, or train and measure them.

    Accuracies are over all images: under PGD of 200 steps of 0.01, from a random start, and under the ensemble; tau is
    of class activation maps under the as-coded attack on interpretations, over the images that keep their class, whose
    number stands behind it. Starred is what was measured otherwise, by the attacks beneath the table: the Ross CNN's
    tau is of GradCAM's maps. After ± the wider half of the 95 % interval. Beneath a network what the papers print: of
    200 other images, without random start.
    """
    from pellucid import claims as judged
    from pellucid import pretrained, zoo_table
    from pellucid.errors import PellucidError

    if not build and (fresh or seeds > 1):
        raise PellucidError(f"{'--fresh' if fresh else '--seeds'} says what is trained: add --build, or leave it out")
    wanted = _wanted(only, folder, build=build)
    if build and folder is not None:
        order = [name for name, *_ in pretrained.in_order(wanted, seeds)]
        with progress("the zoo", len(order), quiet=json_) as advance:

            def say(what: str, done: int, whole: int) -> None:
                """Training and measuring are half a network each, as a guess."""
                name, _, doing = what.partition(": ")
                half = 0.5 * (doing == "measuring") + 0.5 * done / max(1, whole)
                advance(0, note=f"{what} {done}/{whole}", at=order.index(name) + min(0.99, half))

            pretrained.build(wanted, folder, seeds=seeds, images=images, adopt=not fresh, device=device, say=say)
    cards = {name: card for name, card in pretrained.cards(folder).items() if name.partition("@")[0] in wanted}
    verdicts = _verdicts(cards, folder, images, device) if claims and cards else []
    if json_:
        print_json({"cards": cards, "claims": [asdict(each) for each in verdicts]} if claims else cards)
    elif not cards:
        how = f"with --folder {folder or 'zoo'} --build: {', '.join(wanted)}"
        err.print(f"None is here yet. These can be trained, {how}", markup=False)
    else:
        width = out.width if out.is_terminal else math.inf
        out.print(zoo_table.table(cards, width=width), markup=False, highlight=False, soft_wrap=True)
    if verdicts and not json_:
        out.print("\n" + judged.table(verdicts), markup=False, highlight=False, soft_wrap=True)


def _wanted(only: list[str] | None, folder: Path | None, *, build: bool) -> list[str]:
    """The recipes that are asked for; raises where there are none, or no folder to look or build in."""
    from pellucid.errors import PellucidError
    from pellucid.zoo_recipes import recipes

    known = recipes()
    asked = list(only or [""])
    wanted = [name for name in known if any(name == e or (e not in known and name.startswith(e)) for e in asked)]
    if not wanted:
        raise PellucidError(f"--only {' '.join(only or [])} fits no recipe: there are {', '.join(known)}")
    if build and folder is None:
        raise PellucidError("--build needs --folder, where to put the networks: --folder zoo")
    if folder is not None and not build and not folder.is_dir():
        raise PellucidError(f"no folder {folder}: --build makes one; without --folder you see what the package brings")
    return wanted


def _verdicts(cards: "Mapping[str, Any]", folder: Path | None, images: int, device: str) -> "list[judged.Verdict]":
    """Of all claims; FGSM's images are made and shown around, where that was not done and the networks are there."""
    from pellucid import claims, data, pretrained, registry
    from pellucid.attacks.gradient import fgsm
    from pellucid.results import fingerprint, model_digest
    from pellucid.training import usable
    from pellucid.transfer import transfer

    asked = {name: f"{claims.ROSS}/{name}" for name in claims.TRANSFERRED}
    if not all(full in cards for full in asked.values()):
        return claims.judge(cards)
    of = [(name, *(cards[full].get(each) for each in ("model_digest", "test_digest"))) for name, full in asked.items()]
    key = fingerprint(of, registry.describe(registry.complete(fgsm)), claims.TRANSFER_EPS)
    found = pretrained.shown_around(key, folder, images)
    if found is None and all(pretrained.loadable(full, folder) for full in asked.values()):
        test = data.load("mnist", "test")
        models = {name: pretrained.zoo(full, folder).to(usable(device)) for name, full in asked.items()}
        if of != [(name, model_digest(model), test.digest) for name, model in models.items()]:
            return claims.judge(cards)  # the cards are of other networks, or other images
        many = min(images, len(test))
        found = pretrained.shown_around(key, folder, many)
        if found is None:
            found = transfer(models, test, range(many), fgsm, claims.TRANSFER_EPS)
        if folder is not None:
            pretrained.keep_shown(found, key, folder)
    return claims.judge(cards, found)
