"""Names to functions: discovery by convention, and specifications such as `pgd(ball=Linf(8/255), steps=40)`.

A public function defined in a module of a family's package belongs to the family: nothing else to register.
A specification is parsed with `ast`, never evaluated: names, calls, numbers, strings, arithmetic.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import math
import numbers
import operator
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from jaxtyping import AbstractArray
from torch import Tensor, nn

from pellucid import balls, schedules
from pellucid.errors import PellucidError
from pellucid.own_functions import own_function, place_of
from pellucid.results import model_digest

DEEPEST = 50
LONGEST = 2000  # characters of a specification: far above any real one, far below what nests too deep

COUNTS = ("steps", "restarts", "search", "iterations", "queries", "targets", "samples", "k")
NOT_OPTIONS = ("generator", "step", "notes", "memory")  # what the caller hands over at every call
FAMILIES = ("attacks", "interpreters", "objectives", "architectures", "transforms")

_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


_OWN = re.compile(r"(?P<where>[^()]+:(?P<name>\w+))\s*(?P<options>\(.*\))?", re.DOTALL)  # before any bracket, a colon


@cache
def public(family: str) -> MappingProxyType[str, Callable[..., Any]]:
    """`{name: function}` of every public function of a family. The trailing underscore of `int_` is not in the name."""
    if family not in FAMILIES:
        raise PellucidError(f"no family {family!r}: there are {', '.join(FAMILIES)}")
    package = importlib.import_module(f"pellucid.{family}")
    found: dict[str, Callable[..., Any]] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        found |= {name.rstrip("_"): f for name, f in _functions(importlib.import_module(info.name))}
    return MappingProxyType(dict(sorted(found.items())))


def _functions(module: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    return [
        (name, f)
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and not name.startswith("_")
    ]


@cache
def _values() -> MappingProxyType[str, Callable[..., Any]]:
    """What a specification calls at once, as against binds: balls and schedules."""
    return MappingProxyType(
        {
            name: value
            for module in (balls, schedules)
            for name, value in inspect.getmembers(module, inspect.isclass)
            if dataclasses.is_dataclass(value)
        }
    )


def parse(spec: str, family: str) -> Callable[..., Any]:
    """The function that a specification names, its options bound: a `functools.partial`, or the function itself.

    A function of one's own is named by where it is: `file.py:function(option=value)` or `package.module:function(...)`.
    """
    theirs = _OWN.fullmatch(spec.strip()) if isinstance(spec, str) else None
    tree = _read(spec if theirs is None else theirs["name"] + (theirs["options"] or ""))
    name = tree.func if isinstance(tree, ast.Call) else tree
    if not isinstance(name, ast.Name):
        raise PellucidError(f"{spec!r} names no function: write NAME or NAME(option=value, ...)")
    if theirs is not None and family == "architectures":  # a file of weights names its own: it must run no program
        raise PellucidError(f"{spec!r}: an architecture is one of {', '.join(public(family))}, no file's own")
    function = _lookup(name.id, public(family), f"{family[:-1]}") if theirs is None else _own(theirs["where"])
    return _bind(function, tree) if isinstance(tree, ast.Call) else function


def _own(where: str) -> Callable[..., Any]:
    function = own_function(where)
    if not isinstance(function, FunctionType | partial):
        kind = "a class" if isinstance(function, type) else f"an object, of {type(function).__name__}"
        raise PellucidError(f"{where} is {kind}: name a function, whose code says what it does")
    if any(own(function)):
        _places[function] = where
    return function


def own(*bound: Callable[..., Any] | None) -> Iterator[Callable[..., Any]]:
    """Of bound functions, and of what is bound to them, those of the user: a name does not say what they do."""
    for each in bound:
        if isinstance(each, partial):
            yield from own(each.func, *(value for value in each.keywords.values() if callable(value)))
        elif inspect.isfunction(each) and not str(each.__module__).startswith("pellucid."):
            yield each


_places: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()  # where a function of one's own was found


@contextmanager
def telling(function: Callable[..., Any], name: str = "", hint: str = "") -> Iterator[None]:
    """What a user's own function raises in this block becomes a `PellucidError` with its name, file and line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PellucidError) or not any(own(function)):
            raise
        what = f"{name or describe(function)} raised {type(error).__name__}: {error}"
        raise PellucidError(f"{what}{place_of(error)}{hint}") from None


def value(spec: str) -> Any:
    """What a specification of a value means: a number, a tuple, a ball, a schedule."""
    return _value(_read(spec))


def _read(spec: str) -> ast.expr:
    if not isinstance(spec, str):
        raise PellucidError(f"a specification is a text such as 'pgd(steps=40)', not {describe(spec)}")
    if len(spec) > LONGEST:
        raise PellucidError(f"the specification {spec[:40]!r}... has {len(spec)} characters: at most {LONGEST}")
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error if spec.strip() else "it is empty"
        raise PellucidError(f"cannot read the specification {spec!r} ({why}): write NAME or NAME(...)") from None
    if _depth(tree) > DEEPEST:
        raise PellucidError(f"the specification {spec[:40]!r}... nests more than {DEEPEST} deep")
    return tree


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth


def _lookup(name: str, known: MappingProxyType[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    if name in known:
        return known[name]
    spelt = {other.lower(): other for other in known}
    close = [repr(spelt[other]) for other in difflib.get_close_matches(name.lower(), spelt, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(filter(None, (', '.join(close[:-1]), *close[-1:])))}? " if close else ""
    family = f" {kind}s" if f"{kind}s" in FAMILIES else ""
    values = "" if family else f"; balls and schedules are {', '.join(_values())}"
    raise PellucidError(f"no {kind} is called {name!r}: {hint}`pellucid list{family}` shows all{values}")


def _bind(function: Callable[..., Any], call: ast.Call) -> Callable[..., Any]:
    """Bind keyword options, and positional ones to the keyword-only parameters in their order."""
    name = getattr(function, "__name__", str(function)).rstrip("_")
    options = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = [option for option in options if option not in NOT_OPTIONS]
    if len(call.args) > len(options):
        raise PellucidError(f"{name}() takes at most {len(options)} options: {', '.join(options)}")
    bound = {option: _value(node) for option, node in zip(options, call.args, strict=False)}
    for keyword in call.keywords:
        if keyword.arg not in options:
            close = difflib.get_close_matches(keyword.arg or "", options, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            has = (
                f"it has {', '.join(options)}" if options else "it has none; options stand behind a * in its parameters"
            )
            raise PellucidError(f"{name}() has no option {keyword.arg!r}: {hint}{has}")
        if keyword.arg in bound:
            raise PellucidError(f"{name}() was given {keyword.arg!r} twice")
        bound[keyword.arg] = _value(keyword.value)
    missing = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in bound and p.name in options
    ]
    if missing:
        raise PellucidError(f"{name}() needs {', '.join(missing)}")
    for option, given in bound.items():
        _check_option(name, inspect.signature(function).parameters[option], given)
    return partial(function, **bound)


def _check_option(name: str, parameter: inspect.Parameter, given: Any) -> None:
    """A wrong kind of value is said here, by name, and not deep inside an attack."""
    if parameter.name in COUNTS and isinstance(given, int) and given < 1:
        looks = ", and its figures would look like robustness" if name in public("attacks") else ""
        raise PellucidError(f"{name}({parameter.name}={given}) would do nothing{looks}: at least 1")
    choices = typing.get_args(parameter.annotation) if typing.get_origin(parameter.annotation) is Literal else ()
    if choices and given not in choices:
        allowed = ", ".join(map(repr, choices))
        raise PellucidError(f"{name}({parameter.name}={describe(given)}): choose one of {allowed}")
    kinds = () if choices else _kinds(parameter.annotation)
    truth = isinstance(given, bool)  # a bool is an int to Python, and a mistake to everybody else
    if kinds and (not isinstance(given, kinds) or (truth and bool not in kinds)):
        wanted = " or ".join(sorted({_WORDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds}))
        raise PellucidError(f"{name}({parameter.name}={describe(given)}): wants {wanted}")


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a tuple",
    type(None): "None",
    Callable: "a name such as pgd, cam or Ramp(...)",
    balls.Ball: "a ball such as Linf(8/255)",
}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types of value that an option's annotation admits, or none where that cannot be told."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds: list[Any] = []
    for part in typing.get_args(annotation) if union else (annotation,):
        kind = typing.get_origin(part) or part
        if kind is float:
            kinds += [float, int]
        elif kind in (int, bool, str, tuple, type(None), balls.Ball):
            kinds.append(kind)
        elif kind is Callable or getattr(kind, "_is_protocol", False):
            kinds.append(Callable)
        elif not (isinstance(kind, type) and issubclass(kind, AbstractArray)):  # an array nobody can write out
            return ()
    return tuple(kinds) if set(kinds) - {type(None)} else ()


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _arithmetic(_OPERATORS[type(op)], _value(left), _value(right))
        case ast.UnaryOp(op=ast.USub() as op, operand=operand):
            return _arithmetic(_OPERATORS[type(op)], _value(operand))
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Name(id=name):
            return math.inf if name == "inf" else _lookup(name, _everything(), "function or value")
        case ast.Call(func=ast.Name(id=name)) if name in _values():
            return _construct(name, node)
        case ast.Call(func=ast.Name(id=name)):
            return _bind(_lookup(name, _everything(), "function or value"), node)
        case _:
            raise PellucidError(
                f"{ast.unparse(node)!r} is not a number, a string, a tuple, a name or NAME(option=value)"
            )


def _arithmetic(op: Callable[..., float], *numbers: Any) -> float:
    if not all(isinstance(n, int | float) for n in numbers):
        raise PellucidError(f"arithmetic needs numbers, got {', '.join(map(describe, numbers))}")
    try:
        return op(*numbers)
    except ZeroDivisionError:
        raise PellucidError(f"division by zero in {numbers[0]!r} / 0") from None
    except OverflowError:
        raise PellucidError("a number of the specification is too large") from None


def _construct(name: str, call: ast.Call) -> Any:
    values = [_value(a) for a in call.args]
    names = [k.arg for k in call.keywords]
    if None in names or len(set(names)) < len(names):
        raise PellucidError(f"{ast.unparse(call)}: every option once, by name")
    options = {str(k.arg): _value(k.value) for k in call.keywords}
    named = [describe(given) for given in (*values, *options.values()) if callable(given)]
    if named:
        raise PellucidError(f"{ast.unparse(call)}: {named[0]} where a number is wanted")
    kind = _values()[name]
    wants = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    if missing := [each for each in wants[len(values) :] if each not in options]:
        raise PellucidError(f"{ast.unparse(call)} lacks {', '.join(missing)}: {name}({', '.join(wants)})")
    try:
        return kind(*values, **options)
    except TypeError as error:
        raise PellucidError(f"{ast.unparse(call)}: {error}") from None


@cache
def _everything() -> MappingProxyType[str, Callable[..., Any]]:
    everything: dict[str, Callable[..., Any]] = {}
    for family in FAMILIES:
        everything |= public(family)
    return MappingProxyType(everything | dict(_values()))


def describe(bound: object) -> str:
    """The specification of a bound function or value, such that `parse(describe(f))` binds the same."""
    if isinstance(bound, partial):
        options = ", ".join(f"{name}={describe(value)}" for name, value in bound.keywords.items())
        return f"{describe(bound.func)}({options})"
    if inspect.isfunction(bound) or inspect.isclass(bound):
        return _places.get(bound, bound.__name__.rstrip("_"))
    if dataclasses.is_dataclass(bound) and not isinstance(bound, type):
        fields = [(f.name, describe(getattr(bound, f.name))) for f in dataclasses.fields(bound)]
        options = fields[0][1] if len(fields) == 1 else ", ".join(f"{name}={value}" for name, value in fields)
        return f"{type(bound).__name__}({options})"
    if isinstance(bound, numbers.Real) and not isinstance(bound, bool | int):
        return _number(float(bound))  # NumPy's numbers too
    if isinstance(bound, Tensor):
        return f"tensor({bound.tolist()})"
    if isinstance(bound, tuple):
        return f"({', '.join(map(describe, bound))}{',' if len(bound) == 1 else ''})"
    if isinstance(bound, nn.Module):
        return f"{type(bound).__name__}@{model_digest(bound)[:12]}"  # other weights, another name
    return repr(bound)


def _number(value: float) -> str:
    """Pixel fractions read better as fractions: 8/255 as against 0.03137254901960784."""
    steps = value * 255
    if value and abs(value) < 0.5 and len(repr(value)) > 8 and round(steps) / 255 == value:
        return f"{round(steps)}/255"
    return repr(value)


def option(bound: Callable[..., Any], name: str) -> Any:
    """The value that a bound function would use for an option, or None where it has no such option."""
    parameter = inspect.signature(bound).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def complete(bound: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every option bound, defaults too: what decides its results, whatever the defaults become."""
    defaults = {
        p.name: p.default
        for p in inspect.signature(bound).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.name not in NOT_OPTIONS
    }
    return partial(
        bound, **{name: complete(v) if isinstance(v, FunctionType | partial) else v for name, v in defaults.items()}
    )
