"""pellucid audit"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pellucid.cli.common import (
    DataOption,
    DeviceOption,
    ImagesOption,
    JsonOption,
    MeanOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    WeightsOption,
    checked_call,
    err,
    examples,
    named,
    only_for_others,
    open_images,
    open_subject,
    out,
    print_json,
    progress,
    radii,
)

if TYPE_CHECKING:
    from pellucid.types import Transform

STYLES = ("fast_style", "stylize")
EPILOGUE = examples(
    "pellucid audit --model runs/a --data digits --out runs/a-audit",
    "pellucid audit --model runs/a --model runs/b --data mnist --images first:1000 --eps 0.1,0.2,0.3 --out runs/ab",
    "pellucid audit --model nets.py:build --weights mine.safetensors --data photos/ --eps 2/255,8/255 --out runs/c",
)


def audit(
    model: Annotated[list[str], typer.Option(help="As for `pellucid attack`; more than once to compare.")],
    data: DataOption,
    out_folder: Annotated[Path, typer.Option("--out", help="report.html, audit.json, rows.parquet, run.json.")],
    images: ImagesOption = None,
    split: SplitOption = None,
    size: SizeOption = None,
    weights: WeightsOption = None,
    eps: Annotated[
        str, typer.Option(help="Radii, as 0.1,0.2 or 2/255,8/255; default: a ladder fit for the data.")
    ] = "",
    attack: Annotated[str, typer.Option(help="The attack on the prediction; its ball is set to each eps.")] = "",
    aai: Annotated[str, typer.Option(help="The attack on the interpretation; likewise.")] = "",
    worst: Annotated[
        str, typer.Option(help="The worst case, at the middle radius; default: a quick ensemble. none: leave it out.")
    ] = "",
    style: Annotated[
        str,
        typer.Option(help="A transform that stylises, for what it looks at: \"fast_style(weights='w.safetensors')\"."),
    ] = "",
    looks: Annotated[
        bool, typer.Option("--looks/--no-looks", help="Ask what it looks at: transformed images, saliency maps.")
    ] = True,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mean: MeanOption = "",
    std: StdOption = "",
    json_: JsonOption = False,
) -> None:
    """Judge classifiers: robustness, robustness of the explanation, signs of masked gradients, what they look at.

    One page, one JSON.

    Interrupted? The same command goes on where it stopped.
    """
    from pellucid import registry
    from pellucid.audit import run_audit, total_work
    from pellucid.protocol import (
        DEFAULT_AAI,
        DEFAULT_ATTACK,
        DEFAULT_WORST,
        PHOTOGRAPH,
        Looks,
        Protocol,
        default_ladder,
        prepared,
    )
    from pellucid.report.tables import markdown
    from pellucid.run_folder import claim_call

    only_for_others(model, weights, mean, std)
    found, indices = open_images(data, split, images, seed, size)
    subjects = named([open_subject(m, weights, found, device=device, mean=mean, std=std) for m in model])
    bound = registry.parse(attack, "attacks") if attack else DEFAULT_ATTACK
    protocol = Protocol(
        eps=radii(eps, bound) or default_ladder(found.shape),
        attack=bound,
        aai=registry.parse(aai, "attacks") if aai else DEFAULT_AAI,
        worst=None if worst == "none" else registry.parse(worst, "attacks") if worst else DEFAULT_WORST,
        seed=seed,
        looks=Looks(
            map_images=64 if min(found.shape[1:]) < PHOTOGRAPH else 16,
            style=_style(style) if style else None,
        )
        if looks
        else None,
    )
    what = {
        "eps": list(protocol.eps),
        "attack": registry.describe(bound),
        "aai": registry.describe(protocol.aai),
        "worst": None if protocol.worst is None else registry.describe(protocol.worst),
        "looks": looks,
        "style": style,
    }
    models = [subject.model for subject in subjects]
    call = checked_call(out_folder, "audit", what, found, indices, models, seed=seed, device=device)
    subjects = [prepared(subject, protocol, found) for subject in subjects]
    with progress("auditing", total_work(subjects, len(indices), protocol, found), quiet=json_) as tick:
        done = run_audit(
            subjects,
            found,
            indices,
            protocol,
            out_folder,
            title=f"{' · '.join(s.name for s in subjects)} on {data}",
            data={"name": data, "split": found.split, "images": images or f"{len(indices)} at random"},
            device=device,
            tick=tick,
        )
    claim_call(out_folder, call)
    if json_:
        print_json(done.figures)
    else:
        out.print(markdown(done.figures), markup=False, highlight=False, soft_wrap=True)
        err.print(f"[bold]{escape(str(out_folder / 'report.html'))}[/]")


def _style(spec: str) -> "Transform":
    """A transform that stylises, or one of the user's own."""
    from pellucid import registry
    from pellucid.errors import PellucidError

    if Path(spec).expanduser().is_file():
        raise PellucidError(f"--style wants a transform, and {spec} is a file: \"fast_style(weights='{spec}')\"")
    style = registry.parse(spec, "transforms")
    if any(registry.own(style)) or registry.describe(style).partition("(")[0] in STYLES:
        return style
    raise PellucidError(f"--style {spec} is no style: {' or '.join(STYLES)}, or a transform of your own")
