"""Wall time to a loss that means something, from the text to the finished model: llmt beside nanoGPT.

    python -m tests.bench.time_to_loss [--nanogpt PATH] [--long] [--json]

All train on the first nine tenths of tinyshakespeare and are measured on the rest, in bits for each byte of it.
nanoGPT runs its own train.py with the settings that its README gives for a CPU. `llmt` is `llmt train tiny`, started
as a command, with nothing prepared; its wall time ends when the model lies on the disk and has been measured. `--long`
adds ten minutes of `llmt train novel`. The text is read from the folder that TEST_DATA_DIR names.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.page import text_of_table, time_table

HELD_OUT = 0.1
"""Share of the text, at its end."""

NANOGPT = (
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip
"""The command for a CPU in nanoGPT's README."""

LONG = 600
"""Seconds of the long run."""

TIMEOUT = 900


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compares the wall time that llmt and nanoGPT need to a loss.")
    parser.add_argument("--nanogpt", default="", help="checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--long", action="store_true", help="ten minutes of training too")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    return parser.parse_args()


def text_of() -> Path | None:
    """The file; None, with a word, where it is absent."""
    folder = os.environ.get("TEST_DATA_DIR", "")
    path = Path(folder, "tinyshakespeare.txt")
    if folder and path.is_file():
        return path
    print("time_to_loss: TEST_DATA_DIR does not name a folder with tinyshakespeare.txt", file=sys.stderr)
    return None


def divided(text: Path, folder: Path) -> tuple[Path, Path]:
    """What is trained on, and what is held out."""
    characters = text.read_text(encoding="utf-8")
    cut = int(len(characters) * (1 - HELD_OUT))
    train, held_out = folder / "train.txt", folder / "held-out.txt"
    train.write_text(characters[:cut], encoding="utf-8")
    held_out.write_text(characters[cut:], encoding="utf-8")
    return train, held_out


def llmt(template: str, train: Path, held_out: Path, *more: str) -> dict[str, Any]:
    """`llmt train TEMPLATE` in a folder of its own: wall seconds, and what it says of the model."""
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        command = [
            sys.executable, "-m", "llmt", "train", template, "--data", str(train), "--output-dir", "run",
            "--set", f"data.validation_sources=[{held_out}]", "--set", "data.cache_dir=cache",
            "--sample-tokens", "0", *more,
        ]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT)
        seconds = time.perf_counter() - began
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "eval_bits_per_byte" in row]
    best = min(measured, key=lambda row: row["eval_loss"])
    return {"seconds": seconds, "bits_per_byte": best["eval_bits_per_byte"], "tokens": rows[-1]["tokens"],
            "steps": rows[-1]["step"]}  # fmt: skip


def nanogpt(checkout: Path, text: Path) -> dict[str, Any]:
    """Its train.py to the end: wall seconds, and its last validation. Its characters are bytes here."""
    data = checkout / "data" / "shakespeare_char"
    (data / "input.txt").write_bytes(text.read_bytes())
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True, timeout=TIMEOUT)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "train.py", *NANOGPT], cwd=checkout, check=True, capture_output=True,
                          text=True, timeout=TIMEOUT)  # fmt: skip
    seconds = time.perf_counter() - began
    losses = re.findall(r"val loss ([\d.]+)", done.stdout)
    return {"seconds": seconds, "bits_per_byte": float(losses[-1]) / math.log(2)}


def compare(asked: argparse.Namespace, text: Path) -> dict[str, Any]:
    """Each in turn; medians."""
    turns: dict[str, list[dict[str, Any]]] = {"llmt": [], "nanogpt": []}
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as folder:
        train, held_out = divided(text, Path(folder))
        for _ in range(asked.rounds):
            turns["llmt"].append(llmt("tiny", train, held_out))
            if asked.nanogpt:
                turns["nanogpt"].append(nanogpt(Path(asked.nanogpt), text))
        if asked.long:
            turns["llmt_long"] = [llmt("novel", train, held_out, "--max-time", f"{LONG}s")]
    rows = [
        {"name": name, **{key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}}
        for name, found in turns.items() if found
    ]  # fmt: skip
    ratios = [peer["seconds"] / own["seconds"] for own, peer in zip(turns["llmt"], turns["nanogpt"], strict=False)]
    return {"bench": "time_to_loss", "text_bytes": text.stat().st_size, "rows": rows,
            "ratio": round(statistics.median(ratios), 2) if ratios else None}  # fmt: skip


def main() -> None:
    """Compare, and print."""
    asked, text = arguments(), text_of()
    if text is None:
        print(json.dumps({"bench": "time_to_loss", "rows": [], "ratio": None, "left_out": ["the text"]}))
        return
    found = compare(asked, text)
    if not asked.json:
        print(text_of_table(time_table(found)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
