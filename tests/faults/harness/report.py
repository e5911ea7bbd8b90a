"""families of faults -> `results.json`, a table in Markdown, and figures."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.picture import BLACK, BLUE, GREEN, GREY, RED, YELLOW, Colour, Picture
from harness.verdicts import LLMT, Family

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"

WHAT = {
    "calls": "kill, EIO, full disk, quota, EINTR, half a write at a call of a save",
    "power_loss": "power lost at a call of a save",
    "damage": "one thing wrong in the newest checkpoint",
    "random_kills": "kill -9 at random, ten times a run in training, and while it starts",
    "nan": "a NaN or an infinity in loss, gradient, weight, moment",
    "accumulation": "gradients of a window against one whole batch, float64, 1e-12",
    "invariance": "the same run, validated, logged, saved, shown otherwise",
    "signals": "SIGTERM at random",
    "fuzz": "wrong files of nine kinds",
    "pickles": "a pickle that wants to run something, in four environments",
    "ranks": "one of two processes killed or stopped; both against one",
    "cost": "time of a save and of the checks of a run",
}
COLOURS: dict[str, Colour] = {
    "old": GREEN, "new": BLUE, "whole": BLUE, "broken": RED, "": GREEN, "promise": YELLOW, "corrupt": RED,
    "detected": GREEN, "harmless": BLUE, "refused": GREEN, "silent": RED, "read": BLUE,
}  # fmt: skip


FIGURES = {
    "power_loss": ("corrupt picks, llmt and HF Trainer",),
    "accumulation": ("largest difference",),
    "invariance": ("hash",),
    "signals": ("seconds of a run", "seconds allowed"),
    "ranks": ("largest difference of a gradient",),
    "cost": ("save, against torch.save and fsync", "checks, share"),
}
"""What is told beside the table, by family."""

Line = dict[str, Any]


def write(directory: Path, found: Sequence[Family], scale: float, *, add: bool) -> list[Line]:
    """Write everything that is known about the faults into a folder.

    Args:
        directory: The folder.
        found: The families that were run.
        scale: Share of the counts that they tried.
        add: Families that stand there and were not run now stay.

    Returns:
        A line for each family that stands there now.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "results.json"
    lines: list[Line] = json.loads(record.read_text())["families"] if add and record.is_file() else []
    lines = [line for line in lines if line["family"] not in {family.name for family in found}]
    lines += [
        family.line() | {"failed": [f"{v.what}: {v.why}" for v in family.failed], "scale": scale} for family in found
    ]
    lines.sort(key=lambda line: list(WHAT).index(line["family"]))
    record.write_text(json.dumps({"families": lines}, indent=1) + "\n")
    (directory / "faults.md").write_text(table(lines))
    draw(directory, lines, found)
    return lines


def draw(directory: Path, lines: Sequence[Line], found: Sequence[Family]) -> None:
    """Write the figures into a folder: one of all families, and one of each that was run and has parts to show."""
    directory.mkdir(parents=True, exist_ok=True)
    bars(lines).save(directory / "faults-survived.png")
    by_name = {family.name: [one for one in found if one.name == family.name] for family in found}
    for name, file in (("calls", "calls"), ("power_loss", "power-loss"), ("damage", "damage")):
        if name in by_name:
            picture = strips(by_name[name]) if name == "calls" else shares(by_name[name])
            picture.save(directory / f"faults-{file}.png")


def table(lines: Sequence[Line]) -> str:
    """One row for each family and subject, and the numbers beside them."""
    rows = ["| faults | who | tried | held | seconds |", "|---|---|--:|--:|--:|"]
    numbers = []
    for line in lines:
        tried, held, own = line["faults"], line["passed"], line["subject"] == LLMT
        share = f"{held:,} ({held / max(tried, 1):.0%})"
        what = WHAT[line["family"]] if own else ""
        seconds = f"{line['seconds']:.0f}" if own else ""
        rows.append(f"| {what} | {line['subject']} | {tried:,} | {share} | {seconds} |")
        told = [key for key in FIGURES.get(line["family"], ()) if key in line.get("notes", {})]
        numbers += [f"- {WHAT[line['family']]}: {key}: {_plain(line['notes'][key])}" for key in told]
    return "\n".join([*rows, "", *numbers] if numbers else rows) + "\n"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def put_into(page: Path, lines: Sequence[Line]) -> None:
    """Replace the table of a page; it stands between two comments.

    Raises:
        ValueError: The page has no such place.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page}: has no place for the table")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(lines)}{END}{after}", encoding="utf-8")


def bars(lines: Sequence[Line]) -> Picture:
    """How much of each family each subject survived."""
    picture = Picture(1100, 30 + 22 * len(lines))
    picture.words(10, 8, "faults survived")
    for number, line in enumerate(lines):
        top, own = 30 + 22 * number, line["subject"] == LLMT
        share = line["passed"] / max(line["faults"], 1)
        picture.words(10, top + 4, line["family"].replace("_", " ") if own else "")
        picture.words(160, top + 4, line["subject"])
        picture.box(430, top, 500, 18, RED)
        picture.box(430, top, round(500 * share), 18, GREEN if own else BLUE)
        picture.words(945, top + 4, f"{100 * share:.1f} % of {line['faults']}")
    return picture


def strips(found: Sequence[Family]) -> Picture:
    """One cell for each call that was struck: green kept the old, blue had the new, red is broken."""
    rows: dict[str, dict[int, str]] = {}
    for family in found:
        for verdict in family.verdicts:
            rows.setdefault(verdict.cell[0], {})[verdict.cell[1]] = verdict.outcome
    longest = max((max(row) for row in rows.values()), default=1)
    width = max(min(1000 // longest, 8), 2)
    picture = Picture(340 + width * (longest + 1), 40 + 18 * len(rows))
    picture.words(10, 8, "after a fault at each call of a save: green old, blue new or whole, red broken")
    for number, (name, cells) in enumerate(rows.items()):
        top = 30 + 18 * number
        picture.words(10, top + 2, name)
        picture.box(330, top, width * longest, 14, GREY)
        for at, outcome in cells.items():
            picture.box(330 + width * (at - 1), top, width, 14, COLOURS.get(outcome, BLACK))
    return picture


def shares(found: Sequence[Family]) -> Picture:
    """What became of the faults, as shares of a bar for each subject and kind."""
    rows: dict[str, Counter[str]] = {}
    for family in found:
        for verdict in family.verdicts:
            label = (
                verdict.cell[0] if family.subject in (LLMT, verdict.cell[0]) else f"{family.subject}: {verdict.cell[0]}"
            )
            label = f"llmt: {label}" if family.subject == LLMT else label
            rows.setdefault(label, Counter())[verdict.outcome] += 1
    picture = Picture(1000, 40 + 20 * len(rows))
    name = found[0].name.replace("_", " ")
    picture.words(10, 8, f"{name}: green or blue right, yellow a promise broken, red wrong")
    for number, (label, outcomes) in enumerate(rows.items()):
        top, left, total = 30 + 20 * number, 370, sum(outcomes.values())
        picture.words(10, top + 3, label)
        for outcome, count in sorted(outcomes.items(), key=lambda item: list(COLOURS).index(item[0])):
            width = round(500 * count / total)
            picture.box(left, top, width, 16, COLOURS.get(outcome, BLACK))
            left += width
        picture.words(885, top + 3, f"{total}")
    return picture
