"""Random numbers for batches of images: from one generator, or from a stream of each image's own."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.seeds import derive_seed


class PerImage:
    """A stream per image: what an image is given hangs on the seed and on which image it is, not on its batch.

    So every model sees the same shuffled, stylised or filtered image, however large the batches and whichever of a data
    set's images were chosen. What is drawn for one purpose is independent of what is drawn for another.
    """

    def __init__(self, seed: int, rows: Iterable[int], purpose: str = "transform") -> None:
        self.streams = [torch.Generator().manual_seed(derive_seed(purpose, seed, int(row))) for row in rows]


Draws = torch.Generator | PerImage | None


def uniform(draws: Draws, x: Tensor, *sizes: int) -> Float[Tensor, "b ..."]:
    """Uniform numbers in [0, 1), `[b, *sizes]` for a batch x of b images, on its device.

    Of one generator image after image, so that the first images of a larger batch get what a smaller one got.
    """
    if not isinstance(draws, PerImage):
        return (
            torch.stack([torch.empty(sizes, device=x.device).uniform_(generator=draws) for _ in range(len(x))])
            if len(x)
            else torch.empty((0, *sizes), device=x.device)
        )
    _check_streams(draws, x)
    found = [torch.empty(sizes).uniform_(generator=stream) for stream in draws.streams]
    return torch.stack(found).to(x.device) if found else torch.empty((0, *sizes), device=x.device)


def normal(draws: Draws, x: Tensor, count: int) -> Float[Tensor, "count b ..."]:
    """Normal numbers of x's shape, `count` times over, on its device and in its type.

    Of streams number after number, so that drawing fewer at once, more often, gives the same.
    """
    if not isinstance(draws, PerImage):
        return torch.empty(count, *x.shape, dtype=x.dtype, device=x.device).normal_(generator=draws)
    _check_streams(draws, x)
    found = torch.empty(count, *x.shape, dtype=x.dtype)
    for number in range(count):
        for image, stream in enumerate(draws.streams):
            found[number, image].normal_(generator=stream)
    return found.to(x.device)


def _check_streams(draws: PerImage, x: Tensor) -> None:
    if len(draws.streams) != len(x):
        raise PellucidError(f"{len(draws.streams)} streams of random numbers for a batch of {len(x)} images")
