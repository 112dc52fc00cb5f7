"""The shortest time to the published robustness on MNIST Small: our recipe, cut to ever more steps.

    make bench-time                                                        # one process
    torchrun --nproc-per-node 2 benchmarks/time_to_robustness.py           # two cores

Prints, for every number of steps, seconds of training, and accuracy under PGD-200 and Kendall's tau under the as-coded
attack on maps at ε 0.3, with 95 % intervals. The goals are the published figures: of Int (PGD .790, tau .913, 110,000
steps of 41 passes) and of Adv (PGD .890). On test images 1,000 to 1,999: the recipe was chosen on the first 1,000.
PELLUCID_DATA must hold mnist.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pellucid import data, registry
from pellucid.evaluation import Measurement, evaluate
from pellucid.interpreters.activations import cam
from pellucid.outcome import outcome
from pellucid.parallel import leads
from pellucid.process import settle
from pellucid.training import train
from pellucid.zoo_card import AAI, PGD
from pellucid.zoo_recipes import recipes

GOALS = {"Int": (0.79, 0.913), "Adv": (0.89, 0.0)}
STEPS = (500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12_000, 16_000)


def main() -> None:
    """Train and measure until every goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mnist/small/persistent", help="a name in the zoo's recipes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = replace(recipes()[arguments.recipe], seed=arguments.seed)
    trained, test = data.load("mnist", "train"), data.load("mnist", "test")
    missed = dict(GOALS)
    for steps in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            model = train(replace(recipe, steps=steps), trained, Path(folder) / "run")
            seconds = time.monotonic() - started
        robust, tau, shown = measured(model, test)
        reached = [name for name, (least, least_tau) in missed.items() if robust >= least and tau >= least_tau]
        missed = {name: goal for name, goal in missed.items() if name not in reached}
        if leads():
            print(
                f"{steps:6d} steps {seconds:6.1f} s  {shown}  {' '.join(f'reaches {name}' for name in reached)}",
                flush=True,
            )
        if not missed:
            return
    if leads():
        print(f"not reached in {STEPS[-1]} steps: {', '.join(missed)}")


def measured(model: torch.nn.Module, test: data.ImageSet) -> tuple[float, float, str]:
    """Accuracy under PGD-200, tau, and both in words."""
    rows = range(1000, 2000)
    clean = evaluate(model, test, rows, Measurement())
    attacks = [registry.parse(spec.format(eps=0.3), "attacks") for spec in (PGD, AAI)]
    pgd = outcome(clean, evaluate(model, test, rows, Measurement(attacks[0])))
    aai = outcome(clean, evaluate(model, test, rows, Measurement(attacks[1], interpreter=cam)))
    low, high = pgd["interval"]
    tau_low, tau_high = aai["kendall_tau_interval"] or (float("nan"), float("nan"))
    tau = aai["kendall_tau"] if aai["kendall_tau"] is not None else -1.0
    words = f"clean {pgd['clean_accuracy']:.3f}, PGD-200 {pgd['robust_accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    return pgd["robust_accuracy"], tau, f"{words}, tau {tau:.3f} [{tau_low:.3f}, {tau_high:.3f}] ({aai['survivors']})"


if __name__ == "__main__":
    settle()
    torch.set_num_threads(1)
    main()
