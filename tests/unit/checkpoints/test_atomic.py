"""Files and directories that are whole or absent, and the manifest that proves it."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import publish_into, staged_directory
from llmt.checkpoints.files import (
    append_line,
    new_file,
    require_free_space,
    storage_errors,
    write_file,
    write_text_atomic,
)
from llmt.checkpoints.manifest import manifest_problems, read_manifest, verify_manifest
from llmt.errors import ModelFileError, StorageError

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and limits of POSIX")


def make(target: Path, **extra: object) -> Path:
    with staged_directory(target, extra=extra) as staged:
        staged.write_file("a.bin", b"alpha" * 100)
        staged.write_json("b.json", {"x": 1})
        (staged.path / "c.txt").write_text("by another writer")
    return target


@pytest.mark.parametrize("sizes", [(5, 300_000, 7, 0, 900_000), (40_000_000, 40_000_000, 3), (262_143, 262_144)])
def test_a_hash_beside_the_writing_is_that_of_the_file(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Large pieces are hashed in a thread, small ones are not: the order stays."""
    pieces = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    record = write_file(tmp_path / "a.bin", iter(pieces))
    written = (tmp_path / "a.bin").read_bytes()
    assert written == b"".join(pieces)
    assert record.size == len(written)
    assert record.sha256 == hashlib.sha256(written).hexdigest()


def test_a_buffer_may_be_used_again_after_a_write(tmp_path: Path) -> None:
    """What is written without a word on how long it lasts is hashed when the call is over."""
    buffer = bytearray(20_000_000)
    with new_file(tmp_path / "a.bin") as file:
        for value in (1, 2, 3):
            buffer[:] = bytes([value]) * len(buffer)
            file.write(buffer)
    assert file.record.sha256 == hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest()


def test_a_staged_directory_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    """The manifest lists size and SHA-256 of every file, also of those that others wrote, and the extra fields."""
    target = make(tmp_path / "done", step=7)
    content = json.loads((target / layout.MANIFEST).read_text())
    names = {path.name for path in target.iterdir()} - {layout.MANIFEST}
    assert content["format"] == 1
    assert content["step"] == 7
    assert set(content["files"]) == names == {"a.bin", "b.json", "c.txt"}
    for name, (size, sha256) in content["files"].items():
        data = (target / name).read_bytes()
        assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert verify_manifest(target).extra == {"step": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_nothing_is_left_when_filling_fails(tmp_path: Path) -> None:
    """An error while the directory is filled leaves neither the target nor a temporary folder."""

    def fail() -> None:
        with staged_directory(tmp_path / "done", extra={}) as staged:
            staged.write_file("a", b"1")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_or_replaced(tmp_path: Path) -> None:
    """Without `replace` what is there stays untouched; with it, the new directory takes its place."""
    target = make(tmp_path / "done", step=1)
    with pytest.raises(StorageError, match="already there"):
        make(target, step=2)
    assert verify_manifest(target).extra == {"step": 1}
    with staged_directory(target, extra={"step": 3}, replace=True) as staged:
        staged.write_file("z", b"")
    assert sorted(path.name for path in target.iterdir()) == [layout.MANIFEST, "z"]
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("damage", "reason"), [(flip, "sha256 differs"), (truncate, "size"), (Path.unlink, "missing")])
@pytest.mark.parametrize("name", ["a.bin", "b.json", "c.txt"])
def test_every_damage_is_found(tmp_path: Path, name: str, damage, reason: str) -> None:
    """A flipped bit, a lost byte and a lost file are found in every file, and named."""
    target = make(tmp_path / "done")
    damage(target / name)
    manifest = read_manifest(target)
    assert manifest is not None
    (problem,) = manifest_problems(target, manifest)
    assert problem.startswith(name)
    assert reason in problem
    with pytest.raises(ModelFileError, match=name):
        verify_manifest(target)


def test_files_that_the_manifest_does_not_list_are_allowed(tmp_path: Path) -> None:
    """A note or a log beside the listed files is no damage."""
    target = make(tmp_path / "done")
    (target / "notes.txt").write_text("mine")
    verify_manifest(target)


def test_a_link_in_place_of_a_file_is_damage(tmp_path: Path) -> None:
    """A link to equal bytes is still not the file that was written."""
    target = make(tmp_path / "done")
    (target / "a.bin").rename(tmp_path / "elsewhere")
    (target / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="not a regular file"):
        verify_manifest(target)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 1}',
        '{"format": 1, "files": {"../a": [1, "%s"]}}' % ("0" * 64),
        '{"format": 1, "files": {"a": [-1, "%s"]}}' % ("0" * 64),
        '{"format": 1, "files": {"a": [1, "xyz"]}}',
        '{"format": 1, "format": 1, "files": {}}',
        '{"format": 2, "files": {}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_manifest_is_an_error_of_its_own(tmp_path: Path, content: str) -> None:
    """Whatever stands in a manifest, reading it ends with a ModelFileError that names it."""
    (tmp_path / layout.MANIFEST).write_text(content)
    with pytest.raises(ModelFileError, match="MANIFEST"):
        verify_manifest(tmp_path)


def test_no_manifest_is_none(tmp_path: Path) -> None:
    """A directory without a manifest is not an error for who asks whether there is one."""
    assert read_manifest(tmp_path) is None
    with pytest.raises(ModelFileError, match="has no MANIFEST"):
        verify_manifest(tmp_path)


def test_extra_fields_cannot_replace_the_manifests_own(tmp_path: Path) -> None:
    """A caller cannot overwrite the list of files."""
    with pytest.raises(ValueError, match="files"):
        make(tmp_path / "done", files={})
    assert list(tmp_path.iterdir()) == []


def test_publishing_into_a_root_replaces_the_earlier_model(tmp_path: Path) -> None:
    """Shards of the earlier model and what its manifest listed are gone; other files of the root stay."""
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with publish_into(tmp_path, extra={}) as staged:
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", layout.MODEL_INDEX):
            staged.write_file(name, b"old")
        staged.write_file("adapter_config.json", b"{}")
        staged.write_file(layout.CONFIG_FILE, b"{}")
    with publish_into(tmp_path, extra={"step": 9}) as staged:
        staged.write_file(layout.MODEL_FILE, b"new")
        staged.write_file(layout.CONFIG_FILE, b"{}")
    present = sorted(path.name for path in tmp_path.iterdir())
    assert present == sorted([layout.MANIFEST, layout.CONFIG_FILE, "metrics.jsonl", layout.MODEL_FILE])
    assert verify_manifest(tmp_path).extra == {"step": 9}


def test_publishing_without_a_manifest_keeps_foreign_files(tmp_path: Path) -> None:
    """Weights that are added to somebody's directory leave its config and tokenizer alone."""
    (tmp_path / layout.CONFIG_FILE).write_text("theirs")
    with publish_into(tmp_path, extra=None) as staged:
        staged.write_file(layout.MODEL_FILE, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [layout.CONFIG_FILE, layout.MODEL_FILE]


@posix
def test_modes_honour_the_umask(tmp_path: Path) -> None:
    """Every file is 0666 less the umask, also where another writer made it private."""
    for umask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        old = os.umask(umask)
        try:
            with staged_directory(tmp_path / f"{umask}", extra={}) as staged:
                staged.write_file("own", b"1")
                (staged.path / "other").write_bytes(b"2")
                (staged.path / "other").chmod(0o600)
        finally:
            os.umask(old)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / f"{umask}").iterdir()}
        assert modes == {mode}


def test_a_file_is_never_written_over_or_through_a_link(tmp_path: Path) -> None:
    """A taken name is refused, and so is a link that somebody planted there."""
    (tmp_path / "taken").write_bytes(b"old")
    (tmp_path / "planted").symlink_to(tmp_path / "victim")
    for name in ("taken", "planted"):
        with pytest.raises(StorageError, match="already there"):
            write_file(tmp_path / name, b"new")
    assert (tmp_path / "taken").read_bytes() == b"old"
    assert not (tmp_path / "victim").exists()


def test_content_in_pieces_equals_content_at_once(tmp_path: Path) -> None:
    """Size and hash do not depend on how the bytes arrive, empty pieces included."""
    pieces = [b"", b"abc", bytearray(b"defg"), memoryview(b"hi")]
    assert write_file(tmp_path / "a", iter(pieces)) == write_file(tmp_path / "b", b"abcdefghi")
    assert (tmp_path / "a").read_bytes() == b"abcdefghi"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_storage_error_that_says_so() -> None:
    """ENOSPC names what was going on, what it needed and what is free."""
    with (
        pytest.raises(StorageError, match=r"disk full while saving step 3 \(.*\): need 1.2 GB, free ") as caught,
        storage_errors("saving step 3", Path("/dev"), 1_200_000_000),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENOTDIR])
def test_every_refusal_of_the_disk_is_a_storage_error(number: int, tmp_path: Path) -> None:
    """No OSError of a write leaves as itself."""
    with pytest.raises(StorageError, match="writing"), storage_errors("writing", tmp_path):
        raise OSError(number, os.strerror(number))


@posix
def test_a_write_that_hits_a_limit_leaves_nothing(tmp_path: Path) -> None:
    """A real refusal in the middle of a file (a process limit on file size) leaves no file behind."""
    import resource
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(StorageError, match="larger than"), staged_directory(tmp_path / "d", extra={}) as staged:
            staged.write_file("big", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_space_is_checked_before_the_work(tmp_path: Path) -> None:
    """More bytes than the disk has are refused; a directory that does not exist yet is asked through its parent."""
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError) as caught:
        require_free_space(tmp_path / "not" / "yet", 10**18, "3 checkpoints")
    said = r"there is not enough room for 3 checkpoints \(.*yet\): need .* TB, free .*; nothing was written"
    assert re.fullmatch(said, caught.value.message)
    assert caught.value.exit_code == 6


def _in_small_disk(tmp_path: Path, options: str, code: str) -> str:
    """What a program prints whose folder is a real file system with these limits, gone when it ends."""
    if shutil.which("unshare") is None:
        pytest.skip("needs a mount of its own")
    script = f'mount -t tmpfs -o {options} tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode == 77 or shown.stderr.startswith("unshare:"):
        pytest.skip("needs a mount of its own")
    assert shown.stderr == ""
    return shown.stdout


_CHECK = """
import sys
from pathlib import Path
from llmt.checkpoints.files import require_free_space
from llmt.errors import StorageError
for needed, files in ((1000, 1), (10**6, 1), (1000, 20)):
    try:
        require_free_space(Path(sys.argv[1]) / "run", needed, "the run", files)
        print("room")
    except StorageError as error:
        print(error.message.replace(sys.argv[1], ""))
"""


def test_a_disk_may_have_room_and_no_more_files(tmp_path: Path) -> None:
    """A file system with a fixed number of files can be out of them with bytes to spare."""
    assert _in_small_disk(tmp_path, "size=512k,nr_inodes=10", _CHECK).splitlines() == [
        "room",
        "there is not enough room for the run (/run): need 1 MB, free 524 kB; nothing was written",
        "there is not enough room for the run (/run): need about 20 more files and folders, and the file system "
        "takes 9; nothing was written",
    ]
    assert _in_small_disk(tmp_path, "size=512k,nr_inodes=0", _CHECK).splitlines()[2] == "room"


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    """The new text stands there alone, with no temporary file beside it."""
    for text in ("one", "zwei: ü"):
        write_text_atomic(tmp_path / "f", text)
        assert (tmp_path / "f").read_text("utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_torn_line_is_closed_before_the_next(tmp_path: Path) -> None:
    """After a crash in the middle of a line, the next line still starts on its own."""
    log = tmp_path / "m.jsonl"
    append_line(log, "1")
    with log.open("ab") as file:
        file.write(b'{"half')
    append_line(log, "2")
    assert log.read_text() == '1\n{"half\n2\n'
    with pytest.raises(ValueError, match="line break"):
        append_line(log, "a\nb")
