"""Pickles that want to run something, to fill the memory or to pass for whole: through the command line and Python.

The files are made in `payloads.py`, which is also the process that reads them. Each payload makes a canary file or
removes a victim; that they can is proved with torch.load(weights_only=False) in processes that are thrown away.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import payloads
from payloads import Evil, Job, Place, one_line
from pickles import SETTINGS, problems, setting

from llmt.checkpoints.convert import convert_to_safetensors
from llmt.checkpoints.weights import load_weights
from llmt.errors import LlmtError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, plants links and pipes")

Environment = dict[str, str]


@pytest.fixture(scope="module")
def online(environment: Environment) -> Environment:
    """The environment of a stranger's shell, in which nothing forbids the network."""
    return payloads.without_forbidding(environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What payloads lean on and where they leave their trace."""
    return payloads.plant(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def evil(place: Place, tmp_path_factory: pytest.TempPathFactory) -> list[Evil]:
    """All malicious files."""
    return payloads.malicious(tmp_path_factory.mktemp("evil"), place)


def test_there_are_enough_malicious_files(evil: list[Evil]) -> None:
    """Two hundred and more, each under a name of its own, most of them alive."""
    assert len(evil) >= 200
    assert len({case.name for case in evil}) == len(evil)
    assert sum(case.live for case in evil) >= 150


def test_the_payloads_are_alive(evil: list[Evil], place: Place, online: Environment, tmp_path: Path) -> None:
    """A third of the files that are said to be alive: each runs its payload where torch.load is allowed to."""
    live = [case for case in evil if case.live][::3]
    jobs = [
        Job(
            case.name,
            "torch_load",
            [str(case.path / case.torch_file), str(place.root)],
            fork=True,
            root=str(place.root),
        )
        for case in live
    ]
    by_default = Job("default", "torch_load_default", jobs[0].arguments, fork=True, root=str(place.root))
    variables = online | {"PYTHONPATH": str(place.planted), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    results = payloads.run_jobs([*jobs, by_default], tmp_path / "alive", variables, preload=("torch",))
    failed = {name: result for name, result in results.items() if not result["happened"]}
    # A few of the names that payloads use are gone in other versions of Python and of the packages.
    gone = [name for name, result in failed.items() if result["code"] in ("AttributeError", "ModuleNotFoundError")]
    assert len(gone) < 10
    assert {name: failed[name]["message"] for name in failed if name not in gone} == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_malicious_file_runs_anything(
    evil: list[Evil], place: Place, online: Environment, name: str, tmp_path: Path
) -> None:
    """Each file is refused with exit code 4 in one line that names it; nothing ran, nothing was written or imported."""
    output = tmp_path / "out"
    jobs = [Job(case.name, "convert", [str(case.path), str(output)], root=str(place.root)) for case in evil]
    results = payloads.run_jobs(jobs, tmp_path / "scratch", online | setting(name, place))
    wrong = {case.name: found for case in evil if (found := problems(case, results[case.name]))}
    assert wrong == {}
    assert not output.exists()
    assert not os.path.lexists(place.canary)


def test_a_payload_where_nobody_looks_is_data(place: Place, online: Environment, tmp_path: Path) -> None:
    """An archive in a storage, a pickle behind the end and the like are read as numbers or refused, never run."""
    jobs = []
    for name, data in payloads.either(place).items():
        path = tmp_path / f"{len(jobs)}.pt"
        path.write_bytes(data)
        jobs.append(Job(name, "convert", [str(path), str(tmp_path / f"{len(jobs)}-out")], root=str(place.root)))
    variables = online | setting("planted modules", place)
    # numpy, which may be wanted for numbers, opens libraries when it is imported.
    results = payloads.run_jobs(jobs, tmp_path / "scratch", variables, preload=("numpy",))
    assert {name: result["code"] for name, result in results.items() if result["code"] not in (0, 4)} == {}
    assert {name: result["events"] for name, result in results.items() if result["events"] or result["happened"]} == {}


ON_THE_COMMAND_LINE = (
    "call os.system", "call torch.load", "call getattr", "program EXT1", "program escape in a name",
    "position optimizer state", "rebuild quantised", "container legacy object", "container tar storages",
    "container plain pickle in protocol 4", "directory second shard",
)  # fmt: skip


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_the_command_refuses_in_two_lines(
    evil: list[Evil], place: Place, online: Environment, llmt: Callable[..., object], name: str, tmp_path: Path
) -> None:
    """`llmt convert` exits with 4 after one line of error and one of hint, without a traceback."""
    case = next(case for case in evil if case.name == name)
    variables = online | setting("planted modules", place)
    result = llmt("convert", str(case.path), "--output-dir", str(tmp_path / "out"), cwd=tmp_path, env=variables)
    assert result.code == 4, result.err
    error, hint = result.err.splitlines()
    assert error.startswith(f"error: {case.path}")
    assert hint.startswith("hint: ")
    assert not {"\x1b", "\x9b"} & set(result.err + result.out)
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []
    assert not place.happened()


# ---------------------------------------------------------------------------------------------------------
# bombs

PEAK = 300 * 2**20
BOMBS = {
    **payloads.PICKLE_BOMBS,
    **payloads.ZIP_BOMBS,
    **{f"legacy {name}": make for name, make in payloads.LEGACY_BOMBS.items()},
}


GROUPS = 10
"""Each has bombs of every kind, which share one process to fork from."""


@pytest.mark.parametrize("first", [0, 1, *(pytest.param(first, marks=pytest.mark.slow) for first in range(2, GROUPS))])
def test_bombs_are_refused_in_little_memory(first: int, online: Environment, tmp_path: Path) -> None:
    """Files that would expand are refused with exit code 4 below 300 MiB; their processor time is printed."""
    jobs = []
    for number, name in enumerate(list(BOMBS)[first::GROUPS]):
        (tmp_path / f"{number}").mkdir()
        path = tmp_path / f"{number}" / "bomb.pt"
        path.write_bytes(BOMBS[name]())
        jobs.append(Job(name, "convert", [str(path), str(tmp_path / f"out-{number}")], fork=True))
    results = payloads.run_jobs(jobs, tmp_path / "scratch", online, timeout=300)
    for path in tmp_path.glob("*/bomb.pt"):
        path.unlink()
    for name, result in results.items():
        print(json.dumps({"bomb": name, **{key: result[key] for key in ("code", "cpu", "peak")}}))
    refused = {name: result["code"] == 4 and result["peak"] < PEAK for name, result in results.items()}
    said = {name: "bomb.pt" in r["message"] and one_line(r["message"]) for name, r in results.items()}
    assert [name for name in results if not refused[name] or not said[name]] == []
    assert not list(tmp_path.glob("out-*"))


def test_a_long_comment_changes_nothing(online: Environment, tmp_path: Path) -> None:
    """The longest comment that a zip archive can have is passed over or refused, in little memory."""
    path = tmp_path / "comment.pt"
    path.write_bytes(payloads._comment(payloads._good(), b"PK\x05\x06" * 16_383))
    job = Job("comment", "convert", [str(path), str(tmp_path / "out")], fork=True)
    result = payloads.run_jobs([job], tmp_path / "scratch", online)["comment"]
    assert result["code"] in (0, 4)
    assert result["peak"] < PEAK


# ---------------------------------------------------------------------------------------------------------
# damage


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    """A checkpoint of many kinds of tensors and of its optimizer."""
    import io

    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 30, generator=generator)
    tensors = {
        "model.embed_tokens.weight": torch.randn(50, 16, generator=generator),
        "model.norm.weight": torch.ones(16, dtype=torch.bfloat16),
        "half": torch.randn(7, 9, generator=generator).half(),
        "transposed": base.t(),
        "slice": base[3:20, 1:7],
        "whole": torch.arange(100),
        "flags": torch.tensor([True, False] * 20),
    }
    buffer = io.BytesIO()
    torch.save({"model": {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, "step": 3}, buffer)
    return buffer.getvalue()


def storages(data: bytes) -> list[tuple[int, int]]:
    """Where the storages lie in a file of torch.save: (first byte, bytes)."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        infos = [info for info in opened.infolist() if "/data/" in info.filename]
    lengths = [int.from_bytes(data[i.header_offset + 26 : i.header_offset + 28], "little") for i in infos]
    extras = [int.from_bytes(data[i.header_offset + 28 : i.header_offset + 30], "little") for i in infos]
    return [
        (info.header_offset + 30 + length + extra, info.file_size)
        for info, length, extra in zip(infos, lengths, extras, strict=True)
    ]


def refusal(source: Path, output: Path) -> LlmtError | None:
    """How a conversion was refused; None where it was not."""
    try:
        for _ in convert_to_safetensors(source, output):
            pass
    except LlmtError as error:
        return error
    return None


def test_two_hundred_flips_are_two_hundred_refusals(model_bytes: bytes, tmp_path: Path) -> None:
    """Any single flipped bit in any storage ends in exit code 4 and leaves nothing, beside the source and inside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "pytorch_model.bin"
    path.write_bytes(model_bytes)
    assert refusal(path, tmp_path / "good") is None
    shutil.rmtree(tmp_path / "good")
    undetected = []
    for number, (byte, bit) in enumerate(payloads.flips(model_bytes, storages(model_bytes), 200)):
        changed = bytearray(model_bytes)
        changed[byte] ^= 1 << bit
        path.write_bytes(changed)
        error = refusal(folder if number % 2 else path, (folder if number % 3 else tmp_path) / "out")
        if error is None or error.exit_code != 4 or str(path) not in error.message:
            undetected.append((byte, bit, error))
        assert [entry.name for entry in folder.iterdir()] == ["pytorch_model.bin"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert undetected == []


@pytest.mark.parametrize("twentieth", range(20))
def test_a_truncated_file_is_refused(model_bytes: bytes, twentieth: int, tmp_path: Path) -> None:
    """A file that ends after any twentieth of itself exits with 4, names itself and leaves nothing."""
    path = tmp_path / "short.pt"
    path.write_bytes(model_bytes[: len(model_bytes) * twentieth // 20])
    error = refusal(path, tmp_path / "out")
    assert error is not None
    assert error.exit_code == 4
    assert str(path) in error.message
    assert one_line(error.message)
    assert [entry.name for entry in tmp_path.iterdir()] == ["short.pt"]


def tiny_safetensors() -> bytes:
    """A valid safetensors file."""
    text = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    return len(text).to_bytes(8, "little") + text + payloads.FOUR


def link(target: str) -> Callable[[Path], None]:
    """Make a link to `target`."""
    return lambda path: path.symlink_to(target)


def write(data: bytes) -> Callable[[Path], None]:
    """Make a file of these bytes."""
    return lambda path: path.write_bytes(data) and None


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CORRUPT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("m.pt", write(b""), "empty"),
    "one byte": ("m.pt", write(b"P"), ""),
    "zeros": ("m.pt", write(b"\0" * 4096), ""),
    "git-lfs pointer": ("m.pt", write(POINTER), "git-lfs"),
    "git-lfs pointer as .bin": ("pytorch_model.bin", write(POINTER), "git-lfs"),
    "web page": ("m.pt", write(b"<!DOCTYPE html><html>Not found</html>"), "web page"),
    "web page after blanks": ("m.pt", write(b"\n\n  <html>Sign in</html>"), "web page"),
    "message of a server": ("m.pt", write(b'{"error": "Repository not found"}'), ""),
    "XML of a store": ("m.pt", write(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'), ""),
    "text": ("m.pt", write("für später\n".encode() * 100), ""),
    "escape sequences": ("m.pt", write(b"\x1b[2J\x1b]52;c;eA==\x07" * 100), ""),
    "safetensors named .pt": ("m.pt", write(tiny_safetensors()), "safetensors"),
    "safetensors named .bin": ("pytorch_model.bin", write(tiny_safetensors()), "safetensors"),
    "gzip": ("m.pt", write(b"\x1f\x8b\x08" + b"\0" * 64), ""),
    "image": ("m.pt", write(b"\x89PNG\r\n\x1a\n" + b"\0" * 64), ""),
    "text with another ending": ("notes.txt", write(b"hello"), ""),
    "JSON with another ending": ("config.json", write(b"{}"), ""),
    "empty directory": ("m.pt", lambda path: path.mkdir(), ""),
    "directory of directories": ("m", lambda path: (path / "m.pt").mkdir(parents=True), ""),
    "pipe": ("m.pt", lambda path: os.mkfifo(path), ""),
    "pipe as .bin": ("pytorch_model.bin", lambda path: os.mkfifo(path), ""),
    "link to itself": ("m.pt", link("m.pt"), ""),
    "link to nothing": ("m.pt", link("nothing.pt"), ""),
    "link to a device": ("m.pt", link("/dev/zero"), ""),
    "link to the null device": ("m.pt", link("/dev/null"), ""),
    "link to a directory": ("m.pt", link("."), ""),
    "nothing there": ("m.pt", lambda path: None, "does not exist"),
}
"""What is found in the place of weights: name, how it gets there, a word of the message."""


@pytest.mark.parametrize("inside_folder", [False, True], ids=["named", "found"])
@pytest.mark.parametrize("name", CORRUPT)
def test_what_is_no_weights_is_refused_by_name(
    name: str, inside_folder: bool, inside: Callable[..., object], tmp_path: Path
) -> None:
    """Named itself or found in the directory, it exits with 4, two lines, the file in the first and no traceback."""
    file, make, word = CORRUPT[name]
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder / file)
    source = folder if inside_folder else folder / file
    before = sorted(path.name for path in folder.iterdir())
    result = inside("convert", str(source), "--output-dir", str(tmp_path / "out"))
    assert result.code == 4, result.err
    assert len(result.lines) == 2, result.err
    assert result.lines[0].startswith(f"error: {source}")
    assert inside_folder or word in result.lines[0]
    assert result.out == ""
    assert not {"\x1b", "\x07", "\x9b"} & set(result.err)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["m.txt", "m", "m.PT", "m.ckpt", "m.safetensors", "archive.zip", "🙂.pt", "-m.pt"])
def test_the_ending_decides_nothing(name: str, inside: Callable[..., object], tmp_path: Path) -> None:
    """A good file under any name is converted whole or refused with exit code 4, by its name."""
    path = tmp_path / name
    path.write_bytes(payloads._good())
    result = inside("convert", str(path), "--output-dir", str(tmp_path / "out"))
    assert result.code in (0, 4)
    if result.code == 0:
        assert list(load_weights(tmp_path / "out")) == ["a"]
    else:
        assert result.lines[0].startswith(f"error: {path}")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "m.safetensors"])
def test_an_archive_named_safetensors_is_not_loaded(name: str, tmp_path: Path) -> None:
    """A PyTorch file under the name of the safe format is refused by the reader of that format."""
    path = tmp_path / name
    path.write_bytes(payloads._good())
    for source in (path, tmp_path):
        with pytest.raises(LlmtError) as caught:
            load_weights(source)
        assert caught.value.exit_code == 4
        assert str(tmp_path) in caught.value.message


# ---------------------------------------------------------------------------------------------------------
# where the output goes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with weights and the small files that belong to them."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "m.pt").write_bytes(payloads._good())
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that nothing may be written to, with one file."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def untouched(elsewhere: Path) -> bool:
    """Whether the folder still holds what it held."""
    return [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [("precious", "mine")]


def test_a_dangling_link_is_no_output(source: Path, elsewhere: Path, tmp_path: Path) -> None:
    """Where the output is a link to nothing, the conversion is refused and the target is not made."""
    (tmp_path / "out").symlink_to(elsewhere / "new")
    error = refusal(source / "m.pt", tmp_path / "out")
    assert error is not None
    assert error.exit_code in (6, 10)
    assert untouched(elsewhere)
    assert (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out", "source"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["a file", "a directory"])
def test_a_link_planted_where_the_default_output_goes_is_not_followed(
    source: Path, elsewhere: Path, tmp_path: Path, whole: bool, overwrite: bool
) -> None:
    """A link under the name that the result gets unasked is not written through, nor is what it leads to replaced."""
    links = [source / "m", source / "m-safetensors", tmp_path / "source-safetensors"]
    for link_path in links:
        link_path.symlink_to(elsewhere)
    with contextlib.suppress(LlmtError):
        list(convert_to_safetensors(source if whole else source / "m.pt", overwrite=overwrite))
    assert untouched(elsewhere)
    assert (source / "m.pt").read_bytes() == payloads._good()


def test_a_link_that_is_named_as_output_keeps_what_it_leads_to(source: Path, elsewhere: Path, tmp_path: Path) -> None:
    """A link to a folder, named by the user, is refused or used as that folder; nothing in it is lost."""
    (tmp_path / "out").symlink_to(elsewhere)
    error = refusal(source / "m.pt", tmp_path / "out")
    assert (elsewhere / "precious").read_text() == "mine"
    if error is None:
        assert list(load_weights(elsewhere)) == ["a"]
    else:
        assert error.exit_code in (6, 10)
        assert untouched(elsewhere)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("exists", [False, True], ids=["dangling", "to a file"])
def test_a_link_planted_in_the_output_is_replaced_not_followed(
    source: Path, elsewhere: Path, tmp_path: Path, name: str, exists: bool
) -> None:
    """A link under the name of a file to be written is refused or replaced by the file; its target stays as it is."""
    output = tmp_path / "out"
    output.mkdir()
    target = elsewhere / ("precious" if exists else "new")
    (output / name).symlink_to(target)
    with contextlib.suppress(LlmtError):
        list(convert_to_safetensors(source / "m.pt", output, overwrite=True, max_shard_size=10))
    assert untouched(elsewhere)
    if (output / "model.safetensors").is_file():
        assert not [path for path in output.iterdir() if path.is_symlink()]
        assert list(load_weights(output)) == ["a"]


def test_planted_temporary_names_are_neither_used_nor_removed(source: Path, elsewhere: Path, tmp_path: Path) -> None:
    """Links and folders that look like those of an earlier conversion are not written through."""
    output = tmp_path / "out"
    planted = [f".tmp-out-{digit * 8}" for digit in "0123456789abcdef"] + [".tmp-out", ".tmp-", ".del-out", ".del-"]
    for name in planted:
        (tmp_path / name).symlink_to(elsewhere)
    assert refusal(source / "m.pt", output) is None
    assert untouched(elsewhere)
    assert all((tmp_path / name).is_symlink() for name in planted)
    assert list(load_weights(output)) == ["a"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_a_link_among_the_small_files_is_not_copied(source: Path, elsewhere: Path, tmp_path: Path, name: str) -> None:
    """A companion that is a link out of the directory ends the conversion; what it leads to is not copied."""
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(elsewhere / "precious")
    error = refusal(source / "m.pt", tmp_path / "out")
    assert error is not None
    assert error.exit_code == 4
    assert name in error.message
    assert not (tmp_path / "out").exists()
    assert untouched(elsewhere)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(source: Path, online: Environment, umask: int, tmp_path: Path) -> None:
    """Every file has mode 0666 and every new folder 0777 less the umask, whatever the modes of the source."""
    two = {"a": payloads.tensor("0"), "b": payloads.tensor("1")}
    (source / "m.pt").write_bytes(payloads.archive(payloads.encode(two), {"1": payloads.FOUR}))
    (source / "tokenizer.json").chmod(0o755)
    (tmp_path / "there").mkdir()
    arguments = [f"{umask:o}", str(source / "m.pt")]
    (source / "config.json").chmod(0o600)
    jobs = [
        Job("one file", "convert_with_umask", [*arguments, str(tmp_path / "one"), "1000"]),
        Job("shards", "convert_with_umask", [*arguments, str(tmp_path / "deep" / "er" / "shards"), "16"]),
        Job("a directory", "convert_with_umask", [f"{umask:o}", str(source), str(tmp_path / "whole"), "16"]),
        Job("into a folder", "convert_with_umask", [*arguments, str(tmp_path / "there"), "16"]),
    ]
    results = payloads.run_jobs(jobs, tmp_path / "scratch", online)
    assert {name: result["message"] for name, result in results.items() if result["code"] != 0} == {}
    folders = [tmp_path / name for name in ("one", "deep", "whole", "there")]
    written = [path for folder in folders for path in sorted(folder.rglob("*"))]
    assert len([path for path in written if path.name.startswith("model")]) == 1 + 3 * 3
    wrong = {}
    for path in [*written, *folders[:3]]:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        if path.stat().st_mode & 0o7777 != expected:
            wrong[str(path.relative_to(tmp_path))] = f"{path.stat().st_mode & 0o7777:o}"
    assert wrong == {}


NAMES = list(payloads.hostile_names())


def test_hostile_names_of_tensors_do_not_reach_the_terminal(online: Mapping[str, str], tmp_path: Path) -> None:
    """Whatever the tensors are called, the terminal gets printable text only, and the command ends with 0 or 4."""
    assert len(NAMES) >= 50
    (tmp_path / "files").mkdir()
    jobs = []
    for number, name in enumerate(NAMES):
        path = tmp_path / "files" / f"{number}.pt"
        value = payloads.tensor()
        # Two names of one tensor: the command says which one it left out. And one that is not a tensor.
        contents = {"kept": {name: value, f"{name}.tied": value}, "refused": {name: 1, "a": value}}
        for kind, content in contents.items():
            path = tmp_path / "files" / f"{number}-{kind}.pt"
            path.write_bytes(payloads.archive(payloads.encode(content)))
            jobs.append(Job(f"{number} {kind}", "command", ["convert", str(path), "--output-dir", f"{path}-out"]))
    results, shown = payloads.on_a_terminal(jobs, tmp_path / "scratch", online)
    codes = {job.name: results[job.name]["code"] for job in jobs}
    assert {name: code for name, code in codes.items() if code not in ((0, 4) if "kept" in name else (4,))} == {}
    text = shown.decode("utf-8").replace("\r\n", "\n")
    assert payloads.unsafe(text) == set()
    assert "Traceback" not in text
