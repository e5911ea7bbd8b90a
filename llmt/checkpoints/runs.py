"""folder of runs -> finished runs -> model directory.

A run is finished when its root holds `result.json` beside a manifest that fits the files. When it was
finished is what that record says, never a file time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.detect import holds_weights
from llmt.checkpoints.manifest import manifest_problems, read_manifest, verify_manifest
from llmt.checkpoints.reading import read_errors, read_json
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import ModelFileError

KINDS = ("full", "adapter")


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end: where, what kind of model, after which step, when, and its whole record."""

    path: Path
    name: str
    kind: str
    step: int
    finished_at: datetime
    record: Mapping[str, object]


def finished_record(*, name: str, kind: str, step: int, finished_at: datetime | None = None) -> dict[str, object]:
    """The content of `result.json` for a run that ends now; the writer may add fields.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, not one of {', '.join(KINDS)}")
    moment = (finished_at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")
    return {"finished": True, "finished_at": moment, "kind": kind, "step": step, "name": name}


def read_finished(directory: Path) -> FinishedRun | None:
    """The finished run in `directory`, or None where there is none. Sizes are compared, contents are not."""
    if not (directory / layout.RESULT).is_file():
        return None
    try:
        manifest = read_manifest(directory)
        record = read_json(directory, layout.RESULT)
        if manifest is None or manifest_problems(directory, manifest, contents=False):
            return None
    except ModelFileError:
        return None
    match record:
        case {"finished": True, "finished_at": str(when), "kind": str(kind), "step": int(step), "name": str(name)}:
            finished_at = _parse_moment(when)
            if finished_at is not None and kind in KINDS:
                return FinishedRun(directory, name, kind, step, finished_at, record)
    return None


def _parse_moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def find_runs(root: Path = Path(layout.RUNS_DIRECTORY)) -> list[FinishedRun]:
    """The finished runs directly below `root`, the one that finished first at the front."""
    if not root.is_dir():
        return []
    with read_errors(root):
        found = [read_finished(path) for path in sorted(root.iterdir()) if path.is_dir()]
    runs = [run for run in found if run is not None]
    return sorted(runs, key=lambda run: (run.finished_at, run.path.name))


def newest_finished(root: Path = Path(layout.RUNS_DIRECTORY), kind: str = "full") -> FinishedRun | None:
    """The run below `root` that finished last, of this kind; None where there is none."""
    runs = [run for run in find_runs(root) if run.kind == kind]
    return runs[-1] if runs else None


def resolve_model_directory(path: Path, root: Path = Path(layout.RUNS_DIRECTORY)) -> Path:
    """The directory of the model that `path` means: a finished run, a checkpoint, or any model directory.

    Where there is a manifest, the sizes of the files must fit it.

    Args:
        path: What the user named.
        root: Where to look for runs to suggest when it is not a model.

    Raises:
        ModelFileError: Not there, not a model, damaged, or a run that is not finished; the hint says what
            there is.
    """
    if not path.exists():
        raise ModelFileError(f"{path}: does not exist", _suggest(root))
    if not path.is_dir():
        raise ModelFileError(f"{path}: is a file, a model directory was expected", f"name {path.parent}, or convert it")
    _require_finished(path, root)
    if (path / layout.CONFIG_FILE).is_file() and holds_weights(path):
        return path
    if (path / layout.ADAPTER_CONFIG).is_file() and (path / layout.ADAPTER_MODEL).is_file():
        return path
    if (path / layout.ADAPTER_CONFIG).is_file() and (path / layout.PICKLED_ADAPTER).is_file():
        raise ModelFileError(f"{path}: its adapter is in PyTorch's format", f"llmt convert {path}")
    if holds_weights(path):
        raise ModelFileError(f"{path}: has weights, and no {layout.CONFIG_FILE} that describes them", _suggest(root))
    raise ModelFileError(f"{path}: has no {layout.CONFIG_FILE} and {layout.MODEL_FILE}", _suggest(root))


def _require_finished(path: Path, root: Path) -> None:
    """A manifest fits its files; a run without one is not finished."""
    if (path / layout.MANIFEST).exists():
        verify_manifest(path, contents=False)
    elif (path / layout.RUN_CONFIG).exists():
        steps = CheckpointStore(path).steps()
        hint = f"use {path / layout.checkpoint_name(steps[-1])}, or resume the run" if steps else _suggest(root)
        raise ModelFileError(f"{path}: the run is not finished, so it has no model yet", hint)


def _suggest(root: Path) -> str:
    runs = find_runs(root)
    if not runs:
        return f"no finished run in {root}; train one: llmt train"
    return "runs found: " + ", ".join(str(run.path) for run in runs[-5:])
