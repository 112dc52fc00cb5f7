"""What a classifier looks at: measures of maps, curves over transforms, shape or texture."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pellucid.architectures.small import small
from pellucid.cli import run
from pellucid.data import ImageSet, load
from pellucid.data.cues import CueConflict
from pellucid.data.groups import SIXTEEN
from pellucid.data.imageset import resident
from pellucid.draws import PerImage
from pellucid.errors import PellucidError
from pellucid.evaluation import Measurement, evaluate
from pellucid.looks import _pairs, changes, levels, look, work
from pellucid.metrics import edges, gini, share_within
from pellucid.models import save_model
from pellucid.protocol import Looks
from pellucid.results import Rows, read_rows
from pellucid.salience import _others, noise_gini, numbers, smooth_maps, summed_up
from pellucid.shape_bias import fitting_stimuli, shape_bias
from pellucid.summary import paired_means, paired_on_correct
from pellucid.transforms.shape import patch_shuffle


def test_the_gini_index_in_closed_form(generator: torch.Generator) -> None:
    """0 of equal values, 1 - 1/d of a single one, (d - 1) / 3d of a ramp; scale, sign and order do not
    matter; √2 - 1 of Gaussian noise."""
    d = 50
    one = torch.zeros(1, d)
    one[0, 7] = -3.0
    ramp = torch.arange(1.0, d + 1)[None]
    assert float(gini(torch.ones(1, d))) == pytest.approx(0, abs=1e-12)
    assert float(gini(one)) == pytest.approx(1 - 1 / d, abs=1e-12)
    assert float(gini(ramp)) == pytest.approx((d - 1) / (3 * d), abs=1e-12)
    shuffled = -7 * ramp[:, torch.randperm(d, generator=generator)]
    assert float(gini(shuffled)) == pytest.approx(float(gini(ramp)), abs=1e-12)
    noise = torch.empty(4, 20_000).normal_(generator=generator)
    torch.testing.assert_close(gini(noise), torch.full((4,), 2**0.5 - 1, dtype=torch.float64), rtol=0, atol=0.01)
    assert gini(torch.zeros(1, d)).isnan().all()


def test_edges_are_where_the_image_changes(generator: torch.Generator) -> None:
    """A vertical step's two columns, whatever its direction; always the share asked for; none of it is the border's."""
    x = torch.zeros(2, 3, 10, 10)
    x[0, :, :, 5:] = 1
    x[1, :, :, :5] = 0.7
    found = edges(x, share=0.2)
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[:, 4:6] = True
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    noise = torch.empty(3, 1, 9, 11).uniform_(generator=generator)
    for share in (0.1, 0.5):
        assert (edges(noise, share=share).flatten(1).sum(1) == round(share * 99)).all()
    with pytest.raises(PellucidError, match="above 0 and below 1"):
        edges(x, share=0)


def test_the_share_within_places(generator: torch.Generator) -> None:
    """All of a map that lies there, none of one that does not, the places' share of one that knows nothing of them."""
    places = torch.zeros(3, 8, 8, dtype=torch.bool)
    places[:, :2] = True
    maps = torch.zeros(3, 8, 8)
    maps[0, 0, 3], maps[1, 5, 5] = -2.0, 1.0
    found = share_within(maps, places)
    assert found[:2].tolist() == [1, 0]
    assert found[2].isnan()
    noise = torch.empty(400, 8, 8).normal_(generator=generator)
    assert float(share_within(noise, places[:1].expand(400, -1, -1)).mean()) == pytest.approx(0.25, abs=0.02)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load("digits", "test").select(range(40))


def test_curves_are_the_accuracies_counted_here(digits: ImageSet, tmp_path: Path) -> None:
    """Per level and model, all images and those right before; every model sees the same shuffles; paired differences;
    from stored cells the same again, and as many ticks as announced."""
    models = {name: small(generator=torch.Generator().manual_seed(seed)).eval() for name, seed in (("a", 0), ("b", 1))}
    rows, ticks = torch.arange(40), []
    asked = Looks(map_images=3, shown=2)
    looked = look(models, digits, rows, asked, seed=5, cells=tmp_path, tick=ticks.append)
    found = looked.figures
    assert sum(ticks) == 2 * work(digits, 40, asked)
    x, y = digits.batch(rows)
    entry = next(e for e in found["curves"] if e["transform"] == "patch shuffling" and e["level"] == "4")
    shuffled = patch_shuffle(x, k=4, generator=PerImage(5, range(40)))
    still = {}
    for mine in entry["models"]:
        with torch.no_grad():
            before = models[mine["name"]](x).argmax(1) == y
            right = models[mine["name"]](shuffled).argmax(1) == y
        assert mine["count"] == int(right.sum())
        assert mine["n_correct"] == int(before.sum())
        still[mine["name"]] = float((before & right).sum() / before.sum())
        np.testing.assert_array_equal(looked.rows[mine["name"], entry["of"]]["correct"], right.numpy())
    pair = next(p for p in found["pairs"] if p["of"] == "patch shuffling" and p["level"] == "4")
    assert pair["difference"] == pytest.approx(still["a"] - still["b"])
    neutral = next(e for e in found["curves"] if e["transform"] == "saturation" and e["level"] == "2")
    assert all(
        mine["accuracy_on_correct"] == 1 or math.isnan(mine["accuracy_on_correct"]) for mine in neutral["models"]
    )
    again = look(models, digits, rows, asked, seed=5, cells=tmp_path)
    assert json.dumps(again.figures) == json.dumps(found)
    assert set(looked.pictures) == {
        f"looks/{kind}/{i}{name}"
        for kind in ("clean", "saturated", "shuffled")
        for i in (0, 1)
        for name in ("", "/a", "/b")
    }


def test_levels_fit_the_images() -> None:
    """Patches divide the image; radii lie within it; a style comes with one."""
    assert list(levels((1, 28, 28))["patch shuffling"][1]) == ["2", "4"]
    assert list(levels((3, 32, 32))["patch shuffling"][1]) == ["2", "4", "8"]
    assert "patch shuffling" not in levels((3, 31, 31))
    assert set(changes((3, 31, 31), None)) == {"saturated"}
    for shape in ((1, 28, 28), (3, 33, 20)):
        x = torch.rand(2, *shape)
        for _, made in levels(shape).values():
            for transform in made.values():
                assert transform(x, generator=PerImage(0, range(2))).shape == x.shape
    assert "style" in levels((1, 28, 28), partial(patch_shuffle, k=1))


def test_smooth_maps_are_smoothgrad(digits: ImageSet) -> None:
    """Of log p of the true class, magnitudes added over channels: the same as a loop over noise of each image's own."""
    model = small(generator=torch.Generator().manual_seed(0)).eval()
    x, y = digits.batch(range(3))
    found = smooth_maps(model, x, y, rows=[0, 1, 2], seed=2)
    for i in range(3):
        noise, total = PerImage(2, [i], "smoothgrad of clean images").streams[0], torch.zeros_like(x[i])
        for _ in range(25):
            at = (x[i] + 0.1 * (x[i].max() - x[i].min()) * torch.empty_like(x[i]).normal_(generator=noise))[None]
            at = at.requires_grad_()
            total += torch.autograd.grad(model(at).log_softmax(1)[0, y[i]], at)[0][0]
        torch.testing.assert_close(found[i], (total / 25).abs().sum(0), rtol=1e-3, atol=1e-6)


def test_a_map_hangs_on_its_image_alone() -> None:
    """Not on its place, on how many stand beside it, or on which; another kind of images has noise of its own."""
    model, digits = small(generator=torch.Generator().manual_seed(0)).eval(), load("digits", "test")
    rows = list(range(40, 60))
    x, y = digits.batch(rows)
    found = smooth_maps(model, x, y, rows=rows, seed=2)
    chosen = [17, 3, 18]
    alone = smooth_maps(model, x[chosen], y[chosen], rows=[rows[i] for i in chosen], seed=2)
    torch.testing.assert_close(alone, found[chosen], rtol=1e-3, atol=1e-6)
    other = smooth_maps(model, x[chosen], y[chosen], rows=[rows[i] for i in chosen], seed=2, kind="saturated")
    assert float((other - alone).abs().max()) > 0.01 * float(alone.max())


def test_the_numbers_of_maps_by_hand(generator: torch.Generator) -> None:
    """Maps that are their images' edges lie on those, and not on another image's; no tau without maps before, -1 to
    reversed ones; zeros count nowhere; few give no interval, and one has no control."""
    x = torch.zeros(12, 1, 10, 10)
    for i in range(12):
        x[i, 0, :, 3 if i % 2 else 7 :] = 1  # the step's two columns: 2 and 3, or 6 and 7
    maps = edges(x).float()
    found = summed_up(numbers(maps, x, None, seed=0), 0)
    assert found["edges"]["value"] == 1
    other = _others(12, 0)
    assert found["edges_more"]["value"] == pytest.approx(float((other % 2 != torch.arange(12) % 2).float().mean()))
    assert found["edges"]["n"] == 12
    assert found["gini"]["value"] == pytest.approx(0.8)
    assert "tau" not in found
    noise = torch.empty(12, 10, 10).uniform_(generator=generator)
    flat = summed_up(numbers(noise, x, 1 - noise, seed=0), 0)
    assert flat["tau"]["value"] == pytest.approx(-1)
    assert abs(flat["edges_more"]["value"]) < 0.02
    assert flat["tau"]["low"] is not None
    same = summed_up(numbers(noise, x, noise, seed=0), 0)
    assert same["tau"]["value"] == pytest.approx(1)
    assert same["tau_more"]["value"] == pytest.approx(1, abs=0.1)  # other noise has nothing in common
    swapped = numbers(noise[other], x, noise, seed=0)  # of each image now what the other's map was
    assert summed_up(swapped, 0)["tau_more"]["value"] == pytest.approx(-1, abs=0.1)
    maps[:3] = 0
    few = summed_up(numbers(maps, x, None, seed=0), 0)
    assert few["edges"]["n"] == 9
    assert few["edges"]["low"] is None
    assert not {"edges_more", "tau_more"} & set(numbers(maps[5:6], x[5:6], maps[5:6], seed=0))


@pytest.mark.parametrize("n", [2, 3, 64])
def test_the_other_image_is_another(n: int) -> None:
    """Each is the other of one, and nobody his own; the seed decides."""
    other = _others(n, 3)
    assert sorted(other.tolist()) == list(range(n))
    assert (other != torch.arange(n)).all()
    assert torch.equal(other, _others(n, 3))
    assert n < 64 or not torch.equal(other, _others(n, 4))


def test_noise_has_its_gini_index() -> None:
    """Of one channel √2 - 1; magnitudes added over three are more alike."""
    assert noise_gini(1) == pytest.approx(2**0.5 - 1, abs=0.005)
    assert noise_gini(3) == pytest.approx(0.242, abs=0.005)


def test_pairs_are_corrected_together_and_leave_out_what_changes_nothing() -> None:
    """Of n comparisons the smallest p counts n times; p = 2 is none of them. Curves that coincide do not differ,
    however far apart the models were before."""
    fifth, half, all_ = np.arange(100) % 5 == 0, np.arange(100) < 50, np.ones(100, bool)
    clean: dict[str, Rows] = {"a": {"correct": all_}, "b": {"correct": half}}
    levels: list[tuple[tuple[str, str], np.ndarray, np.ndarray]] = [
        (("saturation", "2"), all_, half),
        (("saturation", "4"), ~fifth, half & ~fifth),  # of what was right four fifths, in both
        (("style", ""), fifth, half & (np.arange(100) % 10 < 8)),  # a fifth, and four fifths
    ]
    rows = {name: {place: {"correct": pair[which]} for place, *pair in levels} for which, name in enumerate(("a", "b"))}
    gini = np.linspace(0, 1, 100)
    values = {("a", "clean"): {"gini": gini + 0.1}, ("b", "clean"): {"gini": gini + np.where(fifth, 0.02, 0.0)}}
    answers = {"a": (half, ~half), "b": (fifth, half & ~fifth)}
    found = _pairs(["a", "b"], clean, rows, values, answers)
    places = [(pair["kind"], pair["of"], pair["level"]) for pair in found]
    assert places == [
        ("accuracy", "saturation", "4"),
        ("accuracy", "style", ""),
        ("maps", "gini", "clean"),
        ("shape bias", "", ""),
    ]
    assert found[0]["difference"] == pytest.approx(0)
    assert found[0]["p_holm"] == pytest.approx(1)
    assert found[1]["difference"] == pytest.approx(0.2 - 0.8)
    assert found[1]["p_holm"] == pytest.approx(3 * found[1]["p"])
    assert found[2]["difference"] == pytest.approx(0.096)
    assert found[2]["p"] == paired_means(gini + 0.1, gini + np.where(fifth, 0.02, 0.0))["p"]
    decided: list[Rows] = [{"correct": all_}, {"correct": half | fifth}]
    expected = paired_on_correct(decided[0], {"correct": half}, decided[1], {"correct": fifth})
    assert {key: found[3][key] for key in expected} == expected
    assert found[3]["difference"] == pytest.approx(0.5 - 20 / 60)


def test_maps_are_of_all_classes_of_a_set_in_class_order() -> None:
    """Of a set in the order of its classes a few images are of many of them, and those shown are of distinct ones."""
    digits = load("digits", "test")
    ordered = digits.select(digits.labels.argsort(stable=True).tolist())
    x, y = ordered.batch(range(200))
    assert set(y[:24].tolist()) == {0}
    layer = nn.Linear(x[0].numel(), 10, bias=False)
    knows = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.copy_((torch.linalg.pinv(x.flatten(1)) @ nn.functional.one_hot(y, 10).float()).T)
    looked = look({"a": knows}, ordered, torch.arange(200), Looks(map_images=24, shown=4), seed=0)
    assert all(entry["gini"]["n"] == 24 for entry in looked.figures["maps"])
    assert len({entry["label"] for entry in looked.figures["shown"]}) == 4


def test_maps_are_drawn_of_the_images_that_are_measured(digits: ImageSet) -> None:
    """The shuffled images whose maps are shown are those of the curves: the same seed, the same rows."""
    rows = torch.tensor([33, 7, 12])
    model = {"a": small(generator=torch.Generator().manual_seed(0)).eval()}
    looked = look(model, digits, rows, Looks(map_images=3, shown=3), seed=4)
    x, y = digits.batch(rows)
    expected = patch_shuffle(x, k=4, generator=PerImage(4, rows.tolist()))
    answers = model["a"](expected).argmax(1).tolist()
    order = [
        int((x - torch.from_numpy(looked.pictures[f"looks/clean/{i}"])).abs().amax((1, 2, 3)).argmin())
        for i in range(3)
    ]
    assert sorted(order) == [0, 1, 2]
    for i, place in enumerate(order):
        np.testing.assert_array_equal(looked.pictures[f"looks/shuffled/{i}"], expected[place].numpy())
        np.testing.assert_array_equal(looked.pictures[f"looks/clean/{i}"], x[place].numpy())
        assert looked.figures["shown"][i]["label"] == digits.class_names[int(y[place])]
        assert looked.figures["shown"][i]["answers"]["shuffled"]["a"] == digits.class_names[answers[place]]
    drawn = smooth_maps(model["a"], expected, y, rows=rows.tolist(), seed=4, kind="shuffled")
    np.testing.assert_allclose(looked.pictures["looks/shuffled/0/a"], drawn[order[0]].numpy(), rtol=1e-3, atol=1e-6)


def test_the_rows_decide_what_is_random_whatever_the_chunk() -> None:
    """130 images in another order, so in two chunks: each is shuffled as it is alone."""
    model, digits = small(generator=torch.Generator().manual_seed(0)).eval(), load("digits", "test")
    rows = torch.arange(150, 20, -1)
    change = partial(patch_shuffle, k=4)
    found = evaluate(model, digits, rows, Measurement(transform=change), seed=9)
    x, _ = digits.batch(rows)
    alone = torch.cat([change(x[i : i + 1], generator=PerImage(9, [int(row)])) for i, row in enumerate(rows)])
    with torch.no_grad():
        np.testing.assert_array_equal(found["prediction"], model(alone).argmax(1).numpy())


def test_stimuli_fit_where_the_classes_are_imagenets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's classes, square images in colour, and the stimuli there: then there is a bias, at the images' size."""
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path))
    cues, names = stimuli([0, 1], [2, 3]), [f"n{number:08d} thing" for number in range(1000)]
    sizes: list[int] = []

    def stand_in(_: str, *, size: int) -> CueConflict:
        sizes.append(size)
        return cues

    monkeypatch.setattr("pellucid.shape_bias.cue_conflict", stand_in)
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)

    def images(names: list[str]) -> ImageSet:
        return resident(pixels, torch.tensor([0, 1]), name="x", split="test", class_names=names, source="here")

    assert "are not here" in str(fitting_stimuli(images(names)))
    (tmp_path / "cue-conflict").mkdir()
    assert fitting_stimuli(images(names)) is cues
    assert fitting_stimuli(images([f"c{number}" for number in range(1000)])) == ""
    assert fitting_stimuli(images(names[:10])) == ""
    asked, ticks = Looks(map_images=2, shown=1), []
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1000))
    found = look({"a": model}, images(names), torch.arange(2), asked, tick=ticks.append).figures
    assert found["shape_bias"][0]["n"] == 2
    assert sum(ticks) == work(images(names), 2, asked)
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert fitting_stimuli(images(names)) is cues
    assert sizes[0] == 4
    assert sizes[-1] == 8
    pixels = torch.zeros(2, 3, 8, 6, dtype=torch.uint8)
    assert fitting_stimuli(images(names)) == "the stimuli are square and in colour, and these images 3 x 8 x 6"
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 1000))
    found = look({"a": model}, images(names), torch.arange(2), asked).figures
    assert "3 x 8 x 6" in found["no_shape_bias"]
    assert "shape_bias" not in found


class Answers(nn.Module):
    """Gives fixed logits, whatever it is shown; the images are numbered by their first pixel."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


def stimuli(shapes: list[int], textures: list[int]) -> CueConflict:
    names = tuple(SIXTEEN)
    pixels = torch.arange(len(shapes), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    facts = {"name": "cues", "split": "test", "class_names": names, "source": "here"}
    return CueConflict(resident(pixels, torch.tensor(shapes), **facts), torch.tensor(textures), names)


def test_shape_bias_by_hand() -> None:
    """Two for the shape, one for the texture, one for neither; the image without a conflict does not count."""
    cues = stimuli([0, 1, 2, 3, 4], [5, 6, 7, 8, 4])
    logits = torch.full((5, 16), -5.0)
    for row, answer in enumerate((0, 1, 7, 9, 4)):
        logits[row, answer] = 5.0
    found = shape_bias(Answers(logits), cues)
    assert (found["shape"], found["texture"], found["n"]) == (2, 1, 4)
    assert found["shape_bias"] == pytest.approx(2 / 3)
    assert found["low"] < 2 / 3 < found["high"]
    with pytest.raises(PellucidError, match="16 classes, and the model answers in 10"):
        shape_bias(Answers(torch.zeros(5, 10)), cues)


def test_imagenets_classes_vote_by_their_mean_probability() -> None:
    """Sixteen classes are made of more or fewer of the thousand: one sure class of a few beats the sum of many weak."""
    names = list(SIXTEEN)
    knife, dog = names.index("knife"), names.index("dog")
    probabilities = torch.full((1, 1000), 1e-9)
    probabilities[0, list(SIXTEEN["dog"])] = 0.6 / len(SIXTEEN["dog"])
    probabilities[0, list(SIXTEEN["knife"])] = 0.1
    found = shape_bias(Answers(probabilities.log()), stimuli([knife], [dog]))
    assert (found["shape"], found["texture"]) == (1, 0)


def test_a_style_that_is_not_there_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was measured yet."""
    save_model(small(generator=torch.Generator().manual_seed(0)), tmp_path / "net.safetensors", architecture="small")
    command = ["audit", "--model", str(tmp_path / "net.safetensors"), "--data", "digits", "--images", "first:12"]
    assert run([*command, "--style", "fast_style(weights='nowhere')", "--out", str(tmp_path / "out")]) == 2
    assert "no file 'nowhere'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_transform_that_is_no_style_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A built-in of another kind, and a file of weights alone; one of the user's own goes."""
    save_model(small(generator=torch.Generator().manual_seed(0)), tmp_path / "net.safetensors", architecture="small")
    command = ["audit", "--model", str(tmp_path / "net.safetensors"), "--data", "digits", "--images", "first:12"]
    command += ["--eps", "0.1", "--attack", "fgsm", "--worst", "none", "--json", "--out", str(tmp_path / "out")]
    assert run([*command, "--style", "saturate(p=4)"]) == 2
    assert "saturate(p=4) is no style: fast_style or stylize" in capsys.readouterr().err
    assert run([*command, "--style", str(tmp_path / "net.safetensors")]) == 2
    assert "fast_style(weights=" in capsys.readouterr().err
    own = tmp_path / "own.py"
    own.write_text("def dark(x):\n    return x / 2\n")
    (tmp_path / "out/standard").mkdir(parents=True)  # as the demo has its networks beside its report
    assert run([*command, "--style", f"{own}:dark"]) == 0
    assert run([*command, "--style", f"{own}:dark"]) == 0
    assert run([*command, "--style", f"{own}:dark", "--seed", "1"]) == 2
    assert "holds the results of another call (seed was 0 and is 1)" in capsys.readouterr().err


def test_every_audit_asks_what_its_models_look_at(tmp_path: Path) -> None:
    """In the JSON and on the page, with maps; --no-looks leaves it out."""
    save_model(small(generator=torch.Generator().manual_seed(0)), tmp_path / "net.safetensors", architecture="small")
    command = ["audit", "--model", str(tmp_path / "net.safetensors"), "--data", "digits", "--images", "first:12"]
    command += ["--eps", "0.1", "--attack", "fgsm", "--worst", "none", "--json"]
    assert run([*command, "--out", str(tmp_path / "with")]) == 0
    found = json.loads((tmp_path / "with/audit.json").read_text())["looks"]
    assert {entry["transform"] for entry in found["curves"]} >= {"saturation", "patch shuffling", "low frequencies"}
    page = (tmp_path / "with/report.html").read_text()
    assert "What does it look at?" in page
    assert "Gini index, clean images" in page
    rows = read_rows(tmp_path / "with/rows.parquet")
    right = rows["correct"].astype(bool)
    before = right[(rows["measurement"] == "clean")]
    for curve in found["curves"]:
        after = right[rows["transform"] == curve["of"]]
        figures = curve["models"][0]
        assert (figures["count"], figures["n_correct"]) == (after.sum(), before.sum())
        assert figures["accuracy_on_correct"] == pytest.approx(
            (before & after).sum() / max(before.sum(), 1), nan_ok=True
        )
    assert run([*command, "--no-looks", "--out", str(tmp_path / "without")]) == 0
    assert "looks" not in json.loads((tmp_path / "without/audit.json").read_text())
    assert "What does it look at?" not in (tmp_path / "without/report.html").read_text()
