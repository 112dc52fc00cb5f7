"""Speed of the hot loops beside the peers: interleaved, one thread, medians of paired ratios.

    make bench

Each round runs every contender once, in rotating order, on the same images; a ratio is the peer's time over ours in the
same round, so that it holds where the machine's speed drifts. Quote the medians; the spread says how noisy it was.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import scipy.stats
import torch
from torch import nn

from pellucid.architectures.small import pool, ross, small
from pellucid.attacks.gradient import pgd
from pellucid.balls import Linf
from pellucid.metrics import kendall_tau
from pellucid.network import Network

ROUNDS = 7
Contenders = dict[str, Callable[[], object]]


class Unfolded(nn.Module):
    """The same network, every layer run as it is written."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.head(self.network.features(x).mean((2, 3)))


def race(name: str, contenders: Contenders) -> None:
    """Print each contender's median time, and its ratio to the first."""
    names = list(contenders)
    times: dict[str, list[float]] = {n: [] for n in names}
    for run in contenders.values():
        run()
    for turn in range(ROUNDS):
        for n in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contenders[n]()
            times[n].append(time.perf_counter() - start)
    print(f"\n{name}")
    for n in names:
        ratios = [other / ours for other, ours in zip(times[n], times[names[0]], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {n:<24} {statistics.median(times[n]) * 1e3:8.1f} ms   x {statistics.median(ratios):5.2f}  ({spread})")


def pgd_race(name: str, network: Network, *, n: int, steps: int) -> None:
    """PGD with the same iterates: ours, ours without folding, torchattacks, foolbox."""
    import foolbox
    import torchattacks
    from foolbox.models.pytorch import PyTorchModel

    network = network.eval().requires_grad_(False)
    plain = Unfolded(network).eval()
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (n,), generator=torch.Generator().manual_seed(1))
    ours = partial(pgd, ball=Linf(0.3), steps=steps, step_size=0.01, random_start=False, keep_best=False)
    theirs = torchattacks.PGD(plain, eps=0.3, alpha=0.01, steps=steps, random_start=False)
    wrapped = PyTorchModel(plain, bounds=(0, 1), device="cpu")
    fool = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=steps, random_start=False)
    race(
        f"PGD-{steps}, {name}, {n} images",
        {
            "pellucid": lambda: ours(network, x, y),
            "pellucid, not folded": lambda: ours(plain, x, y),
            "torchattacks": lambda: theirs(x, y),
            "foolbox": lambda: fool(wrapped, x, y, epsilons=0.3),
        },
    )


def tau_race(d: int, n: int) -> None:
    """Kendall's tau-b of n pairs of maps of d values, with ties."""
    a, b = (torch.randint(20, (n, d), generator=torch.Generator().manual_seed(s)).float() for s in (0, 1))
    race(
        f"Kendall tau-b, {n} pairs of {d} values",
        {
            "pellucid": lambda: kendall_tau(a, b),
            "scipy, one by one": lambda: [
                scipy.stats.kendalltau(p, q) for p, q in zip(a.numpy(), b.numpy(), strict=True)
            ],
        },
    )


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pgd_race("Small", small(generator=generator), n=200, steps=10)
    pgd_race("Pool", pool(generator=generator), n=100, steps=4)
    pgd_race("Ross CNN", ross(generator=generator), n=100, steps=2)
    tau_race(49, 500)
    tau_race(784, 50)


if __name__ == "__main__":
    main()
