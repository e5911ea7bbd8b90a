"""Attacks on the reader of PyTorch files: nothing runs, nothing expands, nothing damaged is accepted."""

import argparse
import collections
import contextlib
import datetime
import io
import os
import pathlib
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from llmt.checkpoints.pickled import open_pickled
from llmt.errors import ModelFileError


def tensors_of(path: Path) -> dict[str, bytes]:
    with open_pickled(path) as file:
        for tensor in file.tensors:
            file.check(tensor.storage)
        return {tensor.name: b"".join(bytes(piece) for piece in file.read(tensor)) for tensor in file.tensors}


def archive(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options: object) -> Path:
    """A zip archive as `torch.save` writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", options.get("method", zipfile.ZIP_STORED)) as out:  # type: ignore[arg-type]
        out.writestr("x/data.pkl", program)
        out.writestr("x/byteorder", "little")
        for key, data in (storages or {}).items():
            out.writestr(f"x/data/{key}", data)
    return path


class Calls:
    """An object that pickles as a call."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def touch(canary: Path) -> dict[str, object]:
    command = f"touch {canary}"
    script = f"open({str(canary)!r}, 'w')"
    import runpy
    import subprocess

    return {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, script),
        "exec": Calls(exec, script),
        "subprocess": Calls(subprocess.check_output, ["touch", str(canary)]),
        "open": Calls(open, str(canary), "w"),
        "runpy": Calls(runpy.run_path, str(canary)),
        "getattr": Calls(getattr, "", "format"),
        "numpy": Calls(np.savetxt, str(canary), [1]),
        "torch.save": Calls(torch.save, 1, str(canary)),
        "torch.load": Calls(torch.load, str(canary)),
        "pathlib": Calls(pathlib.Path.touch, canary),
        "state": Calls(collections.OrderedDict, state={"__class__": Calls(os.system, command)}),
        "in a tuple key": {(1, Calls(os.system, command)): 1},
        "namespace": argparse.Namespace(x=Calls(os.system, command)),
        "harmless called": Calls(collections.Counter, Calls(os.system, command)),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("attack", list(touch(Path("x"))))
def test_no_pickle_runs(tmp_path: Path, attack: str, protocol: int) -> None:
    """A payload beside the weights, in any protocol, is refused by name; the canary never appears."""
    canary = tmp_path / "canary"
    program = pickle.dumps({"model": {}, "x": touch(canary)[attack]}, protocol)
    path = archive(tmp_path / "evil.pt", program)
    with pytest.raises(ModelFileError, match=r"evil\.pt: (holds a reference to|uses the pickle instruction)") as caught:
        tensors_of(path)
    assert "nothing in it was run" in caught.value.message
    assert "torch.save(model.state_dict()" in caught.value.hint
    assert not canary.exists()
    if attack == "open":  # proof that the payload is one: the real machine runs it
        pickle.loads(program)["x"].close()
        assert canary.exists()


HAND_WRITTEN = {
    "inst": b"(S'touch x'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch x'\no.",
    "old global": b"cposix\nsystem\n(S'touch x'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "dotted": b"\x80\x04\x8c\x05torch\x8c\x0fserialization.os\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "persistent text": b"Pabc\n.",
    "buffer": b"\x80\x05\x97.",
    "call a storage": b"ctorch\nFloatStorage\n(tR.",
    "call a dtype": b"ctorch\nfloat32\n(tR.",
    "call a number": b"K\x01(tR.",
    "state on a global": b"ccollections\nOrderedDict\n}S'x'\nK\x01sb(tR.",
    "no stop": b"\x80\x02}",
    "empty": b"",
    "empty stack": b".",
    "pop nothing": b"0.",
    "mark missing": b"\x80\x02u.",
    "append to a number": b"K\x01K\x02a.",
    "odd items": b"}(K\x01u.",
    "huge string": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "huge int": b"L" + b"9" * 10_000 + b"L\n.",
    "negative long": b"\x8b" + struct.pack("<i", -1) + b".",
    "bad memo": b"h\x05.",
    "memo of nothing": b"q\x00.",
    "bad utf-8": b"X\x01\x00\x00\x00\xff.",
    "deep tuple key": b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "deep list": b"(" * 1 + b"]" * 100_000 + b"a" * 99_999 + b"1].",
    "itself": b"]q\x00h\x00a.",
    "number": b"K\x01.",
    "unknown opcode": b"\xff.",
}


@pytest.mark.parametrize("attack", HAND_WRITTEN)
def test_hand_written_programs_are_refused(tmp_path: Path, attack: str) -> None:
    """Instructions that torch.save never writes, and broken programs, end in exit code 4 and in no other way."""
    path = archive(tmp_path / "evil.pt", HAND_WRITTEN[attack])
    with pytest.raises(ModelFileError, match=r"evil\.pt") as caught:
        tensors_of(path)
    assert caught.value.exit_code == 4


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_random_damage_to_the_program_never_escapes(tmp_path: Path) -> None:
    """Hundreds of random changes to a real pickle either read or end in ModelFileError, nothing else."""
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.ones(2), "b": torch.ones(3).half()}, "args": argparse.Namespace(x=1)}, buffer)
    program = zipfile.ZipFile(buffer).read("archive/data.pkl")
    source = random.Random(0)
    for _ in range(500):
        changed = bytearray(program)
        for _ in range(source.randint(1, 4)):
            changed[source.randrange(len(changed))] = source.randrange(256)
        path = archive(tmp_path / "fuzz.pt", bytes(changed), {"0": b"\0" * 8, "1": b"\0" * 6})
        with contextlib.suppress(ModelFileError):
            tensors_of(path)


def test_plain_training_state_beside_the_weights_is_ignored(tmp_path: Path) -> None:
    """Optimizer state, numbers, text, times, paths, namespaces, counters and numpy values do not stand in the way."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    extras = {
        "optimizer_state_dict": optimizer.state_dict(),
        "config": {
            "lr": 1e-3,
            "layers": [1, 2],
            "name": "x",
            "none": None,
            "set": {1, 2},
            "bytes": b"\xff",
            "complex": 1j,
        },
        "args": argparse.Namespace(lr=1, nested=argparse.Namespace(x=[1])),
        "time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "path": tmp_path,
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "deque": collections.deque([1, 2]),
        "numpy": {"scalar": np.float64(1.5), "array": np.arange(3), "state": np.random.RandomState(0).get_state()},
        "random": random.Random(0).getstate(),
        "rng": torch.get_rng_state(),
        "dtype": torch.bfloat16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "double": torch.ones(2, dtype=torch.complex128),
        "big": 2**100,
    }
    torch.save({"model_state_dict": model.state_dict(), **extras}, tmp_path / "c.pt")
    read = tensors_of(tmp_path / "c.pt")
    assert read == {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2),
        lambda: [torch.ones(2)],
        lambda: {},
        lambda: {"a": 1},
        lambda: {1: torch.ones(2)},
        lambda: {"a": {"b": torch.ones(2)}},
        lambda: {"a\x1b[2J": torch.ones(2)},
        lambda: {"a": torch.ones(2).to_sparse()},
        lambda: {"a": torch.empty(2, device="meta")},
        lambda: {"a": torch.ones(2, dtype=torch.complex128)},
        lambda: {"a": torch.ones(2, dtype=torch.complex64).conj()},
        lambda: {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
        lambda: {"a": torch.nested.nested_tensor([torch.ones(2)])},
        lambda: torch.nn.Linear(2, 2),
        lambda: {"a": np.float64(1)},
        lambda: {"a": torch.ones(1), "_orig_mod.a": torch.ones(1)},
        lambda: {"__metadata__": torch.ones(1)},
        lambda: {"module.": torch.ones(1)},
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_not_a_plain_state_dict_is_refused(tmp_path: Path, make) -> None:
    """Bare tensors, modules, odd keys, sparse, quantised, lazy and meta tensors are named in one line."""
    torch.save(make(), tmp_path / "x.pt")
    with pytest.raises(ModelFileError, match=r"x\.pt: ") as caught:
        tensors_of(tmp_path / "x.pt")
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("wrap", [
    lambda d: d, lambda d: {"model": d}, lambda d: {"state_dict": d}, lambda d: {"module": d, "step": 1},
    lambda d: {"model_state_dict": d, "model": 3}, lambda d: {"model": {"state_dict": d}},
])  # fmt: skip
@pytest.mark.parametrize("prefix", [
    "", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.",
    "_fsdp_wrapped_module._checkpoint_wrapped_module.",
])  # fmt: skip
def test_wrappers_are_taken_off(tmp_path: Path, wrap, prefix: str) -> None:
    """The state dict is found where training scripts put it, and has the names of the bare model."""
    torch.save(wrap({f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(1)}), tmp_path / "x.pt")
    assert list(tensors_of(tmp_path / "x.pt")) == ["a.weight", "b"]


@pytest.mark.parametrize("size", [10**6, 10**12, 10**18])
def test_an_expansion_bomb_is_refused_before_it_expands(tmp_path: Path, size: int) -> None:
    """A few stored bytes that claim to be a huge tensor are refused by arithmetic."""
    torch.save({"a": torch.ones(1).expand(size)}, tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 5000
    with pytest.raises(ModelFileError, match=r"would expand from 4 B"):
        tensors_of(tmp_path / "bomb.pt")


def test_many_views_of_one_storage_are_a_bomb_too(tmp_path: Path) -> None:
    """Overlapping windows cannot add up to more than four times what is stored; tied names count once."""
    base = torch.zeros(1000)
    torch.save({f"t{i}": base for i in range(50)}, tmp_path / "tied.pt")
    assert len(tensors_of(tmp_path / "tied.pt")) == 50
    torch.save({f"t{i}": base[i:] for i in range(50)}, tmp_path / "views.pt")
    with pytest.raises(ModelFileError, match="would expand"):
        tensors_of(tmp_path / "views.pt")


def tensor_program(
    storage: object = "0", count: object = 4, offset: object = 0, shape: object = (4,), strides: object = (1,)
) -> bytes:
    """A pickle of one tensor with any numbers in its description, written with the real pickler."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, storage, "cpu", count) if value is Pickler else None

    buffer = io.BytesIO()
    call = Calls(torch._utils._rebuild_tensor_v2, Pickler, offset, shape, strides, False, collections.OrderedDict())
    Pickler(buffer, 2).dump({"a": call})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "lie",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": True},
        {"offset": 1.0},
        {"shape": (5,)},
        {"shape": (-4,)},
        {"shape": (2**70,)},
        {"strides": (2,)},
        {"strides": (-1,)},
        {"strides": ()},
        {"shape": (1,) * 65, "strides": (1,) * 65},
        {"count": 5},
        {"count": 3},
        {"count": -1},
        {"storage": "1"},
        {"storage": "../data.pkl"},
        {"storage": 0},
        {"shape": 4},
        {"shape": [4]},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
    ],
)
def test_a_tensor_cannot_leave_its_storage(tmp_path: Path, lie: dict[str, object]) -> None:
    """Offsets, shapes, strides and sizes that do not fit the stored bytes are refused."""
    data = {"0": np.arange(4, dtype="<f4").tobytes()}
    assert tensors_of(archive(tmp_path / "good.pt", tensor_program(), data)) == {"a": data["0"]}
    with pytest.raises(ModelFileError, match=r"lie\.pt"):
        tensors_of(archive(tmp_path / "lie.pt", tensor_program(**lie), data))


def test_every_flip_in_a_storage_is_detected(tmp_path: Path) -> None:
    """Any flipped bit in the stored numbers is found by the CRC-32, whole tensors and slices alike."""
    base = torch.arange(64.0)
    torch.save({"whole": torch.arange(32.0), "slice": base[3:40], "view": base.reshape(8, 8).t()}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    with open_pickled(tmp_path / "x.pt") as file:
        ranges = {(tensor.storage.begin, tensor.storage.size) for tensor in file.tensors}
    for begin, size in ranges:
        for position in range(begin, begin + size, 5):
            changed = bytearray(data)
            changed[position] ^= 1 << (position % 8)
            (tmp_path / "x.pt").write_bytes(changed)
            with pytest.raises(ModelFileError, match="CRC-32"):
                tensors_of(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_refused(tmp_path: Path, zipped: bool) -> None:
    """A file that lost its end is never read as a smaller model."""
    torch.save({"a": torch.ones(10)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "x.pt").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "x.pt").write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            tensors_of(tmp_path / "x.pt")


def test_every_flip_anywhere_reads_equal_or_not_at_all(tmp_path: Path) -> None:
    """A flip in a header, name, size or directory of the archive never gives other numbers or names."""
    torch.save({"a": torch.arange(10), "b": torch.ones(2)}, tmp_path / "x.pt")
    expected = tensors_of(tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        (tmp_path / "x.pt").write_bytes(changed)
        with contextlib.suppress(ModelFileError):
            assert tensors_of(tmp_path / "x.pt") == expected, position


def old_file(path: Path, tensors: dict[str, torch.Tensor]) -> bytes:
    """The format before PyTorch 1.6."""
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_from_before_the_archive_are_read(tmp_path: Path) -> None:
    """Files of the format before PyTorch 1.6 give the bytes that torch reads: views, tied and empty ones too."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"a": base, "tied": base, "view": base[1:3], "turned": base.t(), "half": torch.ones(3).half()}
    tensors |= {"empty": torch.zeros(0, 2), "scalar": torch.tensor(7), "flags": torch.tensor([True, False])}
    old_file(tmp_path / "x.pt", tensors)
    assert tensors_of(tmp_path / "x.pt") == {
        name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_damage_of_an_old_file_never_escapes(tmp_path: Path) -> None:
    """Changed bytes before the numbers, lies about their length and appended bytes read equal or are refused."""
    data = old_file(tmp_path / "x.pt", {"a": torch.ones(10), "b": torch.zeros(4)})
    names = tensors_of(tmp_path / "x.pt").keys()
    for position in range(len(data) - 80):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        (tmp_path / "x.pt").write_bytes(changed)
        with contextlib.suppress(ModelFileError):
            assert len(tensors_of(tmp_path / "x.pt")) == len(names), position
    (tmp_path / "x.pt").write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="follows its storages"):
        tensors_of(tmp_path / "x.pt")
    at = data.index(b"\x88", data.index(b"little_endian"))  # the pickle of True
    (tmp_path / "x.pt").write_bytes(data[:at] + b"\x89" + data[at + 1 :])
    with pytest.raises(ModelFileError, match="big-endian"):
        tensors_of(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attack", ["os.system", "eval", "runpy"])
def test_no_pickle_of_an_old_file_runs(tmp_path: Path, attack: str) -> None:
    """A payload in any of the five pickles of an old file is refused by name."""
    canary = tmp_path / "canary"
    payload = pickle.dumps(touch(canary)[attack], 2)
    data = old_file(tmp_path / "x.pt", {"a": torch.ones(1)})
    ends = []
    stream = io.BytesIO(data)
    for _ in range(5):
        list(pickletools.genops(stream))
        ends.append(stream.tell())
    for begin, end in zip([0, *ends], ends, strict=False):
        (tmp_path / "x.pt").write_bytes(data[:begin] + payload + data[end:])
        with pytest.raises(ModelFileError):
            tensors_of(tmp_path / "x.pt")
    assert not canary.exists()


def test_archives_that_torch_never_writes_are_refused(tmp_path: Path) -> None:
    """Compressed members, doubled names, names that leave the archive, and two models in one are refused."""
    good = tensor_program()
    data = {"0": b"\0" * 16}
    with pytest.raises(ModelFileError, match="compressed"):
        tensors_of(archive(tmp_path / "a.pt", good, data, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelFileError, match="leaves the archive"):
        tensors_of(archive(tmp_path / "b.pt", good, {**data, "../../../0": b""}))
    path = archive(tmp_path / "c.pt", good, data)
    with zipfile.ZipFile(path, "a") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("x/data/0", b"\1" * 16)
    with pytest.raises(ModelFileError, match="twice"):
        tensors_of(path)
    path = archive(tmp_path / "d.pt", good, data)
    with zipfile.ZipFile(path, "a") as out:
        out.writestr("y/data.pkl", good)
    with pytest.raises(ModelFileError, match=r"not one of torch\.save"):
        tensors_of(path)
    path = archive(tmp_path / "e.pt", good, data)
    changed = path.read_bytes().replace(b"little", b"big   ").replace(b"\0", b"\0")
    path.write_bytes(changed)
    with pytest.raises(ModelFileError, match="CRC-32"):
        tensors_of(path)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Two entries of the directory cannot point at the same bytes."""
    path = archive(tmp_path / "x.pt", tensor_program(), {"0": b"\0" * 16, "1": b"\0" * 16})
    with zipfile.ZipFile(path) as opened:
        first, second = (opened.getinfo(f"x/data/{key}").header_offset for key in "01")
    data = path.read_bytes()
    head, tail = data[: data.index(b"PK\x01\x02")], data[data.index(b"PK\x01\x02") :]
    path.write_bytes(
        head + tail.replace(struct.pack("<I", second) + b"x/data/1", struct.pack("<I", first) + b"x/data/1")
    )
    with pytest.raises(ModelFileError, match="overlaps"):
        tensors_of(path)


def script(path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs pointer"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
        (lambda path: path.write_text("hello"), "not a file of torch.save"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "plain pickle"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"), "safetensors file already"),
        (script, "TorchScript"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "x"), "not one of torch.save|truncated"),
        (lambda path: path.mkdir(), "directory"),
    ],
)
def test_what_is_often_found_under_these_names_has_its_own_message(tmp_path: Path, make, reason: str) -> None:
    """A git-lfs pointer, a web page, an old format, TorchScript and the like are each told apart."""
    make(tmp_path / "x.bin")
    with pytest.raises(ModelFileError, match=reason):
        tensors_of(tmp_path / "x.bin")
