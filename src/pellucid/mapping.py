"""Logits and maps together: where the maps are CAMs, both come out of one forward pass."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn

from pellucid.interpreters.activations import cam
from pellucid.network import Network
from pellucid.types import Classes, Generator, Images, Interpreter, Labels, Logits, Maps


def drawing_from(interpreter: Interpreter, generator: Generator) -> Interpreter:
    """The interpreter, its random numbers (if it draws any and none is bound yet) from a generator."""
    if "generator" not in inspect.signature(interpreter).parameters or generator is None:
        return interpreter
    drawing: Interpreter = partial(interpreter, **{"generator": generator})
    return drawing


def true_class_maps(interpreter: Interpreter, model: nn.Module, x: Images, y: Labels, *, noise: int) -> Maps:
    """Maps `[b 1 ...]` of class y. Random ones draw from the seed `noise`: with one seed only the images differ."""
    return drawing_from(interpreter, torch.Generator(x.device).manual_seed(noise))(model, x, y[:, None])


def underlying(interpreter: Interpreter) -> tuple[Interpreter, dict[str, Any]]:
    """The function under every `partial`, and the options bound to it."""
    if not isinstance(interpreter, partial):
        return interpreter, {}
    function, options = underlying(interpreter.func)
    return function, options | dict(interpreter.keywords)


def logits_and_maps(model: nn.Module, x: Images, classes: Classes, interpreter: Interpreter) -> tuple[Logits, Maps]:
    """`(f(x), L(x, classes))`; for CAM of a `Network` the logits are the sums of the maps."""
    if interpreter is cam and isinstance(model, Network):
        everything = model.class_maps(x)
        rows = classes[:, :, None, None].expand(-1, -1, *everything.shape[2:])
        return everything.sum((2, 3)), everything.gather(1, rows)
    return model(x), interpreter(model, x, classes)


def logits_and_all_maps(model: nn.Module, x: Images, interpreter: Interpreter) -> tuple[Logits, Maps]:
    """`(f(x), L(x, every class))`."""
    if interpreter is cam and isinstance(model, Network):
        maps = model.class_maps(x)
        return maps.sum((2, 3)), maps
    logits = model(x)
    return logits, interpreter(model, x, torch.arange(logits.shape[1], device=x.device).expand(len(x), -1))
