"""The harness of faults itself: a slice of each family, and that it finds what simpler ways of saving lose."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a child for each fault")

RUN = Path(__file__).with_name("run.py")
QUICK, SLOW = ("power_loss", "damage", "accumulation"), ("calls", "nan")
"""A fault of the slow families takes a run and going on with it."""

Lines = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module", params=[QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=" ".join)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, Path, int]:
    """A slice of some families: each line of what was printed, the folder with the figures, and the exit code."""
    out = tmp_path_factory.mktemp("faults")
    chosen = [word for name in request.param for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, str(RUN), "--scale", "0.005", "--lanes", "1", "--out", str(out), *chosen],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "COUNT": "1"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return {(line["family"], line["subject"]): line for line in lines}, out, done.returncode


def test_llmt_survives_a_slice_of_the_faults(found: tuple[Lines, Path, int]) -> None:
    """Every fault that was tried."""
    own = [line for (_, subject), line in found[0].items() if subject == "llmt"]
    assert {line["family"] for line in own} in (set(QUICK), set(SLOW))
    for line in own:
        assert line["failed"] == []
        assert line["faults"] == line["passed"] > 0


def test_the_exit_code_is_that_of_llmt_alone(found: tuple[Lines, Path, int]) -> None:
    """What peers lose is reported only."""
    lines, _, code = found
    assert code == int(any(line["failed"] for (_, subject), line in lines.items() if subject == "llmt"))


LOST = {
    ("calls", "torch.save in place"): "cannot go on",
    ("power_loss", "files written in place"): "picks a corrupt checkpoint",
    ("power_loss", "renamed, not forced"): "picks a corrupt checkpoint",
    ("power_loss", "renamed, manifest, not forced"): "was promised, found",
    ("accumulation", "mean of means"): "differs by",
    ("nan", "HF Trainer"): "is not finite",
}


def test_the_harness_finds_what_simpler_ways_lose(found: tuple[Lines, Path, int]) -> None:
    """A fault that nothing could fail would say nothing."""
    lines = found[0]
    for (family, subject), words in LOST.items():
        if subject == "torch.save in place" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
            continue  # what a library writes by itself is seen by the shim of C only
        if any(family == struck for struck, _ in lines):
            assert any(words in failure for failure in lines[family, subject]["failed"]), (family, subject)
    # With a manifest alone a promise may be broken, but no corrupt checkpoint is picked.
    unforced = lines.get(("power_loss", "renamed, manifest, not forced"), {"failed": []})["failed"]
    assert not any("corrupt" in failure for failure in unforced)


SIGNALS = """
from harness.lanes import Ended
from harness.signals import STEPS, _ending
before, last = "step   7/300  loss", f"step {STEPS}/300  loss"
done = f"{before} {chr(10)}{last}{chr(10)}done{chr(10)}"
line = chr(10) + "step {}/300  loss"
assert not _ending(Ended(143, before + line.format(8), False, 0.1), before, 1.0)
assert not _ending(Ended(0, done, False, 0.2), before + chr(10) + last, 1.0)
assert not _ending(Ended(0, done, False, 0.5), done, 1.0)
assert "exit code 0, training" in _ending(Ended(0, before, False, 0.1), before, 1.0)
assert "exit code 0, publishing" in _ending(Ended(0, done, False, 0.5), before + chr(10) + last, 1.0)
assert "exit code -15" in _ending(Ended(-15, before, False, 0.1), before, 1.0)
assert "2 more steps" in _ending(Ended(143, before + line.format(8) + line.format(9), False, 0.1), before, 1.0)
assert "to end" in _ending(Ended(143, before, False, 1.1), before, 1.0)
"""


def test_a_run_that_does_not_listen_to_a_signal_fails() -> None:
    """Ending with 0 while it trained, going on for two steps, and taking long are all told apart from a stop."""
    done = subprocess.run([sys.executable, "-c", SIGNALS], cwd=RUN.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_report_is_written(found: tuple[Lines, Path, int]) -> None:
    """Results, a table with one row for each line, and figures that are PNG files throughout."""
    lines, out, _ = found
    assert len(json.loads((out / "results.json").read_text())["families"]) == len(lines)
    rows = (out / "faults.md").read_text().splitlines()
    assert sum(row.startswith("| ") for row in rows) == len(lines) + 1
    assert ("accumulation", "llmt") not in lines or any("largest difference" in row for row in rows)
    pictures = sorted(out.glob("*.png"))
    drawn = {name for name in ("calls", "damage", "power-loss") if any(f == name.replace("-", "_") for f, _ in lines)}
    assert {path.stem for path in pictures} == {f"faults-{name}" for name in (*drawn, "survived")}
    for path in pictures:
        assert pixels(path.read_bytes())


AGAIN = """
import argparse, sys
from pathlib import Path
import run
from harness.verdicts import LLMT, Family, Verdict
def keep(only, *families):
    folder = Path(sys.argv[1])
    asked = argparse.Namespace(only=only, out=folder / "out", page=folder / "page.md", figures=folder)
    found = [Family(name, LLMT, [Verdict("a fault")] * tried, 1.0, {"largest difference": tried})
             for name, tried in families]
    run.keep(asked, found, 1.0)
keep(None, ("fuzz", 1))
keep(None, ("damage", 3))
keep(["accumulation"], ("accumulation", 5))
keep(["damage"], ("damage", 7))
"""


def test_a_family_that_is_run_again_takes_its_place(tmp_path: Path) -> None:
    """Where only some are run the others stay, in the folder and in the table of a page; a whole run begins anew."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- faults: begin -->\n<!-- faults: end -->\nafter\n")
    subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path)], cwd=RUN.parent, check=True)
    found = json.loads((tmp_path / "out" / "results.json").read_text())["families"]
    assert [(line["family"], line["faults"]) for line in found] == [("damage", 7), ("accumulation", 5)]
    table = (tmp_path / "out" / "faults.md").read_text()
    assert table in page.read_text()
    assert "largest difference: 5" in table
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert pixels((tmp_path / "faults-survived.png").read_bytes())


def pixels(data: bytes) -> bool:
    """Whether a PNG file holds as many bytes as its header says, and every checksum is right."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    width, height = struct.unpack(">II", data[16:24])
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(body),)
        packed += body[4:] if body.startswith(b"IDAT") else b""
        at += 12 + size
    return len(zlib.decompress(packed)) == height * (1 + 3 * width)


def test_the_page_holds_a_whole_run() -> None:
    """Every family stands in the table of docs/reliability.md, and each figure that it shows is there."""
    docs = RUN.parents[2] / "docs"
    page = (docs / "reliability.md").read_text(encoding="utf-8")
    code = "import json, run; from harness.report import WHAT; print(json.dumps([WHAT, run.FAMILIES]))"
    found = subprocess.run([sys.executable, "-c", code], cwd=RUN.parent, capture_output=True, text=True, check=True)
    what, families = json.loads(found.stdout)
    assert set(what) == set(families)
    for words in what.values():
        assert f"| {words} | llmt | " in page
    for name in ("survived", "calls", "power-loss", "damage"):
        assert f"figures/faults-{name}.png" in page
        assert pixels((docs / "figures" / f"faults-{name}.png").read_bytes())
