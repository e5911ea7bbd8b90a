"""What memory a run takes: what was planned beside what it took, and whether it grows.

    python -m tests.bench.memory [--quick] [--json]

templates   the peak of two steps of each CPU template, beside what its plan said
growth      the memory of 10,000 steps of a tiny model after the tenth, halfway and at the end, in a process of its own
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.measure import run_process
from tests.bench.page import memory_table, text_of_table

TEMPLATES = {"quickstart": 1, "cpu-small": 2, "cpu-medium": 2}
"""Name -> passes of a step: with two, the gradients of the first lie beside the second, as with all that follow."""

STEPS = 10_000
FIRST = 10
"""Step whose memory the end is compared with."""


def planned(template: str, passes: int) -> dict[str, Any]:
    """Two steps of a template, not compiled."""
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        command = [
            sys.executable, "-m", "llmt", "train", template, "--json", "--max-steps", "2",
            "--gradient-accumulation-steps", str(passes), "--sample-tokens", "0",
            "--set", f"data.cache_dir={folder}/cache", "--set", "training.eval_batches=2",
        ]  # fmt: skip
        _, peak, _ = run_process(command, timeout=900, cwd=Path(folder))
        plan = json.loads((Path(folder) / "runs" / template / "plan.json").read_text())
    return {"name": template, "peak_memory_bytes": peak, "planned_bytes": plan["estimated_bytes"],
            "planned_over_peak": round(plan["estimated_bytes"] / peak, 3)}  # fmt: skip


def growth(steps: int) -> dict[str, Any]:
    """Many steps of a tiny model, as `llmt train` takes them."""
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        command = [sys.executable, "-m", "tests.bench.memory", "--child", folder, "--steps", str(steps)]
        _, _, shown = run_process(command, timeout=900, cwd=Path(__file__).parents[2])
    early, middle, late = map(int, shown.split())
    return {"name": "growth", "steps": steps, "bytes_after_10_steps": early, "bytes_halfway": middle,
            "bytes_at_the_end": late, "grown_bytes": late - early, "grown_since_halfway": late - middle}  # fmt: skip


def child(folder: Path, steps: int) -> None:
    """Train, and print the resident bytes after the tenth step, halfway and after the last."""
    from itertools import islice

    from llmt.system.memory import process_memory
    from llmt.training.build import build_trainer
    from tests.bench.contenders import Task, prepared_run
    from tests.bench.work import WORKS

    loop, keeper = build_trainer(prepared_run(Task(WORKS["tiny"], folder, steps, "")), base=None)
    found = []
    for report in islice(loop.run(), steps):
        keeper.log(report)
        if report.step in (FIRST, steps // 2, steps):
            found.append(process_memory())
    print(*found)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measures the memory that training takes.")
    parser.add_argument("--quick", action="store_true", help="one template, and a tenth of the steps")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        os.environ["OMP_NUM_THREADS"] = "1"  # the products of a tiny model are not worth a second thread
        child(Path(asked.child), asked.steps)
        return
    rows = [planned(*one) for one in list(TEMPLATES.items())[: 1 if asked.quick else None]]
    grown = growth(STEPS // 10 if asked.quick else STEPS)
    found = {"bench": "memory", "rows": rows, "growth": grown}
    if not asked.json:
        print(text_of_table(memory_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
