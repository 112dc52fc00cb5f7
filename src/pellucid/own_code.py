"""A user's own classifier, from the function that builds it."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from torch import nn

from pellucid.contract import check_initialised
from pellucid.errors import PellucidError
from pellucid.foreign import as_network
from pellucid.network import Normalise
from pellucid.types import Images
from pellucid.weights import load_into


def from_code(
    where: str,
    weights: Path | None,
    example: Images | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[nn.Module, Mapping[str, str]]:
    """What `package.module:function` or `file.py:function` returns, with weights; a `Network` where it can be."""
    module = _built(where)
    if not isinstance(module, nn.Module):
        raise PellucidError(f"{where} returned a {type(module).__name__}: it must return a torch.nn.Module")
    check_initialised(module)
    if weights is not None:
        load_into(module, weights)
    if (mean is None) != (std is None):
        raise PellucidError("--mean and --std go together")
    module.eval()
    facts = {"architecture": f"{type(module).__name__} from {where}"}
    try:
        if example is not None:
            return as_network(module, example, mean=mean, std=std), facts
    except PellucidError as reason:
        facts["no_maps"] = str(reason)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        # Where the module itself does not run, the contract check says so, and more.
        facts["no_maps"] = f"it could not be taken apart ({type(error).__name__}: {error})"
    return nn.Sequential(Normalise(mean, std), module) if mean and std else module, facts


def _built(where: str) -> object:
    """What the function returns; a module that is named itself needs no function."""
    found = _function(where)
    if isinstance(found, nn.Module):
        return found
    try:
        return found()
    except Exception as error:  # the user's own code: whatever it raised is told, by its name
        raise PellucidError(
            f"{where}() raised {type(error).__name__}: {error}{_place(error)}; it is called without arguments"
        ) from None


def _place(error: Exception) -> str:
    """The file and line where the user's code raised it; a syntax error names its own."""
    if isinstance(error, SyntaxError):
        return "" if error.filename is None or error.filename in str(error) else f" in {error.filename}"
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def _function(where: str) -> Callable[[], object]:
    place, _, name = where.rpartition(":")
    sys.path[:0] = [str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())]
    try:
        module = _from_path(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, FileNotFoundError, ValueError, TypeError) as error:
        raise PellucidError(
            f"cannot import {place!r} ({error}): write package.module:function or file.py:function"
        ) from None
    except Exception as error:  # the user's own code: whatever it raised is told, by its name and place
        raise PellucidError(f"{place} raised {type(error).__name__} when imported: {error}{_place(error)}") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise PellucidError(f"{place} has no function {name!r}")
    return found


def _from_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
