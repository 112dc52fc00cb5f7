"""Boopathy et al. 2020, Table 5: unforeseen attacks as coded on the networks that its authors published.

    PELLUCID_REFERENCE_NETS=... PELLUCID_DATA=... pytest -m slow -s tests/test_table5.py

prints ours beside the paper's, with 95 % Wilson intervals. 200 test images, 200 steps, aimed at random wrong classes
and scored untargeted. The paper's random numbers are not known, nor the exact shapes of its snow: what is asserted is
that the paper's figure lies outside our interval in the named cells only.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pellucid.attacks.unforeseen import gabor, jpeg, snow
from pellucid.data import load, subset
from pellucid.import_weights import import_weights
from pellucid.metrics import correct
from pellucid.models import load_model
from pellucid.results import wilson
from pellucid.types import Images, Labels

pytestmark = pytest.mark.slow

ATTACKS: dict[str, Callable[..., Any]] = {
    "gabor": gabor,
    "snow": snow,
    "jpeg linf": partial(jpeg, norm="linf"),
    "jpeg l2": partial(jpeg, norm="l2"),
    "jpeg l1": partial(jpeg, norm="l1"),
    "jpeg l1, eps 128": partial(jpeg, norm="l1", eps=128.0),
}
TABLE_5 = {
    "normal": (0.125, 0.000, 0.000, 0.030, 0.000, 0.000),
    "adv": (0.190, 0.115, 0.460, 0.380, 0.230, 0.230),
    "int": (0.160, 0.105, 0.440, 0.345, 0.260, 0.260),
}
# Where ours differs by more than chance allows. What was tried and did not explain it is said, too.
ELSEWHERE = {
    # Not explained. Half the budget, the last row of each table, comes near: at this seed, and at others up to 0.07
    # below. Rounding the clean coefficients, or bounding them by 1 in place of 2, does not give both figures.
    ("jpeg l1", "adv"),
    ("jpeg l1", "int"),
    # Six images of 200 withstand theirs and none ours, with cross-entropy for a loss as well: not explained.
    ("jpeg l2", "normal"),
    # At eps 400/255 most pixels are white and every network near chance. Not explained: other random numbers, and
    # stretching the noise over the batch in place of each image, leave ours at 0.14 to 0.18 for the normal network
    # and at 0.09 to 0.11 for the others.
    ("gabor", "normal"),
    ("gabor", "adv"),
    ("gabor", "int"),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published networks, imported."""
    source = os.environ.get("PELLUCID_REFERENCE_NETS")
    if not source or not Path(source).is_dir():
        pytest.skip("needs PELLUCID_REFERENCE_NETS, a folder of the networks published by Boopathy et al. 2020")
    out = tmp_path_factory.mktemp("reference")
    import_weights(Path(source), out)
    return out


@pytest.fixture
def images(real_data: Path) -> tuple[Images, Labels]:
    """The authors' 200 test images."""
    assert real_data.is_dir()
    test = load("cifar10", "test")
    return test.batch(subset("boopathy200", len(test)))


def survivors(model: nn.Module, x: Images, y: Labels, attack: Callable[..., Images]) -> int:
    found = attack(model, x, y, reading="as_coded", target="random", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return int(correct(model(found), y).sum())


@pytest.mark.parametrize("method", TABLE_5)
def test_table_5(
    method: str, networks: Path, images: tuple[Images, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours, its interval, the paper's."""
    path = networks / f"cifar_smallgap_{method}_200.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path.stem}.pkl in PELLUCID_REFERENCE_NETS")
    model, (x, y) = load_model(path)[0], images
    lines, outside = [f"\n{method:<18}  ours  95 % Wilson     printed"], set()
    for (name, attack), printed in zip(ATTACKS.items(), TABLE_5[method], strict=True):
        count = survivors(model, x, y, attack)
        low, high = wilson(count, len(x))
        lines.append(f"{name:<18} {count / len(x):.3f}  [{low:.3f}, {high:.3f}]  {printed:.3f}")
        if not low <= printed <= high:
            outside.add((name, method))
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    assert outside <= ELSEWHERE
