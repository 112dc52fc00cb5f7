"""What the commands share: their options, opening models and data, progress, and printing."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pellucid.data import ImageSet
    from pellucid.protocol import Subject

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A .safetensors file, a training run's folder, an architecture (with --weights), or your own code as "
        "package.module:function or file.py:function.",
    ),
]
WeightsOption = Annotated[Path | None, typer.Option(help="Weights for --model: .safetensors, or a plain state dict.")]
DataOption = Annotated[
    str, typer.Option("--data", help="A name (see `pellucid data list`), a folder of images, a Parquet file, a hub id.")
]
SplitOption = Annotated[
    str | None, typer.Option(help="Which split of the data. Default: test, or the one split that there is.")
]
WHICH = "all, a count (a seeded sample), first:N, FROM:TO, or boopathy200 (the papers')."
AnyImagesOption = Annotated[str, typer.Option("--images", help=WHICH)]
ImagesOption = Annotated[
    str | None,
    typer.Option("--images", help=f"{WHICH} Default: 200, or all if fewer; of photographs, from 128 pixels on, 40."),
]
SizeOption = Annotated[
    int | None, typer.Option(help="Resize: the shorter side to this, then the centre square. For photographs.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
MeanOption = Annotated[
    str, typer.Option(help="Channel means your own --model expects its images normalised by: .5,.5,.5")
]
StdOption = Annotated[str, typer.Option(help="Channel standard deviations, as --mean.")]

DEFAULT_IMAGES, DEFAULT_PHOTOGRAPHS = 200, 40
FIRST_LINE, EVERY_LINE = 30.0, 60.0  # seconds between two lines of progress, where there is no terminal

err = Console(stderr=True)
out = Console()


def examples(*lines: str) -> str:
    """A help epilogue: each example on a line of its own."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object; a number that is not finite becomes null."""
    from pellucid.results import finite

    sys.stdout.write(json.dumps(finite(value), ensure_ascii=False) + "\n")


def counted(n: int, noun: str = "image") -> str:
    """`1 image`, `2 images`."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


@contextmanager
def progress(description: str, total: int, *, quiet: bool = False) -> Iterator[Any]:
    """A bar with the time left; where there is no terminal, a line now and then. Yields `advance(count, note="")`."""
    if not quiet and not err.is_terminal:
        yield _lines(description, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, disable=quiet) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(count: int, note: str = "", at: int | None = None) -> None:
            if at is not None:
                bar.update(task, completed=at, note=note)
            else:
                bar.update(task, advance=count, note=note)

        yield advance


def _lines(description: str, total: int) -> Callable[..., None]:
    """For logs: how far it is and how long it takes, after half a minute and then each minute.

    What is left is estimated from where it was first seen, which after a resumption is not the beginning, and anew
    where a next part of the work begins at its own beginning.
    """
    started = time.monotonic()
    done, due = 0.0, started + FIRST_LINE
    since, first = started, 0.0

    def advance(count: int, note: str = "", at: float | None = None) -> None:
        nonlocal done, due, since, first
        before, now = done, time.monotonic()
        done = done + count if at is None else at
        if done < before or (before == 0 and at is not None):
            since, first = now, done
        if now < due:
            return
        due = now + EVERY_LINE
        gained = done - first
        left = f", {_long((total - done) * (now - since) / gained)} left" if gained > 0 and done < total else ""
        err.print(
            f"{description}: {done / max(1, total):.0%} in {_long(now - started)}{left}{f' ({note})' if note else ''}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return advance


def _long(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def counting(model: "nn.Module", tick: Any, *, quiet: bool = False) -> Iterator[None]:
    """Beside the bar, how often the model was asked: what moves while one chunk is attacked."""
    if quiet or not err.is_terminal:
        yield
        return
    passes = itertools.count(1)
    handle = model.register_forward_hook(lambda *_: tick(0, note=f"passes: {next(passes):,}"))
    try:
        yield
    finally:
        handle.remove()


def checked_call(
    out_folder: Path | None,
    command: str,
    what: Mapping[str, Any],
    images: "ImageSet",
    indices: "Tensor",
    models: list["nn.Module"],
    *,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """A call: what it does, to which models, on which images. Raises where its folder holds the results of another.

    To a transfer models may be added: the examples of the others are kept.
    """
    from pellucid.evaluation import model_key
    from pellucid.results import fingerprint
    from pellucid.run_folder import check_call

    call = {
        "command": command,
        **what,
        "data": f"{images.name} {images.digest[:12]}",
        "images": f"{len(indices)} ({fingerprint(indices.tolist())[:12]})",
        "seed": seed,
        "device": device,
        "models": [model_key(model, images, indices) for model in models],
    }
    if out_folder is not None:
        grows = "models" if command == "transfer" else ""
        check_call(out_folder, call, grows=grows, shared=command == "audit")
    return call


def open_images(
    data: str, split: str | None, images: str | None, seed: int, size: int | None = None, *, first: int | None = None
) -> tuple["ImageSet", "Tensor"]:
    """A split and the rows chosen from it: by default a sample, or the first so many; all where there are fewer."""
    from pellucid.data import load, subset
    from pellucid.protocol import PHOTOGRAPH

    found = load(data, _only_split(data) if split is None else split, size=size)
    many = DEFAULT_IMAGES if min(found.shape[1:]) < PHOTOGRAPH else DEFAULT_PHOTOGRAPHS
    default = f"{'first:' if first else ''}{min(first or many, len(found))}"
    indices = subset(default if images is None else images, len(found), seed)
    _warn_of_absent_classes(found, indices)
    return found, indices


def _warn_of_absent_classes(images: "ImageSet", indices: "Tensor") -> None:
    """The first images of a set in class order are of its first classes."""
    names, here = images.class_names, images.labels[indices].unique().tolist()
    there = images.labels.unique().tolist()
    if len(here) < len(there) and len(indices) >= 2 * len(there):
        gone = ", ".join(names[label] for label in there if label not in here)
        line = f"warning: these {len(indices)} images are of {len(here)} classes of {len(there)}, none is of {gone}: "
        err.print(f"{line}--images {len(indices)} draws them at random", markup=False, soft_wrap=True)


def _only_split(data: str) -> str:
    """`test`; of data on this machine that has another split and no further one, that one, and a line that says so."""
    from pellucid.data.names import KNOWN
    from pellucid.data.sources import data_folder, places

    path, base = Path(data).expanduser(), data.partition("@")[0].strip()
    if data not in KNOWN and path.exists():
        where = path
    elif not base or base == "digits" or (root := data_folder()) is None:
        return "test"
    else:
        where = root / base
    found = list(places(where)) if where.exists() else []
    if len(found) != 1 or found == ["test"]:
        return "test"
    line = f"{data} has one split, {found[0]}, and this is it: a model may have been trained on these images"
    err.print(line, markup=False, soft_wrap=True)
    return found[0]


def open_subject(
    model: str, weights: Path | None, images: "ImageSet", *, device: str = "cpu", mean: str = "", std: str = ""
) -> "Subject":
    """A classifier, checked against the images it shall be judged on."""
    import torch

    from pellucid.contract import check_contract
    from pellucid.models import load_model
    from pellucid.protocol import Subject

    example, _ = images.batch(torch.arange(min(4, len(images))))
    stored = is_stored(model)  # brings its weights and its normalisation: the options are for the others
    options = {} if stored else {"weights": weights, "mean": numbers(mean), "std": numbers(std)}
    network, facts = load_model(model, example=example, **options)
    _check_classes(model, facts, images)
    if stored:
        _warn_of_size(model, facts, images)
    try:
        network = network.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise PellucidError(f"device {device!r} cannot be used: {error}") from None
    check_contract(network, example.to(device), classes=len(images.class_names))
    return Subject(subject_name(model), network, model, facts)


def is_stored(model: str) -> bool:
    """Whether a model is a file or folder of Pellucid's own, as against an architecture or code."""
    return Path(model).is_dir() or (Path(model).is_file() and Path(model).suffix == ".safetensors")


def only_for_others(models: list[str], weights: Path | None, mean: str, std: str) -> None:
    """Options that no model would take are refused, not ignored."""
    if all(map(is_stored, models)) and (weights or mean or std):
        raise PellucidError(
            f"{', '.join(models)} brings its own weights and normalisation: --weights, --mean and --std are for an "
            "architecture or your own code"
        )


def _check_classes(model: str, facts: Mapping[str, str], images: "ImageSet") -> None:
    trained = json.loads(facts["classes"]) if "classes" in facts else None
    if trained is not None and trained != list(images.class_names):
        differ = [f"{a!r} / {b!r}" for a, b in zip(trained, images.class_names, strict=False) if a != b][:3]
        raise PellucidError(
            f"{model} was trained on {len(trained)} classes that are not those of {images.name} "
            f"({len(images.class_names)}; first differences: {', '.join(differ) or 'their number'})"
        )


def _warn_of_size(model: str, facts: Mapping[str, str], images: "ImageSet") -> None:
    """A network that averages takes images of any size, and knows little about those of another than its own."""
    from pellucid import registry

    size = registry.option(registry.parse(facts["architecture"], "architectures"), "size")
    if isinstance(size, int) and size not in images.shape[1:]:
        given = " x ".join(map(str, images.shape[1:]))
        line = f"warning: {model} was made for images of {size} pixels, these have {given}"
        err.print(line, markup=False, soft_wrap=True)


def subject_name(model: str) -> str:
    """A short name for a model: its run's folder, its file's stem, its function."""
    path = Path(model)
    if path.name == "model.safetensors":
        return path.parent.name
    return path.stem if path.suffix == ".safetensors" else path.name


def numbers(text: str) -> tuple[float, ...] | None:
    """`"0.1, 8/255"` as numbers; None for the empty text."""
    from pellucid import registry

    if not text.strip():
        return None
    try:
        values = [registry.value(part) for part in text.split(",")]
    except PellucidError:
        values = []
    if not values or not all(isinstance(v, int | float) for v in values):
        raise PellucidError(f"{text!r} is not a list of numbers such as 0.1,0.2,8/255")
    return tuple(float(v) for v in values)


def radii(text: str, attack: Callable[..., Any]) -> tuple[float, ...] | None:
    """`--eps` as ascending radii for this attack; None for the empty text. Only an Linf radius ends at 1."""
    from pellucid import registry
    from pellucid.balls import L1, L2

    given = numbers(text)
    largest = float("inf") if isinstance(registry.option(attack, "ball"), L1 | L2) else 1.0
    if given is not None and not all(0 < e <= largest and e < float("inf") for e in given):
        rule = "must lie in (0, 1]" if largest == 1 else "must be a number > 0"
        raise PellucidError(f"--eps {text}: every radius {rule}, in units of images in [0, 1]")
    return tuple(sorted(set(given))) if given else None


def named(subjects: list["Subject"]) -> list["Subject"]:
    """Names that tell the models apart."""
    from dataclasses import replace

    names = [s.name for s in subjects]
    return [s if names.count(s.name) == 1 else replace(s, name=f"{s.name} ({i + 1})") for i, s in enumerate(subjects)]
