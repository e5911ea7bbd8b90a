"""What fine-tuning learns, on 7,473 questions with answers: all weights, an adapter, and the same adapter by trl.

    python -m tests.bench.sft [--base DIR] [--base-minutes 5] [--steps N] [--peer-steps N] [--seeds N] [--json]

The base is trained here on plain English, for a few minutes, unless `--base` names one. Of the questions of gsm8k every
twentieth is held out; the loss is that of the answers. `learning`: all weights and an adapter of llmt for equally many
steps; of several learning rates the one with the lowest held-out loss counts. `peer`: llmt and trl's SFTTrainer on
the same token ids in the same order with the same settings, in fp32; each of several seeds draws an order and the
adapter's first values. The texts are read from the folder that TEST_DATA_DIR names. The last line is JSON.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.page import sft_table, text_of_table
from tests.bench.sft_peer import Recipe, trained_by_trl

QUESTIONS = "gsm8k-train.jsonl"
ENGLISH = ("wikitext2-valid.txt", "botchan.txt")
"""What the base reads beside the built-in text."""

SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4}
VOCABULARY = 8192
BLOCK = 384
BATCH = 8
HELD_OUT = 20
"""One row of so many is held out."""

LAST = 20
"""Steps at the end whose mean is compared."""

TIMEOUT = 3600


@dataclass(frozen=True)
class Rows:
    """The questions, in files.

    Attributes:
        train: To learn.
        held_out: To measure on.
        counts: How many there are of each, and how many are too long.
        block_size: Tokens of a sequence, no more than the base reads.
    """

    train: Path
    held_out: Path
    counts: dict[str, int]
    block_size: int


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measures what fine-tuning learns, beside trl.")
    parser.add_argument("--base", type=Path, default=None, help="the base; trained there where there is none")
    parser.add_argument("--base-minutes", type=float, default=5.0, help="how long the base is trained")
    parser.add_argument("--parts", default="learning,peer", help="what is measured, with commas")
    parser.add_argument("--steps", type=int, default=300, help="of all weights and of the adapter")
    parser.add_argument("--full-rates", default="1e-3", help="learning rates of all weights, with commas")
    parser.add_argument("--lora-rates", default="5e-3", help="learning rates of the adapter, with commas")
    parser.add_argument("--r", type=int, default=8, help="rank of the adapters; alpha is twice as much")
    parser.add_argument("--peer-steps", type=int, default=100, help="of each run beside trl")
    parser.add_argument("--peer-rate", type=float, default=2e-3, help="learning rate of both beside trl")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each beside trl, at least 2")
    parser.add_argument("--rows", type=int, default=0, help="questions that are read; 0 is all")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    asked = parser.parse_args()
    if asked.seeds < 2 or min(asked.steps, asked.peer_steps) < 1:
        sys.exit("a standard error needs two seeds, and a curve a step")
    return asked


def texts() -> Path | None:
    """Their folder; None, with a word, where it is absent."""
    folder = os.environ.get("TEST_DATA_DIR", "")
    if folder and all(Path(folder, name).is_file() for name in (QUESTIONS, *ENGLISH)):
        return Path(folder)
    print(f"sft: TEST_DATA_DIR does not name a folder with {', '.join((QUESTIONS, *ENGLISH))}", file=sys.stderr)
    return None


def train_base(directory: Path, folder: Path, minutes: float) -> float:
    """`llmt train` on plain English; wall seconds."""
    settings = {
        "output_dir": str(directory), "model": SHAPE, "tokenizer": {"algo": "bpe", "vocab_size": VOCABULARY},
        "data": {"sources": ["builtin", *(str(folder / name) for name in ENGLISH)], "block_size": BLOCK},
        "training": {"max_time": f"{round(60 * minutes)}s", "num_train_epochs": 20, "compile": "never",
                     "per_device_train_batch_size": BATCH},
        "logging": {"sample_tokens": 0},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as place:
        config = Path(place, "base.yaml")
        config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        began = time.perf_counter()
        command = [sys.executable, "-m", "llmt", "train", str(config)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
    return time.perf_counter() - began


def divide(questions: Path, base: Path, folder: Path, most: int) -> Rows:
    """Write the questions that fit into a sequence to two files."""
    from llmt.text.prompts import ANSWER, QUESTION_PROMPT
    from llmt.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(base)
    block_size = min(BLOCK, json.loads((base / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])
    kept: tuple[list[str], list[str]] = ([], [])
    lines = questions.read_text(encoding="utf-8").splitlines()[: most or None]
    for number, line in enumerate(lines):
        row = json.loads(line)
        prompt, answer = QUESTION_PROMPT.format(**row), ANSWER.format(**row)
        if len(tokenizer.encode(prompt)) + len(tokenizer.encode(answer)) < block_size:  # and the end of text
            kept[number % HELD_OUT == 0].append(line)
    paths = (folder / "train.jsonl", folder / "held-out.jsonl")
    for path, found in zip(paths, kept, strict=True):
        path.write_text("\n".join(found) + "\n", encoding="utf-8")
    learnt, held = map(len, kept)
    return Rows(*paths, {"train": learnt, "held_out": held, "too_long": len(lines) - learnt - held}, block_size)


def settings(base: Path, rows: Rows, run: Path, adapter: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A run of llmt on the questions; `training` and `data` add to what all have."""
    return {
        "output_dir": str(run), "base": str(base), "seed": more.get("seed", 42),
        "lora": {"enabled": bool(adapter), **adapter},
        "data": {"sources": [str(rows.train)], "validation_sources": [str(rows.held_out)],
                 "block_size": rows.block_size,
                 "cache_dir": str(run.parent / "cache"), **more.get("data", {})},
        "training": {"per_device_train_batch_size": BATCH, "optimizer": "adamw", "lr_scheduler_type": "linear",
                     "eval_strategy": "no", "save_steps": 1_000_000, **more["training"]},
    }  # fmt: skip


def trained(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """A run of llmt: its losses by step, and the held-out loss before and after it."""
    from llmt.config.run import TrainConfig
    from llmt.training.build import build_trainer, prepare

    config = TrainConfig.model_validate(values)
    began = time.perf_counter()
    prepared = prepare(config, Path(values["output_dir"]), base=base, resume=False, progress=lambda *_: None)
    loop, keeper = build_trainer(prepared, base=base)
    before = loop.evaluate()
    losses = []
    for report in loop.run():
        keeper.log(report)
        losses.append(report.loss)
    after = loop.evaluate()
    assert before is not None
    assert after is not None
    return {"losses": [round(loss, 6) for loss in losses], "before": before.loss, "after": after.loss,
            "tokens": after.tokens, "learnt": loop.state.tokens, "seconds": time.perf_counter() - began,
            "precision": prepared.plan.precision, "compile": prepared.plan.compile,
            "prepared": prepared}  # fmt: skip


def learning(asked: argparse.Namespace, base: Path, rows: Rows, folder: Path) -> dict[str, Any]:
    """All weights and an adapter, each with the best of its learning rates."""
    adapters: dict[str, dict[str, Any]] = {"full": {}, "lora": {"r": asked.r, "alpha": 2 * asked.r}}
    found: dict[str, dict[str, Any]] = {}
    before = 0.0
    for name, adapter in adapters.items():
        tried = []
        for rate in getattr(asked, f"{name}_rates").split(","):
            training = {"max_steps": asked.steps, "learning_rate": float(rate), "weight_decay": 0.0}
            run = trained(settings(base, rows, folder / f"{name}-{rate}", adapter, training=training), base)
            before = run["before"]
            tried.append({"learning_rate": float(rate), "after": round(run["after"], 4),
                          "end": round(statistics.mean(run["losses"][-LAST:]), 4), "curve": run["losses"],
                          "seconds": round(run["seconds"], 1), "answer_tokens": run["learnt"],
                          "precision": run["precision"], "compile": run["compile"]})  # fmt: skip
            print(f"{name}, {rate}: {before:.4f} -> {run['after']:.4f} in {run['seconds']:.0f} s", file=sys.stderr)
        best = min(tried, key=lambda one: one["after"])
        others = {one["learning_rate"]: one["after"] for one in tried}
        found[name] = {**best, "after_by_rate": others}
    fall = (before - found["lora"]["after"]) / (before - found["full"]["after"])
    return {"steps": asked.steps, "before": round(before, 4), "learning": found, "share_of_fall": round(fall, 4)}


def peer(asked: argparse.Namespace, base: Path, rows: Rows, folder: Path) -> dict[str, Any]:
    """The same adapter by llmt and by trl: curves, and by how much they differ, with the standard error over seeds."""
    recipe = Recipe(steps=asked.peer_steps, batch_size=BATCH, learning_rate=asked.peer_rate, r=asked.r)
    curves: dict[str, list[list[float]]] = {"llmt": [], "trl": []}
    held_out: dict[str, list[float]] = {"llmt": [], "trl": []}
    for seed in range(asked.seeds):
        values = settings(
            base, rows, folder / f"llmt-{seed}", {"r": recipe.r, "alpha": recipe.alpha}, seed=seed,
            data={"packing": "none"}, training={**recipe.of_llmt(), "precision": "fp32", "compile": "never"},
        )  # fmt: skip
        ours = trained(values, base)
        theirs = trained_by_trl(recipe, base, rows.train, ours.pop("prepared"), folder / f"trl-{seed}")
        for name, run in (("llmt", ours), ("trl", theirs)):
            curves[name].append(run["losses"])
            held_out[name].append(run["after"])
            end = statistics.mean(run["losses"][-LAST:])
            print(f"seed {seed}, {name}: {end:.4f}, held out {run['after']:.4f}", file=sys.stderr)
    ends = {name: [statistics.mean(curve[-LAST:]) for curve in found] for name, found in curves.items()}
    return {"steps": recipe.steps, "seeds": asked.seeds, "last": LAST, "curves": curves, "end": difference(ends),
            "held_out": difference(held_out), "recipe": recipe.values()}  # fmt: skip


def difference(found: dict[str, list[float]]) -> dict[str, Any]:
    """The means over seeds, mean and standard error of llmt - trl seed by seed, and how far seeds of trl differ."""
    pairs = [ours - theirs for ours, theirs in zip(found["llmt"], found["trl"], strict=True)]
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return {**{name: round(statistics.mean(values), 6) for name, values in found.items()},
            "difference": round(statistics.mean(pairs), 6), "standard_error": round(error, 6),
            "of_each_seed": [round(pair, 6) for pair in pairs],
            "spread_of_seeds": round(statistics.stdev(found["trl"]), 6)}  # fmt: skip


def compare(asked: argparse.Namespace, source: Path) -> dict[str, Any]:
    """All that was asked for."""
    from llmt.checkpoints.runs import resolve_model_directory
    from llmt.models.load import load_model

    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as name:
        folder = Path(name)
        named = asked.base or folder / "base"
        seconds = None if named.exists() else train_base(named, source, asked.base_minutes)
        base = resolve_model_directory(named)
        rows = divide(source / QUESTIONS, base, folder, asked.rows)
        found = {"bench": "sft", "parameters": load_model(base).num_parameters(), "rows": rows.counts,
                 "block_size": rows.block_size, "batch_size": BATCH, "r": asked.r,
                 "base_seconds": seconds if seconds is None else round(seconds, 1)}  # fmt: skip
        if "learning" in asked.parts.split(","):
            found |= learning(asked, base, rows, folder)
        if "peer" in asked.parts.split(","):
            found["peer"] = peer(asked, base, rows, folder)
    return found


def main() -> None:
    """Compare, and print."""
    asked, source = arguments(), texts()
    if source is None:
        print(json.dumps({"bench": "sft", "left_out": ["the texts"]}))
        return
    found = compare(asked, source)
    if not asked.json:
        print(text_of_table(sft_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
