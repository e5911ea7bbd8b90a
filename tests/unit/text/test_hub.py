"""Data sets, with the real library and without a network."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from llmt.errors import DataError, LlmtError
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources, open_blocks, open_documents, open_texts

Run = Callable[..., str]
ROWS = [f"row {number} äöü 四" for number in range(200)]
datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small data set in every form that lies on a disk."""
    root = tmp_path_factory.mktemp("sets")
    rows = Dataset.from_dict({"text": ROWS, "id": list(range(len(ROWS)))})
    rows.save_to_disk(str(root / "saved"))
    DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(str(root / "parts"))
    for name in ("parquet", "json", "csv", "arrow", "configs/en", "configs/de"):
        (root / name).mkdir(parents=True)
    rows.to_parquet(str(root / "parquet" / "train-00000-of-00001.parquet"))
    rows.select(range(3)).to_parquet(str(root / "parquet" / "test-00000-of-00001.parquet"))
    rows.to_json(str(root / "json" / "a.jsonl"))
    rows.to_csv(str(root / "csv" / "a.csv"))
    shutil.copy(next((root / "saved").glob("*.arrow")), root / "arrow" / "train.arrow")
    for language in ("en", "de"):
        Dataset.from_dict({"text": [language]}).to_parquet(str(root / "configs" / language / "train.parquet"))
    (root / "configs" / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files: en/*\n- config_name: de\n  data_files: de/*\n---\n"
    )
    return root


def _texts(name: str, **reading: str) -> list[str]:
    return [document.text for document in open_documents([name], Reading(**reading))]  # type: ignore[arg-type]


def _refused(name: str, **reading: str) -> LlmtError:
    with pytest.raises(LlmtError) as error:
        _texts(name, **reading)
    assert "\n" not in error.value.message
    assert error.value.hint
    return error.value


@pytest.mark.parametrize("form", ["saved", "parts", "parquet", "json", "csv", "arrow"])
def test_a_folder_is_read_as_a_data_set(folders: Path, form: str) -> None:
    """A document for each row, in order, with its number; in blocks and with a limit too."""
    name = f"hf:{folders / form}"
    found = list(open_documents([name]))
    assert [document.text for document in found] == ROWS
    assert found[1].source == f"{name}: row 2"
    assert list(open_blocks([name], Reading(max_samples=70))) == ROWS[:70]


def test_a_split_is_chosen(folders: Path) -> None:
    """One that is not there is refused with those that are."""
    for form in ("parts", "parquet"):
        name = f"hf:{folders / form}"
        assert _texts(name, split="test") == ROWS[:3]
        error = _refused(name, split="dev")
        assert isinstance(error, DataError)
        assert error.message == f"{name}: no split 'dev'; it has train, test"


def test_a_configuration_is_chosen(folders: Path) -> None:
    """One that is missing or unknown is refused with those that there are."""
    name = f"hf:{folders / 'configs'}"
    assert _texts(name, config="de") == ["de"]
    assert _refused(name).message == f"{name}: which configuration? it has en, de"
    assert _refused(name, config="fr").message == f"{name}: no configuration 'fr'; it has en, de"
    assert "no configuration 'en'" in _refused(f"hf:{folders / 'saved'}", config="en").message


@pytest.mark.parametrize("form", ["saved", "parts", "parquet", "json", "csv", "arrow"])
def test_a_column_is_chosen(folders: Path, form: str) -> None:
    """One that is missing is refused with those that there are, one without text with its row."""
    name = f"hf:{folders / form}"
    assert _refused(name, text_column="body").message == f"{name}: no column 'body'; it has text, id"
    assert _refused(name, text_column="id").message == f"{name}: row 1: column 'id' is int, not text"


def test_rows_without_text(tmp_path: Path) -> None:
    """Blank ones are passed over, a null is named, and a set of blanks is refused."""
    for name, rows in (("a", ["one", " ", "", "two"]), ("b", ["one", None]), ("c", ["", "\n"])):
        (tmp_path / name).mkdir()
        Dataset.from_dict({"text": rows}).to_parquet(str(tmp_path / name / "a.parquet"))
    found = list(open_documents([f"hf:{tmp_path / 'a'}"]))
    assert [(d.text, d.source.split(": ")[-1]) for d in found] == [("one", "row 1"), ("two", "row 4")]
    assert _refused(f"hf:{tmp_path / 'b'}").message.endswith("row 2: column 'text' is null, not text")
    assert _refused(f"hf:{tmp_path / 'c'}").message.endswith("no text in it, only nothing or white space")


def test_a_saved_data_set_needs_no_prefix(folders: Path) -> None:
    """A folder of parts is named in the hint; `open_texts` finds both."""
    assert _texts(str(folders / "saved")) == ROWS
    assert f"hf:{folders / 'parquet'}" in _refused(str(folders / "parquet")).hint
    assert list(open_texts(str(folders / "parts"), split="test", max_samples=2)) == ROWS[:2]


def test_a_folder_named_as_a_format_is_a_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the folder such a name does not read what lies around."""
    monkeypatch.chdir(folders)
    assert _texts("hf:json") == ROWS
    monkeypatch.chdir(folders / "json")
    assert _refused("hf:json").message == "hf:json: a file format, not a data set"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"\n'),
        ("a.parquet", b"PAR1 and no table"),
        ("a.arrow", b"ARROW1 and no table"),
        ("a.csv", b"text\n\xff\xfe\n"),
        ("a.jsonl.gz", b"no gzip"),
        ("README.md", b"---\nconfigs: [\n---\n"),
        ("notes.unknown", b"text"),
        (None, b""),
    ],
)
def test_a_damaged_folder_is_a_data_error(
    tmp_path: Path, name: str | None, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line with what the library found; nothing is printed beside it."""
    if name is not None:
        (tmp_path / name).write_bytes(content)
    error = _refused(f"hf:{tmp_path}")
    assert isinstance(error, DataError)
    assert error.message.startswith(f"hf:{tmp_path}: cannot be read as a data set: ")
    assert capfd.readouterr() == ("", "")


def test_a_script_beside_the_data_is_not_run(tmp_path: Path) -> None:
    """It is refused, not executed."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    assert "scripts are no longer supported" in _refused(f"hf:{folder}").message
    assert not (tmp_path / "was_run").exists()


_OFFLINE = """
import json, sys
from llmt.errors import LlmtError
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources, open_documents, open_texts
found = []
for read in (
    lambda: list(open_documents(["hf:owner/name"], Reading(config="a"))),
    lambda: list(open_documents(["hf:wikitext"])),
    lambda: list(open_documents(["hf:owner.of-it"])),
    lambda: list(open_texts("wikitext", config="wikitext-2-raw-v1")),
    lambda: list(open_texts("owner/name")),
    lambda: fingerprint_sources(["hf:owner/name"]),
):
    try:
        found.append(read())
    except LlmtError as error:
        found.append([type(error).__name__, error.exit_code, error.message, error.hint])
print(json.dumps(found))
"""


def test_the_hub_offline_is_one_plain_line(run_python: Run) -> None:
    """Exit code 6 at once, for reading and for the fingerprint, and nothing on standard error."""
    for kind, code, message, hint in json.loads(run_python(_OFFLINE)):
        assert (kind, code) == ("HubError", 6)
        assert message.endswith(": no such folder here, and offline mode forbids asking the hub")
        assert message.startswith(("hf:owner", "hf:wikitext"))
        assert "unset HF_HUB_OFFLINE" in hint


def test_a_cache_that_cannot_be_written_is_a_storage_error(folders: Path, tmp_path: Path, run_python: Run) -> None:
    """Exit code 6 with the path: datasets needs its folder."""
    (tmp_path / "file").write_text("")
    code = f"import os\nos.environ['HF_HOME'] = {str(tmp_path / 'file' / 'home')!r}" + _OFFLINE.replace(
        '"hf:wikitext"', repr(f"hf:{folders / 'json'}")
    )
    kind, exit_code, message, hint = json.loads(run_python(code))[1]
    assert (kind, exit_code) == ("StorageError", 6)
    assert str(tmp_path / "file") in message
    assert "HF_HOME" in hint


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf:/nowhere", "hf:no name!", "hf:https://x/y"])
def test_what_no_hub_could_have_is_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read, and without asking."""
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")  # a folder of this name would be read
    with pytest.raises(DataError, match="neither a folder nor a name that the hub could have"):
        open_documents([name])


def test_a_file_is_no_data_set(folders: Path) -> None:
    """Its folder is one."""
    with pytest.raises(DataError, match="this is a file"):
        open_documents([f"hf:{folders / 'json' / 'a.jsonl'}"])


def test_what_is_here_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders, also one whose name begins like that of a data set."""
    monkeypatch.chdir(tmp_path)
    for name in ("wikitext", "hf:mine"):
        Path(name).write_text(name)
        assert _texts(name) == list(open_texts(name)) == [name]


@pytest.mark.parametrize("name", ["./nothing", "a.txt", "a.jsonl.gz", "no/such/file", "*.nothing", "/nowhere"])
def test_a_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A name that reads as a file's is a missing file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder|no file matches"):
        open_texts(name)


def test_only_data_sets_have_configurations(tmp_path: Path) -> None:
    """One that would change nothing is refused."""
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="no configuration 'en'; only data sets have them"):
        open_texts(str(tmp_path / "a.txt"), config="en")


def test_the_fingerprint_follows_files_configuration_and_split(folders: Path, tmp_path: Path) -> None:
    """A copy is equal, a changed byte is not."""
    shutil.copytree(folders / "json", tmp_path / "copy")
    name = f"hf:{tmp_path / 'copy'}"
    first = fingerprint_sources([name])
    assert first == fingerprint_sources([f"hf:{folders / 'json'}"])
    choices = [Reading(config="default"), Reading(split="test"), Reading(max_samples=5), Reading(max_samples=6)]
    assert len({first, *(fingerprint_sources([name], reading) for reading in choices)}) == 5
    path = tmp_path / "copy" / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(b"row 7", b"row 8", 1))
    assert fingerprint_sources([name]) != first


def test_the_library_is_as_loud_as_before(folders: Path) -> None:
    """Its log level and progress bars are given back, also when reading stops half way."""
    datasets.enable_progress_bars()
    logger = logging.getLogger("datasets")
    before = logger.level
    documents = open_documents([f"hf:{folders / 'json'}"])
    next(documents)
    assert (logger.level, datasets.are_progress_bars_disabled()) == (before, False)
    datasets.disable_progress_bars()
