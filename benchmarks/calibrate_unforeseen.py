"""Find the eps at which each unforeseen attack is as hard as a chosen Linf radius, for a model that resists the latter.

The way of UAR (Kang et al. 2019, sec. 3), read for one model: its accuracy under PGD at the reference radius is the
mark; for each attack, eps is bisected (in log scale) until the accuracy under it is nearest to the mark. The defaults
`MEANINGFUL` of `pellucid.attacks.unforeseen` are what these two commands printed, to two figures:

    python benchmarks/calibrate_unforeseen.py --model nets/mnist_smallgap_adv_100.safetensors --data mnist --eps 0.3 \\
        --images 100 --halvings 6
    python benchmarks/calibrate_unforeseen.py --model nets/cifar_smallgap_adv_200.safetensors --data cifar10 \\
        --eps 8/255 --halvings 7

Needs PELLUCID_DATA. The networks are those that Boopathy et al. 2020 published, imported by `pellucid import-weights`.
The script writes nothing.
"""

import argparse
import math
import time
from functools import partial

import torch
from torch import nn

from pellucid import registry
from pellucid.attacks.gradient import pgd
from pellucid.attacks.unforeseen import elastic, fog, gabor, jpeg, snow
from pellucid.balls import Linf
from pellucid.data import load, subset
from pellucid.metrics import correct
from pellucid.models import load_model
from pellucid.results import wilson
from pellucid.types import Attack, Images, Labels

# From where to where eps is looked for.
RANGES = {
    "gabor": (gabor, 0.005, 2.0),
    "snow": (snow, 0.01, 4.0),
    "fog": (fog, 0.01, 8.0),
    "elastic": (elastic, 0.05, 16.0),
    "jpeg linf": (partial(jpeg, norm="linf"), 0.01, 4.0),
    "jpeg l2": (partial(jpeg, norm="l2"), 0.2, 100.0),
    "jpeg l1": (partial(jpeg, norm="l1"), 2.0, 2000.0),
}


def survivors(model: nn.Module, x: Images, y: Labels, attack: Attack, seed: int) -> int:
    """How many images the model still gets right."""
    found = attack(model, x, y, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return int(correct(model(found), y).sum())


def calibrate(
    model: nn.Module, x: Images, y: Labels, attack: Attack, span: tuple[float, float], mark: int, *, halvings: int
) -> tuple[float, int]:
    """The eps, of those tried, whose count is nearest to the mark; and that count."""
    low, high = span
    tried: list[tuple[int, float, int]] = []
    for _ in range(halvings):
        eps = math.sqrt(low * high)
        count = survivors(model, x, y, partial(attack, **{"eps": eps}), 0)
        tried.append((abs(count - mark), eps, count))
        if count == mark:
            break
        low, high = (eps, high) if count > mark else (low, eps)
    return min(tried)[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what `pellucid attack --model` takes")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", default="boopathy200")
    parser.add_argument("--eps", default="8/255", help="the reference radius, Linf")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--halvings", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(given.data, "test")
    x, y = data.batch(subset(given.images, len(data)))
    model, _ = load_model(given.model)
    radius = float(registry.value(given.eps))
    mark = survivors(model, x, y, partial(pgd, ball=Linf(radius), steps=given.steps), 0)
    clean = int(correct(model(x), y).sum())
    print(f"{given.model}, {len(x)} images of {given.data}, {given.steps} steps")
    print(f"clean {clean / len(x):.3f}, PGD at Linf({given.eps}) {mark / len(x):.3f}\n")
    print(f"{'attack':<10} {'eps':>9} {'accuracy':>9}  {'95 % Wilson':<15} seconds")
    for name, (attack, *span) in RANGES.items():
        started = time.perf_counter()
        eps, count = calibrate(
            model, x, y, partial(attack, steps=given.steps), (span[0], span[1]), mark, halvings=given.halvings
        )
        low, high = wilson(count, len(x))
        seconds = time.perf_counter() - started
        print(f"{name:<10} {eps:9.3g} {count / len(x):9.3f}  [{low:.3f}, {high:.3f}]  {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
