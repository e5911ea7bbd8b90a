"""Whether a step costs more where there is more text: a tiny model on 1 MB and on 1 GB, in turns.

    python -m tests.bench.corpus [--quick] [--json]

The texts are the built-in one, cut or repeated, under one tokenizer. Each turn is a process of its own, on one thread.
The last line is JSON: the ratio of the rates with its 95 % interval over the pairs, and the memory of both.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.measure import run_process
from tests.bench.page import corpus_table, text_of_table

SMALL, LARGE = 1_000_000, 1_000_000_000
STEPS = 1000
PAIRS = 6
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Number of pairs -> what a standard error of their mean is multiplied by (Student's t, both sides)."""

TIMEOUT = 900


def settings(folder: Path, name: str) -> dict[str, Any]:
    """The run on one of the texts."""
    from tests.bench.work import WORKS

    work = WORKS["tiny"]
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "device": "cpu", "threads": 1, "output_dir": str(folder / "run"),
        "model": {key: work.values()[key] for key in shape}, "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {"sources": [str(folder / f"{name}.txt")], "block_size": work.length, "validation_split": 0.0,
                 "cache_dir": str(folder / "cache")},
        "training": {"per_device_train_batch_size": work.batch_size, "max_steps": STEPS, "save_steps": STEPS,
                     "eval_strategy": "no", "optimizer": "adamw", "compile": "never"},
    }  # fmt: skip


def write_texts(folder: Path, large: int) -> None:
    """`small.txt`, `large.txt`, and a tokenizer of the first in `tokenizer`."""
    from llmt.text.builtin import builtin_documents

    text = "\n\n".join(document.text for document in builtin_documents()).encode()
    (folder / "small.txt").write_bytes(text[:SMALL].decode(errors="ignore").encode())
    with (folder / "large.txt").open("wb") as file:
        for start in range(0, large, len(text)):
            file.write(text[: large - start].decode(errors="ignore").encode())
    command = [sys.executable, "-m", "llmt", "tokenizer", "train", "--algo", "bpe", "--vocab-size", "1024",
               "--data", str(folder / "small.txt"), "--output-dir", str(folder / "tokenizer")]  # fmt: skip
    run_process(command, timeout=TIMEOUT, cwd=folder)


def child(folder: Path, name: str) -> None:
    """Train; print the median seconds of a step, and the resident bytes at the end without those of mapped files."""
    import time

    import psutil

    from llmt.config.run import TrainConfig
    from llmt.training.build import build_trainer, prepare

    config = TrainConfig.model_validate(settings(folder, name))
    prepared = prepare(config, folder / "run", base=None, resume=False, progress=lambda *_: None)
    loop, keeper = build_trainer(prepared, base=None)
    ends = []
    for report in loop.run():
        keeper.log(report)
        ends.append(time.perf_counter())
    taken = psutil.Process().memory_info()
    own = taken.rss - getattr(taken, "shared", 0)  # what is mapped, the system takes back when it needs room
    print(statistics.median(late - early for early, late in pairwise(ends)), own)


def turn(folder: Path, name: str) -> tuple[float, int]:
    """One process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "tests.bench.corpus", "--child", name, "--folder", str(folder)]
    _, _, shown = run_process(command, timeout=TIMEOUT, cwd=Path(__file__).parents[2])
    seconds, memory = shown.split()
    return float(seconds), int(memory)


def compare(large: int, pairs: int) -> dict[str, Any]:
    """All turns."""
    from tests.bench.work import WORKS

    tokens = WORKS["tiny"].tokens
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as name:
        folder = Path(name)
        write_texts(folder, large)
        turns: dict[str, list[tuple[float, int]]] = {"small": [], "large": []}
        for text in turns:
            turn(folder, text)  # reads and encodes it, which does not count
        for number in range(pairs):
            for text in turns if number % 2 == 0 else reversed(turns):
                turns[text].append(turn(folder, text))
    logs = [math.log(s[0] / b[0]) for s, b in zip(turns["small"], turns["large"], strict=True)]
    middle, half = statistics.mean(logs), T_95[pairs] * statistics.stdev(logs) / math.sqrt(pairs)
    rows = [{"name": text, "bytes": size, "memory_bytes": int(statistics.median(m for _, m in turns[text])),
             "tokens_per_second": round(tokens / statistics.median(s for s, _ in turns[text]), 1)}
            for text, size in (("small", SMALL), ("large", large))]  # fmt: skip
    ratio, low, high = (round(math.exp(value), 4) for value in (middle, middle - half, middle + half))
    return {"bench": "corpus", "pairs": pairs, "steps": STEPS, "rows": rows,
            "ratio": ratio, "interval": [low, high]}  # fmt: skip


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measures steps on a small and on a large text.")
    parser.add_argument("--quick", action="store_true", help="30 MB instead of 1 GB, and three pairs")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument("--child", choices=("small", "large"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.folder, asked.child)
        return
    found = compare(LARGE // 33 if asked.quick else LARGE, 3 if asked.quick else PAIRS)
    if not asked.json:
        print(text_of_table(corpus_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
