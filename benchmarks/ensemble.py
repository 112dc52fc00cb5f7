"""Speed and strength of the ensemble and its attacks beside torchattacks: interleaved, one thread, equal budgets.

    python benchmarks/ensemble.py                                  # a random Small, speed alone
    python benchmarks/ensemble.py --weights small.safetensors      # MNIST (PELLUCID_DATA), who stands as well

Without weights the ball is so small that no image falls: every attack spends all its budget, the worst case. With
weights each robust accuracy at eps 0.3 is printed, and the ensemble's time by attack. Contenders take turns,
and a ratio is the peer's processor time over ours in the same round.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchattacks
from peers import AsWritten
from torch import nn

from pellucid.architectures.small import small
from pellucid.attacks import ensemble as stages
from pellucid.attacks.apgd import apgd
from pellucid.attacks.ensemble import ensemble
from pellucid.attacks.fab import fab
from pellucid.attacks.square import square
from pellucid.balls import Linf
from pellucid.data import load, subset
from pellucid.metrics import correct
from pellucid.models import load_model
from pellucid.network import Network, frozen
from pellucid.types import Images, Labels

CHUNK = 100  # as `evaluate` has it

Contender = Callable[[Images, Labels], Images]


def timed(model: nn.Module, attack: Contender, x: Images, y: Labels) -> tuple[float, float]:
    """Seconds of processor time, and the share of images that stand."""
    start = time.process_time()
    found = torch.cat([attack(a, b) for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True)])
    seconds = time.process_time() - start
    with torch.no_grad():
        return seconds, float((correct(model(found), y) & correct(model(x), y)).float().mean())


def race(name: str, model: nn.Module, contenders: dict[str, Contender], x: Images, y: Labels, rounds: int) -> None:
    """Print each contender's median seconds, its ratio to the first's, and who stands against it."""
    found: dict[str, list[tuple[float, float]]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, attack in contenders.items():
            found[contender].append(timed(model, attack, x, y))
    first = next(iter(found.values()))
    print(f"\n{name}")
    for contender, runs in found.items():
        ratio = statistics.median(run[0] / own[0] for run, own in zip(runs, first, strict=True))
        seconds = statistics.median(run[0] for run in runs)
        print(f"  {contender:<26} {seconds:7.2f} s   x {ratio:5.2f}   robust accuracy {runs[0][1]:.3f}")


def races(network: Network, x: Images, y: Labels, *, eps: float, steps: int, queries: int, rounds: int) -> None:
    """Each attack, and the ensemble, ours and theirs; theirs on the network of torch's own layers too."""
    ball, plain = Linf(eps), AsWritten(network).eval()
    common = {"eps": eps, "seed": 0}
    pairs = {
        f"APGD-CE, {steps} steps": (partial(apgd, steps=steps), partial(torchattacks.APGD, steps=steps)),
        f"APGD-DLR targeted, {steps} steps": (
            partial(apgd, steps=steps, loss="dlr_targeted"),
            partial(torchattacks.APGDT, steps=steps),
        ),
        f"FAB-T, {steps} steps": (
            partial(fab, steps=steps),
            partial(torchattacks.FAB, steps=steps, multi_targeted=True),
        ),
        f"Square, {queries} queries": (
            partial(square, queries=queries),
            partial(torchattacks.Square, n_queries=queries),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        bound = partial(ours, ball=ball)
        race(
            name,
            network,
            {
                "pellucid": lambda a, b, f=bound: f(network, a, b, generator=torch.Generator().manual_seed(0)),
                "pellucid, as written": lambda a, b, f=bound: f(
                    plain, a, b, generator=torch.Generator().manual_seed(0)
                ),
                "torchattacks": theirs(plain, **common),
                "torchattacks, folded": theirs(network, **common),
            },
            x,
            y,
            rounds,
        )


def whole(network: Network, x: Images, y: Labels, *, eps: float) -> None:
    """The ensemble at its full budget: who stands, seconds by attack, what broke whom."""
    spent: dict[str, float] = {}
    made = stages._stages

    def clocked(name: str, attack: stages.Stage) -> stages.Stage:
        def run(*args: object, **options: object) -> Images:
            start = time.process_time()
            found = attack(*args, **options)
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
            return found

        return run

    stages._stages = lambda *args: [(name, clocked(name, attack)) for name, attack in made(*args)]
    broken: list[np.ndarray] = []

    def attack(a: Images, b: Labels) -> Images:
        notes: dict[str, torch.Tensor | np.ndarray] = {}
        found = ensemble(network, a, b, ball=Linf(eps), notes=notes, generator=torch.Generator().manual_seed(0))
        broken.append(np.asarray(notes["broken_by"]))
        return found

    seconds, stands = timed(network, attack, x, y)
    stages._stages = made
    names, counts = np.unique(np.concatenate(broken), return_counts=True)
    print(f"\nThe whole ensemble: {seconds:.1f} s, robust accuracy {stands:.3f}")
    print("  seconds   ", ", ".join(f"{name} {s:.1f}" for name, s in spent.items()))
    print("  broken by ", ", ".join(f"{name or 'none'} {n}" for name, n in zip(names, counts, strict=True)))
    theirs = timed(network, torchattacks.AutoAttack(network, eps=eps, seed=0), x, y)
    print(f"  torchattacks' AutoAttack (10 steps of APGD and FAB, folded): {theirs[0]:.1f} s, {theirs[1]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="weights of a Small for MNIST")
    given = parser.parse_args().weights
    torch.set_num_threads(1)
    if given is None:
        network = small(generator=torch.Generator().manual_seed(0)).eval()
        x = torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        with frozen(network), torch.no_grad():
            y = network(x).argmax(1)
        with frozen(network):
            races(network, x, y, eps=1e-5, steps=20, queries=300, rounds=3)
        return
    images = load("mnist", "test")
    x, y = images.batch(subset("boopathy200", len(images)))
    network, _ = load_model("small", example=x[:4], weights=given)
    assert isinstance(network, Network)
    with frozen(network):
        whole(network, x, y, eps=0.3)
        races(network, x, y, eps=0.3, steps=100, queries=5000, rounds=1)


if __name__ == "__main__":
    main()
