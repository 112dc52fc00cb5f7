"""One training step of every objective: ours, a minimal loop, the peers that have it, and the floor of its passes.

    make bench-training

Interleaved, one thread, processor time, medians of paired ratios, as in attacks.py. A minimal loop is what a paper's
reader writes: the network of torch's own layers, nothing folded, all maps at once where maps are needed.
The floor is the passes that the step must make at the speed of one pass, measured here: forward and input gradient per
inner step on the held network, forward and weight gradient for the step itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attacks import Contenders, race
from peers import AsWritten, art_pgd
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.architectures.small import ross, small
from pellucid.attacks.gradient import pgd
from pellucid.balls import Linf
from pellucid.network import Network, frozen
from pellucid.objectives.adversarial import adversarial, trades
from pellucid.objectives.gradients import double_backprop, ig_norm
from pellucid.objectives.interpretability import int2, int_
from pellucid.objectives.standard import standard
from pellucid.process import settle

EPS, SIZE = 0.3, 0.01
Loss = Callable[[], Tensor]


def taken(model: nn.Module, loss: Loss, *, bf16: bool = False) -> Callable[[], None]:
    """A whole training step: loss, gradient, Adam."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimiser.step()

    return step


def searched(loss: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """The inner loop as everybody writes it."""
    at = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        at = at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at)
        at = (x + (at + SIZE * gradient.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    return at.detach()


def minimal(kind: str, model: AsWritten, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The loss of an objective by a minimal loop."""
    if kind == "standard":
        return F.cross_entropy(model(x), y)
    if kind == "adversarial":
        return F.cross_entropy(model(searched(lambda at: F.cross_entropy(model(at), y), x, steps)), y)
    if kind == "trades":
        clean = model(x).log_softmax(1)
        at = searched(lambda at: _divergence(clean.detach(), model(at)), x, steps)
        return F.cross_entropy(model(x), y) + _divergence(model(x).log_softmax(1), model(at))
    if kind == "double backprop":
        seen = x.clone().requires_grad_()
        loss = F.cross_entropy(model(seen), y)
        (gradient,) = torch.autograd.grad(loss, seen, create_graph=True)
        return loss + gradient.square().sum()
    network = model.network
    if kind in ("int", "int2"):
        clean = _maps(network, x)
        at = searched(
            (lambda at: _apart(clean.detach(), _maps(network, at), y).mean())
            if kind == "int"
            else (lambda at: F.cross_entropy(model(at), y)),
            x,
            steps,
        )
        return F.cross_entropy(model(x), y) + _apart(clean, _maps(network, at), y).mean()
    raise ValueError(kind)


def _maps(network: Network, x: Tensor) -> Tensor:
    features = network.trunk(network.normalise(x))
    maps = torch.einsum("ck,bkhw->bchw", network.head.weight, features)
    return maps / maps[0, 0].numel()


def _apart(clean: Tensor, maps: Tensor, y: Tensor) -> Tensor:
    distance = (clean - maps).flatten(2).abs().sum(2)
    own = F.one_hot(y, distance.shape[1]).bool()
    return torch.where(own, distance, maps.flatten(2).sum(2).softmax(1) * distance).sum(1) / 2


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), clean, reduction="batchmean", log_target=True)


def steps_race(title: str, network: Network, kinds: dict[str, Callable[..., Any]], *, batch: int, inner: int) -> None:
    """Each objective's step, beside a minimal loop's, the peer's, and its floor."""
    x = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, (batch,), generator=torch.Generator().manual_seed(1))
    for kind, objective in kinds.items():
        written = AsWritten(network).train()
        network.train()
        generator = torch.Generator().manual_seed(2)
        ours = partial(objective, network, x, y, step=0, generator=generator)
        contenders: Contenders = {
            "pellucid": taken(network, lambda ours=ours: ours()[0]),
            "pellucid, bf16": taken(network, lambda ours=ours: ours()[0], bf16=True),
            "minimal loop": taken(written, lambda kind=kind, written=written: minimal(kind, written, x, y, inner)),
            "floor of its passes": _floor(network, x, y, inner if kind not in ("standard", "double backprop") else 0),
        }
        if kind in ("adversarial", "trades"):
            contenders |= _peers(kind, AsWritten(network).train(), x, y, inner)
        race(f"{title}: {kind}, batch {batch}, {inner} inner steps", contenders)


def _floor(network: Network, x: Tensor, y: Tensor, inner: int) -> Callable[[], None]:
    """Nothing but the passes: forward and input gradient on the held network, and one step's forward and backward."""

    def passes() -> None:
        with frozen(network):
            for _ in range(inner):
                at = x.clone().requires_grad_()
                torch.autograd.grad(F.cross_entropy(network(at), y), at)
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()

    return passes


def _peers(kind: str, model: AsWritten, x: Tensor, y: Tensor, steps: int) -> Contenders:
    """Training with torchattacks' search inside; and with ART's, where it was installed by hand."""
    import torchattacks

    if kind == "trades":
        divergence = torchattacks.TPGD(model, eps=EPS, alpha=SIZE, steps=steps)

        def trade_off() -> Tensor:
            clean = model(x).log_softmax(1)
            return F.cross_entropy(model(x), y) + _divergence(clean, model(divergence(x)))

        return {"torchattacks' search": taken(model, trade_off)}
    attack = torchattacks.PGD(model, eps=EPS, alpha=SIZE, steps=steps)
    found: Contenders = {"torchattacks' search": taken(model, lambda: F.cross_entropy(model(attack(x, y)), y))}

    def on(generate: Callable[[], Any]) -> Callable[[], None]:
        return taken(model, lambda: F.cross_entropy(model(torch.as_tensor(generate())), y))

    return found | {f"{name}'s search": on(generate) for name, generate in art_pgd(model, x, y, steps).items()}


def main() -> None:
    settle()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ball: dict[str, Any] = {"ball": Linf(EPS), "steps": 40, "step_size": SIZE}
    steps_race(
        "Small",
        small(generator=generator),
        {
            "standard": standard,
            "adversarial": partial(adversarial, attack=partial(pgd, keep_best=False, **ball)),
            "trades": partial(trades, start="uniform", **ball),
            "double backprop": partial(double_backprop, lam=1.0),
            "int": partial(int_, **ball),
            "int2": partial(int2, **ball),
        },
        batch=50,
        inner=40,
    )
    short: dict[str, Any] = ball | {"steps": 5}
    steps_race(
        "Ross CNN",
        ross(generator=generator),
        {
            "standard": standard,
            "adversarial": partial(adversarial, attack=partial(pgd, keep_best=False, **short)),
            "double backprop": partial(double_backprop, lam=1.0),
        },
        batch=128,
        inner=5,
    )
    network = small(generator=generator)
    x, y = torch.rand(50, 1, 28, 28, generator=generator), torch.randint(10, (50,), generator=generator)
    attribution = partial(ig_norm, network, x, y, step=0, generator=generator, reading="as_coded", **ball)
    race("Small: ig_norm, batch 50, 40 inner steps of 5 points", {"pellucid": taken(network, lambda: attribution()[0])})


if __name__ == "__main__":
    main()
