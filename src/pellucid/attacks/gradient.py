"""Gradient attacks on the prediction: one step, many steps, away from the label or towards another class."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.balls import L1, Ball, Linf, Radius, checked
from pellucid.errors import PellucidError
from pellucid.metrics import input_gradient_norm, log_odds, margin
from pellucid.network import frozen
from pellucid.search import (
    Judge,
    Loss,
    ascend,
    ascend_survivors,
    check_counts,
    check_step_size,
    of_rows,
    select,
    starting,
)
from pellucid.targets import Goal, choose
from pellucid.types import Generator, Images, Labels, Notes, PerExample, RowNumbers

Kind = Literal["ce", "margin"]
Underflow = Literal["keep", "repair"]
Precision = Literal["fp32", "bf16"]


def fgsm(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    targeted: bool = False,
    loss: Kind = "ce",
    underflow: Underflow = "keep",
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """`x' = clip(x + eps · steepest(∇_x CE(f(x), y)))`; with `targeted`, y is the goal and the sign is minus.

    In the Linf ball `steepest` is the sign, in L2 the unit vector; in L1 the sign on the 1.5 eps largest pixels.
    Source: Goodfellow et al. 2015, eq. 3.

    A confident model's gradient underflows to exactly zero, and the image comes back unchanged: robust in no sense but
    that of fp32. `underflow="keep"` is that, as published figures have it (those of Ross & Doshi-Velez 2018 too); with
    "repair" the gradient is that of the log-odds `log Σ_{j≠y} exp f_j - f_y`, which has the direction of CE's in exact
    arithmetic and never underflows. `loss="margin"` maximises `max_{j≠y} f_j - f_y` instead of CE; it does not either.
    Notes `gradient_underflow`: whether CE's gradient is exactly zero at x.
    """
    del generator  # deterministic
    with frozen(model, x, y):
        _note_underflow(notes, model, x, y)
        climb = _climb(model, y, targeted, loss, underflow)
        return ascend(climb, x, ball, steps=1, step_size=checked(ball, x).eps, keep_best=False)


def tgsm(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    target: Goal = "next",
    ball: Ball = Linf(0.3),
    loss: Kind = "ce",
    underflow: Underflow = "keep",
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Targeted gradient sign method: `x' = clip(x - eps · steepest(∇_x CE(f(x), t)))`, one step towards class t.

    `target` is a class number or a rule: "next" (`t = (y + 1) mod C`), "random", "runner_up", "least_likely"; the other
    options are those of `fgsm`. Towards a class of small probability CE's gradient is large, so this attack works where
    FGSM's gradient underflows. Notes `target`, and `gradient_underflow` at t. Source: Kurakin et al. 2017, sec. 3;
    Ross & Doshi-Velez 2018, with t = y + 1.
    """
    goal = choose(target, model, x, y, generator)
    if notes is not None:
        notes["target"] = goal
    return fgsm(model, x, goal, ball=ball, targeted=True, loss=loss, underflow=underflow, notes=notes)


def iterated_tgsm(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    target: Goal = "next",
    ball: Ball | None = None,
    steps: int = 10,
    step_size: float = 0.1,
    keep_best: bool = False,
    loss: Kind = "ce",
    underflow: Underflow = "keep",
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """`x' <- clip(Π(x' - step_size · steepest(∇_x CE(f(x'), t))))`, `steps` times from x: TGSM, iterated.

    Without a ball (the default) there is no overall budget: only the box holds the images, and the steps are signs.
    This and the defaults are Ross & Doshi-Velez's 2018 (10 steps of 0.1 on MNIST and notMNIST, 15 on SVHN): its
    successes say how plausible the images become, not that a small change fools. With a ball the iterates are projected
    onto it. The last iterate is returned; with `keep_best` the one of largest margin for t. `target`, `loss`,
    `underflow` and the notes are as in `tgsm`. Source: Kurakin et al. 2017, sec. 2.3.
    """
    check_counts(steps=steps)
    check_step_size(step_size)
    goal = choose(target, model, x, y, generator)
    with frozen(model, x, y):
        _note_underflow(notes, model, x, goal)
        if notes is not None:
            notes["target"] = goal
        climb = _climb(model, goal, True, loss, underflow)
        held = Linf(1.0) if ball is None else ball  # the box lies within Linf(1) of every image
        return ascend(climb, x, held, steps=steps, step_size=step_size, keep_best=keep_best)


def pgd(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    keep_best: bool = True,
    stop_when_fooled: bool = False,
    targeted: bool = False,
    loss: Kind = "ce",
    underflow: Underflow = "repair",
    precision: Precision = "fp32",
    notes: Notes = None,
    generator: Generator = None,
) -> Images:
    """Projected gradient descent: steepest ascent of `CE(f(x'), y)` in the ball; with `targeted`, descent to goal y.

    `step_size` is in pixel units, by default `2.5 eps / steps`; in the L1 ball by default from eps down to 0, shared by
    4 eps pixels at first and 0.5 eps at last, after Tramer & Boneh 2019. `restarts` count where the start is random.
    `keep_best` returns per image, over all iterates and restarts, the one of smallest margin (largest, when targeted);
    without it the last iterate, as many published protocols do. With `stop_when_fooled` images leave as they fall,
    every few steps, and a restart attacks only what stands: the same verdicts, sooner. Source: Madry et al. 2018,
    sec. 2.1.

    `loss="margin"` maximises `max_{j≠y} f_j - f_y`. `underflow="repair"` takes the gradient of the log-odds
    `log Σ_{j≠y} exp f_j - f_y`, whose direction is that of CE's in exact arithmetic, so that a confident model does not
    pass for robust; "keep" leaves a gradient of zero at zero. Notes `gradient_underflow`, as `fgsm`. Raises where
    `stop_when_fooled` is to go with the last iterate. `precision="bf16"` takes its steps under autocast, a third sooner
    where convolutions are the cost, with nearly the same signs. Whether an image has fallen, and which of its iterates
    is the best, is judged in fp32: of every 5 steps the best by bf16, and the last.
    """
    check_counts(steps=steps, restarts=restarts)
    check_step_size(step_size)
    if stop_when_fooled and not keep_best:
        raise PellucidError("stop_when_fooled=True returns the best iterate: leave out keep_best=False, or the former")

    def loss_of(rows: RowNumbers) -> Loss:
        return _climb(model, y[rows], targeted, loss, underflow, precision, scored=keep_best)

    def judge_of(rows: RowNumbers) -> Judge:
        return partial(_misclassified, model, y[rows], targeted)

    options: dict[str, Any] = {
        "steps": steps,
        "step_size": step_size,
        "keep_best": keep_best,
        "leave": stop_when_fooled,
        "judge_of": judge_of if precision == "bf16" else None,  # in fp32 the loss's own score is the judge's
    }
    with frozen(model, x, y):
        _note_underflow(notes, model, x, y)
        rows = torch.arange(len(x), device=x.device)
        found = _descend(loss_of, x, starting(x, ball, random_start, generator), rows, ball, **options)
        for _ in range(restarts - 1 if random_start else 0):
            start = starting(x, ball, random_start, generator)  # for all, so that who has fallen changes no one's start
            rows = _standing(judge_of, found, rows) if stop_when_fooled else rows
            tried = _descend(loss_of, x, start, rows, ball, **options)
            found[rows] = _stronger(judge_of(rows), tried, found[rows])
        return found


def _descend(
    loss_of: Callable[[RowNumbers], Loss],
    x: Images,
    start: Images,
    rows: RowNumbers,
    ball: Ball,
    *,
    steps: int,
    step_size: float | None,
    keep_best: bool,
    leave: bool,
    judge_of: Callable[[RowNumbers], Judge] | None,
) -> Float[Tensor, "n c h w"]:
    """One run of PGD, of the rows alone."""
    x, start, ball = x[rows], start[rows], ball.resized(of_rows(ball.eps, rows))
    size: Radius = 2.5 * ball.eps / max(1, steps) if step_size is None else step_size
    decay = step_size is None and isinstance(ball, L1)
    size = ball.eps if decay else size
    way: dict[str, Any] = {"steps": steps, "step_size": size, "start": start, "decay": decay}
    if leave:
        judges = None if judge_of is None else lambda few: judge_of(rows[few])
        return ascend_survivors(lambda few: loss_of(rows[few]), x, ball, judge_of=judges, **way)
    judge = None if judge_of is None else judge_of(rows)
    return ascend(loss_of(rows), x, ball, keep_best=keep_best, judge=judge, **way)


def _standing(judge_of: Callable[[RowNumbers], Judge], found: Images, rows: RowNumbers) -> Int[Tensor, " left"]:
    """Which of the rows no attack has felled."""
    return rows[judge_of(rows)(found[rows]) <= 0]


def _stronger(judge: Judge, challenger: Images, champion: Images) -> Images:
    """Per image, the one of higher score."""
    return select(judge(challenger) > judge(champion), challenger, champion)


def _misclassified(model: nn.Module, y: Labels, targeted: bool, at: Images) -> PerExample:
    """By how much, in full precision; with `targeted`, by how much the goal wins."""
    with torch.no_grad(), torch.autocast(at.device.type, enabled=False):
        gap = margin(model(at), y)
    return gap if targeted else -gap


def _note_underflow(notes: Notes, model: nn.Module, x: Images, y: Labels) -> None:
    if notes is not None:
        notes["gradient_underflow"] = input_gradient_norm(model, x, y) == 0


def _climb(
    model: nn.Module,
    y: Labels,
    targeted: bool,
    kind: Kind,
    underflow: Underflow,
    precision: Precision = "fp32",
    *,
    scored: bool = True,
) -> Loss:
    """What to maximise away from y, or towards it; `scored`, with by how much the image is misclassified (or at y)."""
    sign = -1 if targeted else 1
    if kind not in ("ce", "margin") or underflow not in ("keep", "repair"):
        raise PellucidError(f"loss (={kind!r}) must be ce or margin, underflow (={underflow!r}) keep or repair")

    def loss(at: Images) -> PerExample | tuple[PerExample, PerExample]:
        with torch.autocast(at.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(at).to(at.dtype)
        if kind == "margin":
            value = -margin(logits, y)
        elif underflow == "keep":
            value = F.cross_entropy(logits, y, reduction="none")
        else:
            value = -log_odds(logits, y)  # CE's own direction, in exact arithmetic
        return (sign * value, -sign * margin(logits.detach(), y)) if scored else sign * value

    return loss
