"""What comes before the first result: `llmt --help`, and the first step with and without a compiler's work.

    python -m tests.bench.startup [--quick] [--json]

help        beside importing the libraries that draw it, in turns
first_step  seconds of the first step of the yardstick's model, over those of a later one: without compiling, with an
            empty cache of compiled code and with a full one; and the steps after which compiling has won its time back
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.measure import paired_medians
from tests.bench.page import startup_table, text_of_table
from tests.bench.work import WORKS

ROOT = Path(__file__).parents[2]
STEPS = 10
HELP = (sys.executable, "-m", "llmt", "--help")
IMPORTS = (sys.executable, "-c", "import typer, rich, pydantic")


def first_step(work: str, way: str, folder: Path, cache: Path) -> tuple[float, float]:
    """Seconds of the first step, and of the median one after it."""
    command = [sys.executable, "-m", "tests.bench.contenders", way, json.dumps(WORKS[work].values()), str(folder),
               str(STEPS), ""]  # fmt: skip
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=900)
    steps = [seconds for seconds, _ in json.loads(done.stdout.splitlines()[-1])["steps"]]
    return steps[0], statistics.median(steps[3:])


def compiling(work: str) -> dict[str, Any]:
    """What compiling costs and gains; the first step includes preparing the run, which all three do."""
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as name:
        folder, cache = Path(name), Path(name, "compiled")
        first_step(work, "llmt_adamw_eager", folder, cache)  # makes the data
        eager, plain = first_step(work, "llmt_adamw_eager", folder, cache)
        cold, fast = first_step(work, "llmt_adamw", folder, cache)
        warm, again = first_step(work, "llmt_adamw", folder, cache)
    gain = plain - min(fast, again)
    return {"name": work, "eager_first": round(eager, 2), "cold_first": round(cold, 2), "warm_first": round(warm, 2),
            "eager_step": round(plain, 3), "compiled_step": round(min(fast, again), 3),
            "won_back_after_steps": round((cold - eager) / gain) if gain > 0 else None}  # fmt: skip


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measures what comes before the first result.")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    asked = parser.parse_args()
    seconds, floor = paired_medians(HELP, IMPORTS, runs=5 if asked.quick else 15, timeout=30)
    shown = {"seconds": round(seconds, 3), "imports_seconds": round(floor, 3), "ratio": round(seconds / floor, 2)}
    compiled = compiling("20m")
    found = {"bench": "startup", "help": shown, "first_step": compiled}
    if not asked.json:
        print(text_of_table(startup_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
