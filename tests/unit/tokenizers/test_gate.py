"""The check before a tokenizer is published."""

import json
from pathlib import Path

import pytest
from tokenizer_texts import TEXTS

from llmt.config.tasks import TokenizerTrainSettings
from llmt.errors import BusyOutputError, DataError, ModelFileError
from llmt.tokenizers.build import build_tokenizer
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.gate import HARD_TEXTS, GateReport, check_tokenizer
from llmt.tokenizers.progress import TrainingProgress
from llmt.tokenizers.wordpiece import train_wordpiece

HELD_OUT = ["The miller counted sacks.\nNobody   answered the boy.\n", "1,234 was over; Über Müller\n"]


def _check(tokenizer: FastTokenizer, directory: Path) -> GateReport:
    tokenizer.save_pretrained(directory)
    return check_tokenizer(tokenizer, directory, HELD_OUT, held_out=True)


def test_lossless_kinds_pass(every_kind: dict[str, FastTokenizer], tmp_path: Path) -> None:
    """Every lossless kind gives all lines and hard texts back, and its numbers are those of counting."""
    for name, tokenizer in every_kind.items():
        report = _check(tokenizer, tmp_path / name)
        assert (report.losses == ()) == tokenizer.is_lossless
        lines = "".join(HELD_OUT).splitlines(keepends=True)
        ids = [tokenizer.encode(line) for line in lines]
        tokens = [token for row in ids for token in row]
        assert (report.lines, report.characters) == (len(lines), len("".join(HELD_OUT)))
        assert report.characters_per_token == pytest.approx(len("".join(HELD_OUT)) / len(tokens))
        assert report.bytes_per_token == pytest.approx(len("".join(HELD_OUT).encode()) / len(tokens))
        assert report.vocabulary_used == pytest.approx(len(set(tokens)) / tokenizer.vocab_size)
        unknown = tokens.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
        assert report.unknown_share == pytest.approx(unknown / len(tokens))


def test_a_lossy_kind_says_what_it_loses(tmp_path: Path) -> None:
    """Spacing, composed forms and characters outside the alphabet are counted and shown by example."""
    tokenizer = train_wordpiece(["plain words only, and nothing else\n" * 20], 120, style="bert")
    report = _check(tokenizer, tmp_path)
    losses = {loss.kind: loss for loss in report.losses}
    assert losses.keys() == {"spacing", "unicode form", "characters"}
    assert losses["spacing"].texts > len(HELD_OUT)
    decomposed = [text for text in HARD_TEXTS if "e\u0301" in text or "\u1112\u1161\u11ab" in text]
    assert losses["unicode form"].texts >= len(decomposed) > 0
    assert set(losses["characters"].examples) - set("plain words only, and nothing else")
    assert report.unknown_share > 0


def test_what_was_saved_is_what_was_trained(bpe: FastTokenizer, wordpiece: FastTokenizer, tmp_path: Path) -> None:
    """A directory that holds another tokenizer does not pass."""
    bpe.save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="not the trained one"):
        check_tokenizer(wordpiece, tmp_path, HELD_OUT, held_out=True)


def test_a_broken_promise_is_caught(wordpiece: FastTokenizer, tmp_path: Path) -> None:
    """A tokenizer that says it is lossless and drops a sign is refused: here its decoder swallows the letter e."""
    from tokenizers import decoders

    broken = train_wordpiece(TEXTS, vocab_size=650)
    broken.backend.decoder = decoders.Sequence([broken.backend.decoder, decoders.Replace("e", "")])
    broken.save_pretrained(tmp_path)
    assert broken.is_lossless
    with pytest.raises(ModelFileError, match="came back as"):
        check_tokenizer(broken, tmp_path, HELD_OUT, held_out=True)


def test_nothing_to_measure_on(bpe: FastTokenizer, tmp_path: Path) -> None:
    """Without a token there is no number to print."""
    bpe.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no token"):
        check_tokenizer(bpe, tmp_path, [""], held_out=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Text enough to hold some of it out."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text} and verse {n}\n" for n in range(60) for text in TEXTS), encoding="utf-8")
    return path


def test_published_whole_with_a_report(corpus: Path, tmp_path: Path) -> None:
    """Reading, training, checking and publishing give one directory and the truth about it."""
    settings = TokenizerTrainSettings(algo="wordpiece", vocab_size=700)
    built = build_tokenizer(settings, [str(corpus)], tmp_path / "out")
    assert built.report.held_out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    record = json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))
    held = len(corpus.read_bytes()) - record["corpus"]["bytes"]
    assert 0 < held < 0.04 * len(corpus.read_bytes())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_fixed_threshold_is_warned_about(corpus: Path, tmp_path: Path) -> None:
    """Few characters per token with a fixed threshold is said, with what to do; annealed it is not."""
    for threshold in ("fixed", "anneal"):
        settings = TokenizerTrainSettings(algo="wordpiece", vocab_size=560, threshold=threshold)
        built = build_tokenizer(settings, [str(corpus)], tmp_path / threshold)
        assert any("--threshold anneal" in note for note in built.notes) == (threshold == "fixed")


def test_nothing_else_is_lost(corpus: Path, tmp_path: Path) -> None:
    """A directory with more in it than a tokenizer is not replaced, nor one that fills up while training goes on."""
    target = tmp_path / "out"
    settings = TokenizerTrainSettings(algo="byte", overwrite=True)
    build_tokenizer(settings, [str(corpus)], target)
    (target / "notes.md").write_text("precious")
    with pytest.raises(BusyOutputError, match=r"notes\.md would be lost"):
        build_tokenizer(settings, [str(corpus)], target)
    assert (target / "notes.md").read_text() == "precious"

    late = tmp_path / "late"

    def meanwhile(now: TrainingProgress) -> None:
        late.mkdir(exist_ok=True)
        (late / "precious.txt").write_text("x")

    settings = TokenizerTrainSettings(algo="wordpiece", vocab_size=560)
    with pytest.raises(BusyOutputError):
        build_tokenizer(settings, [str(corpus)], late, meanwhile)
    assert [path.name for path in late.iterdir()] == ["precious.txt"]


def test_nothing_half_saved(corpus: Path, tmp_path: Path) -> None:
    """An error while training leaves what stood there, and no remains."""
    target = tmp_path / "out"
    build_tokenizer(TokenizerTrainSettings(algo="bpe", vocab_size=400), [str(corpus)], target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(BusyOutputError, match="holds a tokenizer"):
        build_tokenizer(TokenizerTrainSettings(algo="bpe", vocab_size=400), [str(corpus)], target)
    corpus.write_bytes(b"fine\n" * 4000 + b"broken \xff here\n")
    with pytest.raises(DataError, match="offset 20007"):
        build_tokenizer(TokenizerTrainSettings(algo="bpe", vocab_size=400, overwrite=True), [str(corpus)], target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out"]
