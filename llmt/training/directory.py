"""Where a run is kept, and whether it may be written there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.lock import output_lock
from llmt.checkpoints.store import CheckpointStore
from llmt.config.names import AUTO, NEWEST
from llmt.config.run import TrainConfig
from llmt.errors import BusyOutputError, ConfigError, ModelFileError
from llmt.training.resume import differences

SHOWN = 4
"""Settings that are named where another run stands in the way."""


@dataclass(frozen=True)
class Resume:
    """How a run goes on.

    Attributes:
        required: There has to be a checkpoint; else a run begins where there is none.
        directory: The run that was named; None takes that of the configuration.
        step: The checkpoint that was named; None takes the newest whole one.
    """

    required: bool = True
    directory: Path | None = None
    step: int | None = None


def parse_resume(text: str) -> Resume:
    """What `--resume` was told: `newest`, `auto`, the path of a run or that of a checkpoint.

    Raises:
        ModelFileError: The path is neither.
    """
    if text in (NEWEST, AUTO):
        return Resume(required=text == NEWEST)
    path = Path(text).expanduser()
    step = layout.parse_checkpoint_step(path.resolve().name)
    directory = path if step is None else path.resolve().parent
    if not (directory / layout.RUN_CONFIG).is_file():
        what = "is not there" if not path.exists() else "is no run of llmt, nor a checkpoint in one"
        raise ModelFileError(
            f"{path}: {what}", "--resume RUN, --resume RUN/checkpoint-100, or --base MODEL begins anew"
        )
    return Resume(directory=directory, step=step)


def run_directory(config: TrainConfig) -> Path:
    """`output_dir`, else `./runs/NAME`; an adapter's name ends in `-lora`."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    name = config.name or "run"
    if config.lora.enabled and not name.endswith("lora"):
        name += "-lora"
    return Path(layout.RUNS_DIRECTORY) / name


def claim_directory(directory: Path, asked: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may be written there.

    Args:
        directory: Of the run.
        asked: Its configuration.
        resume: A run that stands there goes on.
        overwrite: It is replaced.

    Raises:
        BusyOutputError: Another run is there and neither option was given, or what is there is no run.
        ModelFileError: There is nothing to resume.
    """
    if directory.exists() and not directory.is_dir():
        raise BusyOutputError(f"{directory}: is a file", "name another directory with --output-dir")
    steps = CheckpointStore(directory).steps()
    if resume and not CheckpointStore(directory).holds_any():
        raise ModelFileError(f"{directory}: no checkpoint to resume from", "llmt train   starts a new run")
    is_run = (directory / layout.RUN_CONFIG).is_file()
    if resume or not _holds_work(directory, is_run):
        return
    if not overwrite:
        resumable = f"llmt train {directory} --resume   goes on; " if steps else ""
        raise BusyOutputError(
            f"{directory}: holds {_what_run(directory, asked) if is_run else 'files'} already",
            f"{resumable}--overwrite replaces a run; or name another directory with --output-dir",
        )
    if not is_run:
        raise BusyOutputError(
            f"{directory}: is not a run of llmt, so --overwrite leaves it alone", "name another with -o"
        )


def _holds_work(directory: Path, is_run: bool) -> bool:
    """Whether something would be lost; a run that ended before its first checkpoint holds nothing."""
    if not directory.is_dir():
        return False
    if is_run:
        return bool(CheckpointStore(directory).steps()) or (directory / layout.RESULT).exists()
    ours = (layout.LOCK, layout.LOCK_OWNER)
    # A process that was killed while it began leaves temporary files.
    return any(p.name not in ours and not p.name.startswith(layout.TEMPORARY_PREFIX) for p in directory.iterdir())


def _what_run(directory: Path, asked: TrainConfig) -> str:
    """The run that stands there, by what it has otherwise than the one asked for."""
    try:
        found = differences(directory, asked)
    except ConfigError:  # of another version, or edited: whatever it is, it stands there
        return "another run"
    if not found:
        return "a run of these settings"
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"another run ({'; '.join(found[:SHOWN])}{more})"


def clear_directory(directory: Path) -> None:
    """Remove the run that stands there, checkpoints first; the lock stays.

    What makes it a run goes last: a process that is killed meanwhile leaves a run, which can be replaced.
    """
    for path in sorted(directory.iterdir(), key=lambda path: (path.name == layout.RUN_CONFIG, path.name)):
        if path.name in (layout.LOCK, layout.LOCK_OWNER):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def held(directory: Path) -> Iterator[str | None]:
    """Hold the directory of a run, without what a dead process left there half-done.

    If nothing comes of the run, the folders made for it go away again.

    Yields:
        The process that held it last, where that was killed.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        with output_lock(directory) as killed:
            CheckpointStore(directory).clean()
            yield killed
    finally:
        with suppress(OSError):  # the first folder that holds something stays, and so do those above it
            if [path.name for path in directory.iterdir()] == [layout.LOCK]:
                (directory / layout.LOCK).unlink()
            for path in made:
                path.rmdir()
