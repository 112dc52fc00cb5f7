"""A name, a folder, a file or a hub id -> images in [0, 1] and labels."""

from pellucid.data.catalogue import Entry, known
from pellucid.data.imageset import ImageSet, batches, resident
from pellucid.data.loading import load
from pellucid.data.structure import check_images, check_labels
from pellucid.data.subsets import subset

__all__ = ["Entry", "ImageSet", "batches", "check_images", "check_labels", "known", "load", "resident", "subset"]
