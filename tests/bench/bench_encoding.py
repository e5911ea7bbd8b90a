"""Encoding of a corpus by one core: llmt's chunks against `encode_batch` of the same tokenizer.json.

`bulk` is the path of `llmt train`: by tiktoken where it is installed and gives the same ids, else by chunks.
`chunks` is the latter alone. All encode the same batches in turn. The tables of chunks are empty at the start of
each pass; "warm" is a pass over text that was encoded before.

    python tests/bench/bench_encoding.py                     # files of TEST_DATA_DIR, or the built-in corpus
    python tests/bench/bench_encoding.py --megabytes 50      # prose of this machine
"""

import argparse
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import tokenizers
from measure import report
from texts import gather
from tokenizers import models, pre_tokenizers

from llmt.text.builtin import builtin_documents
from llmt.tokenizers.bpe import train_bpe, train_unigram
from llmt.tokenizers.bulk import BULK_CACHE, BulkEncoder
from llmt.tokenizers.chunks import ChunkEncoder, find_cut
from llmt.tokenizers.fast import FastTokenizer, PretrainedTokenizer
from llmt.tokenizers.files import TokenizerParts
from llmt.tokenizers.wordpiece import train_wordpiece

Batches = list[list[str]]
Encode = Callable[[list[str]], list[list[int]]]
DOCUMENT_CHARACTERS = 4000
BATCH_DOCUMENTS = 256
TRAINED_ON = 3_000_000
ASKED = {"bpe": 4.0, "gpt2": 4.0, "wordpiece": 2.0, "wordpiece bert": 2.0}


def documents(text: str) -> Iterator[str]:
    """Parts of about 4000 characters that end with a line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + DOCUMENT_CHARACTERS) + 1 or len(text)
        yield text[start:end]
        start = end


def real_files(suffix: str) -> list[str]:
    """Texts of TEST_DATA_DIR."""
    folder = os.environ.get("TEST_DATA_DIR")
    paths = sorted(Path(folder).iterdir()) if folder else []
    return [path.read_text(encoding="utf-8") for path in paths if path.name.endswith(suffix)]


def english(megabytes: int | None) -> list[str]:
    """The text to encode, as documents."""
    if megabytes:
        training, _ = gather(megabytes)
        texts = [training.read_text(encoding="utf-8")]
    else:
        japanese = real_files(".ja.txt")
        real = [text for text in real_files(".txt") if text not in japanese] + real_files(".jsonl")
        texts = [*real, *(document.text for document in builtin_documents())]
    return [document for text in texts for document in documents(text)]


def real_gpt2() -> tokenizers.Tokenizer | None:
    """GPT-2's own vocabulary, where TEST_DATA_DIR has it."""
    folder = Path(os.environ.get("TEST_DATA_DIR", "")) / "gpt2-tokenizer"
    if not (folder / "vocab.json").is_file():
        return None
    backend = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def backends(text: str, vocab_size: int, only: list[str] | None) -> Iterator[tuple[str, tokenizers.Tokenizer]]:
    """Each kind, trained on the beginning of the text."""

    def sample() -> list[str]:
        return [text[:TRAINED_ON]]

    kinds: dict[str, Callable[[], FastTokenizer]] = {
        "bpe": lambda: train_bpe(sample(), vocab_size),
        "wordpiece": lambda: train_wordpiece(sample(), vocab_size),
        "wordpiece bert": lambda: train_wordpiece(sample(), vocab_size, style="bert"),
        "unigram": lambda: train_unigram([text[: TRAINED_ON // 6]], vocab_size // 2),
    }
    for name, train in kinds.items():
        if not only or name in only:
            yield name, train().backend
    if (not only or "gpt2" in only) and (gpt2 := real_gpt2()) is not None:
        yield "gpt2", gpt2


def seconds(encode: Callable[[], None]) -> float:
    """Processor time of one pass: other work on the machine disturbs it less."""
    started = time.process_time()
    encode()
    return time.process_time() - started


def compare(name: str, what: str, backend: tokenizers.Tokenizer, texts: list[str], rounds: int, capacity: int) -> None:
    """Both encoders in turn, and a line about them."""
    batches = [texts[start : start + BATCH_DOCUMENTS] for start in range(0, len(texts), BATCH_DOCUMENTS)]
    # Each begins anew, because the library remembers some words as well.
    theirs = tokenizers.Tokenizer.from_str(backend.to_str())
    theirs.encode_special_tokens = True
    tokenizer = PretrainedTokenizer.from_parts(TokenizerParts(tokenizers.Tokenizer.from_str(backend.to_str()), {}))
    cut = find_cut(json.loads(backend.to_str()))
    assert cut is not None
    chunks = ChunkEncoder(tokenizer.backend, cut, capacity)

    def library() -> None:
        for batch in batches:
            [encoding.ids for encoding in theirs.encode_batch(batch, add_special_tokens=False)]

    def bulk() -> None:
        with BulkEncoder(tokenizer, num_proc=1, cache_size=capacity) as encoder:
            deque(encoder.encode(batches), maxlen=0)

    def by_chunks() -> None:
        for batch in batches:
            chunks.encode_batch(batch)

    times: dict[str, list[float]] = {"library": [], "bulk": [], "chunks": [], "chunks_warm": []}
    for _ in range(rounds):
        chunks.clear()
        for key, encode in (("library", library), ("bulk", bulk), ("chunks", by_chunks), ("chunks_warm", by_chunks)):
            times[key].append(seconds(encode))
    size = sum(len(text.encode()) for text in texts) / 1e6
    middle = {key: statistics.median(found) for key, found in times.items()}
    report(
        "encoding",
        tokenizer=name,
        text=what,
        vocab_size=backend.get_vocab_size(),
        megabytes=round(size, 2),
        capacity=capacity,
        mb_per_s={key: round(size / value, 2) for key, value in middle.items()},
        ratio=round(middle["library"] / middle["bulk"], 2),
        asked=ASKED.get(name) if what == "English" else None,
        ratio_chunks=round(middle["library"] / middle["chunks"], 2),
        ratio_chunks_warm=round(middle["library"] / middle["chunks_warm"], 2),
        spread=[round(a / b, 2) for a, b in zip(times["library"], times["bulk"], strict=True)],
    )


def main() -> None:
    """Every kind on English text and on Japanese text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, help="size of the English text, gathered from this machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--capacity", type=int, default=BULK_CACHE)
    parser.add_argument("--vocab-size", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", help="names of tokenizers")
    arguments = parser.parse_args()
    texts = english(arguments.megabytes)
    japanese = [document for text in real_files(".ja.txt") for document in documents(text)]
    for name, backend in backends("".join(texts), arguments.vocab_size, arguments.only):
        compare(name, "English", backend, texts, arguments.rounds, arguments.capacity)
        if japanese:
            compare(name, "Japanese", backend, japanese, arguments.rounds, arguments.capacity)


if __name__ == "__main__":
    main()
