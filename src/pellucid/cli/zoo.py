"""pellucid zoo"""

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.common import JsonOption, err, examples, out, print_json, progress

EPILOGUE = examples(
    "pellucid zoo",
    "pellucid zoo --out zoo --only mnist/small/int2-adv",
    "pellucid zoo --out zoo --only mnist/small --seeds 3",
    "pellucid attack --model zoo/mnist/small/int2-adv --data mnist --attack pgd",
)


def zoo(
    folder: Annotated[
        Path | None, typer.Option("--out", help="Train and measure here what is not there yet. Hours; resumable.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Names, or beginnings of names; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(help="Networks per recipe, of seeds 0, 1, ...")] = 1,
    images: Annotated[int, typer.Option(help="Test images per measurement, the first ones.")] = 1000,
    json_: JsonOption = False,
) -> None:
    """Classifiers of every training objective, each with a card: list them, or train and measure them.

    Without --out the table of what the package brings; with it, of that folder, once it is complete. Accuracies are
    under PGD (200 steps of 0.01) and, in brackets, the ensemble; tau is of class activation maps under the as-coded
    attack on interpretations, over the images that keep their class.
    """
    from pellucid import pretrained
    from pellucid.errors import PellucidError

    known = pretrained.recipes()
    wanted = [name for name in known if not only or any(name.startswith(each) for each in only)]
    if not wanted:
        raise PellucidError(f"--only {' '.join(only or [])} fits no recipe: there are {', '.join(known)}")
    if folder is not None:
        with progress("the zoo", 1, quiet=json_) as advance:

            def say(what: str, done: int, whole: int) -> None:
                advance(0, note=f"{what} {done}/{whole}", at=done / max(1, whole))

            pretrained.build(wanted, folder, seeds=seeds, effort=pretrained.Effort(images), say=say)
    cards = {name: card for name, card in pretrained.cards(folder).items() if name.partition("@")[0] in wanted}
    if json_:
        print_json(cards)
    elif not cards:
        err.print(f"None is here yet. These can be trained, with --out zoo: {', '.join(wanted)}", markup=False)
    else:
        out.print(pretrained.table(cards), markup=False, highlight=False, soft_wrap=True)
