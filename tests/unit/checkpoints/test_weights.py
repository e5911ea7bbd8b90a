"""Tensors to safetensors files and back, with the safetensors library as the oracle, and attacks on the reader."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import staged_directory
from llmt.checkpoints.header import read_header
from llmt.checkpoints.layout import Format
from llmt.checkpoints.manifest import verify_manifest
from llmt.checkpoints.saving import drop_tied, save_tensors, save_weights
from llmt.checkpoints.weights import load_tensors, load_weights
from llmt.errors import ModelFileError, StorageError

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def all_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in DTYPES:
        numbers = (
            torch.randint(0, 2, (3, 5), generator=generator)
            if dtype is torch.bool
            else torch.randint(0, 100, (3, 5), generator=generator)
        )
        tensors[f"m.{dtype}"] = numbers.to(dtype)
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 4)
    tensors["transposed"] = torch.arange(12.0).reshape(3, 4).t()
    tensors["slice"] = torch.arange(20)[3:17:2]
    tensors["expanded"] = torch.ones(1, 4).expand(3, 4)
    tensors["conjugate"] = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
    tensors["ünï"] = torch.ones(2, requires_grad=True)
    return tensors


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal names, dtypes, shapes and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name]
        .detach()
        .resolve_conj()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(right[name].detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8))
        for name in left
    )


@pytest.mark.parametrize("limit", [10**9, 100, 1])
def test_what_is_saved_is_loaded_by_us_and_by_safetensors(tmp_path: Path, limit: int) -> None:
    """Every dtype and layout comes back bit by bit, in one file or in many; the library reads the same."""
    tensors = all_kinds()
    files = save_weights(tmp_path, tensors, max_shard_size=limit, metadata={"step": "7"})
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    assert same(load_weights(tmp_path), tensors)
    by_library: dict[str, torch.Tensor] = {}
    for file in files:
        if file.endswith(".safetensors"):
            by_library |= load_file(tmp_path / file)
            assert read_header(tmp_path / file).metadata == {"format": "pt", "step": "7"}
    assert same(by_library, tensors)
    assert (layout.MODEL_INDEX in files) == (limit < 10**9)


def test_what_safetensors_writes_is_loaded(tmp_path: Path) -> None:
    """A file of the library gives the same tensors, and its header the same names, dtypes and shapes."""
    tensors = {name: tensor.detach().resolve_conj().contiguous() for name, tensor in all_kinds().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert same(load_tensors(tmp_path / "x.safetensors"), tensors)
    header = read_header(tmp_path / "x.safetensors")
    assert {name: info.shape for name, info in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert header.tensors["m.torch.bfloat16"].dtype == "BF16"


def test_loaded_tensors_do_not_see_the_file_change(tmp_path: Path) -> None:
    """A file that is truncated after it was loaded changes nothing and kills nobody."""
    save_weights(tmp_path, {"a": torch.ones(5000)})
    loaded = load_weights(tmp_path)
    os.truncate(tmp_path / layout.MODEL_FILE, 100)
    assert loaded["a"].sum() == 5000


def test_weights_in_a_staged_directory_are_in_its_manifest(tmp_path: Path) -> None:
    """Shards, index and an optimizer file are all listed with their hashes."""
    with staged_directory(tmp_path / "d", extra={}) as staged:
        files = save_weights(staged, all_kinds(), max_shard_size=200)
        save_tensors(staged, layout.OPTIMIZER, {"a.exp_avg": torch.ones(3)})
    assert sorted(verify_manifest(tmp_path / "d").files) == sorted([*files, layout.OPTIMIZER])


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """The system refuses larger files meanwhile."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("save_format", ["safetensors", "pytorch"])
@pytest.mark.parametrize("size", [0, 10, 2_000, 100_000])
def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path, save_format: Format, size: int) -> None:
    """Whatever the format and the place where the disk refuses: torch.save has an error of its own for it."""
    tensors = {name: torch.ones(20_000) for name in "ab"}
    with small_files(size), pytest.raises(StorageError, match="larger than") as caught:
        save_weights(tmp_path, tensors, save_format=save_format)
    assert caught.value.exit_code == 6
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_tied_tensors_are_dropped_once() -> None:
    """Of two names of the same memory the first stays; equal numbers in other memory are not tied."""
    shared = torch.ones(2, 3)
    tensors = {"embed": shared, "other": torch.ones(2, 3), "head": shared, "e1": torch.zeros(0), "e2": torch.zeros(0)}
    assert list(drop_tied(tensors)) == ["embed", "other", "e1", "e2"]
    assert list(drop_tied({"a": shared, "view": shared.t()})) == ["a", "view"]


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex128)])
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    """Sparse tensors and complex128 are named, not bent."""
    with pytest.raises(ValueError, match="weird: safetensors cannot hold"):
        save_weights(tmp_path, {"weird": tensor})


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
ATTACKS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": struct.pack("<Q", 0),
    "longer than file": raw({}, length=10**6),
    "2^64 - 1": raw({}, length=2**64 - 1),
    "bad utf-8": raw(b'{"\xff": 1}'),
    "not json": raw(b"{nope"),
    "list": raw([]),
    "deep": raw(b'{"a":' * 50_000),
    "duplicate tensor": raw(b'{"a":' + ENTRY + b',"a":' + ENTRY.replace(b"F32", b"I32") + b"}", b"1234"),
    "duplicate field": raw(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "unknown dtype": raw(one("F31"), b"1234"),
    "unknown field": raw(one(extra=1), b"1234"),
    "entry is text": raw({"a": "x"}),
    "negative shape": raw(one(shape=[-1]), b"1234"),
    "shape of floats": raw(one(shape=[1.0]), b"1234"),
    "shape of bools": raw(one(shape=[True]), b"1234"),
    "huge shape": raw(one(shape=[2**66, 0, 2**66], offsets=[0, 4]), b"1234"),
    "wrapping shape": raw(one(shape=[2**32, 2**32], offsets=[0, 0])),
    "reversed": raw(one(offsets=[4, 0]), b"1234"),
    "negative offset": raw(one(offsets=[-4, 0]), b"1234"),
    "beyond the file": raw(one(offsets=[0, 4]), b"12"),
    "hole": raw({**one(offsets=[4, 8])}, b"12345678"),
    "trailing": raw(one(), b"12345678"),
    "overlap": raw({**one(), "b": one()["a"]}, b"1234"),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "metadata list": raw({"__metadata__": []}),
    "nan": raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"),
    "digits": raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 6000 + b'],"data_offsets":[0,4]}}', b"1234"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, attack: str) -> None:
    """Every malformed header ends in exit code 4 with the file's name, before any tensor is made."""
    path = tmp_path / "evil.safetensors"
    path.write_bytes(ATTACKS[attack])
    for read in (load_tensors, read_header):
        with pytest.raises(ModelFileError, match=r"evil\.safetensors") as caught:
            read(path)
        assert caught.value.exit_code == 4
        assert caught.value.hint


def test_large_headers_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    """More than 16 MiB of header, or more than 100,000 tensors, are not read."""
    path = tmp_path / "big.safetensors"
    path.write_bytes(raw(b" " * (17 * 2**20)))
    with pytest.raises(ModelFileError, match="header of"):
        read_header(path)
    path.write_bytes(raw({f"{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}))
    with pytest.raises(ModelFileError, match="100001 tensors"):
        read_header(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """A file that lost any number of bytes at its end never loads and never ends the process."""
    save_weights(tmp_path, {"a": torch.ones(3, 2), "b": torch.ones(5, dtype=torch.int8)})
    data = (tmp_path / layout.MODEL_FILE).read_bytes()
    for length in range(len(data)):
        (tmp_path / layout.MODEL_FILE).write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            load_weights(tmp_path)


def sharded(directory: Path) -> dict[str, object]:
    save_weights(directory, {"a": torch.ones(4), "b": torch.zeros(4)}, max_shard_size=16)
    index: dict[str, object] = json.loads((directory / layout.MODEL_INDEX).read_text())
    return index


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/tmp/outside.safetensors",
        "C:\\outside.safetensors",
        "sub/../../outside.safetensors",
        "linked.safetensors",
        "missing.safetensors",
        "pipe.safetensors",
        "x.bin",
        "",
        3,
        None,
        ".safetensors/x",
        "a\0.safetensors",
    ],
)
def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path, shard: object) -> None:
    """Parents, absolute paths, drives, links, pipes and other file types in an index are refused."""
    model = tmp_path / "model"
    model.mkdir()
    index = sharded(model)
    save_tensors(tmp_path, "outside.safetensors", {"a": torch.ones(4)})
    (model / "linked.safetensors").symlink_to(tmp_path / "outside.safetensors")
    if hasattr(os, "mkfifo"):
        os.mkfifo(model / "pipe.safetensors")
    index["weight_map"]["a"] = shard  # type: ignore[index]
    (model / layout.MODEL_INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelFileError):
        load_weights(model)


def test_an_index_must_tell_the_truth(tmp_path: Path) -> None:
    """A tensor that is listed but absent, present but not listed, or in the other shard is named."""
    index = sharded(tmp_path)
    files = index["weight_map"]
    assert isinstance(files, dict)
    for lie in ({**files, "c": files["a"]}, {"a": files["a"]}, {"a": files["b"], "b": files["a"]}, [], {}):
        (tmp_path / layout.MODEL_INDEX).write_text(json.dumps({"weight_map": lie}))
        if lie == {"a": files["a"]}:
            # A shard that no entry names is no part of the model.
            assert list(load_weights(tmp_path)) == list(lie)
            continue
        with pytest.raises(ModelFileError, match=r"index\.json"):
            load_weights(tmp_path)


def test_the_links_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    """`snapshots/REVISION/model.safetensors` may lead into `blobs/` of its repository only."""
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_tensors(blobs, "0123", {"a": torch.ones(2)})
    (snapshot / layout.MODEL_FILE).symlink_to(Path("../../blobs/0123"))
    assert load_weights(snapshot)["a"].tolist() == [1, 1]
    save_tensors(tmp_path, "elsewhere", {"a": torch.ones(2)})
    (snapshot / layout.MODEL_FILE).unlink()
    (snapshot / layout.MODEL_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="link out of its directory"):
        load_weights(snapshot)


def test_a_directory_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    """Nothing at all, an empty file and a missing file are told apart."""
    with pytest.raises(ModelFileError, match="holds no weights; it holds nothing"):
        load_weights(tmp_path)
    with pytest.raises(ModelFileError, match=r"holds no model\.safetensors"):
        load_weights(tmp_path, "safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin: is empty"):
        load_weights(tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        load_weights(tmp_path / "missing.safetensors")
