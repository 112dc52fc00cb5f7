"""Contrast normalisation as a network's first layers: global, of the whole image, and local, of each neighbourhood.

Both have finite first and second derivatives everywhere: where a spread is zero its gradient is taken as zero. At their
thresholds the global one jumps and the local one has a kink.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import PellucidError
from pellucid.types import Images, Reading

TINY = 1e-24  # a variance of no meaning, whose root still has finite derivatives in fp32


class GlobalContrast(nn.Module):
    """`(x - mean(x)) / s` per image, s its standard deviation over all its values (n - 1), and 1 where `s < least`.

    Global contrast normalisation (GCN) as Ross & Doshi-Velez 2018 prepare SVHN. They measure on grey levels 0 to 255
    and take `s < 1e-4` there: 1e-4/255 here, where pixels are in [0, 1]; otherwise the layer's result does not depend
    on the scale. Deviation: theirs is done once, before the network, so that their radii are in each image's standard
    deviations; as a layer, an attack's radius is in pixels and the normalisation is attacked with the rest.
    Raises `PellucidError` for `least <= 0` and for images of one value.
    """

    def __init__(self, *, least: float = 1e-4 / 255) -> None:
        super().__init__()
        if not least > 0:
            raise PellucidError(f"least (={least}) must be above 0: an image of one colour has no contrast")
        self.least = least

    def extra_repr(self) -> str:
        return f"least={self.least:.3g}"

    def forward(self, x: Images) -> Images:
        n = x.shape[1] * x.shape[2] * x.shape[3]
        if n < 2:
            raise PellucidError(f"images of shape {tuple(x.shape[1:])} have one value: contrast needs two")
        centred = x - x.mean((1, 2, 3), keepdim=True)
        spread = _root(centred.square().sum((1, 2, 3), keepdim=True) / (n - 1))
        return centred / torch.where(spread < self.least, torch.ones_like(spread), spread)


class LocalContrast(nn.Module):
    """`c / max(mean(d), d, least)` with `c = x - G*x`, `d = sqrt(G*c²)`, G a Gaussian that adds up to 1.

    Local contrast normalisation (LCN) of Jarrett et al. 2009, as Ross & Doshi-Velez 2018 have it as the first layer of
    their SVHN network: G of 7 x 7 and sigma 3, zeros around the image (there the mean is less than the image's), least
    1e-4. Over several channels G weighs all of them alike, and `G*x` and d are one map for all. `reading="as_written"`:
    `mean(d)` is each image's own. `"as_coded"`: it is the whole batch's, so that an answer depends on the other images.
    Raises `PellucidError` for an even size, and a sigma or least that is not above 0.
    """

    kernel: Tensor

    def __init__(
        self, *, size: int = 7, sigma: float = 3.0, least: float = 1e-4, reading: Reading = "as_written"
    ) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise PellucidError(f"size (={size}) must be odd: a neighbourhood has its pixel in the middle")
        if not (sigma > 0 and least > 0):
            raise PellucidError(f"sigma (={sigma}) and least (={least}) must be above 0")
        if reading not in ("as_written", "as_coded"):
            raise PellucidError(f"reading (={reading!r}) must be 'as_written' or 'as_coded'")
        self.size, self.sigma, self.least, self.reading = size, sigma, least, reading
        at = torch.arange(size, dtype=torch.float64) - size // 2
        line = torch.exp(-at.square() / (2 * sigma**2))
        weights = torch.outer(line, line)
        self.register_buffer("kernel", (weights / weights.sum()).float()[None, None], persistent=False)

    def extra_repr(self) -> str:
        return f"size={self.size}, sigma={self.sigma:g}, least={self.least:g}, reading={self.reading!r}"

    def forward(self, x: Images) -> Images:
        centred = x - self._around(x)
        spread = _root(self._around(centred.square()))
        mean = spread.mean() if self.reading == "as_coded" else spread.mean((1, 2, 3), keepdim=True)
        return centred / torch.maximum(mean, spread).clamp_min(self.least)

    def _around(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Every neighbourhood's mean over all channels."""
        return F.conv2d(x.mean(1, keepdim=True), self.kernel.to(x.dtype), padding=self.size // 2)


def _root(variance: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """The square root, with gradient zero at zero in place of infinity."""
    some = variance > TINY
    return torch.where(some, torch.where(some, variance, torch.ones_like(variance)).sqrt(), torch.zeros_like(variance))
