"""Attacks on the interpretation."""

import torch
from torch import Tensor, nn

from pellucid import surrogates
from pellucid.balls import Ball, Linf, Radius, checked
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.mapping import drawing_from
from pellucid.metrics import discrepancy, margin
from pellucid.network import frozen
from pellucid.search import Loss, ascend, check_counts, check_step_size
from pellucid.surrogates import Surrogate, View
from pellucid.types import Generator, Images, Interpreter, Labels, Reading


def aai(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    interpreter: Interpreter = cam,
    steps: int = 200,
    step_size: Radius | None = None,
    reading: Reading = "as_written",
    hinge: float = 1.0,
    p: int = 1,
    k: int = 8,
    keep_best: bool = True,
    surrogate: Surrogate = "auto",
    generator: Generator = None,
) -> Images:
    """Attack against interpretability: change the map of class y as far as the ball allows, and keep the class.

    As written (eq. 7), maximise `D_1(x, x') - hinge · max(max_{j≠y} f_j(x') - f_y(x'), 0)`
    with `D_1 = ‖L(x, y) - L(x', y)‖_p`; `keep_best` prefers iterates that keep the class, then the largest D_1.
    As coded (the published tables), maximise `-Σ_{i in top k} L(x', y)_i` over the k largest values of the clean
    map, with no hinge, step 0.01, and return the last iterate. Both start at random:
    at x the discrepancy has no gradient. Maps of input gradients (gradient, SmoothGrad, integrated gradients) of ReLU
    networks are followed on a softplus twin and judged on the network itself: `surrogate` is "auto", the twin's beta,
    or None for no twin. Sources: Boopathy et al. 2020, eq. 7; Ghorbani et al. 2019; Dombrowski et al. 2019 (the twin).
    """
    check_counts(k=k)
    check_step_size(step_size)
    if hinge < 0:
        raise PellucidError(f"hinge (={hinge:g}) must be >= 0: less would reward leaving the class")
    interpreter = drawing_from(interpreter, generator)
    with frozen(model, x, y):
        view = surrogates.view(model, x, y, interpreter, surrogate)
        with frozen(view.twin):
            loss = _push_down(view, x, y, k) if reading == "as_coded" else _tear_apart(view, x, y, p, hinge)
            default = 0.01 if reading == "as_coded" else 2.5 * checked(ball, x).eps / max(1, steps)
            return ascend(
                loss,
                x,
                ball,
                steps=steps,
                step_size=default if step_size is None else step_size,
                random_start=True,
                keep_best=keep_best and reading == "as_written",
                generator=generator,
            )


def _push_down(view: View, x: Images, y: Labels, k: int) -> Loss:
    classes = y[:, None]
    with torch.no_grad():
        clean = view.interpreter(view.model, x, classes).flatten(1)
    top = clean.topk(min(k, clean.shape[1]), dim=1).indices
    return lambda at: -view.interpreter(view.twin, at, classes).flatten(1).gather(1, top).sum(1)


def _tear_apart(view: View, x: Images, y: Labels, p: int, hinge: float) -> Loss:
    classes = y[:, None]
    with torch.no_grad():
        real = view.interpreter(view.model, x, classes)
        smooth = real if view.twin is view.model else view.interpreter(view.twin, x, classes)

    def loss(at: Images) -> tuple[Tensor, Tensor]:
        logits, maps = view.attacked(at, classes)
        keeps, apart = margin(logits, y), discrepancy(real, view.judged(at, classes, maps), p=p)
        score = torch.where(keeps.detach() >= 0, apart, keeps.detach() - 1)
        return discrepancy(smooth, maps, p=p) - hinge * (-keeps).clamp_min(0), score

    return loss
