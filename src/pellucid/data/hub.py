"""The Hugging Face hub, at most one try: where it cannot be reached, that is said at once."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pellucid.data.sources import ALIASES, Place, missing_text
from pellucid.errors import PellucidError

if TYPE_CHECKING:
    from datasets import Dataset

TIMEOUT = 5  # seconds to find out whether the hub answers


def open_hub(name: str, place: Place) -> "Dataset":
    """The table of a hub repository's split, downloaded at first use and kept by `datasets`.

    `datasets` itself tries for 25 s when there is no network; so it is asked only for what is already on disk unless
    the hub answers. Raises `PellucidError` that says where it looked and how to get the data.
    """
    assert place.hub is not None
    trouble = unreachable()
    import datasets

    datasets.disable_progress_bars()
    last = None
    with _offline() if trouble else contextlib.nullcontext():
        for split in (place.split, *ALIASES.get(place.split, ())):
            try:
                table = datasets.load_dataset(place.hub, place.config, split=split)
            except ValueError as error:
                last = error
                continue
            # Whatever else a download can die of has the same remedy.
            except Exception as error:
                looked = [*place.looked, f"the hub's {place.hub}: {trouble or f'{type(error).__name__}: {error}'}"]
                raise PellucidError(missing_text(name, place.split, looked)) from None
            assert isinstance(table, datasets.Dataset)
            return table
    raise PellucidError(f"the hub's {place.hub} has no split {place.split!r}: {last}")


def unreachable() -> str | None:
    """Why the hub cannot be reached, or None. Honours `HF_HUB_OFFLINE`, `HF_ENDPOINT` and the proxy variables."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set, and it is not in the local cache"
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not endpoint.startswith(("https://", "http://")):
        return f"HF_ENDPOINT={endpoint!r} is not an http address"
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError as answer:
        answer.close()  # any answer is an answer
    except (OSError, ValueError) as error:
        return f"{endpoint} cannot be reached ({getattr(error, 'reason', error)}), and it is not in the local cache"
    return None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
