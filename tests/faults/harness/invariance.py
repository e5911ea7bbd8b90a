"""what must not matter: validation, logging, saving, sampling, the terminal, hash seeds, -O -> one hash of weights."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness import peers
from harness.lab import SCRATCH, Lab, finished
from harness.lanes import run_child, spread
from harness.verdicts import LLMT, Family, Verdict, families

STEPS = ("--max-steps", "12")
BASE = ("--eval-steps", "1000", "--save-steps", "1000", "--logging-steps", "1000")


@dataclass(frozen=True)
class Variant:
    """One way to run the same thing.

    Attributes:
        name: What differs.
        flags: Flags beside those of the run.
        environment: Variables beside those of the run.
        python: Flags of Python; a process of its own where there are any, or another hash seed.
    """

    name: str
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    python: tuple[str, ...] = ()


VARIANTS = (
    Variant("as it is"),
    Variant("validated at every step", ("--eval-steps", "1")),
    Variant("validated at every third step", ("--eval-steps", "3")),
    Variant("two batches of validation", ("--eval-steps", "4", "--eval-batches", "2")),
    Variant("logged at every step", ("--logging-steps", "1")),
    Variant(
        "a sample of text at every fourth step",
        ("--sample-strategy", "steps", "--sample-steps", "4", "--sample-tokens", "8"),
    ),
    Variant("saved at every step", ("--save-steps", "1")),
    Variant("saved at every fifth step, one kept", ("--save-steps", "5", "--save-total-limit", "1")),
    Variant("a terminal of 20 columns", (), {"COLUMNS": "20"}),
    Variant("a terminal of 300 columns", ("--logging-steps", "2"), {"COLUMNS": "300"}),
    Variant("PYTHONHASHSEED=1", (), {"PYTHONHASHSEED": "1"}, ("-u",)),
    Variant("python -O", (), {"PYTHONHASHSEED": "77"}, ("-O",)),
    Variant("a sample of text at the end", ("--sample-tokens", "20", "--sample-prompt", "Line")),
)


def weights(lab: Lab, variant: Variant) -> str:
    """The hash of the last weights of a variant, or what went wrong."""
    place = lab.fresh(f"invariance-{VARIANTS.index(variant)}")
    arguments = (*SCRATCH, "--hidden-dropout", "0.1", *STEPS, *BASE, *variant.flags, "-o", "run")
    if variant.python:
        environment = os.environ | {"HOME": str(place), "XDG_CACHE_HOME": str(place / "cache")} | variant.environment
        done = subprocess.run(
            [sys.executable, *variant.python, "-m", "llmt", *arguments], cwd=place, env=environment, check=False,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        code, said = done.returncode, done.stderr
    else:
        ended = lab.child(place, lambda: _with(variant, arguments))
        code, said = ended.code, ended.log
    return last_weights(place / "run") if code == 0 else f"exit code {code}: {said.strip().splitlines()[-1:]}"


def _with(variant: Variant, arguments: tuple[str, ...]) -> None:
    from harness.lab import command

    os.environ.update(variant.environment)
    command(arguments)


def last_weights(run: Path) -> str:
    """The hash of the newest checkpoint's weights: the finished model may be an earlier one that validates better."""
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return finished(newest)


def hf_weights(lab: Lab, evaluates: bool) -> str:
    """The hash of the weights that the Trainer of transformers ends with, with dropout."""
    place = lab.fresh(f"invariance-hf-{evaluates}")

    def work() -> None:
        settings = {"eval_strategy": "steps", "eval_steps": 1} if evaluates else {}
        trainer = peers.hf_trainer(Path("run"), dropout=0.1, **settings)
        trainer.train()
        trainer.save_model("run")

    ended = run_child(lambda: (os.chdir(place), work()), lab.log(place))
    return peers.digest_hf(place) if ended.code == 0 else f"exit code {ended.code}: {ended.last_line}"


def run(lab: Lab) -> list[Family]:
    """Run all variants and compare what they end with."""
    started = time.monotonic()
    found = spread(VARIANTS, lambda variant: weights(lab, variant), lab.lanes)
    verdicts = [
        Verdict(variant.name, "" if digest == found[0] and ":" not in digest else f"ends with {digest[:80]}", LLMT)
        for variant, digest in zip(VARIANTS[1:], found[1:], strict=True)  # the first is what the others are held to
    ]
    one, other = spread((False, True), lambda evaluates: hf_weights(lab, evaluates), lab.lanes)
    verdicts.append(Verdict("validated at every step", "" if one == other else f"ends with {other[:80]}", "HF Trainer"))
    return families("invariance", verdicts, started, {"hash": found[0][:16]})
