"""Tokens a second and peak memory of training an adapter: llmt beside peft and trl, in fresh processes that take turns.

    python -m tests.bench.finetune [--ours NAMES] [--peers NAMES] [--quick] [--json]

The base is a Llama of 25M parameters that has learnt nothing, the adapter of rank 8 on every linear layer of its
blocks, a step 8 x 256 tokens. Each contender is compared with the first of llmt that computes in the same precision.
A step during which other processes took more than 15 % of the cores does not count. Peers that are not installed are
left out by name. The last line is JSON.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.page import finetune_table, text_of_table
from tests.bench.train import WARM, Turns, row, run, take_turns
from tests.bench.work import WORKS

OURS = "llmt_lora,llmt_lora_eager,llmt_lora_fp32"
"""The first of each precision is set beside the peers of that precision."""

PEERS = (
    "peft_loop_bf16,peft_loop_bf16_autocast,peft_loop_bf16_compile,trl,trl_mixed,trl_bf16,trl_bf16_compile,"
    "peft_loop,peft_loop_compile,trl_fp32"
)
"""With their defaults, and with all that may make them faster."""

NEEDS = {"peft": "peft", "trl": "trl"}
"""What a peer imports, by how its name begins."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compares the speed and memory of training adapters.")
    parser.add_argument("--work", choices=WORKS, default="25m", help="shape of the base")
    parser.add_argument("--batch-size", type=int, default=None, help="sequences of a step")
    parser.add_argument("--length", type=int, default=None, help="tokens of a sequence")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    parser.add_argument("--ours", default=OURS, help="ways of llmt, with commas")
    parser.add_argument("--peers", default=PEERS, help="with commas; empty for none")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--steps", type=int, default=15, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="one round of few steps, the fastest of each peer alone")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.steps = 1, min(asked.steps, WARM + 4)
        asked.ours, asked.peers = "llmt_lora", "peft_loop_bf16_autocast,trl_bf16"
    return asked


def installed(name: str) -> bool:
    """Whether a contender can run."""
    needed = next((package for begins, package in NEEDS.items() if name.startswith(begins)), "peft")
    return importlib.util.find_spec(needed) is not None


def rows_of(turns: Turns, work: Any) -> list[dict[str, Any]]:
    """The numbers of all; ours over each are those of the same precision."""
    own: dict[str, list[dict[str, Any]]] = {}
    for name, found in turns.items():
        if name.startswith("llmt"):
            own.setdefault(found[0]["precision"], found)
    return [row(name, found, own[found[0]["precision"]], work) for name, found in turns.items()
            if found[0]["precision"] in own]  # fmt: skip


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """All turns; the rows of the table."""
    work = WORKS[asked.work].with_batch(asked.batch_size, asked.length, asked.device)
    names = [name for name in f"{asked.ours},{asked.peers}".split(",") if name]
    absent = [name for name in names if not installed(name)]
    turns: Turns = {name: [] for name in names if name not in absent}
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        made = run("base", work, Path(folder), asked.steps, kind="adapters")
        if made is None:
            sys.exit("the base could not be made")
        work = replace(work, vocab_size=made["vocab_size"])  # as many as the text could fill

        def turn(name: str) -> dict[str, Any] | None:
            return run(name, work, Path(folder), asked.steps, kind="adapters")

        for number in range(asked.rounds):
            absent += take_turns(turns, number, turn)
    rows = rows_of(turns, work)
    if not rows or not rows[0]["name"].startswith("llmt"):
        sys.exit("llmt failed: there is nothing to compare")
    absent += [name for name in turns if name not in {one["name"] for one in rows}]
    return {"bench": "finetune", "work": work.values(), "parameters": work.parameters, "rows": rows,
            "left_out": absent}  # fmt: skip


def main() -> None:
    """Compare, and print."""
    asked = arguments()
    found = compare(asked)
    if not asked.json:
        print(text_of_table(finetune_table(found)))
        print(*(["left out: " + ", ".join(found["left_out"])] if found["left_out"] else []))
    rows = found["rows"]
    last = {name: rows[0][name] for name in ("tokens_per_second", "peak_memory_bytes")}
    for name in ("ratio", "memory_ratio"):
        last[name] = {one["name"]: one[name] for one in rows[1:]}
    print(json.dumps({**found, **last}), flush=True)


if __name__ == "__main__":
    main()
