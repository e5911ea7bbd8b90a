"""Tokens a second, peak memory and MFU of training: llmt beside its peers, in fresh processes that take turns.

    python -m tests.bench.train --peers hf_trainer,hf_trainer_bf16,litgpt,nanogpt [--quick] [--json]

Peers that are not installed are left out by name; `--litgpt` and `--nanogpt` say where their code is. A step during
which other processes took more than 15 % of the cores does not count. MFU is against the products of the same step
alone, in bf16, measured in the same run. The last line is JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.page import speed_table, text_of_table
from tests.bench.work import WORKS, Work

ROOT = Path(__file__).parents[2]
OURS = "llmt_adamw,llmt"
"""The first is set beside each peer: it has the optimizer that all peers have."""

PEERS = ("hf_trainer", "hf_trainer_bf16", "hf_loop", "litgpt", "nanogpt")
QUIET = 0.15
"""Share of the cores that others may take during a step that counts."""

WARM = 3
"""First steps that do not count: they compile and allocate."""

TIMEOUT = 900
"""Seconds for one contender."""

TOLD = ("parameters", "trained", "precision", "compile", "threads")
"""What a contender says of itself, where it does."""

NEEDS = {"hf": "transformers", "litgpt": "litgpt", "nanogpt": "model"}
"""What a peer imports."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compares the training speed and memory of llmt with its peers.")
    parser.add_argument("--work", choices=WORKS, default="20m", help="shape of the model")
    parser.add_argument("--batch-size", type=int, default=None, help="sequences of a step")
    parser.add_argument("--length", type=int, default=None, help="tokens of a sequence")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    parser.add_argument("--ours", default=OURS, help="ways of llmt, with commas; the first is compared")
    parser.add_argument("--peers", default=",".join(PEERS), help="with commas; empty for none")
    parser.add_argument("--litgpt", default="", help="folder that holds the package litgpt and what it needs")
    parser.add_argument("--nanogpt", default="", help="checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--steps", type=int, default=15, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="one round of few steps")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.steps = 1, min(asked.steps, WARM + 5)
    return asked


def place_of(name: str, asked: argparse.Namespace) -> str | None:
    """Where the code of a contender is: empty where it is installed, None where it is not."""
    peer = next((peer for peer in NEEDS if name.startswith(peer)), "")
    if not peer:
        return ""
    path = {"litgpt": asked.litgpt, "nanogpt": asked.nanogpt}.get(peer, "")
    if path:
        module = Path(path, NEEDS[peer])
        return path if module.is_dir() or module.with_suffix(".py").is_file() else None
    return "" if peer != "nanogpt" and importlib.util.find_spec(NEEDS[peer]) else None


def run(
    name: str, work: Work, folder: Path, steps: int, path: str = "", *, kind: str = "contenders"
) -> dict[str, Any] | None:
    """One turn of a contender, of the module that `kind` names; None where it failed."""
    command = [sys.executable, "-m", f"tests.bench.{kind}", name, json.dumps(work.values()), str(folder),
               str(steps), path]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: not done after {TIMEOUT} s", file=sys.stderr)
        return None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        print(f"{name}: {said[-1][:300]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rate(turn: dict[str, Any], work: Work) -> float:
    """Tokens a second of the median quiet step; of all that count where none is quiet."""
    counted = turn["steps"][WARM:]
    quiet = [seconds for seconds, others in counted if others <= QUIET]
    return work.tokens / statistics.median(quiet or [seconds for seconds, _ in counted])


Turns = dict[str, list[dict[str, Any]]]
"""Contender -> what it did in each round."""


def take_turns(turns: Turns, number: int, turn: Callable[[str], dict[str, Any] | None]) -> list[str]:
    """A round: each contender once; those that failed are taken out, and their names returned."""
    order, failed = list(turns), []
    for name in order if number % 2 == 0 else reversed(order):  # nobody is always first, or always late
        found = turn(name)
        if found is None:
            failed.append(name)
            del turns[name]
        else:
            turns[name].append(found)
    return failed


def row(name: str, turns: list[dict[str, Any]], ours: list[dict[str, Any]], work: Work) -> dict[str, Any]:
    """The numbers of one contender, and ours over them, turn by turn."""
    rates = [rate(turn, work) for turn in turns]
    counted = [step for turn in turns for step in turn["steps"][WARM:]]
    middle = statistics.median(rates)
    memory = statistics.median(turn["peak_memory_bytes"] for turn in turns)
    pairs = zip(ours, turns, strict=True)
    told = {
        key: turns[0][key] for key in ("parameters", "trained", "precision", "compile", "threads") if key in turns[0]
    }
    return {
        "name": name, "tokens_per_second": round(middle, 1), "of_each_turn": [round(r, 1) for r in rates],
        "best_step": round(work.tokens / min(seconds for seconds, _ in counted), 1),
        "quiet_steps": sum(others <= QUIET for _, others in counted), "steps": len(counted),
        "others": round(statistics.median(others for _, others in counted), 3),
        "first_step_seconds": round(turns[0]["steps"][0][0], 2), "peak_memory_bytes": int(memory),
        "ratio": round(statistics.median(rate(one, work) / rate(other, work) for one, other in pairs), 3),
        "memory_ratio": round(statistics.median(t["peak_memory_bytes"] for t in ours) / memory, 3), **told,
    }  # fmt: skip


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """All turns; the rows of the table."""
    work = WORKS[asked.work].with_batch(asked.batch_size, asked.length, asked.device)
    names = [name for name in f"{asked.ours},{asked.peers}".split(",") if name]
    places = {name: place_of(name, asked) for name in names}
    absent = [name for name, place in places.items() if place is None]
    turns: Turns = {name: [] for name in names if places[name] is not None}
    peak: list[float] = []
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        made = run("data", work, Path(folder), asked.steps)
        if made is None:
            sys.exit("the data could not be made")
        work = replace(work, vocab_size=made["vocab_size"])  # as many as the text could fill

        def turn(name: str) -> dict[str, Any] | None:
            return run(name, work, Path(folder), asked.steps, places[name] or "")

        for number in range(asked.rounds):
            measured = run("product", work, Path(folder), 5)
            if measured is None:
                sys.exit("the products could not be measured")
            peak.append(measured["flops_per_second"]["bf16"])
            absent += take_turns(turns, number, turn)
    first = asked.ours.split(",")[0]
    if first not in turns:
        sys.exit(f"{first} failed: there is nothing to compare")
    ceiling = max(peak)
    rows = [row(name, found, turns[first], work) for name, found in turns.items()]
    for one in rows:
        one["mfu"] = round(one["tokens_per_second"] * work.flops_per_token / ceiling, 4)
    return {"bench": "train", "work": work.values(), "parameters": work.parameters, "product_flops": round(ceiling),
            "rows": rows, "left_out": absent}  # fmt: skip


def main() -> None:
    """Compare, and print."""
    asked = arguments()
    found = compare(asked)
    if not asked.json:
        print(text_of_table(speed_table(found)))
        print(*(["left out: " + ", ".join(found["left_out"])] if found["left_out"] else []))
    ours, *peers = found["rows"]
    last = {name: ours[name] for name in ("tokens_per_second", "peak_memory_bytes", "mfu")}
    ratio = {one["name"]: one["ratio"] for one in peers}
    print(json.dumps({**found, **last, "ratio": ratio}), flush=True)


if __name__ == "__main__":
    main()
