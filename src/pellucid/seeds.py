"""One seed, many independent streams: every purpose gets a seed of its own."""

import hashlib
import json

from pellucid.errors import PellucidError

BITS = 63  # what a torch generator, numpy and a signed 64-bit integer all take


def derive_seed(*parts: int | str) -> int:
    """The first 63 bits of sha256 of the parts, such as `derive_seed(seed, "batches", epoch)`: in [0, 2^63).

    Parts are told apart by kind and place: `(1, 2)`, `(12,)` and `("1", 2)` give unrelated seeds. Integers may be of
    any size and sign. The same parts give the same seed on every machine and in every version.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - BITS)


def check_seed(seed: int) -> int:
    """The seed, if it is an integer in [0, 2^63); raises `PellucidError` for any other."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**BITS:
        raise PellucidError(f"seed (={seed!r}) must be an integer from 0 to 2^{BITS} - 1: --seed 0 will do")
    return seed
