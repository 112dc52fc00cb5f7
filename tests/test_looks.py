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
from pellucid.interpreters.gradients import smoothgrad
from pellucid.looks import (
    _pairs,
    changes,
    fitting_stimuli,
    levels,
    look,
    map_figures,
    noise_gini,
    shape_bias,
    smooth_maps,
    work,
)
from pellucid.metrics import edges, gini, share_within
from pellucid.models import save_model
from pellucid.protocol import Looks
from pellucid.results import Rows
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
    found, pictures = look(models, digits, rows, asked, seed=5, cells=tmp_path, tick=ticks.append)
    assert sum(ticks) == 2 * work(digits.shape, 40, asked)
    x, y = digits.batch(rows)
    entry = next(e for e in found["curves"] if e["transform"] == "patch shuffling" and e["level"] == "4")
    shuffled = patch_shuffle(x, k=4, generator=PerImage(5, range(40)))
    right = {}
    for mine in entry["models"]:
        with torch.no_grad():
            before = models[mine["name"]](x).argmax(1) == y
            right[mine["name"]] = models[mine["name"]](shuffled).argmax(1) == y
        assert mine["count"] == int(right[mine["name"]].sum())
        assert mine["n_correct"] == int(before.sum())
    pair = next(p for p in found["pairs"] if p["transform"] == "patch shuffling" and p["level"] == "4")
    assert pair["difference"] == pytest.approx(float((right["a"].double() - right["b"].double()).mean()))
    neutral = next(e for e in found["curves"] if e["transform"] == "saturation" and e["level"] == "2")
    assert all(
        mine["accuracy_on_correct"] == 1 or math.isnan(mine["accuracy_on_correct"]) for mine in neutral["models"]
    )
    again, _ = look(models, digits, rows, asked, seed=5, cells=tmp_path)
    assert json.dumps(again) == json.dumps(found)
    assert set(pictures) == {
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
    """Of log p of the true class, magnitudes added over channels, the noise the same for every model."""
    model = small(generator=torch.Generator().manual_seed(0)).eval()
    x, y = digits.batch(range(3))
    found = smooth_maps(model, x, y, seed=2)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        expected = (
            smoothgrad(model, x, y[:, None], samples=25, sigma=0.1, of="log_probability", generator=generator)[:, 0]
            .abs()
            .sum(1)
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    figures = map_figures(found, x, found, 0)
    assert figures["tau"]["value"] == pytest.approx(1)
    assert figures["edges"]["value"] == pytest.approx(float(share_within(found, edges(x)).mean()))


def test_the_numbers_of_maps_by_hand(generator: torch.Generator) -> None:
    """Maps that are their images' edges lie on those, and not on the next image's; no tau without maps before, -1 to
    reversed ones; zeros count nowhere; few give no interval, and one has no control."""
    x = torch.zeros(12, 1, 10, 10)
    for i in range(12):
        x[i, 0, :, 3 if i % 2 else 7 :] = 1  # the step's two columns: 2 and 3, or 6 and 7
    maps = edges(x).float()
    found = map_figures(maps, x, None, 0)
    assert found["edges"]["value"] == 1
    assert found["edges_more"]["value"] == 1
    assert found["edges"]["n"] == 12
    assert found["gini"]["value"] == pytest.approx(0.8)
    assert "tau" not in found
    noise = torch.empty(12, 10, 10).uniform_(generator=generator)
    flat = map_figures(noise, x, 1 - noise, 0)
    assert flat["tau"]["value"] == pytest.approx(-1)
    assert abs(flat["edges_more"]["value"]) < 0.02
    assert flat["tau"]["low"] is not None
    maps[:3] = 0
    assert map_figures(maps, x, None, 0)["edges"]["n"] == 9
    assert map_figures(maps, x, None, 0)["edges"]["low"] is None
    assert "edges_more" not in map_figures(maps[5:6], x[5:6], None, 0)


def test_noise_has_its_gini_index() -> None:
    """Of one channel √2 - 1; magnitudes added over three are more alike."""
    assert noise_gini(1) == pytest.approx(2**0.5 - 1, abs=0.005)
    assert noise_gini(3) == pytest.approx(0.242, abs=0.005)


def test_pairs_are_corrected_together_and_leave_out_what_changes_nothing() -> None:
    """Of n comparisons the smallest p counts n times; p = 2 is none of them."""
    right, wrong, half = np.ones(20, bool), np.zeros(20, bool), np.arange(20) < 10
    rows: dict[tuple[str, str, str], Rows] = {}
    settings = [("saturation", "2", wrong), ("saturation", "4", wrong), ("style", "a", half), ("style", "b", right)]
    for family, level, mine in settings:
        rows["a", family, level], rows["b", family, level] = {"correct": right}, {"correct": mine}
    found = _pairs(["a", "b"], rows)
    assert [pair["level"] for pair in found] == ["4", "a", "b"]
    assert found[0]["p_holm"] == pytest.approx(3 * found[0]["p"])
    assert found[1]["p_holm"] == pytest.approx(2 * found[1]["p"])
    assert found[2]["p_holm"] == 1


def test_maps_are_drawn_of_the_images_that_are_measured(digits: ImageSet) -> None:
    """The shuffled images whose maps are shown are those of the curves: the same seed, the same rows."""
    rows = torch.tensor([33, 7, 12])
    model = {"a": small(generator=torch.Generator().manual_seed(0)).eval()}
    found, pictures = look(model, digits, rows, Looks(map_images=3, shown=3), seed=4)
    expected = patch_shuffle(digits.batch(rows)[0], k=4, generator=PerImage(4, rows.tolist()))
    for i in range(3):
        np.testing.assert_array_equal(pictures[f"looks/shuffled/{i}"], expected[i].numpy())
        np.testing.assert_array_equal(pictures[f"looks/clean/{i}"], digits.batch(rows)[0][i].numpy())
    answers = model["a"](expected).argmax(1).tolist()
    for i, entry in enumerate(found["shown"]):
        assert entry["label"] == digits.class_names[int(digits.labels[rows[i]])]
        assert entry["answers"]["shuffled"]["a"] == digits.class_names[answers[i]]


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
    """A thousand WordNet ids in order, images of the stimuli's shape, and the stimuli there: then there is a bias."""
    monkeypatch.setenv("PELLUCID_DATA", str(tmp_path))
    cues, names = stimuli([0, 1], [2, 3]), [f"n{number:08d} thing" for number in range(1000)]
    monkeypatch.setattr("pellucid.looks.cue_conflict", lambda _: cues)
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)

    def images(names: list[str]) -> ImageSet:
        return resident(pixels, torch.tensor([0, 1]), name="x", split="test", class_names=names, source="here")

    assert "are not here" in str(fitting_stimuli(images(names)))
    (tmp_path / "cue-conflict").mkdir()
    assert fitting_stimuli(images(names)) is cues
    assert fitting_stimuli(images([f"c{number}" for number in range(1000)])) == ""
    assert fitting_stimuli(images(names[::-1])) == ""
    assert fitting_stimuli(images(names[:10])) == ""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1000))
    found, _ = look({"a": model}, images(names), torch.arange(2), Looks(map_images=2, shown=1))
    assert found["shape_bias"][0]["n"] == 2
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert fitting_stimuli(images(names)) == "the stimuli are 3 x 4 x 4, and these images 3 x 8 x 8"
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000))
    found, _ = look({"a": model}, images(names), torch.arange(2), Looks(map_images=2, shown=1))
    assert "3 x 8 x 8" in found["no_shape_bias"]
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
    assert run([*command, "--no-looks", "--out", str(tmp_path / "without")]) == 0
    assert "looks" not in json.loads((tmp_path / "without/audit.json").read_text())
    assert "What does it look at?" not in (tmp_path / "without/report.html").read_text()
