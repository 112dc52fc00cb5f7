"""The pictures of an audit: images, what the attacks make of them, and the maps before and after."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid import registry
from pellucid.data import ImageSet
from pellucid.evaluation import attack_images
from pellucid.interpreters.activations import cam
from pellucid.interpreters.gradients import gradient
from pellucid.mapping import true_class_maps
from pellucid.metrics import kendall_tau
from pellucid.network import device_of, frozen
from pellucid.protocol import Protocol, Subject, at_radius
from pellucid.results import Rows
from pellucid.types import Attack, Images, Labels


def choose(rows: Mapping[str, Mapping[tuple[str, float], Rows]], count: int) -> list[int]:
    """Positions of the first images of distinct classes that every model has right; others only to fill up."""
    clean = [found["clean", 0.0] for found in rows.values()]
    right = np.logical_and.reduce([c["correct"] for c in clean])
    labels = clean[0]["label"]

    def earlier(i: int) -> int:
        return int((right[:i] & (labels[:i] == labels[i])).sum())

    order = sorted(range(len(labels)), key=lambda i: (not right[i], earlier(i), i))
    return sorted(order[:count], key=lambda i: (labels[i], i))


def gallery(
    subjects: list[Subject], images: ImageSet, indices: Tensor, positions: list[int], protocol: Protocol
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Entries for the audit's figures, and the arrays they show, by `row/...` keys."""
    chosen = indices[positions]
    x, y = images.batch(chosen)
    eps = protocol.gallery_eps
    entries: list[dict[str, Any]] = [
        {"row": r, "index": int(i), "label": images.class_names[int(label)], "eps": eps, "models": []}
        for r, (i, label) in enumerate(zip(chosen, y, strict=True))
    ]
    arrays = {f"{r}/image": x[r].numpy() for r in range(len(x))}
    for subject in subjects:
        found, shown = _of_model(subject, x, y, images.class_names, protocol)
        for r, entry in enumerate(entries):
            entry["models"].append({"name": subject.name} | found[r])
        arrays |= {f"{r}/{subject.name}/{what}": a[r] for what, a in shown.items() for r in range(len(x))}
    return entries, arrays


def _of_model(
    subject: Subject, x: Images, y: Labels, names: tuple[str, ...], protocol: Protocol
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    model, eps = subject.model, protocol.gallery_eps
    device = device_of(model)
    x, y = x.to(device), y.to(device)

    def judged(at: Images) -> list[dict[str, Any]]:
        top = model(at).softmax(1).max(1)
        return [
            {"prediction": names[int(c)], "confidence": float(p)} for p, c in zip(top.values, top.indices, strict=True)
        ]

    with frozen(model), torch.no_grad():
        generator = torch.Generator(device).manual_seed(protocol.seed)
        attacked = attack_images(at_radius(_to_the_end(protocol.attack), eps), model, x, y, generator=generator)
        shown = {"attacked": attacked, "gradient": gradient(model, x, y[:, None])[:, 0].sum(1)}
        found = [
            {"clean": clean, "attacked": fooled, "interpretation_attacked": None}
            for clean, fooled in zip(judged(x), judged(attacked), strict=True)
        ]
        if subject.has_cam:
            interpreter = registry.option(protocol.aai, "interpreter") or cam
            torn = attack_images(at_radius(protocol.aai, eps), model, x, y, generator=generator)
            shows = (("clean", x), ("attacked", attacked), ("aai", torn))
            maps = {n: true_class_maps(interpreter, model, at, y, noise=protocol.seed) for n, at in shows}
            taus = kendall_tau(maps["clean"].flatten(1), maps["aai"].flatten(1))
            for entry, after, tau in zip(found, judged(torn), taus, strict=True):
                entry["interpretation_attacked"] = after | {"tau": float(tau)}
            # One map of two dimensions to look at: what maps have beyond (channels) is added up.
            flat = {f"map_{n}": m[:, 0].flatten(1, -3).sum(1) if m.dim() > 4 else m[:, 0] for n, m in maps.items()}
            shown |= {"aai": torn} | flat
    return found, {name: tensor.cpu().numpy() for name, tensor in shown.items()}


def _to_the_end(attack: Attack) -> Attack:
    """Pictures are of the most that an attack makes of an image, not of the first that fools."""
    if not registry.option(attack, "stop_when_fooled"):
        return attack
    whole: Attack = partial(attack, **{"stop_when_fooled": False})
    return whole
