"""a command line of llmt -> a tiny run in a child of this process, and what it left."""

import gc
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.lanes import LIMIT, Ended, run_child
from harness.shim import Shim

TEXT = "".join(f"Line {n}: {'the quick brown fox jumps over it'[n % 9 :]} {n * n}.\n" for n in range(120))

MODEL = (
    "--hidden-size", "32", "--intermediate-size", "48", "--num-hidden-layers", "2", "--num-attention-heads", "2",
    "--per-device-train-batch-size", "4", "--learning-rate", "0.01",
)  # fmt: skip
RUN = (
    "--block-size", "16", "--precision", "fp32", "--compile", "never", "--device", "cpu", "--threads", "1",
    "--sample-tokens", "0", "--warmup-steps", "2",
)  # fmt: skip
SCRATCH = ("train", "quickstart", "--data", "text.txt", *MODEL, *RUN, "--algo", "byte")
LORA = ("train", "lora", "--base", "base", "--data", "text.txt", *RUN, "--batch-size", "4")


IMPORTED = (
    "llmt.cli.app", "llmt.cli.train", "llmt.cli.tokenizer", "llmt.cli.data", "llmt.training.build",
    "llmt.training.finish", "llmt.models.load", "llmt.models.lora", "torch._dynamo", "torch.distributed.tensor",
    "transformers.trainer", "datasets", "peft",
)  # fmt: skip
"""What a child would have to import otherwise."""


@dataclass
class Lab:
    """Where the faults happen.

    Attributes:
        root: A folder of our own, on a fast disk where there is one.
        shim: What strikes.
        lanes: How many processes at a time.
        scale: Share of the full counts.
        seed: Start of all choices.
    """

    root: Path
    shim: Shim
    lanes: int = 2
    scale: float = 1.0
    seed: int = 0
    _made: dict[str, Path] = field(default_factory=dict)

    def count(self, full: int, least: int = 1) -> int:
        """How many of `full` faults to try."""
        return max(round(full * self.scale), least)

    def fresh(self, name: str) -> Path:
        """A new folder with a text to train on and a warm cache."""
        place = self.root / name
        shutil.rmtree(place, ignore_errors=True)
        (place / "runs").mkdir(parents=True)
        (place / "text.txt").write_text(TEXT, encoding="utf-8")
        return place

    def prepared(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that is made once; copy it before it is changed."""
        if name not in self._made:
            place = self.fresh(f"prepared-{name}")
            make(place)
            self._made[name] = place
        return self._made[name]

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a prepared folder, to do anything in."""
        place = self.root / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place, symlinks=True)
        return place

    def log(self, place: Path) -> Path:
        """Where a child that works in `place` says what it says: outside of it."""
        return self.root / f"{place.name}.log"

    def child(self, place: Path, action: Callable[[], object], limit: float = LIMIT) -> Ended:
        """Run `action` with `place` as working directory and as home, in a child."""
        return run_child(lambda: inside(place, action), self.log(place), limit)

    def llmt(self, place: Path, *arguments: str, limit: float = LIMIT) -> Ended:
        """Run a command line of llmt in a child."""
        return self.child(place, lambda: command(arguments), limit)

    def must(self, place: Path, *arguments: str) -> Ended:
        """Run a command line that nothing disturbs.

        Raises:
            RuntimeError: It failed all the same.
        """
        ended = self.llmt(place, *arguments)
        if ended.code:
            raise RuntimeError(f"llmt {' '.join(arguments)}: exit code {ended.code}\n{ended.log}")
        return ended


def inside(place: Path, action: Callable[[], object]) -> object:
    """Run `action` where a stranger would: in `place`, with nothing of llmt in the environment."""
    os.chdir(place)
    for name in [name for name in os.environ if name.startswith(("LLMT_", "COLUMNS"))]:
        del os.environ[name]
    os.environ.update(HOME=str(place), XDG_CACHE_HOME=str(place / "cache"), HF_HUB_OFFLINE="1", TERM="dumb")
    from llmt.errors import LlmtError

    try:
        return action()
    except LlmtError as error:  # as the command line ends
        print(f"{type(error).__name__}: {error.message}")
        return error.exit_code


def command(arguments: tuple[str, ...]) -> None:
    """The `llmt` command itself, which ends the process."""
    from llmt.cli.app import main

    sys.argv = ["llmt", *arguments]
    main()


def warm_up() -> None:
    """Import what a run imports and measure what it measures; nothing here computes a gradient or starts a thread."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    from llmt.system.machine import inspect_machine, measure_speed

    inspect_machine()
    measure_speed("cpu", 1)
    gc.collect()
    gc.freeze()  # a child's collection must not copy the pages of what the parent imported


def sha256(*paths: Path) -> str:
    """One hash over files, names included."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def tree(directory: Path) -> dict[str, str]:
    """Every file below a directory with its hash."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): sha256(path) for path in files}


def finished(run: Path) -> str:
    """The hash of a finished model: its weights, or those of its adapter."""
    weights = sorted(path for path in run.iterdir() if path.suffix in (".safetensors", ".bin"))
    return sha256(*weights) if weights else "none"
