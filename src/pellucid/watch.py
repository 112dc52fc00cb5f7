"""Watching a run on held-out images: clean and robust accuracy, the best weights so far, and when to stop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pellucid.data import ImageSet
from pellucid.data.imageset import batches
from pellucid.errors import PellucidError
from pellucid.evaluation import attack_images, chunk_size
from pellucid.metrics import correct, input_gradient_norm
from pellucid.network import frozen, full_precision
from pellucid.recipe import Recipe
from pellucid.seeds import derive_seed
from pellucid.types import Attack

LEARNED = 0.1  # of what answering every image alike gets wrong: a best score of less has nothing to lose
COLLAPSED = 0.5  # of the best robust accuracy: what a network overfitted to a single step falls below


@dataclass
class Best:
    """The weights of the best score so far, and since how many validations it has not risen. Part of a checkpoint."""

    weights: dict[str, Tensor] | None = None
    score: float = -1.0
    step: int = 0
    since: int = 0
    stopped: str = ""  # why the run ended before its last step

    def facts(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "since": self.since, "stopped": self.stopped}

    def restore(self, facts: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
        """As `facts` and the weights of a checkpoint have it."""
        self.score, self.step, self.since = float(facts["score"]), int(facts["step"]), int(facts["since"])
        self.stopped, self.weights = str(facts["stopped"]), weights or None


def held_out(recipe: Recipe, images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those to watch: `recipe.held_out` of them at random, where the recipe watches."""
    if not recipe.watches:
        return images, None
    if recipe.held_out >= len(images):
        raise PellucidError(
            f"held_out (={recipe.held_out}) must be less than the {len(images)} images of {images.name} {images.split}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(recipe.seed, "held out")))
    return images.select(order[recipe.held_out :].sort().values), images.select(order[: recipe.held_out].sort().values)


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """A copy that follows the weights: `a <- d a + (1 - d) w`, `d = min(decay, (1 + n) / (10 + n))` after n steps."""
    if not decay:
        return None

    def towards(average: Any, current: Any, seen: Any) -> None:
        n = int(seen)
        share = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(average), list(current), share)  # pyright: ignore[reportPrivateImportUsage]

    return AveragedModel(network, multi_avg_fn=towards)


def follow(average: AveragedModel | None, network: nn.Module) -> None:
    """Take one step's weights into the average; batch norm's statistics are copied."""
    if average is not None:
        average.update_parameters(network)
        for mine, theirs in zip(average.module.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


def validate(
    model: nn.Module, images: ImageSet, attack: Attack | None, device: torch.device, seed: int
) -> dict[str, float]:
    """`validation_accuracy`; `validation_gradient`, the mean `‖∇_x CE‖_2`; and with an attack `validation_robust`, the
    share right under it."""
    right, stands, slope, n = 0, 0, 0.0, 0
    generator = torch.Generator(device).manual_seed(seed)
    with frozen(model), full_precision():
        for batch in batches(images, chunk_size(images.shape)):
            x, y = (part.to(device) for part in batch)
            with torch.no_grad():
                clean = correct(model(x), y)
            right, n = right + int(clean.sum()), n + len(y)
            slope += float(input_gradient_norm(model, x, y).sum())
            if attack is not None:
                attacked = attack_images(attack, model, x, y, generator=generator)
                with torch.no_grad():
                    stands += int((clean & correct(model(attacked), y)).sum())
    found = {"validation_accuracy": right / n, "validation_gradient": slope / n}
    return found | {"validation_robust": stands / n} if attack is not None else found


def judge(
    best: Best, found: Mapping[str, float], model: nn.Module, recipe: Recipe, step: int, images: ImageSet
) -> None:
    """Keep the weights if the score is the best so far; say in `best.stopped` if the run shall end here.

    Robust accuracy has collapsed where it falls to half of its best, that best being more than a network has that
    answers every image alike, and the radius no longer growing.
    """
    score = found.get("validation_robust", found["validation_accuracy"])
    if score > best.score:
        best.score, best.step, best.since = score, step, 0
        if recipe.keep == "best":
            best.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    else:
        best.since += 1
    if recipe.stop_at is not None and found["validation_accuracy"] >= recipe.stop_at:
        best.stopped = f"validation accuracy reached {found['validation_accuracy']:.3f}"
    commonest = int(images.labels.bincount().max()) / len(images)
    told_apart = best.score > commonest + LEARNED * (1 - commonest) and step > recipe.ramp * recipe.steps
    collapsed = "validation_robust" in found and told_apart and score < COLLAPSED * best.score
    if recipe.keep == "best" and collapsed:
        best.stopped = f"robust accuracy collapsed from {best.score:.3f} to {score:.3f}: the attack is overfitted"
    if recipe.patience is not None and best.since >= recipe.patience and not best.stopped:
        best.stopped = f"{best.since} validation{'s' * (best.since > 1)} without a better score"
