"""Speed of the hot loops beside the peers: interleaved, one thread, processor time, medians of paired ratios.

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
from peers import AsWritten, art_pgd

from pellucid.architectures.resnet import resnet18, wresnet
from pellucid.architectures.small import pool, ross, small
from pellucid.attacks.gradient import pgd
from pellucid.balls import Linf
from pellucid.metrics import kendall_tau
from pellucid.network import Network
from pellucid.process import settle

ROUNDS = 7
Contenders = dict[str, Callable[[], object]]


def race(name: str, contenders: Contenders) -> None:
    """Print each contender's median time, and its ratio to the first."""
    names = list(contenders)
    times: dict[str, list[float]] = {n: [] for n in names}
    for run in contenders.values():
        run()
    for turn in range(ROUNDS):
        for n in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            contenders[n]()
            times[n].append(time.process_time() - start)
    print(f"\n{name}")
    for n in names:
        ratios = [other / ours for other, ours in zip(times[n], times[names[0]], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {n:<24} {statistics.median(times[n]) * 1e3:8.1f} ms   x {statistics.median(ratios):5.2f}  ({spread})")


def pgd_race(name: str, network: Network, *, n: int, steps: int) -> None:
    """PGD with the same iterates beside the peers; and ours searching in bf16, which has other iterates."""
    import foolbox
    import torchattacks
    from foolbox.models.pytorch import PyTorchModel

    network = network.eval().requires_grad_(False)
    plain = AsWritten(network).eval().requires_grad_(False)
    colour = "colour" in name
    x = torch.rand(n, *((3, 32, 32) if colour else (1, 28, 28)), generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (n,), generator=torch.Generator().manual_seed(1))
    ours = partial(pgd, ball=Linf(0.3), steps=steps, step_size=0.01, random_start=False, keep_best=False)
    theirs = torchattacks.PGD(plain, eps=0.3, alpha=0.01, steps=steps, random_start=False)
    wrapped = PyTorchModel(plain, bounds=(0, 1), device="cpu")
    fool = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=steps, random_start=False)
    race(
        f"PGD-{steps}, {name}, {n} images",
        {
            "pellucid": lambda: ours(network, x, y),
            "pellucid, bf16 search": lambda: ours(network, x, y, precision="bf16"),
            "pellucid, as written": lambda: ours(plain, x, y),
            "torchattacks": lambda: theirs(x, y),
            "foolbox": lambda: fool(wrapped, x, y, epsilons=0.3),
            **art_pgd(plain, x, y, steps),
        },
    )


def accuracy_race(network: Network, *, n: int) -> None:
    """Robust accuracy alone, where most images fall: who has fallen leaves the batch."""
    network = network.eval().requires_grad_(False)
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = network(x).argmax(1)
    attack = partial(pgd, network, x, y, ball=Linf(0.3), steps=40, random_start=False)
    race(
        f"robust accuracy by PGD-40, Small of random weights, {n} images",
        {"the fallen leave": lambda: attack(stop_when_fooled=True), "all to the end": attack},
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
    settle()  # for the peers as for us
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pgd_race("Small", small(generator=generator), n=200, steps=10)
    pgd_race("Pool", pool(generator=generator), n=100, steps=4)
    pgd_race("Ross CNN", ross(generator=generator), n=100, steps=5)
    accuracy_race(small(generator=generator), n=200)
    pgd_race("ResNet of 32 layers (WResnet), colour", wresnet(generator=generator), n=16, steps=2)
    pgd_race("ResNet-18, colour", resnet18(size=32, classes=10, generator=generator), n=8, steps=5)
    tau_race(49, 500)
    tau_race(784, 50)


if __name__ == "__main__":
    main()
