"""What keeps texture and takes shape: patches in another order."""

from numbers import Integral

from pellucid.draws import Draws, uniform
from pellucid.errors import PellucidError
from pellucid.inputs import check_images
from pellucid.types import Images


def patch_shuffle(x: Images, *, k: int = 4, generator: Draws = None) -> Images:
    """The k x k patches of each image in an order of its own, all orders as likely; k = 1 changes nothing.

    Source: Zhang & Zhu 2019, sec. 3.2 (k = 2, 4, 8). Deviation: theirs is drawn anew at every call, without a seed.
    Raises `PellucidError` unless k is a whole number from 1 that divides height and width.
    """
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise PellucidError(
            f"patch_shuffle(k={k!r}) must be a whole number of at least 1: images are cut into k x k patches, and 1 "
            "changes nothing"
        )
    check_images(x)
    b, c, h, w = x.shape
    if h % k or w % k:
        fits = [str(n) for n in range(2, min(h, w) + 1) if h % n == 0 and w % n == 0]
        raise PellucidError(
            f"patch_shuffle(k={k}) must divide height and width, {h} x {w}: "
            + (f"{', '.join(fits[:8])} do" if fits else "only 1 does; resize the images (--size)")
        )
    if k == 1:
        return x
    tall, wide = h // k, w // k
    patches = x.view(b, c, k, tall, k, wide).permute(0, 2, 4, 1, 3, 5).reshape(b, k * k, c, tall, wide)
    order = uniform(generator, x, k * k).argsort(1)
    shuffled = patches.gather(1, order[:, :, None, None, None].expand_as(patches))
    return shuffled.view(b, k, k, c, tall, wide).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
