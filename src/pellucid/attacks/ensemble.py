"""The ensemble: one attack after the other, each on the images that still stand."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from pellucid.attacks.apgd import apgd
from pellucid.attacks.fab import fab
from pellucid.attacks.gradient import pgd
from pellucid.attacks.interpretation import aai
from pellucid.attacks.square import square
from pellucid.balls import Ball, Linf, radii, slack
from pellucid.errors import PellucidError
from pellucid.metrics import correct, margin
from pellucid.network import Network, frozen, full_precision
from pellucid.search import check_counts
from pellucid.types import Generator, Images, Labels, Notes, PerExample

QUICK = 20  # steps of the first, cheap searches
CLEARLY = 1e-6  # a margin of less than this share of its two logits may be rounding: the image is attacked further

Stage = Callable[..., Images]  # (x, y, ball=..., generator=...) -> images


def ensemble(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    queries: int = 5000,
    others: Sequence[nn.Module] = (),
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Worst case over attacks of every kind, cheapest first: each sees only the images that still stand.

    In order: `transfer` (the images that fool each of the `others`, by 20 steps of PGD on their margins), `pgd` (as
    much on the model's own), `aai` (which pushes down the class activation map, in steps that suit the ball; where the
    model is a `Network`), `apgd_ce`, `apgd_dlr` (targeted), `fab`, `square_warm` (Square from the strongest image so
    far) and `square`. `steps`, `restarts` and `targets` are those of APGD and FAB, `queries` those of each Square.

    A break is believed only where the image lies in ball and box and is misclassified in full precision, by more than
    rounding; an image whose logits hold a NaN is not classified as y, so it is broken. An image that the model gets
    wrong already comes back unchanged; one that no attack fools comes back as the candidate of smallest margin.
    `notes["broken_by"]` is per image `clean`, the attack's name, or empty where the image stands. Every loss is in
    logits, so saturated softmax outputs stop none of them. What a stage draws hangs on who has fallen before it.

    Source: after AutoAttack (Croce & Hein 2020), without its fixed number of classes: two are enough. Raises
    `PellucidError` as its attacks do, and where the `others` are no networks.
    """
    _check_others(others)
    check_counts(steps=steps, restarts=restarts, targets=targets, queries=queries)
    stages = _stages(model, others, steps, queries, {"restarts": restarts, "targets": targets})
    with frozen(model, x, y), full_precision():
        x = x.detach()
        eps = radii(ball, x)
        with torch.no_grad():
            standing = correct(model(x), y)
        best, score = x.clone(), _judged(model, x, x, y, ball)
        origin = np.where(standing.cpu().numpy(), "", "clean").astype("<U11")
        for name, attack in stages:
            rows = standing.nonzero()[:, 0]
            if not len(rows):
                break
            here = ball.resized(eps[rows])
            warm = {"start": best[rows]} if name == "square_warm" else {}
            tried = attack(x[rows], y[rows], ball=here, generator=generator, **warm)
            value = _judged(model, tried, x[rows], y[rows], here)
            better = value > score[rows]
            best[rows[better]], score[rows[better]] = tried[better], value[better]
            origin[rows[better].cpu().numpy()] = name
            standing[rows[value > 0]] = False
        if notes is not None:
            with torch.no_grad():
                stands = correct(model(best), y).cpu().numpy()
            notes["broken_by"] = np.where(stands, "", origin)
    return best


def _stages(
    model: nn.Module, others: Sequence[nn.Module], steps: int, queries: int, effort: dict[str, int]
) -> list[tuple[str, Stage]]:
    """The attacks by name, cheapest first.

    Square from where gradients led finds what neither finds alone; from its own start, what they lead away from.
    """
    maps = [("aai", partial(_unmapped, model, steps=steps))] if isinstance(model, Network) else []
    return [
        *(("transfer", partial(pgd, other, steps=QUICK, loss="margin")) for other in others),
        ("pgd", partial(pgd, model, steps=QUICK, loss="margin")),
        *maps,
        ("apgd_ce", partial(apgd, model, steps=steps, **effort)),
        ("apgd_dlr", partial(apgd, model, loss="dlr_targeted", steps=steps, **effort)),
        ("fab", partial(fab, model, smallest=False, steps=steps, **effort)),
        ("square_warm", partial(square, model, queries=queries)),
        ("square", partial(square, model, queries=queries)),
    ]


def _check_others(others: object) -> None:
    """A specification can name no networks."""
    if not isinstance(others, Sequence) or not all(isinstance(other, nn.Module) for other in others):
        raise PellucidError(
            f"ensemble(others={others!r}) must be networks whose images are tried first: leave others out, or call "
            "ensemble from Python with a tuple of networks"
        )


def _unmapped(model: Network, x: Images, y: Labels, *, ball: Ball, steps: int, generator: Generator) -> Images:
    """AAI as coded, but for its step of 0.01, which is too short or too long for any ball but Linf(0.3)."""
    size = 2.5 * ball.eps / max(1, steps)
    return aai(model, x, y, ball=ball, steps=steps, step_size=size, reading="as_coded", generator=generator)


def _judged(model: nn.Module, tried: Images, x: Images, y: Labels, ball: Ball) -> PerExample:
    """How far an image is past the boundary: above 0 it is broken. What is not in ball and box counts for nothing.

    A class at minus infinity, masked out, takes no part. Where the margin is no number, `correct` decides.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        logits = model(tried)
    gap, own = margin(logits, y), logits.gather(1, y[:, None])[:, 0]
    rounding = CLEARLY * torch.maximum(own.abs(), (own - gap).abs())
    past = torch.where(gap.isfinite(), -gap - rounding, -gap)
    past = torch.where(gap.isnan(), torch.where(correct(logits, y), -torch.inf, torch.inf), past)
    in_ball = ball.norm(tried - x) <= radii(ball, x) + slack(ball, x)
    in_box = ((tried >= 0) & (tried <= 1)).flatten(1).all(1)
    return torch.where(in_ball & in_box, past, -torch.inf)
