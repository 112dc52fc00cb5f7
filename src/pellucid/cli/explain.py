"""pellucid explain"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pellucid.cli.common import (
    DataOption,
    DeviceOption,
    JsonOption,
    MeanOption,
    ModelOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    WeightsOption,
    checked_call,
    err,
    examples,
    only_for_others,
    open_images,
    open_subject,
    print_json,
)
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from torch import Tensor

EPILOGUE = examples(
    "pellucid explain --model runs/a --data digits --images first:8 --out runs/a-maps",
    'pellucid explain --model runs/a --data digits --interpreter "smoothgrad(samples=99)" --target predicted --out m',
)


def explain(
    model: ModelOption,
    data: DataOption,
    out_folder: Annotated[Path, typer.Option("--out", help="maps.safetensors and sheet.png.")],
    interpreter: Annotated[str, typer.Option(help="See `pellucid list interpreters`.")] = "cam",
    target: Annotated[str, typer.Option(help="Whose map: label, predicted, or a class's number or name.")] = "label",
    images: Annotated[
        str | None, typer.Option(help="all, a count (a seeded sample), first:N, or boopathy200. Default: the first 8.")
    ] = None,
    split: SplitOption = None,
    size: SizeOption = None,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    mean: MeanOption = "",
    std: StdOption = "",
    json_: JsonOption = False,
) -> None:
    """Maps of what a classifier looks at: signed, raw, as numbers (safetensors) and as one picture."""
    import torch
    from safetensors.torch import save

    from pellucid import registry
    from pellucid.mapping import drawing_from
    from pellucid.network import frozen
    from pellucid.run_folder import claim_call
    from pellucid.weights import write_atomically

    bound = registry.parse(interpreter, "interpreters")
    only_for_others([model], weights, mean, std)
    found, indices = open_images(data, split, images, seed, size, first=8)
    if len(indices) > 256:
        raise PellucidError(f"{len(indices)} images are more than a picture holds: choose at most 256 with --images")
    subject = open_subject(model, weights, found, device=device, mean=mean, std=std)
    what = {"interpreter": registry.describe(bound), "target": target}
    call = checked_call(out_folder, "explain", what, found, indices, [subject.model], seed=seed, device=device)
    x, y = (t.to(device) for t in found.batch(indices))
    with frozen(subject.model), torch.no_grad():
        predicted = subject.model(x).argmax(1)
        classes = _classes(target, y, predicted, found.class_names)
        maps = drawing_from(bound, torch.Generator(device).manual_seed(seed))(subject.model, x, classes[:, None])[:, 0]
    claim_call(out_folder, call)
    tensors = {"maps": maps, "images": x, "labels": y, "predictions": predicted, "classes": classes, "indices": indices}
    facts = {"interpreter": registry.describe(bound), "model": model, "data": data}
    write_atomically(
        out_folder / "maps.safetensors", save({k: t.cpu().contiguous().clone() for k, t in tensors.items()}, facts)
    )
    write_atomically(out_folder / "sheet.png", _sheet(x, maps, classes, predicted, found.class_names))
    if json_:
        print_json({"maps": str(out_folder / "maps.safetensors"), "shape": list(maps.shape), "n": len(x), **facts})
    else:
        err.print(f"[bold]{escape(str(out_folder / 'sheet.png'))}[/]  maps {tuple(maps.shape)} in maps.safetensors")


def _classes(target: str, y: "Tensor", predicted: "Tensor", names: tuple[str, ...]) -> "Tensor":
    import torch

    if target in ("label", "predicted"):
        return y if target == "label" else predicted
    if target not in names and not (target.isdigit() and int(target) < len(names)):
        raise PellucidError(
            f"--target {target}: give label, predicted, a class's name, or its number below {len(names)}"
        )
    return torch.full_like(y, names.index(target) if target in names else int(target))


def _sheet(x: "Tensor", maps: "Tensor", classes: "Tensor", predicted: "Tensor", names: tuple[str, ...]) -> bytes:
    from pellucid.report.images import sheet

    flat = maps.flatten(1, -3).sum(1) if maps.dim() > 3 else maps
    captions = [f"{names[int(c)]} (says {names[int(p)]})" for c, p in zip(classes, predicted, strict=True)]
    return sheet(x.cpu().numpy(), flat.cpu().numpy(), captions)
