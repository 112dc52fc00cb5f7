"""Fog: a plasma by the diamond-square algorithm, differentiable in its noise and of any size."""

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.distortions.gabor import stretched
from pellucid.types import Images

DECAY = 1.75  # by how much the noise shrinks from each scale to the next

Heights = Float[Tensor, "b 1 s s"]


def side(x: Images) -> int:
    """The smallest power of two that covers the images: the side of the noise that `distort` wants."""
    return 1 << max(0, max(x.shape[2:]) - 1).bit_length()


def plasma(noise: Heights, *, decay: float = DECAY) -> Heights:
    """Midpoint displacement on a torus: each point is the mean of four elders plus `decay^-scale` of its own noise.

    From a single corner, each scale sets first the centres of the squares (elders at their corners), then the
    middles of their edges (elders left, right, above, below). Every point of the noise is used once, where it lies.
    Source: Fournier et al. 1982; as fog, Hendrycks & Dietterich 2019.
    """
    stride = noise.shape[-1]
    heights, amplitude = noise[..., ::stride, ::stride], 1.0
    while stride > 1:
        half = stride // 2
        below, right = heights.roll(-1, 2), heights.roll(-1, 3)
        own = amplitude * noise[..., half::stride, half::stride]
        centres = (heights + below + right + below.roll(-1, 3)) / 4 + own
        own = amplitude * noise[..., ::stride, half::stride]
        tops = (heights + right + centres + centres.roll(1, 2)) / 4 + own
        own = amplitude * noise[..., half::stride, ::stride]
        lefts = (heights + below + centres + centres.roll(1, 3)) / 4 + own
        upper, lower = (torch.stack(pair, -1).flatten(3) for pair in ((heights, tops), (lefts, centres)))
        heights = torch.stack((upper, lower), 3).flatten(2, 3)
        stride, amplitude = half, amplitude / decay
    return heights


def distort(x: Images, noise: Heights, *, eps: float, decay: float = DECAY) -> Images:
    """`(x + eps · p) / (1 + eps)`, p the plasma stretched to [0, 1] over the image, the same in every channel.

    At eps the picture keeps `1 / (1 + eps)` of its contrast. Source: Kang et al. 2019, sec. 2; the mixture is that
    of Hendrycks & Dietterich 2019 for white 1.
    """
    h, w = x.shape[2:]
    mist = stretched(plasma(noise, decay=decay)[..., :h, :w])
    return (x + eps * mist) / (1 + eps)
