"""Adversarial training."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid import registry
from pellucid.attacks.gradient import pgd
from pellucid.balls import Ball
from pellucid.errors import PellucidError
from pellucid.schedules import Schedule, at
from pellucid.types import Attack, Generator, Images, Labels


def adversarial(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    attack: Attack = partial(pgd, steps=10, keep_best=False),
    eps: Schedule | None = None,
    clean: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(1 - clean) CE(f(x'), y) + clean CE(f(x), y)`, x' from an attack on the network in eval mode.

    `eps` is the radius at this training step, a number or a schedule such as `Ramp(0, 0.3, 0, 5000)`; by default
    the attack's own. Source: Madry et al. 2018, eq. 2.1.
    """
    attacked = _within(attack, eps, step)(model, x, y, generator=generator)
    loss_attacked = F.cross_entropy(model(attacked), y)
    terms = {"adversarial_cross_entropy": loss_attacked.detach()}
    if clean == 0:
        return loss_attacked, terms
    loss_clean = F.cross_entropy(model(x), y)
    return (1 - clean) * loss_attacked + clean * loss_clean, terms | {"cross_entropy": loss_clean.detach()}


def _within(attack: Attack, eps: Schedule | None, step: int) -> Attack:
    """The attack with the radius of this training step."""
    if eps is None:
        return attack
    ball = registry.option(attack, "ball")
    if not isinstance(ball, Ball):
        raise PellucidError(
            f"eps={registry.describe(eps)} needs an attack in a ball: {registry.describe(attack)} has none"
        )
    resized: Attack = partial(attack, **{"ball": ball.resized(at(eps, step))})
    return resized
