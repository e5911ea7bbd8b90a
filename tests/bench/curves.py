"""The loss over 500 steps in bf16 and in fp32, for three seeds: does rounding change what is learnt?

    python -m tests.bench.curves [--steps N] [--seeds N] [--json]

Both ways see the same sequences in the same order, from the same initial weights. What two seeds of one way differ
by is the noise that the difference of the two ways is compared with.
"""

import argparse
import json
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from tests.bench.page import curves_table, text_of_table

SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
WAYS = ("fp32", "bf16")
LAST = 50
"""Steps at the end whose mean is compared."""


def losses(precision: str, seed: int, steps: int, folder: Path) -> list[float]:
    """Nats a token of each step."""
    from llmt.config.run import TrainConfig
    from llmt.training.build import build_trainer, prepare

    run = folder / f"{precision}-{seed}"
    config = TrainConfig.model_validate({
        "output_dir": str(run), "seed": seed, "model": SHAPE, "tokenizer": {"algo": "bpe", "vocab_size": 2048},
        "data": {"sources": ["builtin"], "block_size": 128, "validation_split": 0.0,
                 "cache_dir": str(folder / "cache")},
        "training": {"per_device_train_batch_size": 8, "max_steps": steps, "save_steps": steps, "eval_strategy": "no",
                     "precision": precision, "compile": "never"},
    })  # fmt: skip
    prepared = prepare(config, run, base=None, resume=False, progress=lambda *_: None)
    loop, _ = build_trainer(prepared, base=None)
    return [report.loss for report in islice(loop.run(), steps)]


def compare(steps: int, seeds: int) -> dict[str, Any]:
    """All curves, and by how much the two ways and the seeds differ at their end."""
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        curves = {
            way: [[round(loss, 4) for loss in losses(way, seed, steps, Path(folder))] for seed in range(seeds)]
            for way in WAYS
        }
    ends = {way: [statistics.mean(curve[-LAST:]) for curve in found] for way, found in curves.items()}
    differences = [half - full for half, full in zip(ends["bf16"], ends["fp32"], strict=True)]
    return {
        "bench": "curves", "steps": steps, "curves": curves,
        "end": {way: round(statistics.mean(found), 4) for way, found in ends.items()},
        "difference": round(statistics.mean(differences), 4),
        "spread_of_seeds": round(statistics.stdev(ends["fp32"]), 4),
    }  # fmt: skip


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description="Compares what is learnt in bf16 and in fp32.")
    parser.add_argument("--steps", type=int, default=500, help="of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way, at least 2")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    asked = parser.parse_args()
    if asked.seeds < 2 or asked.steps < 1:
        sys.exit("a spread needs two seeds, and a curve a step")
    found = compare(asked.steps, asked.seeds)
    if not asked.json:
        print(text_of_table(curves_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
