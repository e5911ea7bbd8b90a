"""What the benchmarks found, as JSON -> the tables and pictures of docs/performance.md and docs/cpu.md.

    python -m tests.bench.page [--from docs/figures/measured] [--check]

Between `<!-- NAME -->` and `<!-- end -->` a page holds a table that this script writes; the words around it are
written by hand. `--check` writes nothing and exits 1 where a page holds something else.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.harness.picture import BLUE, GREEN, GREY, RED, Colour, Picture

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
PAGES = (DOCS / "performance.md", DOCS / "cpu.md", DOCS / "fine-tuning.md")

WHAT = {
    "llmt": "llmt, its default optimizer (Muon and AdamW)",
    "llmt_adamw": "llmt, AdamW",
    "llmt_eager": "llmt, Muon, no compiler",
    "llmt_adamw_eager": "llmt, AdamW, no compiler",
    "llmt_adamw_fp32": "llmt in fp32, AdamW",
    "hf_trainer": "HF Trainer, defaults (fp32)",
    "hf_trainer_bf16": "HF Trainer, bf16",
    "hf_trainer_bf16_compile": "HF Trainer, bf16 + compile",
    "hf_loop": "transformers in a plain loop (fp32)",
    "litgpt": "LitGPT, bf16-mixed + compile",
    "litgpt_fp32": "LitGPT, 32-true + compile",
    "nanogpt": "nanoGPT, compiled (its default)",
    "nanogpt_eager": "nanoGPT, not compiled (its advice for a CPU)",
    "llmt_lora": "llmt, bf16",
    "llmt_lora_eager": "llmt, bf16, no compiler",
    "llmt_lora_fp32": "llmt, fp32",
    "llmt_lora_fp32_eager": "llmt, fp32, no compiler",
    "peft_loop": "peft in a plain loop, fp32",
    "peft_loop_compile": "peft in a plain loop, fp32 + compile",
    "peft_loop_bf16": "peft in a plain loop, base in bf16",
    "peft_loop_bf16_autocast": "peft in a plain loop, base in bf16 + autocast",
    "peft_loop_bf16_compile": "peft in a plain loop, base in bf16 + autocast + compile",
    "trl": "trl's SFTTrainer, defaults (bf16 autocast, recomputes blocks)",
    "trl_mixed": "trl's SFTTrainer, bf16 autocast",
    "trl_bf16": "trl's SFTTrainer, base in bf16",
    "trl_bf16_compile": "trl's SFTTrainer, base in bf16 + compile",
    "trl_fp32": "trl's SFTTrainer, fp32",
}

RUNS = {
    "llmt": "`llmt train tiny`",
    "llmt_long": "`llmt train novel`: twelve passes, ten minutes at most",
    "nanogpt": "nanoGPT, its README's command for a CPU",
}
"""What ran to a loss."""

Table = list[list[str]]
"""Rows of cells; the first names the columns."""


def megabytes(size: float) -> str:
    """As people read it."""
    return f"{size / 1e6:,.0f} MB"


def speed_table(found: dict[str, Any]) -> Table:
    """tokens/s, MFU and memory of all, and the first contender over each."""
    head = ["", "tokens/s", "best step", "MFU", "peak memory", "ours / it", "our memory / its"]
    return [head] + [
        [WHAT[row["name"]], f"{row['tokens_per_second']:,.0f}", f"{row['best_step']:,.0f}", f"{row['mfu']:.0%}",
         megabytes(row["peak_memory_bytes"]), f"{row['ratio']:.2f}x", f"{row['memory_ratio']:.2f}x"]
        for row in found["rows"]
    ]  # fmt: skip


def time_table(found: dict[str, Any]) -> Table:
    """Wall time and the loss at its end."""
    rows = [[RUNS[row["name"]], f"{row['seconds']:.1f} s", f"{row['bits_per_byte']:.3f}"] for row in found["rows"]]
    return [["", "wall time, start to model", "bits per byte"], *rows]


def memory_table(found: dict[str, Any]) -> Table:
    """Templates, and growth."""
    rows = [
        [row["name"], megabytes(row["peak_memory_bytes"]), f"{row['planned_over_peak']:.2f}x"] for row in found["rows"]
    ]
    grown = found["growth"]
    last = [f"{grown['steps']:,} steps of a tiny model", f"{grown['grown_bytes'] / 1e6:+.1f} MB since step 10, "
            f"{grown['grown_since_halfway'] / 1e6:+.1f} MB in the second half", ""]  # fmt: skip
    return [["", "peak memory", "planned / measured"], *rows, last]


def corpus_table(found: dict[str, Any]) -> Table:
    """A small and a large text, and the speed on the large one over that on the small one."""
    rows = [
        [f"{row['bytes'] / 1e6:,.0f} MB of text", f"{row['tokens_per_second']:,.0f}", megabytes(row["memory_bytes"])]
        for row in found["rows"]
    ]
    low, high = found["interval"]
    ratio = f"{found['ratio']:.3f} ({low:.3f} to {high:.3f})"
    head = ["", "tokens/s", "memory at the end, mapped files left out"]
    return [head, *rows, ["speed on the second over that on the first, 95 % interval", ratio, ""]]


def startup_table(found: dict[str, Any]) -> Table:
    """Help, and the first step."""
    shown, first = found["help"], found["first_step"]
    return [
        ["", "seconds"],
        ["`llmt --help`", f"{shown['seconds']:.2f}, {shown['ratio']:.1f} times its imports"],
        ["first step, not compiled (with reading the text and making the model)", f"{first['eager_first']:.1f}"],
        ["the same, compiled, nothing in the cache", f"{first['cold_first']:.1f}"],
        ["the same, compiled before", f"{first['warm_first']:.1f}"],
        ["steps after which compiling has won its time back", str(first["won_back_after_steps"])],
    ]


def curves_table(found: dict[str, Any]) -> Table:
    """Two ways and their difference."""
    return [
        ["", f"mean loss at the end of {found['steps']} steps"],
        ["fp32", f"{found['end']['fp32']:.4f}"],
        ["bf16", f"{found['end']['bf16']:.4f}"],
        ["bf16 - fp32", f"{found['difference']:+.4f}"],
        ["standard deviation between seeds, fp32", f"{found['spread_of_seeds']:.4f}"],
    ]


def finetune_table(found: dict[str, Any]) -> Table:
    """tokens/s and memory of training an adapter, and llmt in the same precision over each."""
    head = ["", "precision", "tokens/s", "best step", "peak memory", "others' share", "ours / it", "our memory / its"]
    return [head] + [
        [WHAT[row["name"]], row["precision"], f"{row['tokens_per_second']:,.0f}", f"{row['best_step']:,.0f}",
         megabytes(row["peak_memory_bytes"]), f"{row['others']:.0%}", f"{row['ratio']:.2f}x",
         f"{row['memory_ratio']:.2f}x"]
        for row in found["rows"]
    ]  # fmt: skip


TRAINED = {"full": "all weights", "lora": "LoRA"}


def sft_table(found: dict[str, Any]) -> Table:
    """What all weights and an adapter learn, and the adapter of llmt beside that of trl."""
    table = [["", "steps", "held-out loss", "loss of the last steps"]]
    if "learning" in found:
        rows, steps = found["learning"], str(found["steps"])
        table.append(["the base", "", f"{found['before']:.3f}", ""])
        for name, what in TRAINED.items():
            rate, seconds = f"{rows[name]['learning_rate']:g}", f"{rows[name]['seconds'] / 60:.1f} min"
            table.append([f"llmt, {what}, learning rate {rate}, {seconds}", steps, f"{rows[name]['after']:.3f}",
                          f"{rows[name]['end']:.3f}"])  # fmt: skip
        table.append(["share of the fall that LoRA reaches", "", f"{found['share_of_fall']:.1%}", ""])
    if "peer" in found:
        peer, places = found["peer"], ("held_out", "end")
        steps, seeds = str(peer["steps"]), f"mean of {peer['seeds']} seeds"
        for name in ("llmt", "trl"):
            table.append([f"{name}, LoRA, {seeds}", steps, *(f"{peer[place][name]:.4f}" for place in places)])
        table.append(["llmt - trl, and standard error", "",
                      *(f"{peer[place]['difference']:+.5f} ± {peer[place]['standard_error']:.5f}"
                        for place in places)])  # fmt: skip
        spread = [f"{peer[place]['spread_of_seeds']:.4f}" for place in places]
        table.append(["standard deviation between seeds, trl", "", *spread])
    return table


LEVERS = {
    "reuse_memory": "what a step frees is kept for the next (`system.allocator`), not zeroed again by the system",
    "muon": "three iterations of Muon instead of five (`training.muon_ns_steps`)",
    "loss": "loss and gradients from a few rows of logits at a time (`models.chunked_loss`)",
    "loss, memory": "the same, memory taken",
    "dropout": "16 random bits for a value that may be dropped (`models.dropout`), two million of them",
}


def levers_table(found: dict[str, Any]) -> Table:
    """Each lever with and without."""
    rows = [
        [LEVERS[one["name"]], *(f"{one[way]:,} {one['unit']}" for way in ("without", "with")), f"{one['gain']:.2f}x"]
        for one in found["rows"]
    ]
    return [["lever", "without", "with", "gain"], *rows]


def hours(seconds: float) -> str:
    """Whole minutes below two hours, else hours or days."""
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def times_table(found: dict[str, dict[str, Any]]) -> Table:
    """Hours to read as many tokens, from the measured speeds."""
    counts = (10_000_000, 100_000_000, 500_000_000)
    rows = []
    for name in ("train-8x256", "train-117m"):
        size = f"{found[name]['parameters'] / 1e6:.0f}M, {found[name]['work']['length']} tokens"
        for row in found[name]["rows"]:
            if row["name"] in ("llmt_adamw", "hf_trainer", "hf_trainer_bf16"):
                spent = [hours(count / row["tokens_per_second"]) for count in counts]
                rows.append([size, WHAT[row["name"]], *spent])
    return [["model", "with", *(f"{count // 10**6}M tokens" for count in counts)], *rows]


BY_BENCH: dict[str, Callable[[dict[str, Any]], Table]] = {
    "train": speed_table,
    "time_to_loss": time_table,
    "memory": memory_table,
    "corpus": corpus_table,
    "startup": startup_table,
    "curves": curves_table,
    "levers": levers_table,
    "finetune": finetune_table,
    "sft": sft_table,
}
"""What makes a table of the results of each benchmark."""

TABLES = {
    "speed-256": "train-8x256",
    "speed-512": "train-8x512",
    "speed-117m": "train-117m",
    "speed-256-zen4": "train-8x256-zen4",
    "speed-117m-zen4": "train-117m-zen4",
    "speed-256-tiles": "train-8x256-tiles",
    "speed-512-tiles": "train-8x512-tiles",
    "speed-117m-tiles": "train-117m-tiles",
    "time-to-loss": "time_to_loss",
    "memory": "memory",
    "corpus": "corpus",
    "startup": "startup",
    "curves": "curves",
    "levers": "levers",
    "finetune": "finetune",
    "sft": "sft",
}
"""Mark in a page -> results."""


def markdown(table: Table) -> str:
    """As a page holds it."""
    head, *rows = table
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def text_of_table(table: Table) -> str:
    """For a terminal."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with its tables.

    Raises:
        ValueError: It has a mark for which nothing was measured, or one without an end.
    """
    for name in [part.partition(" -->")[0] for part in page.split("<!-- ")[1:]]:
        if name == "end":
            continue
        if name not in tables:
            raise ValueError(f"no results for <!-- {name} -->")
        begin = f"<!-- {name} -->"
        before, _, rest = page.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"{begin} has no <!-- end -->")
        page = f"{before}{begin}\n{tables[name]}\n{end}{after}"
    return page


def bars(found: dict[str, Any]) -> Picture:
    """tokens/s of all, longest first; ours in green."""
    rows = sorted(found["rows"], key=lambda row: -row["tokens_per_second"])
    most = max(rows[0]["tokens_per_second"], found["product_flops"] / flops_per_token(found))
    picture = Picture(1000, 40 + 22 * (len(rows) + 1))
    picture.words(10, 8, "tokens a second; grey: what the products alone would allow")
    for number, row in enumerate(rows):
        top = 34 + 22 * number
        picture.words(10, top + 3, row["name"].replace("_", " "))
        picture.box(250, top, 600, 16, GREY)
        colour: Colour = GREEN if row["name"].startswith("llmt") else BLUE
        picture.box(250, top, round(600 * row["tokens_per_second"] / most), 16, colour)
        picture.words(865, top + 3, f"{row['tokens_per_second']:.0f}")
    return picture


def flops_per_token(found: dict[str, Any]) -> float:
    """Of the model of a comparison."""
    row = found["rows"][0]
    return float(row["mfu"]) * float(found["product_flops"]) / float(row["tokens_per_second"])


def drawn_curves(all_curves: dict[str, list[list[float]]], ways: dict[str, tuple[Colour, int]], title: str) -> Picture:
    """The losses of several runs of each way, by step; each way has its colour, and the last is drawn on top.

    Args:
        all_curves: Way -> the losses of each of its runs.
        ways: Way -> its colour, and the size of its dots in pixels.
        title: Stands above.
    """
    width, height = 900, 420
    picture = Picture(width + 100, height + 60)
    picture.words(10, 8, title)
    every = [loss for way in ways for curve in all_curves[way] for loss in curve]
    low, high = min(every), max(every)
    for way, (colour, size) in ways.items():
        for curve in all_curves[way]:
            for step, loss in enumerate(smoothed(curve)):
                left = 80 + round(step / len(curve) * width)
                top = 30 + round((high - loss) / (high - low) * height)
                picture.box(left - (size - 2) // 2, top - (size - 2) // 2, size, size, colour)
    for share in (0.0, 0.5, 1.0):
        picture.words(8, 26 + round((1 - share) * height), f"{low + share * (high - low):.2f}")
    return picture


def smoothed(curve: Sequence[float], over: int = 10) -> list[float]:
    """The mean of the last few values at each place."""
    return [sum(curve[max(0, at - over + 1) : at + 1]) / min(over, at + 1) for at in range(len(curve))]


def main() -> None:
    """Write pages and pictures, or compare."""
    parser = argparse.ArgumentParser(description="Writes the tables and pictures of the pages on speed.")
    parser.add_argument("--from", dest="source", type=Path, default=FIGURES / "measured", help="folder of the results")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    asked = parser.parse_args()
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(asked.source.glob("*.json"))}
    tables = {
        mark: markdown(BY_BENCH[found[name]["bench"]](found[name])) for mark, name in TABLES.items() if name in found
    }
    if {"train-8x256", "train-117m"} <= found.keys():
        tables["times"] = markdown(times_table(found))
    differ = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text, tables)
        if new != text:
            differ.append(page.name)
            if not asked.check:
                page.write_text(new, encoding="utf-8")
    if asked.check:
        sys.exit(f"{', '.join(differ)}: run python -m tests.bench.page" if differ else 0)
    bars(found["train-8x256"]).save(FIGURES / "speed.png")
    if "curves" in found:
        title = "loss: green bf16, red fp32, three seeds each"
        drawn_curves(found["curves"]["curves"], {"fp32": (RED, 2), "bf16": (GREEN, 2)}, title).save(
            FIGURES / "bf16.png"
        )
    if "peer" in found.get("sft", {}):
        peer = found["sft"]["peer"]
        title = f"loss of LoRA: green llmt, red trl, {peer['seeds']} seeds each"
        # Curves that lie on each other have to be seen both.
        drawn_curves(peer["curves"], {"trl": (RED, 8), "llmt": (GREEN, 4)}, title).save(FIGURES / "sft.png")


if __name__ == "__main__":
    main()
