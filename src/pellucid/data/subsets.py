"""Which images of a set: all of them, the first, a seeded sample, or the 200 of a paper."""

import re

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.seeds import check_seed

FORMS = "'all', a count such as '200' (a seeded sample), 'first:N', a range 'FROM:TO', or 'boopathy200'"


def subset(spec: str | int, n: int, seed: int = 0) -> Int64[Tensor, " k"]:
    """Indices into a set of `n` images.

    `all`, `first:N` and `FROM:TO` (rows FROM to TO - 1) are in the set's own order. A count is a sample without
    replacement from a generator seeded with `seed`, sorted: the same for every model, and an evaluation reads a
    streamed set front to back. `boopathy200` is the fixed test subset of Boopathy et al. 2020,
    `RandomState(99).permutation(10000)[:200]`, in the order drawn. Raises `PellucidError` for a count below 1 or above
    `n`, and for a range that is empty or ends beyond it.
    """
    text = str(spec).strip().lower()
    if text == "all":
        return torch.arange(n)
    if text == "boopathy200":
        return _boopathy(n)
    if between := re.fullmatch(r"(\d+):(\d+)", text):
        first, end = int(between[1]), int(between[2])
        if not first < end <= n:
            raise PellucidError(
                f"the subset {text!r} must begin before it ends, and end at {n} at most, the set's size"
            )
        return torch.arange(first, end)
    match = re.fullmatch(r"(first:)?(\d+)", text)
    if match is None:
        raise PellucidError(f"cannot read the subset {str(spec)!r}: write {FORMS}")
    count = int(match[2])
    if not 1 <= count <= n:
        raise PellucidError(f"the subset {text!r} wants {count} of {n} images: choose 1 to {n}, or 'all'")
    if match[1]:
        return torch.arange(count)
    return torch.randperm(n, generator=torch.Generator().manual_seed(check_seed(seed)))[:count].sort().values


def _boopathy(n: int) -> Int64[Tensor, " k"]:
    if n != 10_000:
        raise PellucidError(
            f"'boopathy200' is defined on the 10,000 test images of MNIST and CIFAR-10, this set has {n}: "
            "write '200' for a seeded sample"
        )
    return torch.from_numpy(np.random.RandomState(99).permutation(n)[:200].astype(np.int64))
