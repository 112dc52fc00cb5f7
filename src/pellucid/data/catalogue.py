"""What there is to load, without decoding it: names, splits, counts, where they lie."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pellucid.data.digits import SIDE, TEST, TRAIN
from pellucid.data.names import KNOWN, how_to_get
from pellucid.data.sources import Place, data_folder, places, subfolders
from pellucid.errors import PellucidError

ORDER = MappingProxyType({"train": 0, "valid": 1, "test": 2})


@dataclass(frozen=True)
class Entry:
    """A data set that `load` takes: images per split (none if it is not on this machine), shape of the first one.

    `get` says how to bring a set here that is not, where the hub is not the one way.
    """

    name: str
    splits: Mapping[str, int]
    shape: tuple[int, int, int] | None
    where: str
    about: str
    preparations: Mapping[str, str]
    get: str = ""


def known() -> tuple[Entry, ...]:
    """Every data set that has a name: the embedded one, those under `$PELLUCID_DATA`, those the hub keeps.

    A data set that is there and damaged is listed, with what is wrong in place of where it is.
    """
    root = data_folder()
    local = {entry.name: entry for folder in (subfolders(root) if root else []) if (entry := _local(folder))}
    return tuple(local.pop(name, None) or _elsewhere(name) for name in KNOWN) + tuple(local.values())


def _local(folder: Path) -> Entry | None:
    name = folder.name
    if name == "digits":
        return None  # the embedded one goes first
    try:
        found = places(folder)
        order = sorted(found, key=lambda split: (ORDER.get(split, len(ORDER)), split))
        splits = {split: _count(found[split]) for split in order}
    except PellucidError as error:
        return Entry(name, {}, None, f"damaged: {error}", _about(name), _options(name))
    if not found:
        return None
    return Entry(name, splits, _first_shape(found[order[0]]), str(folder), _about(name), _options(name))


def _elsewhere(name: str) -> Entry:
    if name == "digits":
        counts = {"train": TRAIN, "test": TEST}
        return Entry(name, counts, (1, SIDE, SIDE), "embedded (scikit-learn)", _about(name), _options(name))
    hub = KNOWN[name].hub
    where = f"hub: {hub} (downloaded at first use)" if hub else "not here"
    get = how_to_get(name, (data_folder() or "$PELLUCID_DATA") / Path(name))
    return Entry(name, {}, None, where, _about(name), _options(name), get)


def _about(name: str) -> str:
    return KNOWN[name].about if name in KNOWN else ""


def _options(name: str) -> Mapping[str, str]:
    return dict(KNOWN[name].options) if name in KNOWN else {}


def _count(place: Place) -> int:
    if place.folder is not None:
        return len(place.images())
    try:
        return sum(pq.read_metadata(file).num_rows for file in place.parquet)
    except (pa.ArrowException, OSError) as error:
        raise PellucidError(f"{place.where}: the split {place.split!r} cannot be read as Parquet: {error}") from None


def _first_shape(place: Place) -> tuple[int, int, int] | None:
    """Of the first image as stored; None where it is no encoded image."""
    try:
        if place.folder is not None:
            raw = place.images()[0][0].read_bytes()
        else:
            batch = next(pq.ParquetFile(place.parquet[0]).iter_batches(1)).to_pylist()[0]
            raw = next(value["bytes"] for value in batch.values() if isinstance(value, dict) and value.get("bytes"))
        with Image.open(io.BytesIO(raw)) as image:
            width, height = image.size
            return (1 if image.mode in ("1", "L") else 3, height, width)
    except (StopIteration, IndexError, OSError, pa.ArrowException):
        return None
