"""WordPiece training, counting and merging, against the trainer of `tokenizers`; and what the vocabularies are worth.

Every run is a process of its own, the trainers take turns, and medians are reported. Both cut words alike and read
the same file. `python` and `compiled` count on two processes, `alone` is Python in one, which is what llmt takes for
less than 50 MB. The compiled engine has been compiled before.
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

from llmt.text.sources import open_blocks
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.pretokenize import BERT_WORDS, GPT4_SPLIT
from llmt.tokenizers.sweep import truncate
from llmt.tokenizers.wordpiece import WordPieceTokenizer

if TYPE_CHECKING:  # a run of ours does not load the library
    from tokenizers import Tokenizer

SIZE = 30_000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONTENDERS = ("python", "compiled", "alone", "library")
STYLES = ("bert", "lossless")
ASKED_TIME = {"python": {10: 1.75, 50: 1.5, 100: 1.5}, "compiled": {10: 1.0, 50: 0.8, 100: 0.8}}
ASKED_MEMORY = 10.0


def lines_of(path: Path) -> Iterator[str]:
    """The documents: one a line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def ours(path: Path, style: str, engine: str, processes: int = 2) -> WordPieceTokenizer:
    """Read, count, merge and build, as `llmt tokenizer train` does."""
    tokenizer = WordPieceTokenizer(style=style)
    tokenizer.train(open_blocks([str(path)]), SIZE, num_proc=processes, engine=engine)
    return tokenizer


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
    tokenizer.train([str(path)], trainer)  # the library reads the file itself, on both cores
    return tokenizer


def one(contender: str, style: str, path: Path) -> None:
    """One run; prints its seconds."""
    started = time.perf_counter()
    if contender == "library":
        pieces = library(path, style).get_vocab_size()
    else:
        pieces = (ours(path, style, "python", 1) if contender == "alone" else ours(path, style, contender)).vocab_size
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
    path, held_out = gather(megabytes)
    texts = list(lines_of(held_out))
    characters = sum(map(len, texts))
    for style in STYLES:
        full = ours(path, style, "auto")
        for size in (8_000, SIZE):
            tokenizer = truncate(full, size) if size < full.vocab_size else full
            found = {"ours": round(characters / sum(map(len, tokenizer.encode_batch(texts))), 3)}
            for kind in ("wordpiece", "bpe", "unigram"):
                peer = library(path, style, kind, size)
                tokens = sum(len(encoding.ids) for encoding in peer.encode_batch(texts))
                found[kind] = round(characters / tokens, 3)
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
    WordPieceTokenizer().train(["ab"], 600, engine="compiled")  # compile
    for megabytes in arguments.sizes:
        for style in arguments.styles:
            race(megabytes, style, arguments.runs)
    if not arguments.no_quality:
        quality(min(arguments.sizes))


if __name__ == "__main__":
    main()
