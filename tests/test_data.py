"""The data layer: one interface for every source, and an answer for every input that cannot be used."""

import hashlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pellucid.cli.data import app
from pellucid.data import (
    ImageSet,
    batches,
    cache,
    hub,
    known,
    load,
    prepare,
    read,
    resident,
    subset,
)
from pellucid.data.digits import digits
from pellucid.data.duplicates import repeated, shared
from pellucid.data.loading import load_split
from pellucid.data.names import KNOWN
from pellucid.data.sources import locate
from pellucid.errors import PellucidError
from pellucid.inputs import check_images

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ["ant", "bee", "cat"]


def png(pixels: np.ndarray) -> bytes:
    """Pixels [h, w] or [h, w, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(n: int, *shape: int) -> list[np.ndarray]:
    """Random images of one shape."""
    return list(np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8))


def parquet(path: Path, images: list[Any], labels: list[Any], **features: Any) -> Path:
    """A Parquet file as the hub has it. `image`, `label` in `features` change the columns' types."""
    types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)} | features
    if isinstance(types["image"], datasets.Image):
        images = [x if x is None else {"bytes": png(x), "path": None} for x in images]
    columns = {"image": images, "label": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(types)).to_parquet(path)
    return path


def folder(path: Path, images: list[np.ndarray], labels: list[int]) -> Path:
    """The same images as class folders."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (path / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (path / NAMES[label] / f"{i:04d}.png").write_bytes(png(image))
    return path


def refusal(call: Callable[[], object]) -> str:
    """The message of the refusal that a call ends in."""
    with pytest.raises(PellucidError) as caught:
        call()
    return str(caught.value)


# The embedded digits


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test), test.shape) == (1297, 500, (1, 28, 28))
    assert torch.bincount(test.labels).tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert torch.bincount(train.labels).tolist() == [128, 131, 128, 132, 131, 131, 131, 129, 126, 130]
    assert shared(test, train) == repeated(train) == repeated(test) == 0
    again = digits("test")
    assert again.digest == test.digest
    assert torch.equal(again.batch([3, 1])[0], test.batch([3, 1])[0])


def test_digits_lie_like_mnist_in_a_box_of_20_pixels() -> None:
    x, _ = load("digits").batch(range(500))
    check_images(x)
    assert x[:, :, :4].sum() == x[:, :, 24:].sum() == x[..., :4].sum() == x[..., 24:].sum() == 0
    assert load("digits", size=14, limit=7).shape == (1, 14, 14)
    assert "there are train, test" in refusal(lambda: load("digits", "valid"))


# One interface


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_a_batch_is_the_stored_pixels_over_255(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images, labels = pictures(7, *shape), [0, 1, 2, 0, 1, 2, 2]
    found = load(parquet(tmp_path / "birds" / "test.parquet", images, labels))
    x, y = found.batch(torch.tensor([5, 0, 5]))
    expected = np.stack([images[5], images[0], images[5]]).reshape(3, 6, 5, -1).transpose(0, 3, 1, 2) / np.float32(255)
    assert torch.equal(x, torch.from_numpy(expected))
    assert (y.tolist(), found.class_names, found.split) == ([2, 0, 2], tuple(NAMES), "test")
    check_images(x)


def test_selections_compose(tmp_path: Path) -> None:
    found = load(parquet(tmp_path / "test.parquet", pictures(7, 4, 4), [0, 1, 2, 0, 1, 2, 2]))
    part = found.select([6, 2, 4]).select(np.array([2, 0]))
    assert torch.equal(part.batch([0, 1])[0], found.batch([4, 6])[0])
    assert part.labels.tolist() == [1, 2]
    assert len({part.digest, found.digest, found.select([4]).digest}) == 3
    assert found.batch([])[0].shape == (0, 1, 4, 4)


@pytest.mark.parametrize("bad", [[7], [-1], [0.5], [[0]], [True, False]])
def test_indices_outside_the_set_are_refused(tmp_path: Path, bad: list[Any]) -> None:
    found = load(parquet(tmp_path / "test.parquet", pictures(7, 4, 4), [0] * 7))
    assert "indices must" in refusal(lambda: found.batch(torch.tensor(bad)))


@pytest.mark.parametrize("layout", [parquet, folder])
def test_a_streamed_set_equals_a_resident_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[..., Path]
) -> None:
    suffix = ".parquet" if layout is parquet else ""
    path = layout(tmp_path / f"test{suffix}", [*pictures(40, 9, 7, 3)], [0, 1, 2, 0] * 10)
    small = load(path, size=6)
    monkeypatch.setattr(read, "STREAM_ABOVE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    large = load(path, size=6)
    assert (small.pixels.streamed, large.pixels.streamed) == (False, True)
    assert (small.shape, small.class_names, small.source) == (large.shape, large.class_names, large.source)
    assert torch.equal(small.labels, large.labels)
    order = subset("25", 40)
    assert torch.equal(small.batch(order)[0], large.batch(order)[0])
    assert torch.equal(small.select(order).batch([3, 1])[0], large.select(order).batch([3, 1])[0])
    pairs = list(zip(batches(small, 7, indices=order), batches(large, 7, indices=order), strict=True))
    assert [len(x) for (x, _), _ in pairs] == [7, 7, 7, 4]
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)
    assert large.digest == load(path, size=6).digest != small.digest


def test_batches_end_early_and_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "STREAM_ABOVE", 0)
    found = load(parquet(tmp_path / "test.parquet", pictures(9, 4, 4), [0] * 9))
    assert len(next(batches(found, 2))[0]) == 2
    assert list(batches(found, 2, indices=[])) == []
    assert "batch_size" in refusal(lambda: next(batches(found, 0)))


def test_folders_and_parquet_files_are_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures(6, 5, 5, 3), [0, 0, 1, 1, 2, 2]
    for split in ("train", "test"):
        folder(tmp_path / "data" / "insects" / split, images, labels)
        parquet(tmp_path / "data" / "beasts" / f"{split}.parquet", images, labels)
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00002.parquet", images[:4], labels[:4])
    parquet(tmp_path / "hub" / "data" / "test-00001-of-00002.parquet", images[4:], labels[4:])
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path / "data"))
    sets = [
        load("insects"),
        load("beasts"),
        load(tmp_path / "data" / "insects"),
        load(tmp_path / "data" / "beasts" / "test.parquet"),
        load(folder(tmp_path / "flat", images, labels)),
        load(tmp_path / "hub"),
    ]
    assert len({found.digest for found in sets}) == 1
    assert {found.split for found in sets} == {"test"}


def test_a_class_that_a_split_lacks_does_not_shift_the_others(tmp_path: Path) -> None:
    folder(tmp_path / "train", pictures(3, 4, 4), [0, 1, 2])
    folder(tmp_path / "test", pictures(2, 4, 4), [0, 2])
    found = load(tmp_path)
    assert (found.labels.tolist(), found.class_names) == ([0, 2], tuple(NAMES))
    (tmp_path / "test" / "images").mkdir()
    assert "has classes that" in refusal(lambda: load(tmp_path))


# The cache


def test_the_second_load_reads_the_cache_and_a_changed_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "test.parquet", pictures(5, 4, 4), [0, 1, 2, 0, 1])
    first = load(path)
    with monkeypatch.context() as closed:
        closed.setattr(datasets.Dataset, "from_parquet", None)
        second = load(path)
    assert (first.digest, first.shape, first.class_names) == (second.digest, second.shape, second.class_names)
    assert torch.equal(first.batch(range(5))[0], second.batch(range(5))[0])
    parquet(path, pictures(6, 4, 4), [2] * 6)
    assert load(path).labels.tolist() == [2] * 6
    for entry in cache.cache_folder().glob("*.safetensors"):
        entry.write_bytes(b"damaged")
    assert len(load(path)) == 6
    assert len(load(path, limit=2)) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(parquet(tmp_path / "test.parquet", pictures(2, 4, 4), [0, 1]))) == 2


# What images may be


def test_grey_among_colour_becomes_colour_and_size_mends_mixed_sizes(tmp_path: Path) -> None:
    images = [*pictures(3, 8, 6), *pictures(2, 8, 6, 3), *pictures(1, 12, 20)]
    path = parquet(tmp_path / "test.parquet", images, [0, 1, 2, 0, 1, 2])
    message = refusal(lambda: load(path))
    assert "2 sizes: 5 of 6x8, 1 of 20x12" in message
    assert "size=N" in message
    found = load(path, size=4)
    assert found.shape == (3, 4, 4)
    x, _ = found.batch([0])
    assert torch.equal(x[:, 0], x[:, 2])
    scaled = Image.fromarray(images[5]).resize((7, 4), Image.Resampling.BILINEAR).crop((1, 0, 5, 4))
    assert torch.equal(found.batch([5])[0][0, 0], torch.from_numpy(np.asarray(scaled) / np.float32(255)))
    assert load(path, limit=3).shape == (1, 8, 6)


def test_transparency_palettes_and_a_turned_camera(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    grey = Image.fromarray(pictures(1, 4, 6)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.convert("RGB").rotate(90, expand=True).save(tmp_path / "ant" / "turned.jpg", exif=exif)
    grey.convert("RGBA").save(tmp_path / "ant" / "clear.png")
    grey.convert("P").save(tmp_path / "ant" / "palette.png")
    assert load(tmp_path).shape == (3, 4, 6)


@pytest.mark.parametrize("streamed", [False, True])
def test_images_that_cannot_be_read_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    path = folder(tmp_path / "set", pictures(4, 20, 20), [0, 0, 1, 1])
    (path / "ant" / "0000.png").write_bytes(b"")
    (path / "bee" / "0002.png").write_bytes(b"no image at all")
    if streamed:
        monkeypatch.setattr(read, "STREAM_ABOVE", 0)
    message = refusal(lambda: load(path))
    assert "2 of 4 images cannot be read" in message
    assert "row 0" in message
    assert "row 2" in message


def test_a_truncated_image_is_refused_also_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "set", pictures(4, 40, 40), [0, 0, 1, 1])
    file = path / "bee" / "0003.png"
    file.write_bytes(file.read_bytes()[:900])
    assert "0003.png" in refusal(lambda: load(path))
    monkeypatch.setattr(read, "STREAM_ABOVE", 0)
    found = load(path)  # the headers are whole
    assert len(found.batch([0, 1, 2])[0]) == 3
    assert "0003.png" in refusal(lambda: found.batch([3]))


def test_unreadable_images_are_left_out_only_on_request(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", pictures(4, 20, 20), [0, 0, 1, 1])
    whole = load(path)
    (path / "ant" / "0001.png").write_bytes(b"no image at all")
    found = load_split(str(path), "test", skip_unreadable=True)
    assert found.labels.tolist() == [0, 1, 1]
    assert torch.equal(found.batch([0, 1, 2])[0], whole.batch([0, 2, 3])[0])


def test_sixteen_bits_and_missing_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep" / "ant").mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(tmp_path / "deep" / "ant" / "x.png")
    assert "more than 8 bits" in refusal(lambda: load(tmp_path / "deep"))
    path = parquet(tmp_path / "test.parquet", [pictures(1, 4, 4)[0], None], [0, 1])
    assert "1 of 2 images cannot be read" in refusal(lambda: load(path))


# Arrays of numbers


@pytest.mark.parametrize(("shape", "channels"), [((4, 5), 1), ((4, 5, 3), 3), ((3, 4, 5), 3), ((1, 4, 5), 1)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_arrays_keep_their_values(tmp_path: Path, shape: tuple[int, ...], channels: int, dtype: str) -> None:
    kind = datasets.Array2D(shape, dtype) if len(shape) == 2 else datasets.Array3D(shape, dtype)
    values = np.stack(pictures(3, *shape))
    values = values / np.float32(255) if dtype == "float32" else values
    found = load(parquet(tmp_path / "test.parquet", list(values), [0, 1, 2], image=kind))
    assert found.shape == (channels, 4, 5)
    x, _ = found.batch([2, 0])
    last = len(shape) == 3 and shape[-1] == 3
    expected = np.moveaxis(values[[2, 0]], -1, 1) if last else values[[2, 0]].reshape(2, channels, 4, 5)
    expected = expected if dtype == "float32" else expected / np.float32(255)
    assert torch.equal(x, torch.from_numpy(np.ascontiguousarray(expected, np.float32)))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", 1.5, "floats must lie in [0, 1], got [0, 1.5]"),
        ("float32", -0.5, "floats must lie in [0, 1], got [-0.5, 0]"),
        ("float32", float("nan"), "floats must lie in [0, 1], got [nan, nan]"),
        ("int32", 256, "integers must lie in 0..255, got [0, 256]"),
        ("int32", -1, "integers must lie in 0..255, got [-1, 0]"),
    ],
)
def test_arrays_out_of_range_are_refused(tmp_path: Path, dtype: str, value: float, expected: str) -> None:
    values = np.zeros((2, 4, 4), dtype)
    values[1, 2, 3] = value
    path = parquet(tmp_path / "test.parquet", list(values), [0, 1], image=datasets.Array2D((4, 4), dtype))
    assert expected in refusal(lambda: load(path))


def test_nested_lists_are_arrays_and_ragged_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = datasets.List(datasets.List(datasets.Value("int64")))
    square = [[[1, 2], [3, 4]], [[5, 6], [7, 255]]]
    found = load(parquet(tmp_path / "a" / "test.parquet", square, [0, 1], image=nested))
    assert torch.equal(found.batch([1])[0] * 255, torch.tensor([[[[5.0, 6.0], [7.0, 255.0]]]]))
    ragged = parquet(tmp_path / "b" / "test.parquet", [[[1, 2], [3]]], [0], image=nested)
    assert "ragged" in refusal(lambda: load(ragged))
    mixed = parquet(tmp_path / "c" / "test.parquet", [[[1, 2], [3, 4]], [[1, 2, 3]] * 3], [0, 1], image=nested)
    assert "size=N" in refusal(lambda: load(mixed))
    assert load(mixed, size=2).shape == (1, 2, 2)
    late = [[[1, 2], [3, 4]]] * 300 + [[[1, 2, 3]] * 3]
    blocks = parquet(tmp_path / "e" / "test.parquet", late, [0] * 301, image=nested)
    assert "size=N" in refusal(lambda: load(blocks))
    monkeypatch.setattr(read, "STREAM_ABOVE", 0)
    assert "size=N" in refusal(lambda: load(blocks))
    assert load(blocks, size=2).batch([300])[0].shape == (1, 1, 2, 2)
    odd = parquet(
        tmp_path / "d" / "test.parquet",
        [np.zeros((2, 4, 4), np.uint8)],
        [0],
        image=datasets.Array3D((2, 4, 4), "uint8"),
    )
    assert "(height, width)" in refusal(lambda: load(odd))


def test_scaled_arrays_stay_in_the_box(tmp_path: Path) -> None:
    """White stays white, where the scaling's rounded weights add up to more than 1, and may be attacked."""
    white = torch.ones(1, 1, 7, 7)
    assert torch.nn.functional.interpolate(white, (3, 3), mode="bilinear", antialias=True).max() > 1
    features = {"image": datasets.Array2D((7, 7), "float32")}
    found = load(parquet(tmp_path / "test.parquet", [np.ones((7, 7), np.float32)] * 2, [0, 1], **features), size=3)
    x, _ = found.batch([0, 1])
    check_images(x)
    assert x.min() > 1 - 1e-6


# What labels may be


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        (datasets.ClassLabel(names=NAMES), [0, -1], "1 of 2 labels are negative"),
        (datasets.ClassLabel(names=NAMES), [0, None], "1 of 2 labels are missing"),
        (datasets.Value("int64"), [0, -3], "negative (the least is -3)"),
        (datasets.Value("int64"), [0, 10**9], "go up to 1000000000"),
        (datasets.Value("string"), ["a", "b"], "class_encode_column('label')"),
        (datasets.Value("float32"), [0.0, 1.0], "not integers"),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(tmp_path: Path, kind: Any, labels: list[Any], expected: str) -> None:
    path = parquet(tmp_path / "test.parquet", pictures(2, 4, 4), labels, label=kind)
    assert expected in refusal(lambda: load(path))


def test_labels_past_the_class_names_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "test.parquet", pictures(2, 4, 4), [0, 2], label=datasets.Value("int64"))
    assert load(path).class_names == ("0", "1", "2")
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    schema = json.loads(table.schema.metadata[b"huggingface"])
    schema["info"]["features"]["label"] = {"names": ["a", "b"], "_type": "ClassLabel"}
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(schema).encode()}), path)
    assert "up to 2, past the 2 class names" in refusal(lambda: load(path))


def test_columns_are_found_by_name_or_kind(tmp_path: Path) -> None:
    image = [{"bytes": png(x), "path": None} for x in pictures(2, 4, 4)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "word": datasets.Value("string")}

    def table(at: str, **columns: str) -> Path:
        """Columns by name, each of the kind given."""
        values = {"image": image, "label": [0, 1], "word": ["a", "b"]}
        features = datasets.Features({column: kinds[kind] for column, kind in columns.items()})
        path = tmp_path / at / "test.parquet"
        path.parent.mkdir()
        rows = {column: values[kind] for column, kind in columns.items()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        return path

    assert len(load(table("cifar10", img="image", label="label"))) == 2
    assert len(load(table("cifar100", img="image", coarse_label="label", fine_label="label"))) == 2
    assert len(load(table("only", photo="image", kind="label", name="word"))) == 2
    assert "no label column: there are image, name" in refusal(lambda: load(table("style", image="image", name="word")))
    assert "which column holds the images" in refusal(lambda: load(table("two", a="image", b="image", label="label")))
    assert "which column holds the images" in refusal(lambda: load(table("none", name="word", label="label")))


# Where data are looked for


def test_what_is_nowhere_says_where_it_looked_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(lambda: load("mnsit"))
    assert "did you mean 'mnist'?" in message
    assert "PELLUCID_DATA is not set" in message
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path))
    message = refusal(lambda: load("svhn", "extra"))
    assert str(tmp_path / "svhn") in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "datasets.load_dataset('ufldl-stanford/svhn', 'cropped_digits', split='extra').to_parquet" in message
    assert "the hub's owner/name" in refusal(lambda: load("owner/name"))
    assert "no folder or file" in refusal(lambda: load("/nowhere/at/all"))
    assert "no folder or file" in refusal(lambda: load("nowhere/test.parquet"))
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path / "nothing"))
    assert "is not a folder" in refusal(lambda: load("mnist"))
    assert "no name" in refusal(lambda: load(" "))


def test_an_unreachable_hub_is_said_at_once_and_offline_mode_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    before = config.HF_HUB_OFFLINE
    assert "http://127.0.0.1:9 cannot be reached" in refusal(lambda: load("mnist"))
    assert before == config.HF_HUB_OFFLINE


def test_the_hub_gives_the_same_set_as_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "test.parquet", pictures(3, 4, 4), [0, 1, 2])
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "hf"))
    asked = []

    def load_dataset(repository: str, config: str | None, *, split: str) -> object:
        """The hub's part, with one split."""
        asked.append((repository, config, split))
        if split != "validation":
            raise ValueError(f"Unknown split {split!r}. Should be one of ['validation'].")
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    found = load("svhn", "valid")
    assert asked[0] == ("ufldl-stanford/svhn", "cropped_digits", "valid")
    assert (found.digest, found.source) == (load(path).digest, "hub: ufldl-stanford/svhn")
    assert "Should be one of ['validation']" in refusal(lambda: load("owner/name", "train"))


def test_splits_that_are_not_there_are_answered_with_those_that_are(tmp_path: Path) -> None:
    parquet(tmp_path / "a" / "train.parquet", pictures(2, 4, 4), [0, 1])
    parquet(tmp_path / "a" / "validation.parquet", pictures(2, 4, 4), [0, 1])
    assert load(tmp_path / "a", "valid").split == "validation"
    assert "there are train, validation" in refusal(lambda: load(tmp_path / "a"))
    assert "did you mean 'train'" in refusal(lambda: load(tmp_path / "a", "trian"))
    assert "has no split 'test'" in refusal(lambda: load(tmp_path / "a" / "train.parquet"))
    undivided = folder(tmp_path / "b", pictures(2, 4, 4), [0, 1])
    assert "counts as test" in refusal(lambda: load(undivided, "train"))


def test_damaged_and_empty_sources_are_refused_by_name(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a" / "test.parquet", pictures(50, 20, 20), [0] * 50)
    whole.write_bytes(whole.read_bytes()[:-100])
    assert f"{whole} cannot be read as Parquet" in refusal(lambda: load(whole))
    pages = parquet(tmp_path / "b" / "test.parquet", pictures(50, 20, 20), [0] * 50)
    content = bytearray(pages.read_bytes())
    content[4:400] = bytes(396)
    pages.write_bytes(content)
    assert str(pages) in refusal(lambda: load(pages))
    empty = parquet(tmp_path / "c" / "test.parquet", [], [])
    assert "is empty" in refusal(lambda: load(empty))
    (tmp_path / "d" / "test" / "ant").mkdir(parents=True)
    assert "holds no images" in refusal(lambda: load(tmp_path / "d"))
    (tmp_path / "e").mkdir()
    assert "holds no images" in refusal(lambda: load(tmp_path / "e"))
    (tmp_path / "images.zip").write_bytes(b"")
    assert "not a .parquet file" in refusal(lambda: load(tmp_path / "images.zip"))


def test_a_known_name_is_no_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "mnist", pictures(1, 4, 4), [0])
    monkeypatch.chdir(tmp_path)
    assert locate("mnist", "test").hub == "ylecun/mnist"
    assert locate("./mnist", "test").folder is not None
    assert "size must be at least 1" in refusal(lambda: load("digits", size=0))
    assert "limit must be at least 1" in refusal(lambda: load("digits", limit=0))


# Subsets


def test_the_papers_200_test_images() -> None:
    expected = np.random.RandomState(99).permutation(10_000)[:200]
    assert subset("boopathy200", 10_000).tolist() == expected.tolist()
    assert "10,000 test images" in refusal(lambda: subset("boopathy200", 9_999))


def test_subsets_are_seeded_samples_without_repetition() -> None:
    sample = subset(200, 1_000, seed=3)
    assert torch.equal(sample, subset("200", 1_000, seed=3))
    assert not torch.equal(sample, subset("200", 1_000, seed=4))
    assert len(set(sample.tolist())) == 200
    assert torch.equal(sample, sample.sort().values)
    assert torch.equal(subset("1000", 1_000), subset("all", 1_000))
    assert subset("first:3", 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize("spec", ["11", "first:11", "0", "first:0", "-1", "some", "first", "1e3", ""])
def test_subsets_that_cannot_be_are_refused(spec: str) -> None:
    assert spec in refusal(lambda: subset(spec, 10))


# The papers' preparations


def numbered(n: int, name: str, split: str, labels: torch.Tensor | None = None) -> ImageSet:
    """Images that carry their row in their two pixels."""
    rows = torch.arange(n)
    pixels = torch.stack([rows // 256, rows % 256], 1).to(torch.uint8).reshape(n, 1, 1, 2)
    y = rows % 10 if labels is None else labels
    return resident(pixels, y, name=name, split=split, class_names=[*"0123456789"], source="here")


def rows_of(images: ImageSet) -> list[int]:
    """The rows that `numbered` wrote."""
    x = (images.batch(range(len(images)))[0] * 255).round().long().flatten(1)
    return (x[:, 0] * 256 + x[:, 1]).tolist()


@pytest.mark.parametrize(("name", "total"), [("mnist", 60_000), ("cifar10", 50_000)])
def test_boopathy_holds_out_the_first_5000(name: str, total: int) -> None:
    def stored(split: str) -> ImageSet:
        """The official counts."""
        return numbered(total if split == "train" else 10_000, name, split)

    train, valid, test = (prepare.prepared(name, "boopathy", s, stored) for s in ("train", "valid", "test"))
    assert rows_of(train) == list(range(5_000, total))
    assert rows_of(valid) == list(range(5_000))
    assert rows_of(test) == list(range(10_000))
    assert (valid.name, valid.split) == (f"{name}@boopathy", "valid")
    short = refusal(lambda: prepare.prepared(name, "boopathy", "train", lambda s: numbered(100, name, s)))
    assert "official train split, here has 100" in short


def test_ross_mnist_has_no_validation_set() -> None:
    assert len(prepare.prepared("mnist", "ross", "train", lambda s: numbered(60_000, "mnist", s))) == 55_000
    assert "no split 'valid'" in refusal(
        lambda: prepare.prepared("mnist", "ross", "valid", lambda s: numbered(1, "", s))
    )


def test_sermanets_split_takes_the_first_of_each_class_and_then_extra_before_train() -> None:
    train, extra = torch.arange(50) % 10, torch.arange(80) % 10
    found = prepare.sermanet(train, extra, per_class=(3, 2), most=75)
    assert found["valid", "train"].tolist() == list(range(30))
    assert found["valid", "extra"].tolist() == list(range(20))
    assert found["train", "extra"].tolist() == list(range(20, 80))
    assert found["train", "train"].tolist() == list(range(30, 45))
    assert "official SVHN" in refusal(lambda: prepare.sermanet(train, extra, per_class=(3, 2), most=81))
    assert "images of class 0" in refusal(lambda: prepare.sermanet(train[:5], extra))


def test_ross_svhn_is_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SVHN_TEST", 30)
    colour = torch.from_numpy(np.stack(pictures(30, 3, 4, 4)))
    stored = resident(colour, torch.arange(30) % 10, name="svhn", split="test", class_names=[*"0123456789"], source="")
    found = prepare.prepared("svhn", "ross", "test", lambda _: stored)
    r, g, b = colour[7].double() / 255
    x = found.batch([7])[0]
    torch.testing.assert_close(x[0, 0].double(), 0.2989 * r + 0.5870 * g + 0.1140 * b, rtol=0, atol=1e-6)
    check_images(x)


def test_ross_notmnist_draws_disjoint_train_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "NOTMNIST", (20, 5, 3))

    def stored(split: str, *, skip_unreadable: bool = False) -> ImageSet:
        """30 images per class."""
        assert skip_unreadable
        return numbered(300, "notmnist", split)

    train, valid, test = (prepare.prepared("notmnist", "ross", s, stored) for s in ("train", "valid", "test"))
    assert [torch.bincount(s.labels).tolist() for s in (train, valid, test)] == [[20] * 10, [5] * 10, [3] * 10]
    assert not set(rows_of(train)) & set(rows_of(valid))
    assert train.digest == prepare.prepared("notmnist", "ross", "train", stored).digest


def test_preparations_need_the_whole_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path))
    for name in ("svhn", "notmnist"):
        for split in ("train", "test"):
            parquet(tmp_path / name / f"{split}.parquet", pictures(2, 4, 4), [0, 1])
    assert "needs the split 'extra'" in refusal(lambda: load("svhn@ross", "train"))
    assert "official test split" in refusal(lambda: load("svhn@ross", "test"))
    assert "notMNIST_large.tar.gz" in refusal(lambda: load("notmnist@ross", "train"))
    folder(tmp_path / "notmnist2" / "notMNIST_small", pictures(2, 4, 4), [0, 1])
    assert load(tmp_path / "notmnist2", "small").split == "notMNIST_small"
    assert "did you mean 'boopathy'" in refusal(lambda: load("mnist@bopathy"))
    assert "has no preparations" in refusal(lambda: load("digits@boopathy"))


# The contract


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "must be floats in [0, 1]"),
        (torch.zeros(1, 2, 2), "must have [batch, c, h, w]"),
        (torch.full((1, 1, 2, 2), float("nan")), "not finite"),
        (torch.full((1, 1, 2, 2), 1.1), "[1.1, 1.1]"),
        (torch.full((1, 1, 2, 2), -0.01), "must lie in [0, 1]: x.clamp(0, 1)"),
        (torch.full((1, 1, 2, 2), 1 + 5e-7), "x.clamp(0, 1)"),
    ],
)
def test_what_are_not_images(x: torch.Tensor, expected: str) -> None:
    assert expected in refusal(lambda: check_images(x))
    check_images(torch.ones(1, 1, 2, 2))


# The command line


def test_the_catalogue_lists_what_is_there_and_what_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [entry.name for entry in known()] == list(KNOWN)
    parquet(tmp_path / "mnist" / "test.parquet", pictures(2, 4, 5), [0, 1])
    folder(tmp_path / "birds", pictures(3, 4, 4, 3), [0, 1, 2])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "test.parquet").write_bytes(b"no")
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path))
    found = {entry.name: entry for entry in known()}
    assert (dict(found["mnist"].splits), found["mnist"].shape) == ({"test": 2}, (1, 4, 5))
    assert (dict(found["birds"].splits), found["birds"].shape) == ({"test": 3}, (3, 4, 4))
    assert "damaged" in found["broken"].where
    assert "weights" not in found
    result = CliRunner().invoke(app, ["list", "--json"])
    assert [entry["name"] for entry in json.loads(result.output)["data"]] == list(found)
    assert "birds" in CliRunner().invoke(app, ["list"]).output


def test_check_says_what_is_in_a_set(tmp_path: Path) -> None:
    images = pictures(4, 4, 4)
    parquet(tmp_path / "test.parquet", [*images, images[0]], [0, 1, 2, 0, 0])
    parquet(tmp_path / "train.parquet", images[:2], [0, 1])
    result = CliRunner().invoke(app, ["check", str(tmp_path), "--json"])
    facts = json.loads(result.output)
    assert (facts["images"], facts["shape"], facts["classes"]) == (5, [1, 4, 4], {"ant": 3, "bee": 1, "cat": 1})
    assert (facts["repeated_images"], facts["images_also_in_train"]) == (1, 3)
    assert facts["digest"] == load(tmp_path).digest
    assert "1x4x4" in CliRunner().invoke(app, ["check", str(tmp_path)]).output
    assert isinstance(CliRunner().invoke(app, ["check", "nothing"]).exception, PellucidError)


# Real data


def test_mnist_is_the_original(real_data: Path) -> None:
    if not (real_data / "mnist" / "train.parquet").is_file():
        pytest.skip("no MNIST under PELLUCID_DATA")
    train, test = load("mnist", "train"), load("mnist", "test")
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    pixels = train.pixels.read(torch.arange(60_000))
    raw = struct.pack(">4i", 0x803, 60_000, 28, 28) + pixels.numpy().tobytes()
    assert hashlib.md5(raw, usedforsecurity=False).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert float(pixels.double().mean() / 255) == pytest.approx(0.1307, abs=5e-5)
    assert torch.equal(load("mnist@boopathy", "valid").batch([4_999])[0], train.batch([4_999])[0])


@pytest.mark.parametrize(
    ("name", "split", "n", "shape"),
    [("cifar10", "test", 10_000, (3, 32, 32)), ("tiny-imagenet-20", "valid", 1_000, (3, 64, 64))],
)
def test_real_sets_load(real_data: Path, name: str, split: str, n: int, shape: tuple[int, ...]) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"no {name} under PELLUCID_DATA")
    found = load(name, split)
    assert (len(found), found.shape) == (n, shape)
    assert len(set(torch.bincount(found.labels).tolist())) == 1
