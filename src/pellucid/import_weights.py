"""Weights that the authors of Boopathy et al. 2020 published as pickles -> Pellucid's safetensors, without trust.

A pickle is a program. Here it may only say where bytes go: before anything runs its instructions are read, and all
but those that build lists, tuples, numbers and texts are refused; the four NumPy names an array needs are answered
with stand-ins that keep bytes, and every other name is refused. NumPy itself never sees the pickle.
"""

import hashlib
import io
import math
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import registry
from pellucid.architectures.resnet import wresnet
from pellucid.architectures.small import pool, small
from pellucid.errors import PellucidError
from pellucid.models import save_model
from pellucid.network import Network

LARGEST = 16 << 20  # bytes; the largest published file has 2 MB
MOST_LAYERS = 64
MOST_CLASSES = 1_000
MOST_INSTRUCTIONS = 20_000  # the longest published file has some 1,000

_BUILDING = re.compile(
    "PROTO|FRAME|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|(SHORT_)?BINUNICODE|(SHORT_)?BINBYTES|"
    "BINBYTES8|EMPTY_LIST|APPENDS?|(EMPTY_)?TUPLE|TUPLE[123]|(LONG_)?BIN(PUT|GET)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|BUILD"
)

Layers = list[tuple[np.ndarray, ...]]
Builder = Callable[..., Network]


@dataclass(frozen=True)
class Imported:
    """One network that was written."""

    name: str
    path: Path
    architecture: str
    parameters: int


def import_weights(source: Path, out: Path) -> list[Imported]:
    """Write every network of a `.pkl` file, or of a folder of them, to `out/NAME.safetensors`; what was written.

    Small, Pool and WResnet are told by the shapes of their arrays: `[weight HWIO, bias]` per convolution, the head a
    1x1 kernel without bias. All or nothing: where one file is hostile, damaged or of another architecture, nothing
    is written, and `PellucidError` names it. A network imported before under the same name is replaced.
    """
    ready = [(path, *_recognise(path, _layers(path, content)), content) for path, content in _files(source)]
    written = []
    for path, architecture, network, content in ready:
        target = out / f"{path.stem}.safetensors"
        facts = {"source": path.name, "source_sha256": hashlib.sha256(content).hexdigest()}
        try:
            save_model(network, target, architecture=architecture, **facts)
        except OSError as error:
            raise PellucidError(f"cannot write {target}: {error.strerror}. Name a folder that can be written") from None
        count = sum(parameter.numel() for parameter in network.parameters())
        written.append(Imported(path.stem, target, architecture, count))
    return written


def _files(source: Path) -> list[tuple[Path, bytes]]:
    paths = sorted(path for path in source.glob("*.pkl") if path.is_file()) if source.is_dir() else [source]
    if not paths:
        raise PellucidError(f"the folder {source} holds no .pkl file: name a published network or a folder of them")
    return [(path, _content(path)) for path in paths]


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise PellucidError(f"there is no file {path}: name a published network's .pkl file, or a folder of them")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise PellucidError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > LARGEST:
        raise PellucidError(f"{path} is larger than {LARGEST >> 20} MiB: no network that can be imported is")
    return content


def _layers(path: Path, content: bytes) -> Layers:
    """The arrays of every layer; nothing the pickle asks for is executed."""
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # a backslash in a hostile name
            _read_instructions(path, content)
        loaded = _Unpickler(path, content).load()
        return [_layer(path, number, entry) for number, entry in enumerate(_sequence(path, loaded))]
    except PellucidError:
        raise
    except (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError) as error:
        raise _damaged(path, error) from None
    except (TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> PellucidError:
    return PellucidError(f"{path} is not a pickled list of [weight, bias] arrays, or is damaged: {error}")


def _read_instructions(path: Path, content: bytes) -> None:
    """Refuse, before anything runs, every instruction that a list of arrays does not need.

    Also those that would exhaust memory: a memo slot numbered 4 billion makes the unpickler allocate them all.
    """
    for number, (code, argument, _) in enumerate(pickletools.genops(content)):
        if code.name in ("GLOBAL", "INST"):
            _stand_in(path, *str(argument).split(" ", 1))
        if not _BUILDING.fullmatch(code.name):
            raise PellucidError(
                f"{path} is refused: it holds the pickle instruction {code.name}, which a list of [weight, bias] "
                "arrays does not need"
            )
        slot = argument if code.name.endswith("PUT") else 0
        if number > MOST_INSTRUCTIONS or (isinstance(slot, int) and slot > MOST_INSTRUCTIONS):
            raise PellucidError(f"{path} is refused: it holds more pickle instructions than any network needs")


class _Unpickler(pickle.Unpickler):  # noqa: S301 -- restricted: that is what this file is for
    """`pickle.Unpickler` that knows four names and no persistent objects."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _stand_in(self.path, module_name, global_name)

    def persistent_load(self, pid: Any) -> Any:
        del pid
        raise PellucidError(f"{self.path} is refused: it asks for a persistent object")


class _Kind:
    """Stands in for `numpy.dtype(text)`, floating point only: an array of objects could hold anything."""

    def __init__(self, text: object, *_: object) -> None:
        if text not in ("f2", "f4", "f8"):
            kind = f"kind {text[:20]!r}" if isinstance(text, str) else "unknown kind"
            raise pickle.UnpicklingError(f"it holds an array of {kind}, and weights are float16, 32 or 64")
        self.text = f"<{text}"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">"):
            raise pickle.UnpicklingError("it holds an array without byte order")
        self.text = state[1] + self.text[1:]


class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct(ndarray, ...)`: the values come with the state."""

    def __init__(self, *_: object) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not given as a kind and bytes")
        flat = np.frombuffer(content, kind.text)
        if not all(type(side) is int and side > 0 for side in shape) or math.prod(shape) != flat.size:
            raise pickle.UnpicklingError(f"it holds an array whose {flat.size} values do not fill its shape")
        self.values = flat.reshape(shape, order="F" if fortran else "C")


class _Scalar(_Array):
    """Stands in for `numpy.core.multiarray.scalar(dtype, bytes)`; older NumPys unpickle an object's bytes."""

    def __init__(self, kind: object, content: object) -> None:
        super().__init__()
        self.__setstate__((1, (), kind, False, content))


# Each has a `__setstate__`, or no attributes that can be set: so BUILD cannot change it from within a pickle.
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _Scalar,
}


def _stand_in(path: Path, module: str, name: str) -> Any:
    if (module, name) not in _STAND_INS:
        raise PellucidError(
            f"{path} is refused: it asks for {f'{module}.{name}'[:80]!r}, and a file of weights needs nothing but "
            "NumPy's arrays. Do not open it with pickle: it may run a program"
        )
    return _STAND_INS[module, name]


def _sequence(path: Path, loaded: object) -> list | tuple:
    if isinstance(loaded, list | tuple) and 0 < len(loaded) <= MOST_LAYERS:
        return loaded
    held = f"a list of {len(loaded)} entries" if isinstance(loaded, list | tuple) else f"a {type(loaded).__name__}"
    raise PellucidError(f"{path} holds {held}, not a list of at most {MOST_LAYERS} layers, each [weight, bias]")


def _layer(path: Path, number: int, entry: object) -> tuple[np.ndarray, ...]:
    arrays = _sequence(path, entry)
    if not all(isinstance(array, _Array) for array in arrays):
        raise PellucidError(f"{path}: layer {number} holds something else than NumPy arrays")
    return tuple(array.values for array in arrays)


def _recognise(path: Path, layers: Layers) -> tuple[str, Network]:
    """The specification and the network whose arrays have exactly these shapes."""
    shapes = [tuple(array.shape for array in layer) for layer in layers]
    first, last = shapes[0][0], shapes[-1][0]
    if len(first) == 4 and len(last) == 4 and first[2] in (1, 3) and last[3] <= MOST_CLASSES:
        for builder in _candidates(channels=first[2], classes=last[3]):
            network = builder(generator=torch.Generator().manual_seed(0))
            if shapes == _published_shapes(network):
                _fill(network, layers)
                _check_finite(path, network)
                return registry.describe(builder), network
    listed = ", ".join(" + ".join("x".join(map(str, shape)) or "scalar" for shape in layer) for layer in shapes[:8])
    raise PellucidError(
        f"{path} holds no architecture known here (small, pool, wresnet, for 1 or 3 channels). Its {len(shapes)} "
        f"layers have the shapes {listed}{', ...' if len(shapes) > 8 else ''}"
    )


def _candidates(*, channels: int, classes: int) -> list[partial[Network]]:
    size = 28 if channels == 1 else 32
    return [
        partial(small, channels=channels, size=size, classes=classes),
        partial(pool, channels=channels, size=size, classes=classes),
        partial(wresnet, channels=channels, classes=classes),
    ]


def _weighted(network: Network) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d)]


def _published_shapes(network: Network) -> list[tuple[tuple[int, ...], ...]]:
    """The shapes as published: a max-pool is an entry of a 2x2 array of no meaning and a scalar."""
    shapes: list[tuple[tuple[int, ...], ...]] = []
    for module in _weighted(network):
        match module:
            case nn.Conv2d():
                outputs, inputs, *kernel = module.weight.shape
                shapes.append(((*kernel, inputs, outputs), (outputs,)))
            case nn.Linear():
                shapes.append(((1, 1, module.in_features, module.out_features),))
            case _:
                shapes.append(((2, 2), ()))
    return shapes


def _fill(network: Network, layers: Layers) -> None:
    with torch.no_grad():
        for module, layer in zip(_weighted(network), layers, strict=True):
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.weight.copy_(_fp32(layer[0]).permute(3, 2, 0, 1))
                module.bias.copy_(_fp32(layer[1]))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(_fp32(layer[0])[0, 0].t())


def _fp32(array: np.ndarray) -> Tensor:
    """Only now, when the shapes are known: one large array, named a thousand times, would fill the memory."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(np.float32))


def _check_finite(path: Path, network: Network) -> None:
    """Of the network, not of the file: the published max-pool entries hold NaN."""
    bad = [name for name, parameter in network.named_parameters() if not bool(parameter.isfinite().all())]
    if bad:
        raise PellucidError(f"{path}: the weights of {', '.join(bad[:4])} are not all finite in fp32: train it anew")
