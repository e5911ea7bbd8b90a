"""What each lever of speed and memory brings alone, beside the plain way that it stands for.

    python -m tests.bench.levers [--json]

reuse_memory  a training step with what is freed kept, and given back as glibc does it
loss          loss and gradients in pieces, and from all logits; the peak memory of both, in processes of their own
dropout       forward and backward from few random bits, and as torch draws
muon          steps with three and with five iterations

Both ways take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.page import levers_table, text_of_table
from tests.bench.train import rate, run
from tests.bench.work import WORKS

ROOT = Path(__file__).parents[2]
ROUNDS = 3
STEPS = 12
WORK = WORKS["20m"]
WAYS = {"reuse_memory": ("llmt_adamw", "llmt_adamw_given_back"), "muon": ("llmt_three_iterations", "llmt")}
"""Lever -> contender with it, and without."""


def steps_of(lever: str, folder: Path) -> dict[str, Any]:
    """Tokens a second of both ways."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS[lever]}
    for _ in range(ROUNDS):
        for name in rates:
            turn = run(name, WORK, folder, STEPS)
            if turn is None:
                sys.exit(f"{name} failed")
            rates[name].append(rate(turn, WORK))
    fast, plain = (statistics.median(found) for found in rates.values())
    return {"name": lever, "unit": "tokens/s", "with": round(fast), "without": round(plain), "gain": fast / plain}


def paired(fast: Callable[[], object], plain: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, after two rounds that do not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(11):
        for found, call in zip(times, (fast, plain), strict=True):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def loss_ways() -> tuple[Callable[[], object], Callable[[], object]]:
    """Loss and gradients of the yardstick's batch in bf16, in pieces and from all logits."""
    import torch
    import torch.nn.functional as F

    from llmt.models.chunked_loss import summed_nats
    from llmt.models.loss import logits_loss
    from llmt.system.allocator import can_reuse_memory, reuse_memory

    if can_reuse_memory():
        reuse_memory()
    hidden = torch.randn(WORK.tokens, WORK.hidden_size).bfloat16().requires_grad_(True)
    head = (torch.randn(WORK.vocab_size, WORK.hidden_size) * 0.02).bfloat16().requires_grad_(True)
    labels = torch.randint(WORK.vocab_size, (WORK.tokens,))

    def pieces() -> object:
        return torch.autograd.grad(summed_nats(hidden, head, labels) / WORK.tokens, (hidden, head))

    def whole() -> object:
        return torch.autograd.grad(logits_loss(F.linear(hidden, head), labels) / WORK.tokens, (hidden, head))

    return pieces, whole


def dropout_ways() -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward and backward over two million values in bf16."""
    import torch
    import torch.nn.functional as F

    from llmt.models.dropout import dropout
    from llmt.system.allocator import can_reuse_memory, reuse_memory

    if can_reuse_memory():
        reuse_memory()
    x = torch.randn(2**21).bfloat16().requires_grad_(True)
    slope = torch.ones_like(x)
    return (
        lambda: torch.autograd.grad(dropout(x, 0.1), x, slope),
        lambda: torch.autograd.grad(F.dropout(x, 0.1), x, slope),
    )


def alone(lever: str, way: int) -> None:
    """In a process of its own: the bytes that one way adds to what stood before it."""
    from llmt.system.memory import peak_memory, process_memory, reset_peak

    call = {"loss": loss_ways, "dropout": dropout_ways}[lever]()[way]
    before = process_memory()
    reset_peak()
    for _ in range(3):
        call()
    print(peak_memory() - before)


def compared(lever: str) -> list[dict[str, Any]]:
    """Milliseconds of both ways, and for the loss the bytes that each takes."""
    fast, plain = paired(*{"loss": loss_ways, "dropout": dropout_ways}[lever]())
    rows: list[dict[str, Any]] = [{"name": lever, "unit": "ms", "with": round(fast * 1e3, 1),
                                   "without": round(plain * 1e3, 1), "gain": plain / fast}]  # fmt: skip
    if lever == "loss":
        taken = []
        for way in (0, 1):
            command = [sys.executable, "-m", "tests.bench.levers", "--alone", lever, "--way", str(way)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
            taken.append(int(done.stdout))
        few, many = taken
        rows.append({"name": "loss, memory", "unit": "MB", "with": round(few / 1e6), "without": round(many / 1e6),
                     "gain": many / few})  # fmt: skip
    return rows


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measures what each lever brings alone.")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    parser.add_argument("--way", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        alone(asked.alone, asked.way)
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as name:
        if run("data", WORK, Path(name), STEPS) is None:
            sys.exit("the data could not be made")
        for lever in WAYS:
            rows.append(steps_of(lever, Path(name)))
    for lever in ("loss", "dropout"):
        rows += compared(lever)
    found = {"bench": "levers", "rows": [{**row, "gain": round(row["gain"], 2)} for row in rows]}
    if not asked.json:
        print(text_of_table(levers_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
