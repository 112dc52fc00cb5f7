"""Training without an adversary: the standard objective, and distillation from a teacher."""

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.teachers import Teacher, checked, teacher_probabilities
from pellucid.types import Generator, Images, Labels


def standard(
    model: nn.Module, x: Images, y: Labels, *, step: int, generator: Generator = None, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """`CE(f(x) / T, y)`, the mean over the batch. A `temperature` T above 1 is for the teacher of a distillation."""
    del step, generator
    loss = F.cross_entropy(model(x) / checked(temperature), y)
    return loss, {"cross_entropy": loss.detach()}


def distilled(
    model: nn.Module,
    x: Images,
    y: Labels,
    *,
    step: int,
    generator: Generator = None,
    teacher: Teacher = None,
    temperature: float = 50.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Defensive distillation: `H(softmax(g(x) / T), softmax(f(x) / T))`, g the teacher, T the `temperature`.

    The `teacher` is a path to a trained network (or a network), one trained at the same temperature:
    `standard(temperature=50)`. Without one, `pellucid train` trains it first, in the folder `teacher` of the run.
    The student is used at T = 1, where its softmax saturates and the gradients of its cross entropy vanish: that hides
    gradients, and removes no adversarial example (Carlini & Wagner 2017).
    Source: Papernot et al. 2016, sec. IV; Ross & Doshi-Velez 2018, eqs. 2 and 3. Raises without a teacher.
    """
    del y, step, generator
    goal = teacher_probabilities(teacher, x, temperature)
    loss = F.cross_entropy(model(x) / temperature, goal)
    return loss, {"cross_entropy": loss.detach()}
