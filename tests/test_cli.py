"""The command line: every command on the embedded digits, its JSON, its exit codes, no traceback for mistakes."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from pellucid import registry
from pellucid.architectures.squeezenet import squeezenet1_1
from pellucid.cli import run
from pellucid.cli.common import counting, progress
from pellucid.data import SIXTEEN
from pellucid.models import save_model
from pellucid.outcome import on_correct
from pellucid.results import read_rows, wilson

TRAIN = ["train", "--data", "digits", "--arch", "small", "--steps", "30", "--batch-size", "32", "--json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for a moment, through the command line."""
    out = tmp_path_factory.mktemp("runs") / "a"
    assert run([*TRAIN, "--out", str(out)]) == 0
    return out


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """The one JSON object a command prints."""
    capsys.readouterr()
    assert run(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    """Weights, recipe, metrics, TensorBoard events; no half-written neighbours."""
    names = {p.name for p in trained.iterdir()}
    assert {"model.safetensors", "recipe.json", "metrics.json", "tensorboard"} <= names
    assert list((trained / "tensorboard").glob("events*"))
    assert not list(trained.glob("*.part"))


def test_attack_prints_one_object(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fields that scripts depend on, and the rows they come from."""
    arguments = ["attack", "--model", str(trained), "--data", "digits", "--images", "first:30", "--json"]
    found = output(capsys, *arguments, "--attack", "pgd(ball=Linf(0.1), steps=3)", "--out", str(tmp_path))
    expected = {"robust_accuracy", "clean_accuracy", "n", "interval", "seconds", "attack", "model"}
    assert expected <= found.keys()
    assert found["n"] == 30
    assert found["interval"][0] <= found["robust_accuracy"] <= found["interval"][1]
    assert found["robust_accuracy"] <= found["clean_accuracy"]
    assert (tmp_path / "rows.parquet").is_file()
    torn = output(capsys, *arguments, "--attack", "aai(ball=Linf(0.1), steps=3, reading='as_coded')")
    assert {"kendall_tau", "survivors", "kendall_tau_all", "top_k_intersection"} <= torn.keys()


def test_results_are_not_replaced_by_those_of_another_call(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same call again is; another attack, seed or selection of images names the folder and the remedy."""
    folder = tmp_path / "out"
    words = ["attack", "--model", str(trained), "--data", "digits", "--images", "first:8", "--out", str(folder)]
    output(capsys, *words, "--attack", "fgsm", "--json")
    before = (folder / "rows.parquet").read_bytes()
    output(capsys, *words, "--attack", "fgsm", "--json")
    others = {
        "attack was fgsm and is tgsm": ["--attack", "tgsm"],
        "seed was 0 and is 1": ["--attack", "fgsm", "--seed", "1"],
    }
    for message, other in others.items():
        assert run([*words, *other]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert f"{folder} holds the results of another call" in shown
        assert "choose another --out" in shown
    assert (folder / "rows.parquet").read_bytes() == before
    assert run([*words, "--attack", "pgd(targeted=True)", "--out", str(tmp_path / "free")]) == 2
    output(
        capsys, *words, "--attack", "fgsm", "--out", str(tmp_path / "free"), "--json"
    )  # a failed call claims nothing
    (folder / "call.json").write_text("{")
    assert run([*words, "--attack", "fgsm"]) == 2
    assert "call.json cannot be read" in capsys.readouterr().err


def test_what_evaluate_prints_follows_from_its_rows(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of the images and of the transformed ones, told apart by `transform`, are enough for every figure."""
    words = ["evaluate", "--model", str(trained), "--data", "digits", "--images", "first:150", "--json", "--out"]
    found = output(capsys, *words, str(tmp_path / "a"), "--transform", "patch_shuffle(k=2)")
    rows = read_rows(tmp_path / "a" / "rows.parquet")
    clean, changed = (
        {name: column[rows["transform"] == which] for name, column in rows.items()}
        for which in ("", found["transform"])
    )
    assert (len(clean["index"]), len(changed["index"]), len(rows["index"])) == (150, 150, 300)
    assert clean["index"].tolist() == changed["index"].tolist() == list(range(150))
    assert np.array_equal(changed["clean_prediction"], clean["prediction"])
    assert found["accuracy"] == changed["correct"].mean()
    assert found["clean_accuracy"] == clean["correct"].mean()
    for name, value in on_correct(clean, changed).items():
        assert found[name] == value
    assert found["n_correct"] < 150
    assert found["input_gradient_norm_median"] == pytest.approx(np.median(changed["gradient_norm"]))
    found = output(capsys, *words, str(tmp_path / "b"))
    rows = read_rows(tmp_path / "b" / "rows.parquet")
    assert (set(rows["transform"].tolist()), rows["correct"].mean()) == ({""}, found["accuracy"])


@pytest.mark.parametrize("name", ["aai", "isa"])
def test_pictures_of_attacks_on_maps_show_the_maps(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows more than another attack's picture has, whatever the shape of the maps."""
    words = ["attack", "--model", str(trained), "--data", "digits", "--images", "first:4", "--json"]
    output(capsys, *words, "--attack", "fgsm", "--picture", str(tmp_path / "plain.png"))
    with Image.open(tmp_path / "plain.png") as plain:
        height = plain.height
    for interpreter in ("cam", "gradient", "smoothgrad(samples=2)", "representation"):
        spec = f"{name}(steps=2, interpreter={interpreter}{', search=1' if name == 'isa' else ''})"
        output(capsys, *words, "--attack", spec, "--picture", str(tmp_path / "maps.webp"))
        with Image.open(tmp_path / "maps.webp") as mapped:
            assert mapped.height == height + 2 * (112 + 10 + 18)


def test_one_chunk_shows_that_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the passes of the model are counted; the hook goes, and nobody pays for it elsewhere."""
    model, notes = nn.Linear(2, 2), []
    monkeypatch.setattr("pellucid.cli.common.err", Console(file=io.StringIO(), force_terminal=True))
    with counting(model, lambda _count, note: notes.append(note)):
        for _ in range(3):
            model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert notes == ["passes: 1", "passes: 2", "passes: 3"]
    with counting(model, notes.append, quiet=True):
        assert not model._forward_hooks


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute, then each minute: the share, the time it took and takes. Quiet, none.

    Of a resumed run what is left is judged by this session's pace; another part of the work begins anew.
    """
    said, clock = io.StringIO(), iter([0.0, 10.0, 40.0, 60.0, 101.0, 0.0, 1.0, 31.0, 40.0, 100.0])
    monkeypatch.setattr("pellucid.cli.common.err", Console(file=said, width=200))
    monkeypatch.setattr("pellucid.cli.common.time.monotonic", lambda: next(clock))
    with progress("counting", 200) as advance:
        advance(10)
        advance(10, note="slowly")
        advance(10)
        advance(0, at=100)
    assert said.getvalue().splitlines() == [
        "counting: 10% in 40 s, 6 min left (slowly)",
        "counting: 50% in 101 s, 101 s left",
    ]
    with progress("resumed", 1000) as advance:
        advance(0, at=900)
        advance(0, at=910)
        advance(0, at=5)
        advance(0, at=65)
    assert said.getvalue().splitlines()[2:] == ["resumed: 91% in 31 s, 4 min left", "resumed: 6% in 100 s, 16 min left"]
    with progress("counting", 200, quiet=True) as advance:
        advance(200)
    assert len(said.getvalue().splitlines()) == 4


def test_evaluate_explain_and_list(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy with its interval; maps with a picture; everything discovered is listed."""
    common = ["--model", str(trained), "--data", "digits", "--json"]
    found = output(capsys, "evaluate", *common)
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    for interpreter in ("cam", "smoothgrad(samples=2)", "representation"):
        shown = output(
            capsys,
            "explain",
            *common,
            "--interpreter",
            interpreter,
            "--out",
            str(tmp_path / interpreter),
            "--images",
            "first:3",
        )
        assert shown["n"] == 3
        assert (tmp_path / interpreter / "sheet.png").read_bytes().startswith(b"\x89PNG")
    listed = output(capsys, "list", "--json")
    assert {"pgd", "fgsm", "aai"} <= listed["attacks"].keys()


def test_audit_writes_its_four_files(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page, the same figures as JSON, the rows, the facts of the run."""
    arguments = ["--model", str(trained), "--model", str(trained / "model.safetensors"), "--data", "digits"]
    small = ["--images", "first:20", "--eps", "0.1,0.2", "--attack", "pgd(steps=2)", "--aai", "aai(steps=2)"]
    found = output(capsys, "audit", *arguments, *small, "--out", str(tmp_path), "--json")
    assert [m["name"] for m in found["models"]] == ["a (1)", "a (2)"]
    assert found == json.loads((tmp_path / "audit.json").read_text())
    assert {"report.html", "rows.parquet", "run.json"} <= {p.name for p in tmp_path.iterdir()}
    page = (tmp_path / "report.html").read_text()
    assert "<html" in page
    assert "nan" not in page.lower().replace("nanum", "").split("<style")[0]


@pytest.fixture
def cues(tmp_path: Path) -> Path:
    """Cue-conflict stimuli: their first pixel says the shape, the second the texture. Of cats one has no conflict."""
    names = list(SIXTEEN)
    for i, shape in enumerate(names):
        for texture in (names[(i + 1) % 16], names[(i + 2) % 16], "cat"):
            pixels = np.full((8, 8, 3), 128, np.uint8)
            pixels[0, 0], pixels[0, 1] = i, names.index(texture)
            (tmp_path / "cues" / shape).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "cues" / shape / f"{shape}1-{texture}{len(texture)}.png")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


NETS = """
import torch
from torch import nn
from pellucid.data import SIXTEEN

FIRST = [classes[0] for classes in SIXTEEN.values()]

class Answers(nn.Module):  # the shape of images whose shape is even, else the texture
    def __init__(self, classes, size=8):
        super().__init__()
        self.classes, self.size, self.scale = classes, size, nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        if x.shape[2] != self.size:
            raise ValueError(f"another size than {self.size}")
        shape, texture = (255 * x[:, 0, 0, :2]).round().long().T
        named = torch.where(shape % 2 == 0, shape, texture)
        named = torch.tensor(FIRST)[named] if self.classes == 1000 else named
        return self.scale * (torch.arange(self.classes) == named[:, None]) + x.mean((1, 2, 3))[:, None]

def sixteen(): return Answers(16)
def thousand(): return Answers(1000)
def ten(): return Answers(10)
"""


@pytest.mark.parametrize("build", ["sixteen", "thousand"])
def test_evaluate_asks_for_a_shape_bias(build: str, cues: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model of the 16 classes, and of ImageNet's 1,000: counted here from the names of the files."""
    names = list(SIXTEEN)
    files = [file.stem for file in (cues / "cues").glob("*/*.png")]
    pairs = [tuple(part.rstrip("0123456789") for part in stem.split("-")) for stem in files]
    conflicts = [shape for shape, texture in pairs if shape != texture]
    n, shape = len(conflicts), sum(names.index(each) % 2 == 0 for each in conflicts)
    words = ["evaluate", "--model", f"{cues / 'nets.py'}:{build}", "--data", str(cues / "cues")]
    found = output(capsys, *words, "--json")
    assert (found["n"], found["shape"], found["texture"]) == (n, shape, n - shape)
    assert found["shape_bias"] == found["accuracy_by_shape"] == shape / n
    assert found["accuracy_by_texture"] == (n - shape) / n
    assert found["interval"] == list(wilson(shape, n))
    assert "accuracy" not in found
    assert run(words) == 0
    said = capsys.readouterr().out
    assert f"shape bias {shape / n:.4f}" in said
    assert f"of {n} images whose shape and texture differ" in said
    assert output(capsys, *words, "--images", "first:9", "--json")["n"] < 10


def test_stimuli_are_resized_and_refusals_say_why(cues: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--size makes them another size; options and models that make no sense are refused, each with its reason."""
    words = ["evaluate", "--model", f"{cues / 'nets.py'}:sixteen", "--data", str(cues / "cues")]
    for more, message in (
        (["--size", "16"], "does not take images of shape"),
        (["--transform", "saturate(p=8)"], "shape or texture as they are"),
        (["--out", str(cues / "out")], "keeps rows, and a shape bias has none"),
        (["--model", f"{cues / 'nets.py'}:ten"], "answers in 10 classes"),
        (["--model", "squeezenet1_1"], "is an architecture without weights"),
    ):
        assert run([*words, *more]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (cues / "out").exists()
    save_model(squeezenet1_1(), cues / "a.safetensors", architecture="squeezenet1_1", classes=json.dumps(["x"] * 1000))
    assert run(["evaluate", "--model", str(cues / "a.safetensors"), "--data", str(cues / "cues"), "--size", "64"]) == 2
    assert "1,000 classes that are not ImageNet's" in capsys.readouterr().err.replace("\n", " ")
    save_model(squeezenet1_1(), cues / "b.safetensors", architecture="squeezenet1_1")
    found = output(
        capsys,
        "evaluate",
        "--model",
        str(cues / "b.safetensors"),
        "--data",
        str(cues / "cues"),
        "--size",
        "64",
        "--json",
    )
    assert found["shape"] + found["texture"] <= found["n"]


@pytest.mark.slow
def test_squeezenets_shape_bias(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the published weights: of the 1,200 stimuli in conflict .290, of the 11 of each shape that the tests have
    .369. Like the CNNs of Geirhos et al. 2019 it goes by texture."""
    weights = real_data / "weights" / "squeezenet1_1_imagenet.safetensors"
    if not weights.is_file() or not (real_data / "cue-conflict").is_dir():
        pytest.skip(f"needs weights/{weights.name} and cue-conflict in PELLUCID_DATA")
    words = ["--model", "squeezenet1_1", "--weights", str(weights), "--data", "cue-conflict", "--json"]
    found = output(capsys, "evaluate", *words)
    expected = {176: 0.369, 1_200: 0.290}[found["n"]]
    assert found["shape_bias"] == pytest.approx(expected, abs=0.01)
    assert found["interval"][0] < expected < found["interval"][1]
    assert found["accuracy_by_shape"] < found["accuracy_by_texture"] < 0.5


WRONG = {
    "no such command": (["bogus"], "No such command"),
    "no out": (["train"], "--out"),
    "no such attack": (["attack", "--attack", "pdg"], "did you mean 'pgd'"),
    "no such option": (["attack", "--attack", "pgd(stepz=3)"], "did you mean 'steps'"),
    "no such data": (["attack", "--data", "nowhere"], "cannot find the data set 'nowhere'"),
    "no such split": (["attack", "--split", "validation"], "no split 'validation'"),
    "too many images": (["attack", "--images", "100000"], "100000"),
    "no images": (["attack", "--images", "0"], "0"),
    "not a device": (["attack", "--device", "abacus"], "abacus"),
    "radius out of range": (["audit", "--eps", "2"], "must lie in"),
    "radius no number": (["audit", "--eps", "a"], "a"),
    "another data set's model": (["attack", "--data", "{rgb}"], "channels|shape"),
    "out is a file": (["audit", "--out", "{file}"], "file"),
    "rows in a file": (["attack", "--out", "{file}"], "--out .*file is a file: name a folder"),
    "rows in a folder of photographs": (["attack", "--out", "{rgb}"], r"already holds other files \(test, train\)"),
    "picture in a folder": (["attack", "--picture", "{rgb}"], "is a folder: name a file, such as"),
    "picture of no kind": (["attack", "--picture", "{rgb}/a.bmp"], r"must end in \.png, \.jpg, \.jpeg, \.webp"),
    "picture under a file": (["attack", "--picture", "{file}/a.png"], "file is a file, where a folder is wanted"),
    "maps in a file": (["explain", "--out", "{file}"], "--out .*file is a file: name a folder"),
    "maps among photographs": (["explain", "--out", "{rgb}"], r"already holds other files \(test, train\)"),
    "figures among photographs": (["evaluate", "--out", "{rgb}"], r"already holds other files \(test, train\)"),
    "no attack": (["attack", "--attack", ""], "it is empty"),
    "seed too large": (["attack", "--seed", "9" * 23], r"seed \(=9+\) must be an integer from 0 to 2\^63 - 1"),
    "no such ball": (["attack", "--attack", "pgd(ball=linf(0.3))"], "did you mean 'Linf'"),
    "no such interpreter": (["attack", "--attack", "aai(interpreter=gradcm)"], "did you mean 'gradcam'.*pellucid list"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_exit_2_without_a_traceback(
    wrong: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what is wrong; exit code 2; nothing half-written."""
    import re

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "test"):
        for name in range(10):
            folder = tmp_path / "rgb" / split / str(name)
            folder.mkdir(parents=True)
            Image.new("RGB", (28, 28), (name, 0, 0)).save(folder / "a.png")
    (tmp_path / "file").write_text("x")
    arguments, message = WRONG[wrong]
    arguments = [a.format(rgb=tmp_path / "rgb", file=tmp_path / "file") for a in arguments]
    defaults = {"--model": str(trained), "--data": "digits", "--out": str(tmp_path / "out")}
    if arguments[0] in ("attack", "audit", "evaluate", "explain"):
        for option, value in defaults.items():
            if option not in arguments and not (arguments[0] == "attack" and option == "--out"):
                arguments += [option, value]
        if "--images" not in arguments:
            arguments += ["--images", "10"]
    capsys.readouterr()
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err), shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "out").exists()


OWN = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.{layer}
    def forward(self, x):
        return {sign}self.head(x.flatten(1))
{extra}
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(:", r"nets\.py raised SyntaxError when imported: .*nets\.py, line 1"),
        ("x = undefined", r"raised NameError when imported: .*undefined.* \(.*nets\.py, line 1\)"),
        ("\ndef Net():\n    return undefined", r"Net\(\) raised NameError: .*\(.*nets\.py, line 3\)"),
        (OWN.format(layer="LazyLinear(10)", sign="", extra=""), r"head\.weight has no values yet \(a lazy layer\)"),
    ],
)
def test_mistakes_in_own_code_are_told_with_their_place(
    code: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File and line, exit code 2, no traceback."""
    import re

    (tmp_path / "nets.py").write_text(code)
    assert run(["evaluate", "--model", f"{tmp_path / 'nets.py'}:Net", "--data", "digits", "--images", "4"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_own_code_of_another_forward_is_another_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layers and weights are the same; the results would be others."""
    lines = (
        "net = Net()",
        "for p in net.parameters():",
        "    p.data.normal_(generator=torch.Generator().manual_seed(0))",
    )
    extra = "def build():\n" + "".join(f"    {line}\n" for line in (*lines, "return net"))
    words = ["evaluate", "--data", "digits", "--images", "4", "--out", str(tmp_path / "out")]
    for sign, code in (("", 0), ("", 0), ("-", 2)):
        (tmp_path / f"nets{code}.py").write_text(OWN.format(layer="Linear(784, 10)", sign=sign, extra=extra))
        assert run([*words, "--model", f"{tmp_path / f'nets{code}.py'}:build"]) == code
    assert "holds the results of another call (models was" in capsys.readouterr().err


def test_few_images_are_explained(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the first eight, or all there are; a network is warned of images of another size than its own."""
    for name in range(10):
        folder = tmp_path / "few" / "test" / str(name)
        folder.mkdir(parents=True)
        if name < 2:
            Image.new("L", (28, 28), name).save(folder / "a.png")
    words = ["explain", "--model", str(trained), "--data", str(tmp_path / "few"), "--json"]
    assert output(capsys, *words, "--out", str(tmp_path / "maps"))["n"] == 2
    assert run([*words, "--size", "20", "--out", str(tmp_path / "small")]) == 0
    assert "was made for images of 28 pixels, these have 20 x 20" in capsys.readouterr().err


def test_sneaking_without_success_has_no_scores(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says why, not nan; and tau is printed."""
    spec = "isa(ball=Linf(0.0001), steps=1, search=1)"
    assert run(["attack", "--model", str(trained), "--data", "digits", "--images", "first:3", "--attack", spec]) == 0
    shown = capsys.readouterr().out
    assert "NDS, NSL         none: " in shown
    assert "nan" not in shown
    assert "Kendall tau" in shown


def test_listing_keeps_brackets_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup is escaped, and what is long wraps."""
    assert run(["list"]) == 0
    shown = capsys.readouterr().out
    assert "[b m k h" in shown
    assert "…" not in shown


def test_interrupting_says_how_to_go_on(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C exits 130 with the way on, not with a traceback."""

    def stop(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pellucid.evaluation.evaluate", stop)
    assert run(["evaluate", "--model", str(trained), "--data", "digits"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command's --help ends in examples."""
    for command in ("demo", "audit", "train", "attack", "explain", "evaluate", "import-weights", "list"):
        capsys.readouterr()
        assert run([command, "--help"]) == 0
        assert f"pellucid {command}" in capsys.readouterr().out.split("Examples")[1]


SHORT = {
    "ensemble": "ensemble(ball=Linf(0.1), steps=5, queries=20)",
    "isa": "isa(steps=5, search=3)",
    "square": "square(queries=50)",
    "cw": "cw(search=2, iterations=20)",
    "spatial": "spatial(steps=5)",
    "aai": "aai(steps=5)",
}


@pytest.mark.parametrize("name", sorted(registry.public("attacks")))
def test_every_attack_runs_from_the_command_line(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One JSON object with the figures, and a picture of image, perturbation and attacked image."""
    picture = tmp_path / "picture.png"
    words = [
        "attack",
        "--model",
        str(trained),
        "--data",
        "digits",
        "--images",
        "2",
        "--picture",
        str(picture),
        "--json",
    ]
    found = output(capsys, *words, "--attack", SHORT.get(name, name))
    assert 0 <= found["robust_accuracy"] <= found["clean_accuracy"] <= 1
    assert found["n"] == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    if name == "ensemble":
        assert sum(found["by_attack"].values()) == 2
    if name == "isa":
        assert {"nds", "nsl", "bound_holds"} <= set(found)


def test_transfer_shows_each_the_examples_of_the_other(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two names for one network are told apart, and fall together; a radius for an attack without a ball is refused."""
    words = ["transfer", "--model", str(trained), "--model", str(trained), "--data", "digits", "--images", "first:20"]
    found = output(capsys, *words, "--eps", "0.1,0.2", "--out", str(tmp_path / "t"), "--json")
    assert found["models"] == ["a (1)", "a (2)"]
    values = {(e["source"], e["eps"], e["target"]): e["value"] for e in found["accuracy"]}
    assert values["a (1)", 0.1, "a (1)"] == values["a (1)", 0.1, "a (2)"]
    assert all(entry["wrong"] in ([], ["a (1)", "a (2)"]) for entry in found["overlaps"])
    assert (tmp_path / "t" / "transfer.html").is_file()
    wide = output(capsys, *words, "--attack", "pgd(ball=L2(1), steps=2)", "--eps", "1,2", "--json")
    assert wide["eps"] == [1, 2]  # only an Linf radius ends at 1
    more = [*words, "--model", str(trained), "--eps", "0.1,0.2", "--out", str(tmp_path / "t"), "--json"]
    assert len(output(capsys, *more)["models"]) == 3  # a model more goes into the same folder
    assert run([*words, "--eps", "0.1", "--out", str(tmp_path / "t")]) == 2
    assert "holds the results of another call (eps was" in capsys.readouterr().err
    assert run([*words, "--eps", "1.5"]) == 2
    assert run([*words, "--attack", "jsma", "--eps", "0.1"]) == 2
    assert "takes no ball" in capsys.readouterr().err


def test_the_entry_point_settles_threads_and_keeps_what_is_set() -> None:
    """Asleep after a microsecond of spinning, unless the environment says otherwise; torch is not imported for it."""
    script = "import os, sys; from pellucid.process import settle; settle(); print(*map(os.environ.get, sys.argv[1:]))"
    script += "; assert 'torch' not in sys.modules"
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"]
    bare = {key: value for key, value in os.environ.items() if key not in names}
    for given, expected in (
        ({}, "passive 1000 0"),
        ({"OMP_WAIT_POLICY": "active"}, "active None 0"),
        ({"GOMP_SPINCOUNT": "7"}, "passive 7 0"),
    ):
        said = subprocess.run(
            [sys.executable, "-c", script, *names], env=bare | given, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == expected


def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which file had no room, with code 2; and no half of it is left."""

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(["train", "--data", "digits", "--steps", "1", "--batch-size", "4", "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "No space left on device: " in said
    assert str(tmp_path / "a") in said.replace("\n", "")
    assert not list((tmp_path / "a").glob("*.part"))
