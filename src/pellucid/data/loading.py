"""From a name to a set of images."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pellucid.data import arrays, cache
from pellucid.data.decode import Scale, square
from pellucid.data.digits import SOURCE, digits
from pellucid.data.hub import open_hub
from pellucid.data.imageset import ImageSet, Resident, resident
from pellucid.data.names import check_option
from pellucid.data.prepare import prepared
from pellucid.data.read import read
from pellucid.data.sources import Place, locate
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from datasets import Dataset


def load(name: str | Path, split: str = "test", *, size: int | None = None, limit: int | None = None) -> ImageSet:
    """The labelled images of one split, in [0, 1].

    `name` is `digits` (embedded), a folder, a .parquet file, a data set under `$PELLUCID_DATA`, a known name, or a hub
    id `owner/name`, looked for in this order; `name@preparation` is a paper's preparation, such as `mnist@boopathy`.
    `size` scales the shorter side to that many pixels (bilinear, antialiased) and crops the centre square; without it
    all images must be of one size. `limit` takes the first images, in stored order, which folders sort by class: for
    a fair sample use `subset`. Grey images stay grey if all are; else all become RGB. Decoded sets are kept under
    `$XDG_CACHE_HOME/pellucid`. Raises `PellucidError` for whatever cannot be found or used, with the remedy.
    """
    for option, value in (("size", size), ("limit", limit)):
        if value is not None and value < 1:
            raise PellucidError(f"{option} must be at least 1, got {value}")
    text = str(name)
    if not text.strip():
        raise PellucidError("the data set has no name: give a name (see `pellucid data list`), a folder or a file")
    base, at, option = text.rpartition("@")
    if not at or Path(text).expanduser().exists():
        return load_split(text, split, scale=square(size), limit=limit)
    check_option(base, option)

    def part(of: str, *, scale: Scale | None = None, **how: Any) -> ImageSet:
        return load_split(base, of, scale=square(size) or scale, **how)

    found = prepared(base, option, split, part)
    return found if limit is None else found.select(range(min(limit, len(found))))


def load_split(
    name: str,
    split: str,
    *,
    scale: Scale | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    groups: Mapping[str, tuple[int, ...]] | None = None,
) -> ImageSet:
    """A split as it is stored, from the cache if it was decoded before; of ImageNet, only `groups` of its classes."""
    if name == "digits":
        return _digits(split, scale, limit)
    place = locate(name, split)
    table = open_hub(name, place) if place.hub else None
    files = [Path(f["filename"]) for f in table.cache_files] if table is not None else _files(place)
    identity = cache.identity(files)
    grouped = None if groups is None else list(groups.items())
    listed = [number for _, number in place.listed]
    entry = cache.key(identity, place.class_names, listed, name, place.split, scale, limit, skip_unreadable, grouped)
    if files and (found := cache.recall(entry)):
        return found
    table = open_table(place, files) if table is None else table
    table = table if limit is None else table.select(range(min(limit, len(table))))
    found = read(
        table,
        name=name,
        split=place.split,
        source=place.where,
        identity=[(Path(path).name, length, changed) for path, length, changed in identity],
        scale=scale,
        skip_unreadable=skip_unreadable,
        groups=groups,
    )
    if files:
        cache.remember(entry, found)
    return found


def _files(place: Place) -> list[Path]:
    if place.folder is None:
        return list(place.parquet)
    return [file for file, _ in place.images()]


def open_table(place: Place, files: list[Path] | None = None) -> "Dataset":
    """The table of a split on this machine: columns `image` and `label` of a folder, or those that Parquet has."""
    return _open_folder(place) if place.folder is not None else _open_parquet(files or list(place.parquet))


def _open_folder(place: Place) -> "Dataset":
    import datasets  # takes 2 s to import

    images = place.images()
    if not images:
        raise PellucidError(f"{place.folder} holds no images: put them at {place.folder}/<class>/*.png")
    names = datasets.ClassLabel(names=list(place.class_names))
    features = datasets.Features({"image": datasets.Image(), "label": names})
    columns = {"image": [str(file) for file, _ in images], "label": [label for _, label in images]}
    return datasets.Dataset.from_dict(columns, features=features)


def _open_parquet(files: list[Path]) -> "Dataset":
    for file in files:
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise PellucidError(f"{file} cannot be read as Parquet: {error}. Fetch it anew") from None
        if metadata.num_rows == 0 and len(files) == 1:
            raise PellucidError(f"{file} is empty: it has no rows")
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_parquet(
            [str(file) for file in files], cache_dir=str(cache.cache_folder() / "arrow")
        )
    except (DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise PellucidError(
            f"{', '.join(map(str, files))} cannot be read as Parquet: {reason}. Fetch it anew"
        ) from None
    assert isinstance(table, datasets.Dataset)
    return table


def _digits(split: str, scale: Scale | None, limit: int | None) -> ImageSet:
    # scikit-learn takes 2 s to import.
    entry = cache.key("digits", version("scikit-learn"), split)
    found = cache.recall(entry)
    if found is None:
        found = digits(split)
        cache.remember(entry, found)
    if limit is not None:
        found = found.select(range(min(limit, len(found))))
    if scale is None:
        return found
    assert isinstance(found.pixels, Resident)
    pixels = arrays.resized(found.pixels.tensor, scale)
    facts = {"name": found.name, "split": split, "class_names": found.class_names, "source": SOURCE}
    return resident(pixels, found.labels, **facts)
