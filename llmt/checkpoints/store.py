"""step -> checkpoint directory -> newest whole step."""

import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, remove, set_aside, staged_directory
from llmt.checkpoints.files import fsync_directory, make_directory, storage_errors
from llmt.checkpoints.manifest import Manifest, UnknownFormatError, manifest_problems, read_manifest
from llmt.errors import ModelFileError

# No permission, too many open files: this says nothing about the checkpoint.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
# The disk or the network could not read just now: what was written may be whole all the same.
_NOT_READ = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENOMEM)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was found to be what was written."""

    step: int
    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class _Verdict:
    """What became of verifying a checkpoint.

    Attributes:
        whole: It, where every byte is right.
        problems: Else what is wrong.
        read: It could be read, so that the problems are those of the files.
    """

    whole: Checkpoint | None
    problems: tuple[str, ...] = ()
    read: bool = True


class CheckpointStore:
    """The checkpoints of one run, `RUN/checkpoint-STEP`. The run's `output_lock` must be held while it is
    changed.

    Which one is newest is decided by the step in its name and by its manifest: never by file times, never by
    a file that points at it.
    """

    def __init__(self, run_directory: Path) -> None:
        self.directory = run_directory

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self.directory / layout.checkpoint_name(step)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint directory, ascending; says nothing about their content."""
        if not self.directory.is_dir():
            return []
        with storage_errors("listing checkpoints", self.directory):
            names = [path.name for path in self.directory.iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(step for name in names if (step := layout.parse_checkpoint_step(name)) is not None)

    def holds_any(self) -> bool:
        """Whether there is a checkpoint, or one that was about to be removed: `clean` may bring it back."""
        return bool(self.steps()) or any(self.directory.glob(f"{layout.DELETED_PREFIX}*"))

    def save(
        self, step: int, fill: Callable[[StagedDirectory], None], extra: Mapping[str, object] | None = None
    ) -> Path:
        """Publish a checkpoint, whole or not at all; once this returns, it survives a power failure.

        A checkpoint of the same step that is already there is replaced.

        Args:
            step: Optimizer steps done.
            fill: Writes the files into the folder it is given.
            extra: Fields for the manifest, beside `step`.

        Raises:
            StorageError: The disk refused. Earlier checkpoints are untouched.
        """
        target = self.path(step)
        with storage_errors("creating the run directory", self.directory):
            make_directory(self.directory)
        with staged_directory(target, extra={"step": step, **(extra or {})}, replace=True) as staged:
            fill(staged)
        return target

    def latest(self, on_damaged: Callable[[str], None] | None = None, *, rename: bool = True) -> Checkpoint | None:
        """The highest step whose manifest verifies, size and SHA-256 of every file; None where there is none.

        A damaged checkpoint on the way is renamed to `.bad-...`, never deleted. One that the disk cannot read is passed
        over too, and keeps its name.

        Args:
            on_damaged: Called with one line for each checkpoint that is passed over: which, why, and its new name.
            rename: Set damaged ones aside; without the lock of the run nothing may be renamed.

        Raises:
            ModelFileError: A checkpoint of a newer llmt, or one that may not be read, stands in the way.
            StorageError: A damaged checkpoint cannot be renamed.
        """
        for step in reversed(self.steps()):
            verdict = self._verify(step)
            if verdict.whole is not None:
                return verdict.whole
            kept = ""
            if rename and verdict.read:
                with storage_errors("setting a damaged checkpoint aside", self.path(step)):
                    kept = f"; kept as {set_aside(self.path(step), layout.DAMAGED_PREFIX).name}"
            if on_damaged is not None:
                what = "is damaged" if verdict.read else "cannot be read now"
                on_damaged(f"{layout.checkpoint_name(step)} {what} ({'; '.join(verdict.problems)}){kept}")
        return None

    def verified(self, step: int) -> Checkpoint:
        """The checkpoint of a step, every byte of it checked.

        Raises:
            ModelFileError: There is none, or it is damaged or cannot be read; says how.
        """
        if not self.path(step).is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise ModelFileError(
                f"{self.path(step)}: is not there; steps with a checkpoint: {there}", "name one of them"
            )
        verdict = self._verify(step)
        if verdict.whole is None:
            reason = ("damaged: " if verdict.read else "") + "; ".join(verdict.problems)
            raise ModelFileError(f"{self.path(step)}: {reason}", "name another checkpoint, or --resume alone")
        return verdict.whole

    def set_later_aside(self, step: int) -> list[str]:
        """Rename the checkpoints after `step` to `.later-...`: a run that goes on from `step` is not theirs.

        Returns:
            Their new names.

        Raises:
            StorageError: The disk refused.
        """
        later = [self.path(other) for other in self.steps() if other > step]
        with storage_errors("setting later checkpoints aside", self.directory):
            return [set_aside(path, layout.LATER_PREFIX).name for path in later]

    def _verify(self, step: int) -> _Verdict:
        path = self.path(step)
        try:
            manifest = read_manifest(path)
            problems = [f"no {layout.MANIFEST}"] if manifest is None else manifest_problems(path, manifest)
        except UnknownFormatError:
            raise
        except ModelFileError as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            if number in _NOT_DAMAGE:
                raise
            return _Verdict(None, (error.message,), read=number not in _NOT_READ)
        if manifest is None or problems:
            return _Verdict(None, tuple(problems))
        if manifest.extra.get("step") != step:
            return _Verdict(None, (f"its manifest says step {manifest.extra.get('step')!r}",))
        return _Verdict(Checkpoint(step, path, manifest))

    def retain(self, limit: int, keep: Collection[int] = ()) -> list[int]:
        """Remove the oldest checkpoints until `limit` are left; the newest, and those in `keep`, always stay.

        Args:
            limit: How many to leave, at least 1.
            keep: Steps that must stay: the best, the one this run came from. They count towards `limit`.

        Returns:
            The steps removed.

        Raises:
            ValueError: `limit` is below 1.
            StorageError: The disk refused.
        """
        if limit < 1:
            raise ValueError(f"save_total_limit is {limit}; at least 1 checkpoint must stay")
        steps = self.steps()
        removable = [step for step in steps[:-1] if step not in keep]
        victims = removable[: max(0, len(steps) - limit)]
        for step in victims:
            with storage_errors("removing an old checkpoint", self.path(step)):
                # Renamed first: a half-removed directory must not look like a checkpoint.
                remove(set_aside(self.path(step), layout.DELETED_PREFIX))
        return victims

    def clean(self) -> list[str]:
        """Remove what an earlier process left behind when it died (`.tmp-*`, `.del-*`); call it at the start.

        Where no whole checkpoint is left, a whole one that was about to be removed is brought back first.

        Returns:
            The names removed.

        Raises:
            StorageError: The disk refused.
        """
        if not self.directory.is_dir():
            return []
        prefixes = (layout.TEMPORARY_PREFIX, layout.DELETED_PREFIX)
        with storage_errors("cleaning up", self.directory):
            leftovers = sorted(path for path in self.directory.iterdir() if path.name.startswith(prefixes))
            if any(path.name.startswith(layout.DELETED_PREFIX) for path in leftovers) and not self.steps():
                leftovers = self._bring_back(leftovers)
            for path in leftovers:
                remove(path)
        return [path.name for path in leftovers]

    def _bring_back(self, leftovers: list[Path]) -> list[Path]:
        best: tuple[int, Path] | None = None
        for path in leftovers:
            name = path.name.removeprefix(layout.DELETED_PREFIX).rpartition("-")[0]
            step = layout.parse_checkpoint_step(name)
            if step is None or (best is not None and step <= best[0]):
                continue
            try:
                manifest = read_manifest(path)
            except ModelFileError:
                continue
            if manifest is not None and not manifest_problems(path, manifest):
                best = (step, path)
        if best is None:
            return leftovers
        best[1].rename(self.path(best[0]))
        fsync_directory(self.directory)
        return [path for path in leftovers if path != best[1]]
