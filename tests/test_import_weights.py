"""Published pickles come in exactly, and hostile ones run nothing and leave nothing behind."""

import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pellucid.architectures.resnet import wresnet
from pellucid.architectures.small import pool, small
from pellucid.errors import PellucidError
from pellucid.import_weights import import_weights
from pellucid.models import load_model
from pellucid.network import Network

SEEDED = torch.Generator


def published(network: Network) -> list[tuple[Any, ...]]:
    """A network in the authors' layout: kernels HWIO, max-pools as entries without weights, the head a 1x1 kernel."""
    layers: list[tuple[Any, ...]] = []
    for module in network.modules():
        match module:
            case nn.Conv2d():
                assert module.bias is not None
                layers.append((module.weight.detach().permute(2, 3, 1, 0).numpy(), module.bias.detach().numpy()))
            case nn.MaxPool2d():
                layers.append((np.full((2, 2), np.nan, np.float32), np.float32(np.nan)))
            case nn.Linear():
                layers.append((module.weight.detach().t()[None, None].numpy(),))
    return layers


def layers_of_small() -> list[tuple[Any, ...]]:
    return published(small(generator=SEEDED().manual_seed(0)))


def write(folder: Path, value: object, *, name: str = "net.pkl", protocol: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


BUILDERS = {
    "small(channels=1, size=28, classes=10)": small,
    "small(channels=3, size=32, classes=10)": lambda **o: small(channels=3, size=32, **o),
    "small(channels=1, size=28, classes=2)": lambda **o: small(classes=2, **o),
    "pool(channels=1, size=28, classes=10)": pool,
    "wresnet(channels=3, classes=10)": wresnet,
    "wresnet(channels=3, classes=9)": lambda **o: wresnet(classes=9, **o),
}


@pytest.mark.parametrize("spec", BUILDERS)
@pytest.mark.parametrize("protocol", [3, 4])
def test_a_published_network_comes_back_bit_for_bit(spec: str, protocol: int, tmp_path: Path) -> None:
    network = BUILDERS[spec](generator=SEEDED().manual_seed(3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)  # biases too
    source = write(tmp_path, published(network), name="mine.pkl", protocol=protocol)
    (imported,) = import_weights(source, tmp_path / "nets")
    assert (imported.name, imported.architecture) == ("mine", spec)
    assert imported.parameters == sum(p.numel() for p in network.parameters())
    again, facts = load_model(imported.path)
    assert facts["architecture"] == spec
    assert facts["source"] == "mine.pkl"
    x = torch.rand(2, network.state_dict()["trunk.0.weight"].shape[1], 28, 28, generator=SEEDED().manual_seed(1))
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_floats_and_orders_become_fp32(kind: str, order: str, tmp_path: Path) -> None:
    layers = layers_of_small()
    other = [tuple(np.asarray(array, dtype=kind, order=order) for array in layer) for layer in layers]  # pyright: ignore[reportCallIssue, reportArgumentType]
    (imported,) = import_weights(write(tmp_path, other), tmp_path / "nets")
    weight = load_model(imported.path)[0].state_dict()["trunk.0.weight"]
    assert weight.dtype == torch.float32
    expected = layers[0][0].astype(kind).astype(np.float32)
    assert np.array_equal(weight.permute(2, 3, 1, 0).numpy(), expected)


def test_the_old_and_the_new_name_of_numpys_module(tmp_path: Path) -> None:
    content = pickle.dumps(layers_of_small(), 3)
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert (new in content) != (old in content)
    for number, spelling in enumerate((new, old)):
        source = write(tmp_path, content.replace(new, spelling).replace(old, spelling), name=f"{number}.pkl")
        assert import_weights(source, tmp_path / "nets")[0].parameters == 166_396


def test_a_folder_and_a_second_time(tmp_path: Path) -> None:
    source = tmp_path / "published"
    write(source, layers_of_small(), name="b.pkl")
    write(source, published(pool()), name="a.pkl")
    write(source, b"not mine", name="README.md")
    first = import_weights(source, tmp_path / "nets")
    assert [network.name for network in first] == ["a", "b"]
    assert import_weights(source, tmp_path / "nets") == first
    assert sorted(path.name for path in (tmp_path / "nets").iterdir()) == ["a.safetensors", "b.safetensors"]


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class PersistentPickler(pickle.Pickler):
    """Every array is a persistent object."""

    def persistent_id(self, obj: Any) -> str | None:
        return "weights" if isinstance(obj, np.ndarray) else None


def nested(canary: Path) -> bytes:
    return pickle.dumps(Calls(os.system, f"touch {canary}"))


def persistent(_: Path) -> bytes:
    file = io.BytesIO()
    PersistentPickler(file).dump(layers_of_small())
    return file.getvalue()


def scalar_of_objects(canary: Path) -> bytes:
    """`multiarray.scalar(dtype('O'), bytes)` unpickles its bytes in older NumPys."""
    inner = nested(canary)
    state = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?t"
    kind = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tR" + state + b"b"
    length = len(inner).to_bytes(4, "little")
    return b"\x80\x03cnumpy.core.multiarray\nscalar\n(" + kind + b"B" + length + inner + b"tR."


def array_with_changed_methods(canary: Path) -> bytes:
    """BUILD on a class would set its attributes, were it not for the stand-ins."""
    name = str(canary).encode()
    state = b"X" + (8).to_bytes(4, "little") + b"__init__" + b"X" + len(name).to_bytes(4, "little") + name
    return b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(N}" + state + b"stb."


def build_on_a_stand_in(_: Path) -> bytes:
    return b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(K\x01K\x02K\x03K\x04K\x05tb."


def many_lists(_: Path) -> bytes:
    return b"\x80\x03" + b"]" * 5_000 + b"a" * 4_999 + b"."


def billion_memo(_: Path) -> bytes:
    return b"\x80\x03]r\xff\xff\xff\x7f."


def self_containing(_: Path) -> bytes:
    return b"\x80\x03]q\x00h\x00a."


def one_array_many_times(_: Path) -> bytes:
    """8 MB, named 4,000 times: 32 GB if each became an array of its own."""
    return pickle.dumps([(array,) for array in [np.zeros(2_000_000, np.float32)] for _ in range(4_000)], 4)


def far_too_long(_: Path) -> bytes:
    return b"\x80\x03](" + b"N" * 30_000 + b"e."


def array_of(kind: str) -> Callable[[Path], bytes]:
    return lambda _: pickle.dumps([(np.zeros(2, kind),)], 4)


def claims(shape: tuple[Any, ...]) -> Callable[[Path], bytes]:
    """An array of 16 bytes that says it has another shape."""

    def make(_: Path) -> bytes:
        reconstruct, arguments, state = np.zeros(4, np.float32).__reduce__()[:3]
        state = (state[0], shape, *state[2:])

        class Claim:
            def __reduce__(self) -> tuple[Any, ...]:
                return reconstruct, arguments, state

        return pickle.dumps([(Claim(),)], 4)

    return make


def gadget(module: str, name: str) -> Callable[[Path], bytes]:
    """Calls `module.name(canary)`, without importing it here."""

    def make(canary: Path) -> bytes:
        text = str(canary).encode()
        argument = b"X" + len(text).to_bytes(4, "little") + text
        return f"\x80\x03c{module}\n{name}\n(".encode("latin1") + argument + b"tR."

    return make


def legacy(canary: Path) -> bytes:
    return f"(S'touch {canary}'\nios\nsystem\n.".encode()


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (nested, r"posix\.system|nt\.system"),
    "os.system, protocol 0": (
        lambda canary: pickle.dumps(Calls(os.system, f"touch {canary}"), 0),
        r"system|instruction",
    ),
    "os.system, INST": (legacy, "refused"),
    "os.system, inside the list": (
        lambda canary: pickle.dumps([*layers_of_small(), Calls(os.system, f"touch {canary}")]),
        "system",
    ),
    "builtins.eval": (gadget("builtins", "eval"), r"builtins\.eval"),
    "builtins.open": (lambda canary: pickle.dumps(Calls(open, str(canary), "w")), r"io\.open"),
    "numpy.load": (gadget("numpy", "load"), r"numpy\.load"),
    "numpy.ndarray.tofile": (gadget("numpy", "ndarray.tofile"), r"ndarray\.tofile"),
    "numpy.memmap": (gadget("numpy", "memmap"), r"numpy\.memmap"),
    "numpy.testing": (gadget("numpy.testing._private.utils", "runstring"), "runstring"),
    "numpy.f2py": (gadget("numpy.f2py.crackfortran", "myeval"), "myeval"),
    "numpy.f2py.diagnose": (gadget("numpy.f2py.diagnose", "run_command"), "run_command"),
    "numpy._frombuffer": (lambda _: pickle.dumps(layers_of_small(), 5), "instruction|_frombuffer"),
    "torch": (gadget("torch", "load"), r"torch\.load"),
    "codecs": (lambda _: pickle.dumps(layers_of_small(), 2), r"_codecs\.encode"),
    "dunder": (gadget("numpy", "__builtins__"), "__builtins__"),
    "objects": (array_of("O"), "kind 'O8'"),
    "objects, holding a call": (
        lambda canary: pickle.dumps([(np.array([Calls(os.system, f"touch {canary}")], object),)]),
        "kind 'O8'|system",
    ),
    "records": (lambda _: pickle.dumps([(np.zeros(2, [("a", "f4"), ("b", "O")]),)]), "instruction EMPTY_DICT"),
    "texts": (array_of("U3"), "kind 'U3'"),
    "integers": (array_of("i4"), "kind 'i4'"),
    "scalar of objects": (scalar_of_objects, "kind 'O8'"),
    "persistent id": (persistent, "BINPERSID"),
    "persistent id, protocol 0": (lambda _: b"Pweights\n.", "PERSID"),
    "extension": (lambda _: b"\x80\x02\x82\x01.", "EXT1"),
    "class attributes": (array_with_changed_methods, "EMPTY_DICT"),
    "state of a class": (build_on_a_stand_in, "damaged"),
    "many lists": (many_lists, "not a list|something else"),
    "billion memo": (billion_memo, "more pickle instructions"),
    "one array many times": (one_array_many_times, "not a list of at most 64 layers"),
    "far too long": (far_too_long, "more pickle instructions"),
    "self-containing": (self_containing, "something else"),
    "huge bytes": (lambda _: b"\x80\x04\x8e" + (1 << 45).to_bytes(8, "little") + b"abc.", "damaged"),
    "huge shape": (claims((1 << 40, 1 << 40)), "do not fill"),
    "negative shape": (claims((-2, -2)), "do not fill"),
    "empty shape": (claims((0, 1 << 60)), "do not fill"),
    "shape of lists": (claims(([4],)), "do not fill"),
    "no shape": (claims(4), "damaged"),  # pyright: ignore[reportArgumentType]
    "empty file": (lambda _: b"", "damaged"),
    "no pickle": (lambda _: b"\x89PNG\r\n\x1a\n", "damaged|instruction"),
    "text": (lambda _: b"hello", "instruction|damaged"),
    "dictionary": (lambda _: pickle.dumps({"weight": 1}), "EMPTY_DICT"),
    "number": (lambda _: pickle.dumps(3), "holds a int"),
    "empty list": (lambda _: pickle.dumps([]), "not a list"),
    "numbers": (lambda _: pickle.dumps([(1, 2.0)]), "something else"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_run_nothing_and_write_nothing(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    canary, out, folder = tmp_path / "canary", tmp_path / "nets", tmp_path / "published"
    write(folder, layers_of_small(), name="a.pkl")
    hostile = write(folder, make(canary), name="z.pkl")
    for source in (hostile, folder):
        with pytest.raises(PellucidError, match=message) as caught:
            import_weights(source, out)
        assert "z.pkl" in str(caught.value)
    assert not canary.exists()
    assert not out.exists()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps(layers_of_small(), 3)
    cuts = [position for _, _, position in pickletools.genops(content) if position is not None][1:]
    for cut in [*cuts, len(content) // 2, len(content) - 1]:
        with pytest.raises(PellucidError, match="damaged"):
            import_weights(write(tmp_path, content[:cut]), tmp_path / "nets")
    assert not (tmp_path / "nets").exists()


def test_a_changed_byte_never_gets_past_as_another_exception(tmp_path: Path) -> None:
    """Any file either imports or raises the one exception of bad input."""
    content = pickle.dumps([(np.ones((2, 3), np.float32), np.float32(1))], 3)
    random = np.random.default_rng(0)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] = random.integers(256)
        with pytest.raises(PellucidError):  # the shapes are nobody's
            import_weights(write(tmp_path, bytes(changed)), tmp_path / "nets")


def test_a_file_larger_than_any_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.pkl"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(PellucidError, match="larger than 16 MiB"):
        import_weights(path, tmp_path / "nets")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    layers = [tuple(array.astype(np.float64) for array in layer) for layer in layers_of_small()]
    layers[1][0][0, 0, 0, 0] = value
    with pytest.raises(PellucidError, match=r"trunk\.2\.weight are not all finite"):
        import_weights(write(tmp_path, layers), tmp_path / "nets")


def transposed(layers: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(array.transpose() for array in layer) for layer in layers]


@pytest.mark.parametrize(
    "change",
    [lambda layers: layers[:-1], lambda layers: [*layers, layers[-1]], transposed, lambda layers: layers[::-1]],
    ids=["one less", "one more", "OIHW", "backwards"],
)
def test_unknown_architectures_are_refused_with_their_shapes(
    change: Callable[[list[tuple[Any, ...]]], list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    with pytest.raises(PellucidError, match=r"no architecture known here.*layers have the shapes \d+"):
        import_weights(write(tmp_path, change(layers_of_small())), tmp_path / "nets")
    assert not (tmp_path / "nets").exists()


def test_absent_files_and_folders_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PellucidError, match="there is no file"):
        import_weights(tmp_path / "absent.pkl", tmp_path / "nets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PellucidError, match=r"holds no \.pkl file"):
        import_weights(tmp_path / "empty", tmp_path / "nets")
    occupied = write(tmp_path, layers_of_small())
    with pytest.raises(PellucidError, match="cannot write"):
        import_weights(occupied, occupied)
