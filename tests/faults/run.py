"""Fault families -> one line of JSON each, `results.json`, a table and figures; fails where llmt does.

    python tests/faults/run.py [--quick] [--only FAMILY] [--out DIRECTORY]

A quick run tries a tenth of everything but `calls`, of which it tries an eightieth, and stops no process of several
(`ranks`): it has five minutes on two free cores. `COUNT=10` in the environment multiplies the counts.
`--out` keeps what was found: after `--only`, other families that stand there stay. With
`--page docs/reliability.md --figures docs/figures` it renews the numbers of the documentation too.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from harness import report, shim
from harness.lab import Lab, warm_up
from harness.verdicts import LLMT, Family

QUICK = 0.1
QUICKER = {"calls": 0.12}
"""What a quick run tries less of: it has five minutes, and a tenth of these faults would take four of them."""

FAMILIES = (
    "calls", "power_loss", "damage", "random_kills", "nan", "accumulation", "invariance", "signals", "fuzz",
    "pickles", "cost", "ranks",
)  # fmt: skip


def family(name: str) -> Callable[[Lab], list[Family]]:
    """The function that runs a family: `run` of the module of its name, in `harness` or beside this file."""
    from importlib import import_module

    beside = Path(__file__).with_name(f"{name}.py").is_file()
    found: Callable[[Lab], list[Family]] = import_module(name if beside else f"harness.{name}").run
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Strikes llmt and reports what it loses.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the counts, of `calls` an eightieth")
    parser.add_argument("--scale", type=float, default=None, help="this share of the counts")
    parser.add_argument("--only", action="append", choices=FAMILIES, help="this family; may be repeated")
    parser.add_argument("--out", type=Path, default=None, help="write results.json, faults.md and figures here")
    parser.add_argument("--page", type=Path, default=None, help="put the table into this page")
    parser.add_argument("--figures", type=Path, default=None, help="write the PNG files here")
    parser.add_argument("--seed", type=int, default=0, help="start of all random choices")
    parser.add_argument("--lanes", type=int, default=min(os.cpu_count() or 1, 8), help="processes at a time")
    asked = parser.parse_args()
    if asked.out is None and (asked.page or asked.figures):
        parser.error("--page and --figures show what stands in --out")
    return asked


def fast_disk() -> str | None:
    """A file system in memory with some room, else None."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 2 * 2**30 else None


def main() -> int:
    """Run what was asked for; 1 when llmt failed a fault."""
    asked = arguments()
    build = Path(tempfile.gettempdir(), f"llmt-faults-{os.getpid()}")
    build.mkdir(exist_ok=True)
    shim.preload(build)
    scale = asked.scale if asked.scale is not None else QUICK if asked.quick else 1.0
    scale *= float(os.environ.get("COUNT", "1"))
    try:
        found = strike(asked, scale)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return int(any(one.failed for one in found if one.subject == LLMT))


def strike(asked: argparse.Namespace, scale: float) -> list[Family]:
    """Run the families, and print a line for each as it ends."""
    found: list[Family] = []
    with tempfile.TemporaryDirectory(prefix="llmt-faults-", dir=fast_disk()) as folder:
        lab = Lab(Path(folder).resolve(), shim.find_shim(), asked.lanes, scale, asked.seed)
        warm_up()
        for name in asked.only or FAMILIES:
            lab.scale = scale * (QUICKER.get(name, 1.0) if asked.quick and not asked.only else 1.0)
            for one in family(name)(lab):
                print(json.dumps(one.line()), flush=True)
                found.append(one)
            if asked.out is not None:  # after each family: a run that is broken off has told what it found
                keep(asked, found, scale)
    return found


def keep(asked: argparse.Namespace, found: list[Family], scale: float) -> None:
    """Write what was found so far, beside what earlier runs of other families found where only some were asked for."""
    lines = report.write(asked.out, found, scale, add=bool(asked.only))
    if asked.page is not None:
        report.put_into(asked.page, lines)
    if asked.figures is not None:
        report.draw(asked.figures, lines, found)


if __name__ == "__main__":
    sys.exit(main())
