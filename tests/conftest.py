"""What several test files share: small networks, images, generators, and a way to make any function quick."""

import inspect
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid import registry
from pellucid.network import Network

QUICK = {"steps": 3, "iterations": 3, "samples": 4, "restarts": 2, "queries": 20, "search": 3}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The networks here are too small to share between threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Where the tests run in a shell's background, Ctrl-C is ignored: they send it to themselves."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def seeded() -> Callable[[int], torch.Generator]:
    """A new generator per call, from a seed."""
    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of fixed seed."""
    return torch.Generator().manual_seed(0)


def _initialised(network: Network) -> Network:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return network


def _tiny() -> Network:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1))
    return _initialised(Network(trunk, nn.Linear(6, 5)))


@pytest.fixture
def tiny() -> Network:
    """A Network whose tail folds: 1 channel, 5 classes, a head with bias."""
    return _tiny()


@pytest.fixture
def noisy() -> Network:
    """A Network with BatchNorm (its statistics not those of a fresh one) and Dropout: 1 channel, 5 classes."""
    trunk = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
    )
    network = _initialised(Network(trunk, nn.Linear(6, 5)))
    norm = trunk[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(0.1)
    norm.running_var.fill_(0.5)
    with torch.no_grad():
        norm.weight.abs_().add_(0.5)
    return network


@pytest.fixture
def images() -> Tensor:
    """Three images of 16 x 16 pixels."""
    return torch.empty(3, 1, 16, 16).uniform_(generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    """Their labels."""
    return torch.tensor([0, 3, 1])


def shortened(family: str, name: str) -> Callable[..., Any]:
    """A discovered function with every count of steps, samples and the like made small."""
    function = registry.public(family)[name]
    short = {
        parameter.name: min(parameter.default or limit, limit)
        for parameter in inspect.signature(function).parameters.values()
        for word, limit in QUICK.items()
        if word in parameter.name and (type(parameter.default) is int or parameter.name in ("steps", "iterations"))
    }
    if name == "distilled":
        short["teacher"] = _initialised(_tiny())
    return partial(function, **short)


@pytest.fixture
def quick() -> Callable[[str, str], Callable[..., Any]]:
    """See `shortened`."""
    return shortened


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No cached sets, and no data sets unless the test asks for the real ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("PELLUCID_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    where = os.environ.get("PELLUCID_DATA")
    if not where or not Path(where).is_dir():
        pytest.skip("needs PELLUCID_DATA, a folder of data sets")
    return Path(where)
