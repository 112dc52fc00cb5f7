"""pellucid data: what there is to load, and whether a data set can be used."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pellucid.cli.common import JsonOption, examples, out, print_json
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from pellucid.data import Entry, ImageSet

app = typer.Typer(
    help="The data sets at hand, and whether one can be used.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=examples("pellucid data list", "pellucid data check mnist", "pellucid data check photos/ --size 224"),
)


@app.command("list", epilog=examples("pellucid data list", "PELLUCID_DATA=~/data pellucid data list --json"))
def list_(json_: JsonOption = False) -> None:
    """Every data set that has a name: its splits with their counts, its shape, where it is or how to get it.

    Folders of images, .parquet files and hub ids (owner/name) can be given wherever a name can.
    """
    from pellucid.data import known

    entries = known()
    if json_:
        print_json({"data": [dict(vars(entry)) for entry in entries]})
        return
    table = Table()
    for column in ("name", "images", "shape", "where", "preparations"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(*_row(entry))
    out.print(table)
    missing = [entry for entry in entries if entry.get]
    if missing:
        out.print("\nTo get what is not here:")
    for entry in missing:
        hub = f"{entry.where}, or " if entry.where.startswith("hub") else ""
        out.print(f"  {entry.name}: {hub}{entry.get}", markup=False, highlight=False, soft_wrap=True)


def _row(entry: "Entry") -> tuple[str, ...]:
    images = ", ".join(f"{split} {n:,}" for split, n in entry.splits.items()) or "-"
    shape = "x".join(map(str, entry.shape)) if entry.shape else "-"
    return entry.name, images, shape, entry.where, ", ".join(f"{entry.name}@{option}" for option in entry.preparations)


@app.command(
    epilog=examples(
        "pellucid data check mnist",
        "pellucid data check cifar10@boopathy --split valid",
        "pellucid data check photos/ --size 224",
        "pellucid data check imagenet-sample@restricted --split train",
        "pellucid data check birds/test.parquet --json",
    )
)
def check(
    name: Annotated[str, typer.Argument(help="A name (see `pellucid data list`), a folder, a Parquet file, a hub id.")],
    split: Annotated[str, typer.Option(help="Which split of the data.")] = "test",
    size: Annotated[int | None, typer.Option(help="Scale the shorter side to this, crop the centre.")] = None,
    json_: JsonOption = False,
) -> None:
    """Load every image and say what is there: counts, shape, classes, pixel range, repeated images, digest.

    Of images in conflict of shape and texture, also the textures. For a known set that is not here: how to get it.
    """
    from pellucid.data import load

    images = load(name, split, size=size)
    facts = _facts(images) | _textures(images, name, split) | _overlap(images, name, size)
    if json_:
        print_json(facts)
        return
    table = Table(title=f"{facts['name']}, {facts['split']}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), _text(value))
    out.print(table)


def _facts(images: "ImageSet") -> dict[str, Any]:
    """What `check` says of one split."""
    import torch

    from pellucid.data import batches
    from pellucid.data.duplicates import repeated

    ranges = [(float(x.min()), float(x.max()), float(x.sum())) for x, _ in batches(images, 500)]
    counts = torch.bincount(images.labels, minlength=len(images.class_names)).tolist()
    c, h, w = images.shape
    return {
        "name": images.name,
        "split": images.split,
        "images": len(images),
        "shape": images.shape,
        "classes": dict(zip(images.class_names, counts, strict=True)),
        "pixels": [min(low for low, _, _ in ranges), max(high for _, high, _ in ranges)],
        "mean": sum(total for _, _, total in ranges) / (len(images) * c * h * w),
        "repeated_images": repeated(images),
        "decoded": "on demand" if images.pixels.streamed else "in memory",
        "source": images.source,
        "digest": images.digest,
    }


def _textures(images: "ImageSet", name: str, split: str) -> dict[str, Any]:
    """Of the 16 classes of cue conflict: how many images have which texture, and one other than their shape's."""
    import torch

    from pellucid.data import SIXTEEN
    from pellucid.data.cues import textures

    if name != "cue-conflict" and sorted(images.class_names) != sorted(SIXTEEN):
        return {}
    try:
        texture = textures(images, name, split)
    except PellucidError as error:
        if name == "cue-conflict":
            raise
        return {"textures": f"none: {error}"}
    counts = torch.bincount(texture, minlength=len(images.class_names)).tolist()
    return {
        "textures": dict(zip(images.class_names, counts, strict=True)),
        "conflicting": int((texture != images.labels).sum()),
    }


def _overlap(images: "ImageSet", name: str, size: int | None) -> dict[str, Any]:
    """How many images of this split also lie in the other: train for test, test for train."""
    from pellucid.data import load
    from pellucid.data.duplicates import shared

    other = "test" if images.split == "train" else "train"
    try:
        against = load(name, other, size=size)
    except PellucidError:
        return {}
    return {f"images_also_in_{other}": shared(images, against)}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        rows = [f"{name}: {n:,}" for name, n in list(value.items())[:20]]
        return ", ".join(rows) + (f" and {len(value) - 20} more" if len(value) > 20 else "")
    if isinstance(value, list | tuple):
        return ("x" if isinstance(value, tuple) else " to ").join(f"{v:g}" for v in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
