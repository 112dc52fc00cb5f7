"""A name, a folder, a file or a hub id -> images in [0, 1] and labels."""

from pellucid.data.catalogue import Entry, known
from pellucid.data.cues import CueConflict, cue_conflict
from pellucid.data.groups import RESTRICTED, SIXTEEN
from pellucid.data.imageset import ImageSet, batches, resident
from pellucid.data.loading import load
from pellucid.data.subsets import subset

__all__ = [
    "RESTRICTED",
    "SIXTEEN",
    "CueConflict",
    "Entry",
    "ImageSet",
    "batches",
    "cue_conflict",
    "known",
    "load",
    "resident",
    "subset",
]
