"""The registry: everything public is found, what is printed is read back, and nothing is ever evaluated."""

import inspect
import math
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import jaxtyping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid import registry
from pellucid.attacks.gradient import fgsm, pgd
from pellucid.balls import L1, L2, Linf
from pellucid.errors import PellucidError
from pellucid.interpreters.activations import cam
from pellucid.objectives.adversarial import adversarial
from pellucid.objectives.interpretability import int_
from pellucid.schedules import Cosine, Ramp, Steps

EVERY = [(family, name) for family in registry.FAMILIES for name in registry.public(family)]


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_public_function_is_found(family: str) -> None:
    """What a module of the package defines and does not hide; and nothing that it only imports."""
    package = import_module(f"pellucid.{family}")
    expected = set()
    for info in iter_modules(package.__path__):
        module = import_module(f"pellucid.{family}.{info.name}")
        defined = [v for v in vars(module).values() if inspect.isfunction(v) and v.__module__ == module.__name__]
        expected |= {f.__name__.rstrip("_") for f in defined if not f.__name__.startswith("_")}
    if all(not info.ispkg for info in iter_modules(package.__path__)):
        assert set(registry.public(family)) == expected
    assert expected <= set(registry.public(family))


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_every_function_is_documented_and_follows_the_convention(family: str, name: str) -> None:
    """A docstring; the acted-on positional; the rest keyword-only with a default."""
    function = registry.public(family)[name]
    parameters = inspect.signature(function).parameters.values()
    acted_on = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert acted_on == {
        "attacks": ["model", "x", "y"],
        "interpreters": ["model", "x", "classes"],
        "objectives": ["model", "x", "y"],
        "architectures": [],
        "transforms": ["x"],
    }.get(family, acted_on)
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "step")
    assert function.__doc__
    assert registry.parse(name, family) is function
    assert registry.describe(function) == name


def same(one: Any, two: Any) -> bool:
    """Whether two bound functions or values mean the same."""
    if isinstance(one, partial) and isinstance(two, partial):
        keys = one.keywords.keys() == two.keywords.keys()
        return one.func is two.func and keys and all(same(v, two.keywords[k]) for k, v in one.keywords.items())
    return type(one) is type(two) and one == two


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_every_default_can_be_written_out(family: str, name: str) -> None:
    """A function with all its defaults bound is read back from its own description."""
    function = registry.public(family)[name]
    defaults = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in registry.NOT_OPTIONS
    }
    bound = partial(function, **defaults)
    assert same(registry.parse(registry.describe(bound), family), bound)


REAL = st.floats(allow_nan=False, allow_infinity=False)
RADIUS = st.one_of(
    st.floats(0, 1),
    st.integers(0, 128).map(lambda n: n / 255),
    st.integers(0, 9).map(lambda n: math.nextafter(n / 255, 1)),
)
PGD = st.fixed_dictionaries(
    {"kind": st.sampled_from([Linf, L2, L1]), "eps": RADIUS},
    optional={
        "steps": st.integers(1, 10**9),
        "step_size": st.one_of(st.none(), REAL, RADIUS),
        "random_start": st.booleans(),
        "targeted": st.booleans(),
    },
)


def attack_of(options: dict[str, Any]) -> partial[Any]:
    rest = {name: value for name, value in options.items() if name not in ("kind", "eps")}
    return partial(pgd, ball=options["kind"](options["eps"]), **rest)


@settings(deadline=None, max_examples=200)
@given(PGD)
def test_what_is_described_is_parsed_back(options: dict[str, Any]) -> None:
    """parse(describe(f)) binds the same function to the same values, to the last bit."""
    bound = attack_of(options)
    assert same(registry.parse(registry.describe(bound), "attacks"), bound)


@settings(deadline=None, max_examples=100)
@given(PGD, st.sampled_from([Ramp, Cosine]), REAL, REAL, st.integers(0, 9), st.lists(REAL, min_size=1, max_size=4))
def test_nested_specifications_are_parsed_back(
    options: dict[str, Any], wave: type[Ramp | Cosine], start: float, end: float, first: int, values: list[float]
) -> None:
    """An attack inside an objective, a schedule inside that."""
    schedules = (start, wave(start, end, first, first + 9), Steps(tuple(values), tuple(range(1, len(values)))))
    for eps in schedules:
        bound = partial(adversarial, attack=attack_of(options), eps=eps, clean=0.5)
        assert same(registry.parse(registry.describe(bound), "objectives"), bound)


def test_what_a_specification_means() -> None:
    """Positional options in their order, arithmetic, names of functions, and the name that is a keyword."""
    assert same(registry.parse("pgd(Linf(8/255), 20)", "attacks"), partial(pgd, ball=Linf(8 / 255), steps=20))
    assert same(registry.parse(" fgsm( ball = L2(2*(1+0.5)) ) ", "attacks"), partial(fgsm, ball=L2(3.0)))
    assert same(registry.parse("int(interpreter=cam)", "objectives"), partial(int_, interpreter=cam))
    assert registry.parse("int", "objectives") is int_
    assert registry.describe(partial(int_, ball=Linf(8 / 255))) == "int(ball=Linf(8/255))"
    assert registry.option(registry.parse("pgd(steps=7)", "attacks"), "steps") == 7
    assert registry.option(pgd, "steps") == 40
    assert registry.option(pgd, "no such option") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pdg", "did you mean 'pgd'"),
        ("pgd(step=3)", "did you mean 'steps'"),
        ("pgd(ball=Lin(0.3))", "did you mean 'Linf'"),
        ("pgd(ball=linf(0.3))", "did you mean 'Linf', .* or .*balls and schedules are L1, L2, Linf"),
        ("aai(interpreter=gradcm)", "did you mean 'gradcam', .*'gradient'.*`pellucid list`"),
        ("something_else_altogether", "`pellucid list attacks` shows all"),
        ("pgd(xyzzy=3)", "it has .*steps"),
        ("pgd(steps='many')", "steps='many'.*a whole number"),
        ("pgd(ball=0.3)", r"ball=0\.3.*a ball such as"),
        ("pgd(steps=0)", "would do nothing.* robustness"),
        ("aai(k=0)", "would do nothing, and its figures would look like robustness: at least 1"),
        ("", "it is empty"),
        ("pgd(ball=Linf)", r"pgd\(ball=Linf\): wants a ball"),
        ("pgd(ball=Linf(fog))", r"Linf\(fog\): fog where a number is wanted"),
        ("pgd(loss=fog)", r"pgd\(loss=fog\): choose one of 'ce', 'margin'"),
        ("pgd(steps=2 * fog)", "arithmetic needs numbers, got 2, fog"),
        ("fab(search=-1)", "at least 1"),
        ("pgd(steps=True)", "steps=True.*a whole number"),
        ("pgd(step_size='a')", "step_size='a'.*a number"),
        ("pgd(ball=Linf('a'))", "'a'"),
        ("pgd(ball=Linf(True))", "True"),
        ("pgd(random_start=1)", "random_start=1.*True or False"),
        ("pgd(Linf(0.1), ball=Linf(0.1))", "'ball' twice"),
        ("pgd(ball=Linf(-1))", ">= 0"),
        ("pgd(ball=Linf())", "eps"),
        ("pgd(ball=Linf(1/0))", "division by zero"),
        ("aai(reading='as_dreamt')", "'as_written', 'as_coded'"),
        ("pgd(generator=1)", "no option 'generator'"),
        ("pgd(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)", "at most"),
        ("", "cannot read"),
        ("pgd(", "cannot read"),
    ],
)
def test_mistakes_are_named_with_their_remedy(spec: str, message: str) -> None:
    """Typing errors get a suggestion, wrong kinds the right one."""
    with pytest.raises(PellucidError, match=message):
        registry.parse(spec, "attacks")


def test_a_family_that_is_not_there() -> None:
    """The families are listed."""
    with pytest.raises(PellucidError, match="there are attacks"):
        registry.public("attack")


HOSTILE = [
    "__import__('os').system('x')",
    "pgd.__globals__",
    "pgd.__globals__['torch']",
    "lambda: 0",
    "[x for x in (1, 2)]",
    "{1: 2}",
    "f'{pgd}'",
    "9**9**9",
    "1 << 999999999",
    "'a' * 10**9",
    "'a' * 1000000000",
    "(1, 2) * 1000000000",
    "not True",
    "1 if True else 2",
    "(a := 3)",
    "Linf(**{'eps': 1})",
    "Linf(*[1])",
    "Linf('a')",
    "Linf((1, 2))",
    "Linf(Linf)",
    "Linf(eps=1, eps=2)",
    "Linf(nan)",
    "Linf(1e999 - 1e999)",
    "Linf('nan')",
    "Linf(1j)",
    "Ramp('a', 1, 0, 2)",
    "open('/etc/passwd')",
    "exec('x')",
    "pgd\x00",
    "\ud800",
    "await x",
    "(yield)",
    "*pgd",
    "9" * 1900 + "/2",
    "9" * 900 + "*1.5",
    "(" * 1900,
    "[" * 90 + "1" + "]" * 90,
    "-" * 1900 + "1",
    "-" * 900 + "1",
    "1" + "+1" * 950,
    "a" + ".a" * 950,
    "Linf(" * 300 + "1" + ")" * 300,
    "pgd(ball=" * 80 + "1" + ")" * 80,
    "1" * 5000,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda spec: ascii(spec)[:24])
@pytest.mark.parametrize("frame", ["{}", "pgd({})", "pgd(ball={})", "pgd(steps={})"])
def test_hostile_specifications_are_refused(hostile: str, frame: str) -> None:
    """Nothing runs, nothing grows, nothing overflows the stack: a PellucidError each time."""
    with pytest.raises(PellucidError):
        registry.parse(frame.replace("{}", hostile), "attacks")


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="pgdLinf()[]{},.=*/+-0129eE'\\ \n#@:;!<", max_size=40), st.sampled_from(["{}", "pgd(ball={})"]))
def test_any_text_is_read_or_refused(text: str, frame: str) -> None:
    """parse returns a function or raises PellucidError, whatever it is given."""
    try:
        found = registry.parse(frame.replace("{}", text), "attacks")
    except PellucidError:
        return
    assert callable(found)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("8/255", 8 / 255), ("-3", -3), ("(1, 2.5)", (1, 2.5)), ("[1]", (1,)), ("Linf(0.1)", Linf(0.1)), ("'a'", "a")],
)
def test_values(spec: str, expected: object) -> None:
    """Numbers, tuples, balls and strings."""
    assert registry.value(spec) == expected


@pytest.mark.parametrize("spec", [3, None, pgd])
def test_a_specification_is_a_text(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is handed over is named."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(PellucidError, match=r"a specification is a text such as .*not (3|None|pgd)"):
        registry.parse(spec, "attacks")


def test_maps_are_not_robust() -> None:
    """A count of nothing is refused of interpreters too, without a word of robustness."""
    with pytest.raises(PellucidError, match=r"smoothgrad\(samples=0\) would do nothing: at least 1"):
        registry.parse("smoothgrad(samples=0)", "interpreters")
