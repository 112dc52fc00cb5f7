"""Which class a targeted attack aims at: laws of the rules."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pellucid.errors import PellucidError
from pellucid.network import Network
from pellucid.targets import RULES, Goal, choose


@pytest.mark.parametrize("rule", [*RULES, 0, 3])
def test_no_target_is_the_label(rule: Goal, tiny: Network, generator: torch.Generator) -> None:
    """Whatever the rule, and for every label."""
    x, y = torch.rand(20, 1, 16, 16, generator=generator), torch.arange(20) % 5
    goal = choose(rule, tiny, x, y, generator)
    assert (goal != y).all()
    assert goal.min() >= 0
    assert goal.max() < 5


def test_the_rules_say_what_they_say(tiny: Network, images: Tensor, labels: Tensor) -> None:
    """Runner-up and least likely by a loop, next by arithmetic, a number by itself."""
    logits = tiny(images).detach().tolist()
    rules: dict[Goal, Callable[..., tuple[float, int]]] = {"runner_up": max, "least_likely": min}
    for rule, pick in rules.items():
        naive = [pick((v, j) for j, v in enumerate(row) if j != t)[1] for row, t in zip(logits, labels, strict=True)]
        assert choose(rule, tiny, images, labels).tolist() == naive
    assert choose("next", tiny, images, torch.tensor([0, 3, 4])).tolist() == [1, 4, 0]
    assert choose(2, tiny, images, labels).tolist() == [2, 2, 2]


def test_random_targets_are_uniform_over_the_others(tiny: Network, generator: torch.Generator) -> None:
    """Each of the four wrong classes a quarter of the time, to five standard deviations."""
    x, y = torch.rand(1, 1, 16, 16).expand(4000, -1, -1, -1), torch.full((4000,), 2)
    counts = choose("random", tiny, x, y, generator).bincount(minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("rule", [7, -1, True])
def test_a_target_that_is_none_is_refused(rule: int, tiny: Network, images: Tensor, labels: Tensor) -> None:
    """The message names the value and the rule."""
    with pytest.raises(PellucidError, match=r"target \(=.*must be a class number"):
        choose(rule, tiny, images, labels)


def test_one_class_has_no_other(images: Tensor) -> None:
    """Nothing to aim at."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    with pytest.raises(PellucidError, match="no other class"):
        choose("next", model, images, torch.zeros(3, dtype=torch.long))
