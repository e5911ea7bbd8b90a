"""The short version of all: speed, memory, time to a loss and start, beside the peers that are found, in a quarter of
an hour. What takes longer, fine-tuning among it, is in the full version alone.

    python -m tests.bench [--litgpt PATH] [--nanogpt PATH] [--out build/bench] [--full]

`--full` is what docs/performance.md is made from, by `python -m tests.bench.page`, and takes three hours.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.page import BY_BENCH, text_of_table

OURS = "llmt_adamw,llmt,llmt_adamw_eager,llmt_adamw_fp32"
PEERS = "hf_trainer,hf_trainer_bf16,hf_loop,litgpt,nanogpt_eager"
SHORT = {
    "train-8x256": ["train", "--ours", OURS, "--peers", PEERS, "--quick"],
    "time_to_loss": ["time_to_loss", "--rounds", "1"],
    "memory": ["memory", "--quick"],
    "startup": ["startup", "--quick"],
}
FULL = {
    "train-8x256": ["train", "--ours", OURS, "--peers", f"{PEERS},hf_trainer_bf16_compile,litgpt_fp32,nanogpt"],
    "train-8x512": ["train", "--length", "512", "--ours", "llmt_adamw,llmt_adamw_eager",
                    "--peers", "hf_trainer,hf_trainer_bf16,litgpt"],
    "train-117m": ["train", "--work", "117m", "--steps", "8", "--rounds", "2", "--ours", "llmt_adamw",
                   "--peers", "hf_trainer,hf_trainer_bf16"],
    "time_to_loss": ["time_to_loss", "--long"],
    "memory": ["memory"],
    "corpus": ["corpus"],
    "startup": ["startup"],
    "curves": ["curves"],
    "levers": ["levers"],
    "finetune": ["finetune"],
    "sft": ["sft"],
}  # fmt: skip
"""Name of the results -> module and its arguments."""

TIMEOUT = 7200
"""Seconds for one of them."""


def measured(command: list[str]) -> dict[str, Any]:
    """The last line of a benchmark."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{command[0]}", *command[1:], "--json"],
        stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"tests.bench.{command[0]}: exit {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run, keep what was measured, and print one table."""
    parser = argparse.ArgumentParser(description="Measures llmt beside its peers and prints one table.")
    parser.add_argument("--litgpt", default="", help="folder that holds the package litgpt and what it needs")
    parser.add_argument("--nanogpt", default="", help="checkout of nanoGPT")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the results")
    parser.add_argument("--full", action="store_true", help="all of it, in three hours")
    parser.add_argument("--only", default="", help="these alone, with commas")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    known = FULL if asked.full else SHORT
    names = [name for name in asked.only.split(",") if name] or list(known)
    began, found = time.monotonic(), {}
    for name in names:
        if name not in known:
            sys.exit(f"--only: {name} is none of {', '.join(known)}")
        places = {"train": ("litgpt", "nanogpt"), "time_to_loss": ("nanogpt",)}.get(known[name][0], ())
        given = [part for place in places if getattr(asked, place) for part in (f"--{place}", getattr(asked, place))]
        print(f"== {name}", file=sys.stderr)
        found[name] = measured([*known[name], *given])
        (asked.out / f"{name}.json").write_text(json.dumps(found[name], indent=1) + "\n", encoding="utf-8")
    for name, values in found.items():
        print(f"\n{name}\n{text_of_table(BY_BENCH[values['bench']](values))}")
    print(f"\n{time.monotonic() - began:.0f} s; the results are in {asked.out}")


if __name__ == "__main__":
    main()
