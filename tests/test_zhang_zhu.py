"""The benchmark of Zhang & Zhu 2019: what it refuses."""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pellucid.errors import PellucidError
from pellucid.recipe import Recipe

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "zhang_zhu.py"
QUICK = Recipe(data="digits", steps=2, batch_size=8)


@pytest.fixture
def benchmark() -> Iterator[ModuleType]:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("zhang_zhu", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zhang_zhu"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["zhang_zhu"]


def test_an_underfit_network_that_fell_short_is_never_taken(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the second call either, which finds it finished."""
    given = Namespace(data="digits", device="cpu")
    mine = replace(QUICK, stop_at=1.0, validate_every=1)
    monkeypatch.setattr(benchmark, "recipe", lambda *_: mine)
    for _ in range(2):
        with pytest.raises(PellucidError, match=r"underfit reached 0\.\d+ and not the 1\.000 of pgd-linf"):
            benchmark.trained("underfit", given, tmp_path)


def test_underfit_waits_for_its_model(benchmark: ModuleType, tmp_path: Path) -> None:
    """And says so, in place of a file that is not there."""
    given = Namespace(data="cifar10", steps=1, seed=0, precision="fp32")
    with pytest.raises(PellucidError, match="pgd-linf, which is not finished"):
        benchmark.recipe("underfit", given, tmp_path)
