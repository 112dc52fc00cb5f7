"""Results: rows per example in Parquet, figures with intervals, and the facts of the run that made them."""

import hashlib
import io
import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pellucid.errors import PellucidError
from pellucid.weights import write_atomically

Rows = dict[str, np.ndarray]

Z_95 = 1.959963984540054


def wilson(count: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927). (0, 1) where there is nothing to judge by."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = count / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n the bound is exactly 0 or 1; rounding may leave it beside.
    return (0.0 if count == 0 else max(0.0, centre - half)), (1.0 if count == n else min(1.0, centre + half))


def rate(hits: np.ndarray) -> dict[str, float | int]:
    """A proportion with its interval: value, low, high, count, n."""
    count, n = int(hits.sum()), len(hits)
    low, high = wilson(count, n)
    return {"value": count / n if n else math.nan, "low": low, "high": high, "count": count, "n": n}


def bootstrap(values: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean; (nan, nan) of nothing."""
    if len(values) == 0:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): reject below the level, and all rejections hold together.

    Raises `ValueError` for NaN, which has no rank.
    """
    if any(math.isnan(p) for p in p_values):
        raise ValueError(f"p-values {p_values}: one is NaN, and has no rank")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = running
    return corrected


def fingerprint(*parts: Any) -> str:
    """A short content hash of JSON-able values: the name of what they determine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is no file. Raises `PellucidError`, with the remedy."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PellucidError(f"{path} cannot be read ({error}): {remedy}") from None
    if not isinstance(found, dict):
        raise PellucidError(f"{path} cannot be read (a {type(found).__name__}, not an object): {remedy}")
    return found


def model_digest(model: torch.nn.Module) -> str:
    """A content hash of a model's class, layers and weights."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_rows(path: Path, rows: Rows) -> None:
    """Rows to Parquet, atomically."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(values) for name, values in rows.items()}), buffer)
    write_atomically(path, buffer.getvalue())


def read_rows(path: Path) -> Rows:
    """Rows from Parquet."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise PellucidError(f"cannot read rows from {path} ({error}): remove the file, it will be made anew") from None
    return {name: table[name].to_numpy() for name in table.column_names}


def concatenate(parts: list[Rows]) -> Rows:
    """Parts of one table, one after the other; what a part lacks is missing (NaN) there."""
    names = {name: None for part in parts for name in part}
    tables = [pa.table({n: pa.array(v) for n, v in part.items()}) for part in parts]
    table = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    return {name: table[name].to_numpy() for name in names}


def long_table(parts: Iterable[tuple[Mapping[str, str | float], Rows]]) -> Rows:
    """Rows of several measurements as one table, in their order. What tells a part from the others, such as
    `{"transform": ""}`, stands in a column beside each of its rows; a column of that name of the rows' own gives way.
    """
    return concatenate(
        [
            rows | {name: np.array([value] * len(rows["index"])) for name, value in named.items()}
            for named, rows in parts
        ]
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON that any reader takes: a number that is not finite becomes null."""
    write_atomically(path, (json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The value with every number that is not finite replaced by None, at any depth."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def run_facts(*, started: str, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """What a reader needs to run it again: command, commit, versions, device, threads, seconds."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": started,
        "seconds": round(seconds, 2),
        "commit": commit(),
        "versions": {name: version(name) for name in ("pellucid", "torch", "numpy", "scipy", "datasets")}
        | {"python": platform.python_version()},
        "device": device,
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def commit() -> str | None:
    """The commit of the checkout that this package runs from, marked + where it was changed; None when installed."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", "results.py")
    head = git("rev-parse", "--short", "HEAD") if tracked else None
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
