"""pellucid transform"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli.common import (
    DataOption,
    JsonOption,
    SeedOption,
    SizeOption,
    SplitOption,
    counted,
    err,
    examples,
    open_images,
    print_json,
    progress,
)
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from pellucid.data import ImageSet
    from pellucid.data.write import Add
    from pellucid.types import Transform

EPILOGUE = examples(
    'pellucid transform --data digits --images 16 --transform "patch_shuffle(k=4)" --out sheet',
    'pellucid transform --data photos --transform "saturate(p=8)" --transform "saturate(p=1024)" --out saturated',
    "pellucid transform --data photos --transform \"fast_style(weights='style.safetensors')\" --out styled",
    'pellucid transform --data cifar10 --images all --transform "low_pass(radius=8)" --format folder --out smooth',
)
SHOWN = 16


def transform(
    data: DataOption,
    transforms: Annotated[
        list[str], typer.Option("--transform", help="See `pellucid list transforms`; may be repeated.")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="The images, and sheet.png.")],
    images: Annotated[
        str | None,
        typer.Option(help="all, a count (a seeded sample), first:N, FROM:TO, or boopathy200. Default: the first 16."),
    ] = None,
    split: SplitOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    format_: Annotated[
        str,
        typer.Option("--format", help="parquet (one file, SPLIT.parquet), or folder (SPLIT/CLASS/ROW.png)."),
    ] = "parquet",
    json_: JsonOption = False,
) -> None:
    """Write transformed images, and a contact sheet of the first 16 beside their originals.

    Of each --transform one data set, a folder that --data takes, its images of 8 bits; it is there when it is whole.
    What a seed decides of an image hangs on the image alone, so that the same come out whichever others are chosen.
    With one --transform the data set is --out itself, with several a folder of it each. Class folders are numbered in
    the order of their names: where a data set's classes are in another order, --format folder is refused.
    """
    from pellucid import registry
    from pellucid.data.write import WRITERS
    from pellucid.run_folder import check_call, claim_call
    from pellucid.weights import write_atomically

    if format_ not in WRITERS:
        raise PellucidError(f"--format {format_}: choose {' or '.join(WRITERS)}")
    bound = {registry.describe(made): made for made in (registry.parse(spec, "transforms") for spec in transforms)}
    found, indices = open_images(data, split, images, seed, size, first=SHOWN)
    call = {"command": "transform", "transforms": list(bound), "data": f"{found.name} {found.digest[:12]}"}
    call |= {"images": indices.tolist(), "seed": seed}
    call |= {} if format_ == "parquet" else {"format": format_}
    check_call(out_folder, call)
    facts: list[dict[str, Any]] = []
    columns = {"original": list(found.batch(indices[:SHOWN])[0].numpy())}
    with progress("transforming", len(bound) * len(indices), quiet=json_) as tick:
        for number, (name, made) in enumerate(bound.items()):
            where = out_folder if len(bound) == 1 else out_folder / f"{number + 1}-{_name(made)}"
            shown: list[np.ndarray] = []
            with WRITERS[format_](where, found.split, found.class_names) as add:
                cut = _write(made, found, indices, seed, tick, shown, add)
            claim_call(out_folder, call)  # now: the next set may be interrupted, and this one is whole
            heading = _heading(made)
            columns[name if heading in columns else heading] = shown
            facts.append({"transform": name, "data": str(where), "split": found.split, "n": len(indices), "cut": cut})
    write_atomically(out_folder / "sheet.png", _sheet(columns, found, indices))
    if json_:
        print_json({"sheet": str(out_folder / "sheet.png"), "sets": facts})
        return
    _say(facts)
    err.print(f"{out_folder / 'sheet.png'}", markup=False, highlight=False, soft_wrap=True)


def _say(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        lost = f"; {fact['cut']:.1%} of the pixels left [0, 1] and were cut" if fact["cut"] else ""
        line = f"{fact['data']}  {counted(fact['n'])} by {fact['transform']}{lost}"
        err.print(line, markup=False, highlight=False, soft_wrap=True)


def _heading(change: "Transform") -> str:
    """A transform's name and its numbers: `saturate 8`."""
    from functools import partial

    from pellucid import registry

    options = change.keywords if isinstance(change, partial) else {}
    shown = [registry.describe(value) for value in options.values() if not isinstance(value, str)]
    return " ".join([_name(change), *shown])


def _name(change: "Transform") -> str:
    """Without its options, and of one's own without the file that it is in."""
    from functools import partial

    function = change.func if isinstance(change, partial) else change
    return getattr(function, "__name__", "own").rstrip("_")


def _write(
    change: "Transform",
    found: "ImageSet",
    indices: "Tensor",
    seed: int,
    tick: "Callable[[int], None]",
    shown: "list[np.ndarray]",
    add: "Add",
) -> float:
    """Add the transformed images, part by part; the first ones go to `shown`. Returns which share of pixels was cut."""
    import torch

    from pellucid.data.write import bytes_of
    from pellucid.evaluation import chunk_size, transformed

    cut, total = 0, 0
    for chunk in indices.split(chunk_size(found.shape)):
        with torch.no_grad():
            x = transformed(change, found.batch(chunk)[0], chunk, seed)
        pixels, beyond = bytes_of(x)
        add(pixels, found.labels[chunk], chunk.tolist())
        shown += list(x[: max(0, SHOWN - len(shown))].numpy().copy())
        cut, total = cut + beyond, total + x.numel()
        tick(len(chunk))
    return cut / max(1, total)


def _sheet(columns: "dict[str, list[np.ndarray]]", found: "ImageSet", indices: "Tensor") -> bytes:
    import numpy as np

    from pellucid.report.contact_sheet import contact_sheet

    names = [found.class_names[int(label)] for label in found.labels[indices[:SHOWN]]]
    return contact_sheet({name: np.stack(images) for name, images in columns.items()}, names)
