"""JSMA beside torchattacks, on Small and real digits: interleaved, one thread, medians of paired ratios.

    .venv/bin/python benchmarks/jsma.py [MODEL.safetensors]

Both aim at y + 1, with theta 1 and gamma 0.25, and search all pairs. torchattacks takes one image at a time; each round
runs both, in turn first, on the same images. Without a model Small is trained on the embedded digits for some seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.architectures.small import small
from pellucid.attacks.saliency import jsma
from pellucid.data import ImageSet, load
from pellucid.models import load_model


def trained(images: ImageSet) -> nn.Module:
    """Small after 150 steps on the digits."""
    network = small(generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        x, y = images.batch(torch.randint(len(images), (64,), generator=generator))
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network.eval()


def race(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
    """Print both times, their ratio, and how many of the images are equal."""
    import torchattacks

    theirs = torchattacks.JSMA(model, theta=1.0, gamma=0.25)
    contenders: list[Callable[[], Tensor]] = [lambda: jsma(model, x, y), lambda: theirs(x, y)]
    times: list[list[float]] = [[], []]
    found = [contenders[0]() for _ in range(2)]  # the first call of a process is slow
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            found[i] = contenders[i]()
            times[i].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    equal = int((found[0] == found[1]).flatten(1).all(1).sum())
    reached = [int((model(at).argmax(1) == (y + 1) % 10).sum()) for at in found]
    print(
        f"JSMA, {len(x)} images: {statistics.median(times[0]):.2f} s beside {statistics.median(times[1]):.2f} s, "
        f"x {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}); "
        f"{equal} images equal; reached {reached[0]} and {reached[1]}"
    )


def main() -> None:
    torch.set_num_threads(1)
    images = load("mnist" if len(sys.argv) > 1 else "digits", "test")
    x, y = images.batch(torch.arange(200))
    x = 0.98 * x  # torchattacks leaves out pixels of 0.99 and more, which are not yet at the bound of the box
    model = load_model(sys.argv[1], example=x[:4])[0] if len(sys.argv) > 1 else trained(load("digits", "train"))
    race(model, x[:20], y[:20], rounds=5)
    race(model, x, y, rounds=1)  # torchattacks needs minutes


if __name__ == "__main__":
    main()
