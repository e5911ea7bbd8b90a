"""Text to token ids, ids to batches, and packing: each against its peer in the same run.

prepare         documents a second, against `datasets.map(batched=True, num_proc=2)` and saving
prepare_memory  peak memory for a corpus and for one ten times as large
loader          tokens a second that batches hold, against those that the quickstart model trains on
block           time to read one block at a random place
packing         share of the capacity that is used
conversations   conversations a second through a template, against `apply_chat_template`
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import report, run_process

from llmt.config.data import DataConfig
from llmt.config.model import ModelConfig
from llmt.data.chat import ChatWriter
from llmt.data.loader import BatchLoader
from llmt.data.mixture import TrainingSet
from llmt.data.packing import best_fit
from llmt.data.prepare import prepare_shards
from llmt.data.ready import ready_data
from llmt.data.sequences import BlockSequences
from llmt.data.shards import ShardSet
from llmt.models.transformer import TransformerLM
from llmt.text.builtin import builtin_documents
from llmt.text.documents import Message
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.load import load_tokenizer

ROUNDS = 3

_OURS = """
import re, sys, time
from pathlib import Path
from llmt.config.data import DataConfig
from llmt.data.prepare import prepare_shards
from llmt.tokenizers.load import load_tokenizer
config = DataConfig(sources=(sys.argv[1],), validation_split=0.0)
tokenizer = load_tokenizer(sys.argv[2])
began = time.perf_counter()
prepared = prepare_shards(config, tokenizer, Path(sys.argv[3]))
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(peak[1] if peak else 0, time.perf_counter() - began, prepared.text.documents,
      prepared.text.tokens - prepared.text.documents)
"""
_PEER = """
import sys, time
from datasets import load_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
began = time.perf_counter()
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
loaded = time.perf_counter()
mapped = rows.map(lambda batch: {"input_ids": tokenizer(batch["text"]).input_ids}, batched=True, num_proc=2,
                  remove_columns=["text"])
mapped.save_to_disk(sys.argv[3] + "/saved")
print(time.perf_counter() - loaded, len(mapped), sum(map(len, mapped["input_ids"])))
"""


def write_corpus(path: Path, times: int) -> None:
    """The paragraphs of Python's documentation as JSON Lines, again and again with another number before each."""
    paragraphs = [part for document in builtin_documents() for part in document.text.split("\n\n\n") if part.strip()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(times):
            for place, text in enumerate(paragraphs):
                file.write(json.dumps({"text": f"{number * 7919 + place} {text}"}) + "\n")


def bench_prepare(folder: Path) -> None:
    """Ours and the peer in turn, each in a process of its own with an empty cache."""
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    write_corpus(corpus, 12)
    train_bpe((d.text for d in builtin_documents()), vocab_size=4096).save_pretrained(tokenizer)
    quiet = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    speeds: dict[str, list[float]] = {"ours": [], "peer": []}
    tokens = set()
    for number in range(ROUNDS):
        for name, code in (("ours", _OURS), ("peer", _PEER)):
            command = [sys.executable, "-c", code, str(corpus), str(tokenizer), str(folder / f"{name}-{number}")]
            shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900, env=quiet)
            seconds, documents, count = shown.stdout.split()[-3:]
            speeds[name].append(int(documents) / float(seconds))
            tokens.add(int(count))
    assert len(tokens) == 1, f"both encode alike: {tokens}"
    ours, peer = (statistics.median(speeds[name]) for name in ("ours", "peer"))
    report(
        "prepare", documents_per_second=ours, peer_documents_per_second=peer, ratio=ours / peer, asked=1.5,
        corpus_bytes=corpus.stat().st_size, peer="datasets.map(batched=True, num_proc=2) and save_to_disk",
    )  # fmt: skip


def bench_memory(folder: Path) -> None:
    """The same text and ten times as much, encoded by one process and by two; the reading process is measured."""
    tokenizer = folder / "tokenizer"
    for processes in (1, 2):
        peaks = []
        for times in (5, 50):
            corpus = folder / f"corpus-{times}.jsonl"
            if not corpus.exists():
                write_corpus(corpus, times)
            code = _OURS.replace("validation_split=0.0", f"validation_split=0.0, num_proc={processes}")
            command = [sys.executable, "-c", code, str(corpus), str(tokenizer), str(folder / f"m{processes}-{times}")]
            _, _, shown = run_process(command, timeout=900)
            peaks.append(1024 * int(shown.split()[0]))
        report(
            "prepare_memory", processes=processes, peak_bytes=peaks[0], peak_bytes_of_ten=peaks[1],
            growth=peaks[1] / peaks[0] - 1, asked=0.10,
        )  # fmt: skip


def bench_loader() -> None:
    """Batches of the quickstart run, and its training step in the same process."""
    tokens = np.random.default_rng(0).integers(0, 4096, 20_000_000).astype("<u2")
    offsets = np.arange(1, len(tokens), 1_000, dtype="<u8")
    shards = ShardSet(tokens, np.append(offsets, len(tokens)), 1, 4096, 0)
    model = TransformerLM(
        ModelConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4), 4096, 256
    )
    model.initialize(0)
    steps: list[float] = []
    loads: dict[bool, list[float]] = {False: [], True: []}
    loaders = {
        masked: BatchLoader(TrainingSet((BlockSequences(shards, 256, document_mask=masked),)), 16, 0)
        for masked in (False, True)
    }
    for number in range(ROUNDS + 1):
        batch = loaders[False].batch_at(number * 16)
        began = time.perf_counter()
        loss = model.loss(batch.input_ids, batch.labels)
        loss.nats.backward()
        steps.append(time.perf_counter() - began)
        for masked, loader in loaders.items():
            batches = loader.batches(number * 10_000)
            began = time.perf_counter()
            for _ in range(200):
                next(batches)
            loads[masked].append((time.perf_counter() - began) / 200)
    step = statistics.median(steps[1:])
    for masked, seconds in loads.items():
        each = statistics.median(seconds[1:])
        report(
            "loader", document_mask=masked, tokens_per_second=4096 / each, trained_tokens_per_second=4096 / step,
            ratio=step / each, asked=50, left_out="the optimizer's part of the step",
        )  # fmt: skip


def bench_block(folder: Path) -> None:
    """Blocks of 257 ids at random places of a file of 400 MB, one at a time, as the loader reads them."""
    path = folder / "tokens.bin"
    with path.open("wb") as file:
        for number in range(100):
            file.write(np.random.default_rng(number).integers(0, 4096, 2_000_000).astype("<u2").tobytes())
    tokens = np.asarray(np.memmap(path, dtype="<u2", mode="r"))
    blocks = BlockSequences(ShardSet(tokens, np.array([1, len(tokens)]), 1, 4096, 0), 256)
    chance = random.Random(0)
    input_ids, labels = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    times = []
    for _ in range(20_000):
        number = chance.randrange(blocks.count)
        began = time.perf_counter()
        blocks.fill(number, input_ids, labels, None)
        times.append(time.perf_counter() - began)
    times.sort()
    report("block", median_us=1e6 * times[len(times) // 2], p99_us=1e6 * times[len(times) * 99 // 100], asked_us=20)


def bench_packing(folder: Path) -> None:
    """gsm8k where it is, and made-up lengths for the time that a million documents take."""
    data = os.environ.get("TEST_DATA_DIR")
    if data:
        tokenizer = load_tokenizer(Path(data) / "gpt2-tokenizer")
        for size in (256, 512, 1024, 2048):
            config = DataConfig(sources=(f"{data}/gsm8k-train.jsonl",), block_size=size, validation_split=0.0)
            prepared = prepare_shards(config, tokenizer, folder / "gsm8k")
            packed = ready_data(config, prepared, folder / "packed").audit.packing
            alone = ready_data(config.model_copy(update={"packing": "none"}), prepared, folder / "packed").audit.packing
            lengths = np.diff(np.asarray(prepared.train[0].offsets, dtype=np.int64))
            report(
                "packing", corpus="gsm8k-train", block_size=size, used=packed.filled / packed.capacity, asked=0.97,
                used_alone=alone.filled / alone.capacity, sequences=packed.sequences,
                fewest_possible=int(-(-lengths.sum() // size)), longest_document=int(lengths.max()),
            )  # fmt: skip
    else:
        print("TEST_DATA_DIR is not set: no gsm8k to pack", file=sys.stderr)
    lengths = np.random.default_rng(0).gamma(2.0, 150.0, 1_000_000).astype(np.int64).clip(1, 1024)
    began = time.perf_counter()
    _, counts = best_fit(lengths, 1024)
    seconds = time.perf_counter() - began
    report("packing", corpus="a million lengths", seconds=seconds, used=float(lengths.sum() / (len(counts) * 1024)))


def bench_conversations(folder: Path) -> None:
    """The same ChatML template with `generation` through ours and through transformers, tokens not counted."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ours = load_tokenizer(folder / "tokenizer")
    talk = (Message("user", "What is it? " * 20), Message("assistant", "It is so. " * 30)) * 2
    writer = ChatWriter(ours)
    messages = [message._asdict() for message in talk]
    speeds: dict[str, list[float]] = {"ours": [], "peer": []}
    with writer.open() as render:
        render([talk])
        for _ in range(ROUNDS):
            began = time.perf_counter()
            render([talk] * 2_000)
            speeds["ours"].append(2_000 / (time.perf_counter() - began))
            began = time.perf_counter()
            for _ in range(2_000):
                theirs.apply_chat_template(messages, chat_template=writer.template, tokenize=False)
            speeds["peer"].append(2_000 / (time.perf_counter() - began))
    ours_speed, peer = (statistics.median(speeds[name]) for name in ("ours", "peer"))
    report(
        "conversations", per_second=ours_speed, peer_per_second=peer, ratio=ours_speed / peer,
        peer="apply_chat_template(tokenize=False) in the same process, without spans or a time limit",
    )  # fmt: skip


def main() -> None:
    """All of them, one after the other."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_prepare(folder)
        bench_memory(folder)
        bench_loader()
        bench_block(folder)
        bench_packing(folder)
        bench_conversations(folder)


if __name__ == "__main__":
    main()
