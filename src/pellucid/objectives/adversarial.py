"""Adversarial training: Madry's, Ross & Doshi-Velez's, Zhang & Zhu's, TRADES, in one step, and for free."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.attacks.gradient import pgd
from pellucid.balls import Ball, Linf, per_image
from pellucid.errors import PellucidError
from pellucid.memory import Memory
from pellucid.network import frozen
from pellucid.objectives.standard import standard
from pellucid.schedules import Schedule, check_share, weight
from pellucid.search import gradient_and_score
from pellucid.types import Attack, Generator, Images, Labels, PerExample
from pellucid.worst import Search, Start, resized, within


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
    labels: Literal["true", "predicted"] = "true",
    alternate: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`(1 - clean) CE(f(x'), y) + clean CE(f(x), y)`, x' from an attack on the network in eval mode.

    `eps` is the radius at this training step, a number or a schedule such as `Ramp(0, 0.3, 0, 5000)`; by default
    the attack's own. With `labels="predicted"` the attack goes away from the network's own prediction, so that it
    cannot leak the label (Kurakin et al. 2017); the loss has the true one. `alternate`: every second batch, from the
    first on, clean only, and those between attacked only, as Zhang & Zhu's 2019 code does.
    Sources: Madry et al. 2018, eq. 2.1; with FGSM, `clean=0.5` and predicted labels Ross & Doshi-Velez 2018, sec. 3
    (whose attack saw the network in training mode).
    """
    check_share("clean", clean)
    if labels not in ("true", "predicted"):
        raise PellucidError(f"labels (={labels!r}) must be true or predicted")
    if alternate and clean:
        raise PellucidError(f"alternate=True takes whole batches: leave out clean (={clean:g})")
    if clean == 1 or (alternate and step % 2 == 0):
        return standard(model, x, y, step=step)
    away = y
    if labels == "predicted":
        with frozen(model), torch.no_grad():
            away = model(x).argmax(1)
    attacked = within(attack, eps, step)(model, x, away, generator=generator)
    loss_attacked = F.cross_entropy(model(attacked), y)
    terms = {"adversarial_cross_entropy": loss_attacked.detach()}
    if clean == 0:
        return loss_attacked, terms
    loss_clean = F.cross_entropy(model(x), y)
    return (1 - clean) * loss_attacked + clean * loss_clean, terms | {"cross_entropy": loss_clean.detach()}


def trades(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    steps: int = 10,
    step_size: float | None = None,
    beta: Schedule = 1.0,
    start: Start = "gaussian",
    memory: Memory | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """TRADES: `CE(f(x), y) + beta · max_{x'} KL(p(x) ‖ p(x'))`, p the softmax; x' on the network in eval mode.

    `start` is "gaussian", x plus noise of standard deviation 0.001 (theirs), or "uniform" in the ball (as Boopathy et
    al. 2020 trained it, with beta 1 on MNIST and CIFAR-10; the authors' beta is 1 on MNIST and 6 on CIFAR-10). The
    gradient flows through both arguments of the divergence. Source: Zhang et al. 2019, eq. 5 and algorithm 1.
    """
    price = weight("beta", beta, step)
    if price == 0:
        return standard(model, x, y, step=step)
    with frozen(model):
        with torch.no_grad():
            clean = model(x).log_softmax(1)
        attacked = Search(ball, eps, steps, step_size, start, memory)(
            lambda there: _divergence(clean, model(there).log_softmax(1)), x, step, generator
        )
    logits = model(x)
    fit = F.cross_entropy(logits, y)
    apart = _divergence(logits.log_softmax(1), model(attacked).log_softmax(1)).mean()
    return fit + price * apart, {"cross_entropy": fit.detach(), "divergence": apart.detach()}


def _divergence(p: Tensor, q: Tensor) -> PerExample:
    """`KL(p ‖ q)` of log-probabilities, per example."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def fast(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    length: float = 1.25,
    noise: float = 1.0,
    project: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fast adversarial training: `CE(f(x'), y)` after one step of `length · eps` from a random point of the ball.

    The start is uniform in the ball of radius `noise · eps`, the step steepest in its norm on the network in eval mode,
    and x' projected onto the ball. At `length=1, noise=2, project=False` it is N-FGSM, which does not project back. One
    step can be overfitted: the network learns to fool the step, and accuracy under PGD falls to nothing within an
    epoch. `--validate` with `--keep best` watches for that and keeps the weights from before.
    Sources: Wong et al. 2020, algorithm 3; de Jorge et al. 2022, eq. 3 (N-FGSM).
    """
    here = resized(ball, eps, step)
    with frozen(model):
        start = here.resized(noise * here.eps).sample(x, generator).clamp(0, 1)
        gradient, _ = gradient_and_score(lambda there: F.cross_entropy(model(there), y, reduction="none"), start)
        attacked = start + length * per_image(here.eps, x) * here.steepest(gradient)
        attacked = (here.project(attacked, x) if project else attacked).clamp(0, 1)
    loss = F.cross_entropy(model(attacked), y)
    return loss, {"adversarial_cross_entropy": loss.detach()}


def free(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    ball: Ball = Linf(0.3),
    eps: Schedule | None = None,
    length: float = 1.0,
    memory: Memory | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Free adversarial training: `CE(f(x'), y)`, and the same backward pass moves x' by `length · eps` uphill.

    x' is where the last visit of the image left it, so a batch is best taken several times in a row (`--replays 8`;
    theirs were 8 on CIFAR-10). The first visit, and without a trainer's memory each of them, is uniform in the ball.
    Linf balls only. Source: Shafahi et al. 2019, algorithm 1. Deviations: theirs hands the perturbation on from one
    batch to the next, whatever its images; ours belongs to its image, and one in twenty begins anew at each visit.
    """
    here = resized(ball, eps, step)
    start = here.sample(x, generator) if memory is None else memory.start(x, here, generator)
    attacked = start.detach().requires_grad_()
    if memory is not None:

        def move(gradient: Tensor) -> None:
            moved = attacked.detach() + length * per_image(here.eps, x) * here.steepest(gradient)
            memory.keep(x, here.project(moved, x).clamp(0, 1), here)

        attacked.register_hook(move)
    loss = F.cross_entropy(model(attacked), y)
    return loss, {"adversarial_cross_entropy": loss.detach()}
