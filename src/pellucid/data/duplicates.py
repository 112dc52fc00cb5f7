"""Images that occur more than once: what was trained on must not be tested on."""

import hashlib

from pellucid.data.imageset import ImageSet, batches


def fingerprints(images: ImageSet) -> list[bytes]:
    """A hash of each image's pixels, in order."""
    return [hashlib.blake2b(x.numpy().tobytes(), digest_size=16).digest() for xs, _ in batches(images, 500) for x in xs]


def repeated(images: ImageSet) -> int:
    """How many images equal, pixel for pixel, an earlier one of the same set."""
    found = fingerprints(images)
    return len(found) - len(set(found))


def shared(images: ImageSet, other: ImageSet) -> int:
    """How many images of the first set occur, pixel for pixel, in the other."""
    if images.shape != other.shape:
        return 0
    known = set(fingerprints(other))
    return sum(found in known for found in fingerprints(images))
