"""A user's own functions, by where they are: `package.module:function` or `file.py:function`."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pellucid.errors import PellucidError

_SOURCE = "__pellucid_source__"  # in a module that `own_function` imported: its file's content hash at that moment


def source_digest(function: Callable[..., Any]) -> str:
    """A content hash of the file that a function stands in, as it was when `own_function` imported it, else as it is;
    of what has no file, a notebook's function, of its code."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    try:
        return getattr(function, "__globals__", {}).get(_SOURCE) or _digest(
            Path(inspect.getfile(function)).read_bytes()
        )
    except (TypeError, OSError):
        return _digest(repr(function).encode() if code is None else _spelt(code))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _spelt(code: CodeType) -> bytes:
    """Bytecode with its constants and names, and those of the functions within."""
    inner = [_spelt(each) if isinstance(each, CodeType) else repr(each).encode() for each in code.co_consts]
    return b"|".join([code.co_code, repr(code.co_names).encode(), *inner])


def place_of(error: Exception) -> str:
    """The file and line where the user's code raised it; a syntax error names its own."""
    if isinstance(error, SyntaxError):
        return "" if error.filename is None or error.filename in str(error) else f" in {error.filename}"
    frames = traceback.extract_tb(error.__traceback__)[1:]
    libraries = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
    theirs = [frame for frame in frames if not frame.filename.startswith((*libraries, str(Path(__file__).parent), "<"))]
    frame = next(reversed(theirs or frames), None)
    return "" if frame is None else f" ({frame.filename}, line {frame.lineno})"


def own_function(where: str) -> Callable[..., Any]:
    """`package.module:function` or `file.py:function`."""
    place, _, name = where.rpartition(":")
    beside = str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())
    if beside not in sys.path:
        sys.path.insert(0, beside)
    try:
        module = _from_path(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (ImportError, FileNotFoundError, ValueError, TypeError) as error:
        raise PellucidError(
            f"cannot import {place!r} ({error}): write package.module:function or file.py:function"
        ) from None
    except Exception as error:  # the user's own code: whatever it raised is told, by its name and place
        raise PellucidError(f"{place} raised {type(error).__name__} when imported: {error}{place_of(error)}") from None
    if getattr(module, "__file__", None) and not hasattr(module, _SOURCE):
        setattr(module, _SOURCE, _digest(Path(str(module.__file__)).read_bytes()))
    found = getattr(module, name, None)
    if not callable(found):
        raise PellucidError(f"{place} has no function {name!r}")
    return found


def _from_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    if spec is None or spec.origin is None:
        raise ImportError(f"{path} is not a Python file")
    module, content = importlib.util.module_from_spec(spec), path.read_bytes()
    sys.modules[spec.name] = module
    setattr(module, _SOURCE, _digest(content))
    # Not by the loader: its bytecode of a file that was changed within a second, to the same size, is the old one.
    exec(compile(content, spec.origin, "exec"), module.__dict__)
    return module
