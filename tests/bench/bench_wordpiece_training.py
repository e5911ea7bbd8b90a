"""WordPiece training, counting and merging, against the trainer of `tokenizers`; and what the vocabularies are worth.

Every run is a process of its own, the trainers take turns, and medians are reported. Both cut words alike and read
the same lines from the same file. The compiled engine has been compiled before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from measure import report
from texts import gather

from llmt.tokenizers.bytelevel import BYTE_CHARACTERS, to_characters
from llmt.tokenizers.count import count_words
from llmt.tokenizers.likelihood import MergeResult, Symbols, train_merges
from llmt.tokenizers.pretokenize import BERT_WORDS, GPT4_SPLIT

if TYPE_CHECKING:  # a run of ours does not load the library
    from tokenizers import Tokenizer

SIZE = 30_000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTENDERS = ("python", "compiled", "library")
STYLES = ("bert", "lossless")
ASKED_TIME = {"python": {10: 1.75, 50: 1.5, 100: 1.5}, "compiled": {10: 1.0, 50: 0.8, 100: 0.8}}
ASKED_MEMORY = 10.0
BYTE_FORMS = [*BYTE_CHARACTERS, *("##" + char for char in BYTE_CHARACTERS)]


def lines_of(path: Path) -> Iterator[str]:
    """The documents: one a line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def ours(path: Path, style: str, engine: str, processes: int = 2) -> MergeResult:
    """Count words and merge."""
    if style == "bert":
        table = count_words(lines_of(path), "bert", processes)
        words = {word: n for word, n in table.items() if len(word) <= 100}
        symbols = Symbols(reserved=len(SPECIAL))
    else:
        words = {}
        for word, n in count_words(lines_of(path), "gpt4", processes).items():
            for part in word.replace("#", "\0#\0").split("\0") if "#" in word else (word,):
                piece = to_characters(part[:100])
                words[piece] = words.get(piece, 0) + n
        words.pop("", None)
        symbols = Symbols("##", tuple(BYTE_FORMS), len(SPECIAL))
    return train_merges(words, SIZE, engine=engine, symbols=symbols)


def blank(model: object, style: str) -> "Tokenizer":
    """A tokenizer of the library that cuts as ours do."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    if style == "bert":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(BERT_WORDS), "removed", invert=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated"),
                pre_tokenizers.Split("#", "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return tokenizer


def library(path: Path, style: str, kind: str = "wordpiece", size: int = SIZE) -> "Tokenizer":
    """Train with `tokenizers`."""
    from tokenizers import models, trainers

    common = {"vocab_size": size, "special_tokens": SPECIAL, "show_progress": False}
    if style == "lossless":
        common["initial_alphabet"] = BYTE_CHARACTERS
    if kind == "wordpiece":
        model = models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=400)
        trainer = trainers.WordPieceTrainer(min_frequency=2, **common)
    elif kind == "bpe":
        model, trainer = models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(min_frequency=2, **common)
    else:
        model, trainer = models.Unigram(), trainers.UnigramTrainer(unk_token="[UNK]", **common)
    tokenizer = blank(model, style)
    tokenizer.train_from_iterator(lines_of(path), trainer)
    return tokenizer


def one(contender: str, style: str, path: Path) -> None:
    """One run; prints its seconds."""
    started = time.perf_counter()
    if contender == "library":
        pieces = library(path, style).get_vocab_size()
    else:
        pieces = len(ours(path, style, contender).vocabulary)
    print(json.dumps({"seconds": time.perf_counter() - started, "pieces": pieces}))


def measured(arguments: Sequence[str]) -> tuple[float, int]:
    """Run this file with other arguments; returns the seconds it says and the peak bytes of it and its children."""
    environment = os.environ | {"RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    shown = process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}")
    return float(json.loads(shown)["seconds"]), peak


def resident(pid: int) -> int:
    """Resident bytes of a process and its children."""
    import psutil

    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def race(megabytes: int, style: str, runs: int) -> None:
    """Time all contenders in turn on one text."""
    path, _ = gather(megabytes)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peaks: dict[str, list[int]] = {name: [] for name in CONTENDERS}
    for _ in range(runs):
        for name in CONTENDERS:
            spent, peak = measured(["--one", name, "--style", style, "--text", str(path)])
            seconds[name].append(spent)
            peaks[name].append(peak)
    base = statistics.median(seconds["library"])
    size = path.stat().st_size
    for name in CONTENDERS:
        median = statistics.median(seconds[name])
        report(
            "wordpiece_training",
            megabytes=round(size / 1e6, 1),
            style=style,
            trainer=name,
            seconds=round(median, 2),
            all_seconds=[round(spent, 2) for spent in seconds[name]],
            of_library=round(median / base, 2),
            asked=ASKED_TIME.get(name, {}).get(megabytes),
            peak_per_corpus=round(statistics.median(peaks[name]) / size, 1),
            asked_peak=None if name == "library" else ASKED_MEMORY,
        )


def quality(megabytes: int) -> None:
    """Characters per token on held-out prose."""
    from tokenizers import models

    path, held_out = gather(megabytes)
    texts = list(lines_of(held_out))
    characters = sum(map(len, texts))
    for style in STYLES:
        vocabulary = ours(path, style, "auto").vocabulary
        for size in (8_000, SIZE):
            found: dict[str, float] = {}
            pieces = [*SPECIAL, *vocabulary[: size - len(SPECIAL)]]
            model = models.WordPiece(
                vocab={piece: number for number, piece in enumerate(pieces)},
                unk_token="[UNK]",
                max_input_chars_per_word=400,
            )
            cutters = {"ours": blank(model, style)}
            for kind in ("wordpiece", "bpe", "unigram"):
                cutters[kind] = library(path, style, kind, size)
            for name, tokenizer in cutters.items():
                tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
                found[name] = round(characters / tokens, 3)
            report(
                "wordpiece_quality",
                megabytes=megabytes,
                style=style,
                vocab_size=size,
                characters_per_token=found,
                ours_of_wordpiece=round(found["ours"] / found["wordpiece"], 4),
                asked=0.99,
            )


def main() -> None:
    """Run all, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 100], help="megabytes of text")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--style", choices=STYLES, help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.style, arguments.text)
        return
    train_merges({"ab": 1}, 10, engine="compiled")  # compile
    for megabytes in arguments.sizes:
        for style in arguments.styles:
            race(megabytes, style, arguments.runs)
    if not arguments.no_quality:
        quality(min(arguments.sizes))


if __name__ == "__main__":
    main()
