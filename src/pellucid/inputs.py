"""What attacks and interpreters are given, checked once per call: the images, their classes, the model's first answer.

No pass is made for it: the model's answer is looked at when the attack first asks for one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.types import Reading

_vouched: ContextVar[int | None] = ContextVar("vouched", default=None)  # the model that an outer call was checked with


@contextmanager
def given(model: nn.Module, x: Any, classes: Any, *, ndim: int = 1, count: int | None = None) -> Iterator[None]:
    """Raise `PellucidError` on what breaks the contract, at entry or at the model's first answer; once per outer call.

    Images: floats `[b, c, h, w]` in [0, 1], finite. Classes: int64, below `count` where that is known beforehand; `[b]`
    for attacks, and with `ndim=2` `[b, m]` for maps, whose images may lie beside the box by as much as its width: maps
    are taken at noisy images too. The model: a module whose answer is logits, not probabilities. Calls inside the block
    are not checked: they get what the outer one made. A failing pass is explained where model and images differ in type
    or place.
    """
    if _vouched.get() == id(model):
        yield
        return
    largest = check(model, x, classes, ndim=ndim, count=count)
    seen: list[bool] = []
    look = _first_answer(largest, seen, least=2 if ndim == 1 else 1)
    token = _vouched.set(id(model))
    try:
        if isinstance(model, torch.jit.ScriptModule):  # takes no hooks
            with torch.no_grad():
                look(model, x, model(x[:2]))
            yield
        else:
            with _watched(model, look):
                yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not seen:
            explain_types(model, x, error)
        raise
    finally:
        _vouched.reset(token)


@contextmanager
def _watched(model: nn.Module, look: Any) -> Iterator[None]:
    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def check(model: nn.Module, x: Any, classes: Any, *, ndim: int = 1, count: int | None = None) -> int:
    """What `given` asks at its entry. Returns the largest class, -1 where there is none."""
    _check_model(model)
    check_images(x, room=ndim - 1)
    return _check_classes(classes, x, ndim, count)


def are_probabilities(logits: Tensor) -> Tensor:
    """Whether every row is of numbers >= 0 that add up to 1."""
    if len(logits) == 0 or logits.shape[1] < 2:
        return torch.tensor(False)
    return (logits >= 0).all() & ((logits.sum(1) - 1).abs().max() < 1e-4)


def _check_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        return
    hint = ": load_model gives the model and its facts, model, _ = load_model(...)" if isinstance(model, tuple) else ""
    raise PellucidError(f"the model is a {type(model).__name__}, and must be a torch.nn.Module that gives logits{hint}")


def check_images(x: Any, room: float = 0) -> None:
    """Raise `PellucidError` unless x are images: floats `[b c h w]`, finite, no further than `room` beyond [0, 1]."""
    if not isinstance(x, Tensor):
        raise PellucidError(f"the images are a {type(x).__name__}, and must be a tensor: torch.as_tensor makes one")
    if not x.is_floating_point():
        raise PellucidError(f"the images are {_dtype(x)}, and must be floats in [0, 1]: for bytes, x.float() / 255")
    if x.ndim != 4:
        hint = "x[None] adds the batch's axis" if x.ndim == 3 else "reshape them"
        raise PellucidError(f"the images have shape {tuple(x.shape)}, and must have [batch, c, h, w]: {hint}")
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise PellucidError(
            "torch.inference_mode allows no gradients, which attacks and maps need: use torch.no_grad instead, and "
            "clone the tensors made inside it"
        )
    if not x.numel():
        return
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not (low > -torch.inf and high < torch.inf):  # NaN too
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise PellucidError(f"{bad} of {len(x)} images hold pixels that are not finite: look at how they were made")
    if low < -room or high > 1 + room:
        hint = (
            "divide by 255"
            if low >= 0 and high > 2
            else "x.clamp(0, 1)"
            if low >= -0.01 and high <= 1.01
            else "leave their normalisation to the model (Normalise is its first layer)"
        )
        raise PellucidError(f"the pixels lie in [{low:.8g}, {high:.8g}], and must lie in [0, 1]: {hint}")


def check_reading(what: str, reading: object) -> None:
    """Raise `PellucidError` unless a paper can be read so: else the other reading would run, and nobody see it."""
    if reading not in get_args(Reading):
        allowed = ", ".join(map(repr, get_args(Reading)))
        raise PellucidError(f"{what}(reading={reading!r}): choose one of {allowed}")


def _check_classes(classes: Any, x: Tensor, ndim: int, count: int | None) -> int:
    """The largest class, -1 if there is none."""
    shape = "[batch]" if ndim == 1 else "[batch, m]"
    if not isinstance(classes, Tensor):
        raise PellucidError(f"the classes are a {type(classes).__name__}, and must be a tensor: torch.as_tensor(y)")
    if classes.dtype != torch.int64:
        raise PellucidError(f"the classes are {_dtype(classes)}, and must be int64: y.long()")
    if classes.ndim != ndim or len(classes) != len(x):
        hint = "y[:, None]" if (classes.ndim, ndim) == (1, 2) else "one class number per image"
        raise PellucidError(
            f"the classes have shape {tuple(classes.shape)} for {len(x)} images, and must have {shape}: {hint}"
        )
    if classes.device != x.device:
        raise PellucidError(f"the images are on {x.device} and the classes on {classes.device}: y.to(x.device)")
    if not classes.numel():
        return -1
    low, high = (int(v) for v in torch.aminmax(classes))
    if low < 0 or (count is not None and high >= count):
        raise _out_of_range(low, high, count)
    return high


def _first_answer(largest: int, seen: list[bool], least: int) -> Any:
    """A hook that looks at the first answer of the model, and no further one; `seen` says whether there was one.

    Of at least so many classes: an attack needs another one to end in.
    """

    def look(_module: nn.Module, _inputs: object, answer: Any) -> None:
        if seen:
            return
        seen.append(True)
        _check_shape(answer, largest, least)
        values = answer.detach()
        if bool(are_probabilities(values)):
            raise PellucidError("the model gives probabilities, not logits: leave out its final softmax")
        if bool(values.isnan().any()):
            raise PellucidError("the model's logits are not numbers (NaN): are its weights?")

    return look


def _check_shape(answer: Any, largest: int, least: int) -> None:
    if not isinstance(answer, Tensor):
        raise PellucidError(
            f"the model gives a {type(answer).__name__}, and must give logits [batch, classes] alone: wrap it in "
            "a module that returns that part"
        )
    if answer.ndim != 2:
        raise PellucidError(
            f"the model gives {tuple(answer.shape)}, and must give logits [batch, classes]: flatten, or pool"
        )
    if answer.shape[1] < least:
        raise PellucidError(
            f"a model of {answer.shape[1]} class has no other class to end in, so no attack can succeed: one logit z "
            "for yes or no makes two classes as torch.cat([0 * z, z], 1)"
        )
    if largest >= answer.shape[1]:
        raise _out_of_range(0, largest, answer.shape[1])


def _out_of_range(low: int, high: int, count: int | None) -> PellucidError:
    wrong = low if low < 0 else high
    allowed = "0 and more" if count is None else f"0 to {count - 1}, the model's classes"
    return PellucidError(
        f"class {wrong} does not exist: classes are numbered {allowed}; labels that begin at 1 need -1"
    )


def explain_types(model: nn.Module, x: Tensor, error: Exception) -> None:
    """Raise what a failing pass says in other words, where model and images differ in type or device."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None and (first.dtype, first.device) != (x.dtype, x.device):
        raise PellucidError(_difference(first, x)) from error


def _difference(weight: Tensor, x: Tensor) -> str:
    if weight.dtype != x.dtype:
        names = _dtype(weight), _dtype(x)
        fix = f"model.to({x.dtype}), or x.to({weight.dtype})"
        return f"the model's weights are {names[0]} and the images {names[1]}, and must be alike: {fix}"
    return f"the model is on {weight.device} and the images on {x.device}: x.to({str(weight.device)!r})"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
