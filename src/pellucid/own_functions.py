"""A user's own functions, by where they are: `package.module:function` or `file.py:function`."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid.errors import PellucidError


def source_digest(function: Callable[..., Any]) -> str:
    """A content hash of the file that a function stands in; of what has none, of its bytecode."""
    try:
        content = Path(inspect.getfile(function)).read_bytes()
    except (TypeError, OSError):
        content = getattr(getattr(function, "__code__", None), "co_code", repr(function).encode())
    return hashlib.sha256(content).hexdigest()


def place_of(error: Exception) -> str:
    """The file and line where the user's code raised it; a syntax error names its own."""
    if isinstance(error, SyntaxError):
        return "" if error.filename is None or error.filename in str(error) else f" in {error.filename}"
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def own_function(where: str) -> Callable[..., Any]:
    """`package.module:function` or `file.py:function`."""
    place, _, name = where.rpartition(":")
    sys.path[:0] = [str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())]
    try:
        module = _from_path(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, FileNotFoundError, ValueError, TypeError) as error:
        raise PellucidError(
            f"cannot import {place!r} ({error}): write package.module:function or file.py:function"
        ) from None
    except Exception as error:  # the user's own code: whatever it raised is told, by its name and place
        raise PellucidError(f"{place} raised {type(error).__name__} when imported: {error}{place_of(error)}") from None
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
