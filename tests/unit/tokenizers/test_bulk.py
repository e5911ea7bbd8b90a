"""Encoding a corpus: the same ids for every number of processes, and no process left behind."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tokenizer_texts import HARD_STRINGS, TEXTS
from tokenizers import AddedToken

from llmt.errors import DataError, LlmtError, OutOfMemoryError
from llmt.tokenizers import bulk
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bulk import BulkEncoder
from llmt.tokenizers.fast import FastTokenizer, PretrainedTokenizer

KINDS = ("bpe", "unigram", "wordpiece", "bert")
BATCHES = [HARD_STRINGS, TEXTS, [], [""], ["lone \ud800 surrogate"], *([text] * 3 for text in HARD_STRINGS)]


def _encode(tokenizer: Tokenizer, num_proc: int | None, batches: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    with BulkEncoder(tokenizer, num_proc, 1000) as encoder:
        return list(encoder.encode(batches))


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_processes_changes_nothing(every_kind: dict[str, FastTokenizer], kind: str) -> None:
    """The ids are those of `encode_batch`, batch by batch, also where a text is empty or not well-formed."""
    tokenizer = every_kind[kind]
    expected = [tokenizer.encode_batch(texts) for texts in BATCHES]
    for num_proc in (1, 2, 3) if kind == "bpe" else (1, 2):
        assert _encode(tokenizer, num_proc, BATCHES) == expected


def test_a_tokenizer_that_cannot_be_cut(bpe: FastTokenizer) -> None:
    """It is encoded by the library, in other processes as well."""
    changed = pickle.loads(pickle.dumps(bpe))
    changed.backend.add_tokens([AddedToken("said that", special=False)])
    expected = [changed.backend.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert any(changed.backend.token_to_id("said that") in ids for ids in expected)
    assert [_encode(changed, num_proc, [TEXTS]) for num_proc in (1, 2)] == [[expected]] * 2


class _OwnWay(PretrainedTokenizer):
    """Encodes in its own way."""

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        return [[len(text)] for text in texts]


def test_tokenizers_of_other_kinds_encode_themselves(bpe: FastTokenizer) -> None:
    """In this process, whatever number was asked for."""
    tokenizer = _OwnWay.from_parts(bpe.parts)
    assert _encode(tokenizer, 2, [["ab", "c"], ["def"]]) == [[[2], [1]], [[3]]]


def test_few_batches_are_held(bpe: FastTokenizer) -> None:
    """The source is read no further than two batches for each process ahead of the results."""
    read = 0

    def batches() -> Iterator[list[str]]:
        nonlocal read
        for number in range(40):
            read += 1
            yield [f"text {number}"] * 3

    with BulkEncoder(bpe, 2) as encoder:
        for number, encoded in enumerate(encoder.encode(batches())):
            assert read <= number + 4
            assert encoded == bpe.encode_batch([f"text {number}"] * 3)
    assert number == 39


def test_processes_start_when_there_is_enough_text(bpe: FastTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left open, their number is one up to a size, and the cores of the machine from there on."""
    monkeypatch.setattr(bulk, "ALONE_CHARACTERS", 100)
    monkeypatch.setattr(bulk, "physical_cores", lambda: 2)
    with BulkEncoder(bpe, None) as encoder:
        for number, encoded in enumerate(encoder.encode([["x" * 30]] * 10)):
            assert encoded == [bpe.encode("x" * 30)]
            assert len(encoder._workers) == (0 if number < 4 else 2)


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(
    ("signum", "kind", "said"),
    [
        (signal.SIGKILL, OutOfMemoryError, "signal 9, maybe since memory ran out"),
        (signal.SIGABRT, DataError, "signal 6"),
    ],
)
def test_a_dead_process_is_an_error(bpe: FastTokenizer, signum: int, kind: type[LlmtError], said: str) -> None:
    """It is named with what to do, soon, and the other process ends too; the system kills where memory runs out."""
    with BulkEncoder(bpe, 2) as encoder:
        results = encoder.encode([["some text"]] * 1000)
        next(results)
        workers = [worker._process for worker in encoder._workers]
        workers[1].send_signal(signum)
        with pytest.raises(kind) as error:
            list(results)
        assert error.value.message == f"data.num_proc: worker 2 died ({said})"
        assert error.value.exit_code == (7 if signum == signal.SIGKILL else 3)
        assert "data.num_proc=1" in error.value.hint
    assert all(worker.returncode is not None for worker in workers)


def test_an_error_in_the_source_ends_the_processes(bpe: FastTokenizer) -> None:
    """It is the caller's own error that comes out."""

    def batches() -> Iterator[list[str]]:
        yield from [["some text"]] * 5
        raise ZeroDivisionError

    encoder = BulkEncoder(bpe, 2)
    with pytest.raises(ZeroDivisionError), encoder:
        list(encoder.encode(batches()))
    assert all(worker._process.returncode is not None for worker in encoder._workers)


_PARENT = """
import sys
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.bulk import BulkEncoder

with BulkEncoder(train_bpe(["some text"], 300), 2) as encoder:
    results = encoder.encode([["text"]] * 100)
    next(results)
    print(*(worker._process.pid for worker in encoder._workers), flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    """However the parent ends; Ctrl-C to the group ends it as well."""
    program = [sys.executable, "-c", _PARENT]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        os.killpg(parent.pid, how)
        parent.wait(20)
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
