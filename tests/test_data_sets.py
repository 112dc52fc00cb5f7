"""Data sets in their own layouts, made small: Tiny ImageNet, Caltech, ImageNet, cue conflict; and contrast layers."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from pellucid.cli.data import app
from pellucid.data import RESTRICTED, SIXTEEN, cue_conflict, hub, known, load, prepare, read
from pellucid.data.cues import stimuli_of
from pellucid.data.duplicates import fingerprints, shared
from pellucid.data.groups import IMAGENET, is_imagenet, regrouped
from pellucid.data.imageset import ImageSet, resident
from pellucid.errors import PellucidError
from pellucid.normalisation import GlobalContrast, LocalContrast

pytestmark = pytest.mark.usefixtures("own_cache")

READINGS: tuple[Literal["as_written", "as_coded"], ...] = ("as_written", "as_coded")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets, still empty."""
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv("PELLUCID_DATA", str(folder))
    return folder


def photo(file: Path, seed: int, *, width: int = 8, height: int = 8, grey: bool = False) -> Path:
    """A file of random pixels, of the kind that its name says."""
    shape = (height, width) if grey else (height, width, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(file)
    return file


def pixels(file: Path) -> Tensor:
    """What Pillow reads from a file, as an image in colour."""
    with Image.open(file) as image:
        values = np.asarray(image.convert("RGB"))
    return torch.from_numpy(np.moveaxis(values, 2, 0) / np.float32(255))


def parquet(path: Path, files: list[Path], **columns: tuple[list[Any], Any]) -> Path:
    """The same files as a table. A column is its values and its type."""
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    kinds = {"image": datasets.Image()} | {name: kind for name, (_, kind) in columns.items()}
    values = {"image": images} | {name: given for name, (given, _) in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(values, features=datasets.Features(kinds)).to_parquet(path)
    return path


def refusal(call: Callable[[], object]) -> str:
    """The message of the refusal that a call ends in."""
    with pytest.raises(PellucidError) as caught:
        call()
    return str(caught.value)


# Tiny ImageNet

TINY = ("n01443537", "n01629819", "n02124075")
TINY_NAMES = ("n01443537 goldfish", "n01629819 European fire salamander", "n02124075 Egyptian cat")
VALID = (2, 0, 0, 1, 2)  # the class of val_0 and so on


def tiny_imagenet(path: Path) -> Path:
    """Tiny ImageNet's archive with three classes, two training images of each and five for validation."""
    for i, wnid in enumerate(TINY):
        for k in range(2):
            photo(path / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 10 * i + k, grey=(i, k) == (1, 0))
        (path / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for k in range(len(VALID)):
        photo(path / "val" / "images" / f"val_{k}.JPEG", 100 + k)
    rows = [f"val_{k}.JPEG\t{TINY[i]}\t0\t32\t44\t62\n" for k, i in enumerate(VALID)]
    (path / "val" / "val_annotations.txt").write_text("".join(reversed(rows)))
    photo(path / "test" / "images" / "test_0.JPEG", 200)
    (path / "wnids.txt").write_text("\n".join([TINY[2], TINY[0], TINY[1]]))
    words = ["n00001740\tentity", "n01443537\tgoldfish, Carassius auratus", "n02124075\tEgyptian cat"]
    words += ["n01629819\tEuropean fire salamander, Salamandra salamandra"]
    (path / "words.txt").write_text("\n".join(words) + "\n")
    return path


def test_tiny_imagenet_in_its_own_layout(root: Path) -> None:
    path = tiny_imagenet(root / "tiny-imagenet" / "tiny-imagenet-200")
    train, valid = load("tiny-imagenet", "train"), load("tiny-imagenet", "valid")
    assert (train.class_names, valid.class_names) == (TINY_NAMES, TINY_NAMES)
    assert (train.shape, train.labels.tolist()) == ((3, 8, 8), [0, 0, 1, 1, 2, 2])
    assert valid.labels.tolist() == list(reversed(VALID))
    x, _ = valid.batch(range(5))
    assert torch.equal(x, torch.stack([pixels(path / "val" / "images" / f"val_{k}.JPEG") for k in range(4, -1, -1)]))
    grey = path / "train" / TINY[1] / "images" / f"{TINY[1]}_0.JPEG"
    assert torch.equal(train.batch([2])[0][0], pixels(grey))
    assert load(path, "val").digest == valid.digest
    assert "there are train, valid" in refusal(lambda: load("tiny-imagenet", "test"))
    entry = {entry.name: entry for entry in known()}["tiny-imagenet"]
    assert (dict(entry.splits), entry.shape) == ({"train": 6, "valid": 5}, (3, 8, 8))


def test_tiny_imagenet_is_the_same_set_in_every_layout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_imagenet(root / "own")
    own = load(path, "valid")
    files = [path / "val" / "images" / f"val_{k}.JPEG" for k in range(4, -1, -1)]
    labels = (list(reversed(VALID)), datasets.ClassLabel(names=list(TINY_NAMES)))
    table = parquet(root / "table" / "valid.parquet", files, label=labels)
    assert load(table.parent, "valid").digest == own.digest

    asked = []

    def load_dataset(repository: str, config: str | None, *, split: str) -> object:
        """The hub's part."""
        asked.append((repository, config, split))
        return datasets.Dataset.from_parquet(str(table), cache_dir=str(root / "hf"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    assert load("tiny-imagenet", "valid").digest == own.digest
    assert asked == [("zh-plus/tiny-imagenet", None, "valid")]

    for k, i in enumerate(VALID):  # as many sort it
        target = path / "val" / TINY[i] / f"val_{k}.JPEG"
        target.parent.mkdir(exist_ok=True)
        (path / "val" / "images" / f"val_{k}.JPEG").rename(target)
    (path / "val" / "images").rmdir()
    found = load(path, "valid")
    assert found.class_names == TINY_NAMES
    assert sorted(zip(fingerprints(found), found.labels.tolist(), strict=True)) == sorted(
        zip(fingerprints(own), own.labels.tolist(), strict=True)
    )
    shutil.rmtree(path / "val")
    (path / "words.txt").unlink()
    assert load(path, "train").class_names == TINY
    assert "there are train" in refusal(lambda: load(path, "valid"))


def test_a_tiny_imagenet_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    def damaged(name: str, change: Callable[[Path], object]) -> str:
        """The refusal of a copy that was changed."""
        path = tiny_imagenet(tmp_path / name)
        change(path)
        return refusal(lambda: load(path, "valid"))

    def listing(old: str, new: str) -> Callable[[Path], object]:
        """Another line in the list of the validation images."""

        def change(path: Path) -> None:
            file = path / "val" / "val_annotations.txt"
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, new))

        return change

    lacking = damaged("a", lambda path: shutil.rmtree(path / "train" / TINY[1]))
    assert f"lacks 1 of the 3 classes of wnids.txt, such as {TINY[1]}" in lacking
    assert "is missing: it says which class" in damaged("b", lambda p: (p / "val" / "val_annotations.txt").unlink())
    gone = damaged("c", lambda path: (path / "val" / "images" / "val_3.JPEG").unlink())
    assert "1 of 5 images are listed and not there in val_annotations.txt, such as val_3.JPEG" in gone
    more = damaged("d", lambda path: photo(path / "val" / "images" / "val_9.JPEG", 9))
    assert "1 of 6 images are there and not listed in val_annotations.txt, such as val_9.JPEG" in more
    assert "line 1: 'n09999999' is no class" in damaged("e", listing(f"val_4.JPEG\t{TINY[2]}", "val_4.JPEG\tn09999999"))
    assert "line 1: '0' is no class" in damaged("f", listing(f"val_4.JPEG\t{TINY[2]}", "val_4.JPEG"))
    assert "cannot be read" in damaged("g", lambda path: (path / "words.txt").write_bytes(b"\xff\xfe\xff"))


# Caltech


def caltech256(path: Path, count: Callable[[int], int]) -> Path:
    """Caltech-256's archive, of every class `count` images, with the two entries that are no images."""
    named = {1: "ak47", 56: "dog", 145: "motorbikes-101", 198: "spider", 257: "clutter"}
    for number in range(1, 258):
        folder = path / "256_ObjectCategories" / f"{number:03d}.{named.get(number, f'thing-{number}')}"
        for k in range(1, count(number) + 1):
            photo(folder / f"{number:03d}_{k:04d}.jpg", 1_000 * number + k)
    (path / "256_ObjectCategories" / "056.dog" / "greg" / "vision309").mkdir(parents=True)
    (path / "256_ObjectCategories" / "198.spider" / "RENAME2").write_text("#!/bin/sh\n")
    return path


def test_zhang_holds_out_a_fifth_of_each_of_caltechs_257_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CALTECH_LEAST", 4)
    caltech256(root / "caltech256", lambda number: 4 + number % 8)
    whole = load("caltech256", size=8)
    names = whole.class_names
    assert (len(names), names[0], names[55], names[144], names[256]) == (
        257,
        "ak47",
        "dog",
        "motorbikes-101",
        "clutter",
    )
    counts = torch.bincount(whole.labels, minlength=257)
    assert counts.tolist() == [4 + number % 8 for number in range(1, 258)]
    train, valid, test = (load("caltech256@zhang", split, size=8) for split in ("train", "valid", "test"))
    held_out = torch.bincount(test.labels, minlength=257)
    assert held_out.tolist() == [int(0.2 * n) for n in counts.tolist()]
    assert torch.equal(torch.bincount(train.labels, minlength=257) + held_out, counts)
    assert shared(test, train) == 0
    assert sorted(fingerprints(train) + fingerprints(test)) == sorted(fingerprints(whole))
    assert (valid.digest, valid.split, test.name) == (test.digest, "valid", "caltech256@zhang")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "other"))
    assert load("caltech256@zhang", "train", size=8).digest == train.digest
    monkeypatch.setattr(prepare, "CALTECH_LEAST", 5)
    assert "at least 5 images of each, has 4 of 'thing-8'" in refusal(lambda: load("caltech256@zhang", size=8))
    shutil.rmtree(root / "caltech256" / "256_ObjectCategories" / "257.clutter")
    assert "made of 257 classes" in refusal(lambda: load("caltech256@zhang", size=8))
    entry = {entry.name: entry for entry in known()}["caltech256"]
    assert dict(entry.splits) == {"test": int(counts[:256].sum())}


def test_a_share_of_each_class_is_drawn_by_its_seed_and_not_the_first() -> None:
    labels = torch.arange(1_000) % 3
    drawn = prepare.a_share_of_each(labels, 0.2, seed=0)
    assert torch.bincount(labels[drawn]).tolist() == [66, 66, 66]
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert torch.equal(drawn, prepare.a_share_of_each(labels, 0.2, seed=0))
    assert not torch.equal(drawn, prepare.a_share_of_each(labels, 0.2, seed=1))
    assert 350 < float(drawn.double().mean()) < 650  # 500 in the mean; standard deviation 18
    assert prepare.a_share_of_each(labels[:4], 0.2, seed=0).tolist() == []


def test_numbers_before_the_classes_of_other_sets_stay(tmp_path: Path) -> None:
    for number, name in enumerate(("001.Albatross", "002.Ani")):
        photo(tmp_path / "birds" / name / "a.jpg", number)
    assert load(tmp_path / "birds").class_names == ("001.Albatross", "002.Ani")


def test_caltech101_in_its_own_layout(root: Path) -> None:
    path = root / "caltech101" / "caltech-101" / "101_ObjectCategories"
    photo(path / "accordion" / "image_0001.jpg", 1, width=12)
    photo(path / "BACKGROUND_Google" / "image_0001.jpg", 2, height=9, grey=True)
    photo(path / "Faces" / "image_0001.jpg", 3)
    photo(path / "Faces" / "image_0002.jpg", 4)
    (path / "BACKGROUND_Google" / "tmp").write_text("")
    assert "size=N" in refusal(lambda: load("caltech101"))
    found = load("caltech101", size=8)
    assert found.class_names == ("BACKGROUND_Google", "Faces", "accordion")
    assert (found.labels.tolist(), found.shape) == ([0, 1, 1, 2], (3, 8, 8))
    assert torch.equal(found.batch([2])[0][0], pixels(path / "Faces" / "image_0002.jpg"))


# ImageNet's classes in groups

WNIDS = tuple(f"n{1_000_000 + 3 * i:08d}" for i in range(1_000))


def imagenet(path: Path, images: Mapping[str, list[int]]) -> Path:
    """ImageNet's layout: 1,000 class folders in every split, and an image for each class named."""
    for split, classes in images.items():
        for wnid in WNIDS:
            (path / split / wnid).mkdir(parents=True)
        for k, number in enumerate(classes):
            file = path / split / WNIDS[number] / f"{WNIDS[number]}_{k}.JPEG"
            photo(file, 1_000 * number + k, width=40, height=30)
    return path


def test_restricted_imagenet_is_nine_ranges() -> None:
    ends = [(151, 268), (281, 285), (30, 32), (33, 37), (80, 100), (365, 382), (389, 397), (118, 121), (300, 319)]
    assert [(min(v), max(v), len(v)) for v in RESTRICTED.values()] == [(a, b, b - a + 1) for a, b in ends]
    assert list(RESTRICTED) == ["dog", "cat", "frog", "turtle", "bird", "primate", "fish", "crab", "insect"]
    assert len({i for v in RESTRICTED.values() for i in v}) == sum(map(len, RESTRICTED.values())) == 203


def test_restricted_imagenet_of_class_folders(root: Path) -> None:
    path = imagenet(
        root / "imagenet", {"train": [0, 30, 151, 268, 269, 283, 300, 319, 999, 397], "val": [0, 32, 29, 121]}
    )
    train, valid, test = (load("imagenet@restricted", split, size=8) for split in ("train", "valid", "test"))
    assert train.class_names == tuple(RESTRICTED)
    assert [train.class_names[i] for i in train.labels.tolist()] == [
        "frog", "dog", "dog", "cat", "insect", "insect", "fish",
    ]  # fmt: skip
    assert [valid.class_names[i] for i in valid.labels.tolist()] == ["frog", "crab"]
    assert (test.digest, test.split, test.name) == (valid.digest, "test", "imagenet@restricted")
    assert load("imagenet", "val", size=8).labels.tolist() == [0, 29, 32, 121]
    with Image.open(path / "train" / WNIDS[30] / f"{WNIDS[30]}_1.JPEG") as image:
        scaled = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))
    x = load("imagenet@restricted", "train").batch([0])[0][0]
    assert torch.equal(x, torch.from_numpy(np.moveaxis(np.asarray(scaled), 2, 0) / np.float32(255)))
    shutil.rmtree(path / "train" / WNIDS[500])
    shutil.rmtree(path / "val" / WNIDS[500])
    assert "has 999 classes" in refusal(lambda: load("imagenet@restricted", "train"))


def test_a_streamed_preparation_equals_a_resident_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet(root / "imagenet", {"train": [0, 30, 999, 300, 151], "val": [32]})
    small, plain = load("imagenet@restricted", "train"), load("imagenet@restricted", "train", size=224)
    monkeypatch.setattr(read, "STREAM_ABOVE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "other"))
    large, other = load("imagenet@restricted", "train"), load("imagenet@restricted", "train", size=224)
    assert (small.pixels.streamed, large.pixels.streamed) == (False, True)
    assert torch.equal(small.labels, large.labels)
    assert torch.equal(small.batch(range(3))[0], large.batch(range(3))[0])
    assert not torch.equal(small.batch(range(3))[0], plain.batch(range(3))[0])  # 256 then 224, against 224
    assert large.digest != other.digest


def test_restricted_imagenet_of_a_table_and_what_is_not_imagenet(root: Path) -> None:
    labels = [999, 365, 0, 81, 365, 268]
    files = [photo(root / "files" / f"{k}.png", k) for k in range(6)]
    names = [f"{wnid} thing" for wnid in WNIDS]
    table = root / "imagenet-sample" / "train.parquet"
    parquet(table, files, label=(labels, datasets.ClassLabel(names=names)))
    found = load("imagenet-sample@restricted", "train")
    assert [found.class_names[i] for i in found.labels.tolist()] == ["primate", "bird", "primate", "dog"]
    assert torch.equal(found.batch(range(4))[0], torch.stack([pixels(files[k]) for k in (1, 3, 4, 5)]))
    assert len(load("imagenet-sample@restricted", "train", limit=2)) == 2
    assert "there is train" in refusal(lambda: load("imagenet-sample@restricted"))
    parquet(table, files, label=(labels, datasets.ClassLabel(names=names[::-1])))
    assert "order of their WordNet ids" in refusal(lambda: load("imagenet-sample@restricted", "train"))
    parquet(table, files, label=([0, 1, 2, 3, 4, 5], datasets.ClassLabel(names=names)))
    assert "none of its 6 images" in refusal(lambda: load("imagenet-sample@restricted", "train"))


def test_regrouping_keeps_order_and_agrees_with_a_loop(generator: torch.Generator) -> None:
    labels = torch.randint(1_000, (500,), generator=generator)
    rows, found = regrouped(labels, WNIDS, SIXTEEN, "here")
    number = {i: k for k, classes in enumerate(SIXTEEN.values()) for i in classes}
    expected = [(row, number[i]) for row, i in enumerate(labels.tolist()) if i in number]
    assert list(zip(rows.tolist(), found.tolist(), strict=True)) == expected


WORDS = {
    0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 281: "tabby, tabby cat", 340: "zebra", 404: "airliner",
    850: "teddy, teddy bear", 999: "toilet tissue, toilet paper, bathroom tissue",
}  # fmt: skip
# As the hub's ILSVRC/imagenet-1k names them
HUBS = [WORDS.get(i, f"thing {i}") for i in range(IMAGENET)]


def named(names: Sequence[str]) -> ImageSet:
    """One image of a set with classes of these names."""
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    return resident(pixels, torch.tensor([0]), name="x", split="test", class_names=names, source="here")


@pytest.mark.parametrize(
    "names",
    [
        WNIDS,
        [f"{wnid} thing" for wnid in WNIDS],
        [f"{wnid}_thing" for wnid in WNIDS],
        HUBS,
        [name.split(",")[0].upper().replace(" ", "_") for name in HUBS],
        [{281: "tabby cat", 850: "teddy bear", 999: "toilet paper"}.get(i, name) for i, name in enumerate(HUBS)],
    ],
    ids=["ids", "ids and words", "ids_words", "hub", "capitals", "clip"],
)
def test_imagenet_is_known_by_its_ids_or_its_words(names: Sequence[str]) -> None:
    """And then its classes can be grouped."""
    assert is_imagenet(named(names))
    rows, found = regrouped(torch.tensor([0, 30, 151]), names, RESTRICTED, "here")
    assert (rows.tolist(), [list(RESTRICTED)[i] for i in found.tolist()]) == ([1, 2], ["frog", "dog"])


@pytest.mark.parametrize(
    "names",
    [
        WNIDS[::-1],
        [WNIDS[0], *WNIDS[:-1]],
        WNIDS[:-1],
        [*WNIDS[:-1], "thing"],
        [f"{wnid}0" for wnid in WNIDS],
        HUBS[::-1],
        sorted(HUBS),
        HUBS[:-1],
        [*HUBS, "thing"],
        ["goldfish", "tench", *HUBS[2:]],
        [*HUBS[:340], "zebrafish", *HUBS[341:]],
        [str(i) for i in range(IMAGENET)],
        [f"face {i}" for i in range(IMAGENET)],
        [""] * IMAGENET,
    ],
)
def test_a_thousand_other_classes_are_not_imagenet(names: Sequence[str]) -> None:
    """Other names, another order, one too few or too many: neither asked for a shape bias nor grouped."""
    assert not is_imagenet(named(names))
    said = refusal(lambda: regrouped(torch.tensor([30]), names, RESTRICTED, "here"))
    assert said.startswith("here")


def test_what_is_not_imagenet_is_told_by_a_name() -> None:
    names = [*HUBS[:281], "axolotl", *HUBS[282:]]
    assert "class 281 is named 'axolotl', which in ImageNet begins with 'tabby'" in refusal(
        lambda: regrouped(torch.tensor([30]), names, RESTRICTED, "here")
    )


def test_restricted_imagenet_of_the_hubs_table(root: Path) -> None:
    """The class names of `hf download ILSVRC/imagenet-1k`: words."""
    files = [photo(root / "files" / f"{k}.png", k, width=300, height=260) for k in range(3)]
    labels = ([365, 0, 268], datasets.ClassLabel(names=HUBS))
    parquet(root / "imagenet" / "validation.parquet", files, label=labels)
    found = load("imagenet@restricted", "test")
    assert [found.class_names[i] for i in found.labels.tolist()] == ["primate", "dog"]
    assert is_imagenet(load("imagenet", "valid", size=8))


BIRDS = {*range(7, 25), *range(80, 101), *range(127, 147)}  # every bird of ImageNet's 1,000


def test_the_sixteen_classes_have_the_published_counts() -> None:
    assert {name: len(classes) for name, classes in SIXTEEN.items()} == {
        "airplane": 1,
        "bear": 4,
        "bicycle": 2,
        "bird": 49,
        "boat": 5,
        "bottle": 7,
        "car": 3,
        "cat": 6,
        "chair": 4,
        "clock": 3,
        "dog": 109,
        "elephant": 2,
        "keyboard": 2,
        "knife": 1,
        "oven": 1,
        "truck": 8,
    }
    every = [i for classes in SIXTEEN.values() for i in classes]
    assert len(set(every)) == len(every) == 207
    assert 0 <= min(every) <= max(every) < 1_000
    assert list(SIXTEEN) == sorted(SIXTEEN)
    assert all(list(classes) == sorted(classes) for classes in SIXTEEN.values())
    left_out = set(RESTRICTED["dog"]) - set(SIXTEEN["dog"])
    assert left_out == {151, 192, 204, 227, 242, 251, 258, 260, 264}
    assert set(SIXTEEN["dog"]) < set(RESTRICTED["dog"])
    assert BIRDS - set(SIXTEEN["bird"]) == {7, 9, 17, 21, 84, 85, 86, 97, 134, 146}
    assert set(SIXTEEN["bird"]) < BIRDS


# The published WordNet ids of the same classes, birds and dogs apart: another list of the same authors.
PUBLISHED = {
    "airplane": "n02690373",
    "bear": "n02132136 n02133161 n02134084 n02134418",
    "bicycle": "n02835271 n03792782",
    "boat": "n02951358 n03344393 n03662601 n04273569 n04612504",
    "bottle": "n02823428 n03937543 n03983396 n04557648 n04560804 n04579145 n04591713",
    "car": "n02814533 n03100240 n04285008",
    "cat": "n02123045 n02123159 n02123394 n02123597 n02124075 n02125311",
    "chair": "n02791124 n03376595 n04099969 n04429376",
    "clock": "n02708093 n03196217 n04548280",
    "elephant": "n02504013 n02504458",
    "keyboard": "n03085013 n04505470",
    "knife": "n03041632",
    "oven": "n04111531",
    "truck": "n03345487 n03417042 n03770679 n03796401 n03930630 n03977966 n04461696 n04467665",
}


def test_groups_on_the_real_class_names(real_data: Path) -> None:
    if not (real_data / "imagenet-sample").is_dir():
        pytest.skip("no imagenet-sample under PELLUCID_DATA")
    whole = load("imagenet-sample", "train")
    assert is_imagenet(whole)
    assert is_imagenet(named([name.split(maxsplit=1)[1] for name in whole.class_names]))
    ids = [name.split()[0] for name in whole.class_names]
    assert {name: " ".join(ids[i] for i in SIXTEEN[name]) for name in PUBLISHED} == PUBLISHED
    words = [name.split(maxsplit=1)[1] for name in whole.class_names]
    assert {words[i] for i in set(RESTRICTED["dog"]) - set(SIXTEEN["dog"])} == {
        "Chihuahua", "cairn", "Lhasa", "kelpie", "boxer", "dalmatian", "Samoyed", "chow", "Cardigan",
    }  # fmt: skip
    assert {words[i] for i in BIRDS - set(SIXTEEN["bird"])} == {
        "cock", "ostrich", "jay", "kite", "peacock", "quail", "partridge", "drake", "crane", "albatross",
    }  # fmt: skip
    assert {words[min(v)] for v in RESTRICTED.values()} == {
        "Chihuahua", "tabby", "bullfrog", "loggerhead", "black grouse", "orangutan", "barracouta", "Dungeness crab",
        "tiger beetle",
    }  # fmt: skip
    found = load("imagenet-sample@restricted", "train")
    assert torch.bincount(found.labels).tolist() == [len(classes) for classes in RESTRICTED.values()]
    rows = sorted(i for classes in RESTRICTED.values() for i in classes)
    assert whole.labels.tolist() == list(range(1_000))
    assert torch.equal(found.batch([0, 100, 202])[0], whole.batch([rows[0], rows[100], rows[202]])[0])


# Cue conflict

SHAPES = tuple(SIXTEEN)


def stimuli(path: Path) -> list[tuple[Path, str, str]]:
    """The published layout, two images per shape; of every fourth shape one has its own texture."""
    made = []
    for i, shape in enumerate(SHAPES):
        textures = (SHAPES[(i + 1) % 16], shape if i % 4 == 0 else SHAPES[(i + 5) % 16])
        for k, texture in enumerate(textures, start=1):
            file = path / shape / f"{shape}{9 + k}-{texture}{k}.png"
            made.append((photo(file, 10 * i + k), shape, texture))
    return sorted(made)


@pytest.mark.parametrize("under", ["", "style-transfer-preprocessed-512"])
def test_cue_conflict_in_the_published_layout(root: Path, under: str) -> None:
    made = stimuli(root / "cue-conflict" / under)
    found = cue_conflict("cue-conflict")
    assert (len(found), found.class_names, found.images.class_names) == (32, SHAPES, SHAPES)
    assert [SHAPES[i] for i in found.images.labels.tolist()] == [shape for _, shape, _ in made]
    assert [SHAPES[i] for i in found.texture.tolist()] == [texture for _, _, texture in made]
    assert found.conflicting.tolist() == [shape != texture for _, shape, texture in made]
    assert int((~found.conflicting).sum()) == 4
    assert torch.equal(found.images.batch([7])[0][0], pixels(made[7][0]))
    assert found.images.digest == load("cue-conflict").digest == cue_conflict(root / "cue-conflict").images.digest
    assert cue_conflict("cue-conflict", size=4).images.shape == (3, 4, 4)


@pytest.mark.parametrize("kind", ["classes", "names"])
def test_cue_conflict_of_a_table(tmp_path: Path, kind: str) -> None:
    made = stimuli(tmp_path / "folder")
    files = [file for file, _, _ in made]
    shapes, textures = [shape for _, shape, _ in made], [texture for _, _, texture in made]
    order = list(reversed(SHAPES))  # each column may have its own order
    named: tuple[list[Any], Any] = (textures, datasets.Value("string"))
    if kind == "classes":
        named = ([order.index(name) for name in textures], datasets.ClassLabel(names=order))
    label = ([SHAPES.index(name) for name in shapes], datasets.ClassLabel(names=list(SHAPES)))
    parquet(tmp_path / "table" / "test.parquet", files, label=label, texture=named)
    found, own = cue_conflict(tmp_path / "table"), cue_conflict(tmp_path / "folder")
    assert found.images.digest == own.images.digest
    assert torch.equal(found.texture, own.texture)
    label = ([order.index(name) for name in shapes], datasets.ClassLabel(names=order))
    parquet(tmp_path / "other" / "test.parquet", files, label=label, texture=named)
    other = cue_conflict(tmp_path / "other")
    assert [other.class_names[i] for i in other.texture.tolist()] == textures
    assert torch.equal(other.conflicting, own.conflicting)


def test_stimuli_are_known_by_their_classes_and_textures(root: Path) -> None:
    """In a folder or a table of any name; 16 classes alone are no stimuli. Some of them keep their textures."""
    made = stimuli(root / "mine")
    found = stimuli_of(load(root / "mine"), root / "mine", "test")
    assert found is not None
    assert [SHAPES[i] for i in found.texture.tolist()] == [texture for _, _, texture in made]
    some = found.select([5, 2])
    assert (some.texture.tolist(), len(some)) == ([int(found.texture[i]) for i in (5, 2)], 2)
    assert torch.equal(some.images.batch([0])[0], found.images.batch([5])[0])
    assert some.images.labels.tolist() == [int(found.images.labels[i]) for i in (5, 2)]
    labels = ([SHAPES.index(shape) for _, shape, _ in made], datasets.ClassLabel(names=list(SHAPES)))
    textures = ([texture for _, _, texture in made], datasets.Value("string"))
    files = [file for file, _, _ in made]
    with_textures = parquet(root / "a.parquet", files, label=labels, texture=textures)
    without = parquet(root / "b.parquet", files, label=labels)
    assert stimuli_of(load(with_textures), with_textures, "test") is not None
    assert stimuli_of(load(without), without, "test") is None
    assert stimuli_of(load("digits"), "digits", "test") is None
    for i, shape in enumerate(SHAPES):
        (root / "photographs/test" / shape).mkdir(parents=True)
        shutil.copy(files[0], root / "photographs/test" / shape / (f"{i}.png" if i else "img1-copy2.png"))
    assert stimuli_of(load(root / "photographs"), root / "photographs", "test") is None
    for i, (file, _, _) in enumerate(made):
        file.rename(file.with_name(f"{i}.png"))
    assert stimuli_of(load(root / "mine"), root / "mine", "test") is None
    (root / "mine").rename(root / "cue-conflict")
    assert "its name must be" in refusal(lambda: stimuli_of(load("cue-conflict"), "cue-conflict", "test"))


def test_stimuli_that_lack_classes_are_refused_and_not_taken_for_other_images(tmp_path: Path) -> None:
    """Of fewer than half of the classes they may be anything."""
    stimuli(tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "bear")
    message = refusal(lambda: stimuli_of(load(tmp_path / "mine"), tmp_path / "mine", "test"))
    assert "lacks images of 1 of the 16 shapes: bear" in message
    for name in SHAPES[2:9]:
        shutil.rmtree(tmp_path / "mine" / name)
    assert stimuli_of(load(tmp_path / "mine"), tmp_path / "mine", "test") is None


def test_folders_that_are_no_cue_conflict_are_refused(tmp_path: Path) -> None:
    def damaged(name: str, change: Callable[[Path], object]) -> str:
        """The refusal of a copy that was changed."""
        stimuli(tmp_path / name)
        change(tmp_path / name)
        return refusal(lambda: cue_conflict(tmp_path / name))

    def called(name: str) -> Callable[[Path], object]:
        """One of the cats called otherwise."""
        return lambda path: next(iter(sorted((path / "cat").iterdir()))).rename(path / "cat" / name)

    message = damaged("a", lambda path: [shutil.rmtree(path / name) for name in ("oven", "cat")])
    assert "lacks images of 2 of the 16 shapes: cat, oven" in message
    assert "stimuli/style-transfer-preprocessed-512" in message
    assert "shapes: dog" in damaged("b", lambda path: [file.unlink() for file in (path / "dog").iterdir()])
    assert "folders lion are none of the 16" in damaged("c", lambda path: photo(path / "lion" / "cat1-dog1.png", 0))
    for i, name in enumerate(("cat1.png", "cat1_dog2.png", "cat-dog2.png", "dog1-cat2.png", "cat1-lion2.png", "x.png")):
        assert f"{name}: its name must be the shape" in damaged(f"d{i}", called(name))
    photo(tmp_path / "e" / "ant" / "a.png", 0)
    assert "lacks images of 16 of the 16 shapes" in refusal(lambda: cue_conflict(tmp_path / "e"))
    assert "cannot find" in refusal(lambda: cue_conflict("cue-conflict"))


def test_tables_that_are_no_cue_conflict_are_refused(tmp_path: Path) -> None:
    made = stimuli(tmp_path / "folder")[:3]
    files = [file for file, _, _ in made]
    shapes = datasets.ClassLabel(names=list(SHAPES))

    def message(label: tuple[list[Any], Any] = ([0, 0, 1], shapes), **columns: tuple[list[Any], Any]) -> str:
        """The refusal of a table with these columns."""
        path = parquet(tmp_path / str(len(list(tmp_path.iterdir()))) / "test.parquet", files, label=label, **columns)
        return refusal(lambda: cue_conflict(path))

    assert "no column 'texture': there are image, label" in message()
    assert "1 of 3 textures are missing" in message(texture=([0, None, 1], shapes))
    lions = datasets.ClassLabel(names=["lion", *SHAPES])
    assert "the textures lion are none of the 16" in message(texture=([0, 1, 2], lions))
    assert "the textures 0, 1, 2 are none" in message(texture=([0, 1, 2], datasets.Value("int64")))
    assert "outside of its 16 names" in message(texture=([0, -1, 2], shapes))
    textures = (["cat", "dog", "oven"], datasets.Value("string"))
    few = datasets.ClassLabel(names=list(SHAPES[:15]))
    assert "the classes truck are missing of the 16" in message(([0, 0, 1], few), texture=textures)
    assert "the classes lion are none of the 16" in message(([0, 0, 1], lions), texture=textures)


def test_the_stimuli_at_hand_all_conflict(real_data: Path) -> None:
    if not (real_data / "cue-conflict" / "test.parquet").is_file():
        pytest.skip("no cue-conflict under PELLUCID_DATA")
    found = cue_conflict("cue-conflict")
    assert found.class_names == SHAPES
    assert found.images.shape == (3, 224, 224)
    assert len(found) in (176, 1_280)  # the subset, or all
    per_shape, conflicts = (11, 176) if len(found) == 176 else (80, 1_200)
    assert torch.bincount(found.images.labels).tolist() == [per_shape] * 16
    assert int(found.conflicting.sum()) == conflicts


# The command line


def test_the_list_says_how_to_get_what_is_not_here(root: Path) -> None:
    text = CliRunner().invoke(app, ["list"]).output
    for way in (
        "cs231n.stanford.edu/tiny-imagenet-200.zip",
        "data.caltech.edu/records/nyy15-4j048",
        "data.caltech.edu/records/mzrjq-6wc02",
        "ILSVRC/imagenet-1k --repo-type dataset",
        "github.com/EliSchwartz/imagenet-sample-images",
        "github.com/rgeirhos/texture-vs-shape",
    ):
        assert way in text
    assert str(root / "caltech256") in text
    stimuli(root / "cue-conflict")
    text = CliRunner().invoke(app, ["list"]).output
    assert "texture-vs-shape" not in text
    entries = {entry["name"]: entry for entry in json.loads(CliRunner().invoke(app, ["list", "--json"]).output)["data"]}
    assert (entries["cue-conflict"]["splits"], entries["cue-conflict"]["get"]) == ({"test": 32}, "")
    assert entries["caltech256"]["preparations"].keys() == {"zhang"}


@pytest.mark.parametrize(
    ("name", "split", "way"),
    [
        ("tiny-imagenet", "valid", "tiny-imagenet-200.zip"),
        ("caltech256@zhang", "test", "256_ObjectCategories.tar of https://data.caltech.edu/records/nyy15-4j048"),
        ("caltech101", "test", "caltech-101.zip"),
        ("imagenet@restricted", "test", "ILSVRC2012_img_val.tar"),
        ("imagenet-sample@restricted", "train", "imagenet-sample-images"),
        ("cue-conflict", "test", "git clone https://github.com/rgeirhos/texture-vs-shape"),
        ("notmnist", "test", "notMNIST_small.tar.gz"),
    ],
)
def test_check_says_how_to_get_what_is_not_here(root: Path, name: str, split: str, way: str) -> None:
    error = CliRunner().invoke(app, ["check", name, "--split", split]).exception
    assert isinstance(error, PellucidError)
    assert way in str(error)
    assert str(root / name.partition("@")[0]) in str(error)


def test_check_counts_textures(root: Path) -> None:
    made = stimuli(root / "cue-conflict")
    facts = json.loads(CliRunner().invoke(app, ["check", "cue-conflict", "--json"]).output)
    textures = [texture for _, _, texture in made]
    assert facts["textures"] == {shape: textures.count(shape) for shape in SHAPES}
    assert facts["conflicting"] == 28
    made[0][0].rename(made[0][0].with_name("first.png"))
    error = CliRunner().invoke(app, ["check", "cue-conflict", "--json"]).exception
    assert isinstance(error, PellucidError)
    assert "first.png: its name must be" in str(error)
    (root / "cue-conflict").rename(root / "sixteen")  # a set of these classes that need not be the stimuli
    facts = json.loads(CliRunner().invoke(app, ["check", str(root / "sixteen"), "--json"]).output)
    assert "first.png: its name must be" in facts["textures"]
    photo(root / "two" / "test" / "cat" / "a.png", 0)
    assert "textures" not in json.loads(CliRunner().invoke(app, ["check", str(root / "two"), "--json"]).output)


# Contrast normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_global_contrast_is_the_papers_of_grey_levels(channels: int, generator: torch.Generator) -> None:
    x = torch.rand(5, channels, 6, 7, generator=generator, dtype=torch.float64)
    x[3] = 0.3
    found = GlobalContrast()(x)
    for image, result in zip(x.numpy() * 255, found.numpy(), strict=True):
        mean, std = np.mean(image), np.std(image, ddof=1)
        np.testing.assert_allclose(result, (image - mean) / (1 if std < 1e-4 else std), rtol=0, atol=1e-12)
    whole = [0, 1, 2, 4]
    torch.testing.assert_close(found[whole].std((1, 2, 3)), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(GlobalContrast()(0.5 * x[whole] + 0.2), found[whole], rtol=0, atol=1e-12)
    assert torch.equal(GlobalContrast()(x[:0]), x[:0])
    assert bool((GlobalContrast()(x[3:4].float()).abs() < 1e-6).all())


def naive_local(
    x: np.ndarray, size: int, sigma: float, least: float, mean_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Every sum written out."""
    n, channels, height, width = x.shape
    half = size // 2
    weight = {
        (i, j): np.exp(-(i * i + j * j) / (2 * sigma**2))
        for i in range(-half, half + 1)
        for j in range(-half, half + 1)
    }
    total = channels * sum(weight.values())

    def around(values: np.ndarray) -> np.ndarray:
        """The weighted sum of each neighbourhood, zeros outside."""
        out = np.zeros((n, 1, height, width))
        for row in range(height):
            for column in range(width):
                for (i, j), w in weight.items():
                    if 0 <= row + i < height and 0 <= column + j < width:
                        out[:, 0, row, column] += w / total * values[:, :, row + i, column + j].sum(1)
        return out

    centred = x - around(x)
    spread = np.sqrt(around(centred**2))
    return centred / np.maximum(np.maximum(mean_of(spread), spread), least)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("channels", "size", "sigma"), [(1, 7, 3.0), (3, 5, 1.5)])
def test_local_contrast_agrees_with_a_loop(
    channels: int, size: int, sigma: float, reading: Literal["as_written", "as_coded"], generator: torch.Generator
) -> None:
    x = torch.rand(3, channels, 9, 8, generator=generator, dtype=torch.float64)
    x[1] *= 0.01  # another contrast, so that the readings differ
    means = {"as_written": lambda d: d.mean((1, 2, 3), keepdims=True), "as_coded": lambda d: d.mean()}
    layer = LocalContrast(size=size, sigma=sigma, reading=reading).double()
    layer.kernel = layer.kernel / layer.kernel.sum()  # stored in fp32: here to all digits
    expected = naive_local(x.numpy(), size, sigma, 1e-4, means[reading])
    torch.testing.assert_close(layer(x), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    alone = torch.cat([layer(image[None]) for image in x])
    assert torch.allclose(alone, layer(x), rtol=0, atol=1e-12) == (reading == "as_written")


def test_local_contrast_forgets_brightness_and_contrast_inside(generator: torch.Generator) -> None:
    x = torch.rand(2, 1, 32, 32, generator=generator)
    layer = LocalContrast()
    inside = (..., slice(6, -6), slice(6, -6))
    assert float(layer.kernel.sum()) == pytest.approx(1, abs=1e-6)
    flat = layer(torch.full((1, 1, 32, 32), 0.7))
    assert bool((flat[inside].abs() < 1e-2).all())
    assert bool((flat[..., 0, :].abs() > 0.5).all())  # the zeros around are an edge
    torch.testing.assert_close(layer(0.5 * x), layer(x), rtol=1e-4, atol=1e-5)
    faint = layer(1e-6 * (x - 0.5))  # below `least`: divided by it, not blown up
    torch.testing.assert_close(faint, (1e-6 * (x - 0.5) - layer._around(1e-6 * (x - 0.5))) / 1e-4)


@pytest.mark.parametrize("make", [GlobalContrast, LocalContrast, lambda: LocalContrast(reading="as_coded")])
def test_contrast_layers_are_differentiable_twice_and_where_there_is_no_contrast(
    make: Callable[[], torch.nn.Module], generator: torch.Generator
) -> None:
    layer = make().double()
    x = torch.rand(2, 1, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    for value in (0.0, 0.3, 1.0):
        flat = torch.full((2, 1, 12, 12), value, requires_grad=True)
        weights = torch.rand(2, 1, 12, 12, generator=generator)
        (slope,) = torch.autograd.grad((make()(flat) * weights).sum(), flat, create_graph=True)
        (again,) = torch.autograd.grad(slope.square().sum(), flat, allow_unused=True, materialize_grads=True)
        assert bool(torch.isfinite(slope).all())
        assert bool(torch.isfinite(again).all())


def test_contrast_layers_refuse_what_they_cannot_do() -> None:
    assert "must be odd" in refusal(lambda: LocalContrast(size=6))
    assert "above 0" in refusal(lambda: LocalContrast(sigma=0.0))
    assert "above 0" in refusal(lambda: LocalContrast(least=0.0))
    assert "above 0" in refusal(lambda: GlobalContrast(least=0.0))
    assert "contrast needs two" in refusal(lambda: GlobalContrast()(torch.zeros(2, 1, 1, 1)))
    assert LocalContrast().state_dict() == {}  # nothing learnt, nothing stored
