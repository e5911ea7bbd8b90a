"""a run's directory -> its checkpoints, and what is wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.manifest import manifest_problems, read_manifest
from llmt.checkpoints.reading import read_json
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import ModelFileError


@dataclass(frozen=True)
class Surveyed:
    """One checkpoint as it lies there.

    Attributes:
        path: Its directory.
        step: Optimizer steps that it holds.
        tokens: Trained tokens; None where its state cannot be read.
        is_best: The run's best validation so far, by the record in the newest checkpoint.
        size: Bytes of its files by the manifest; 0 where that cannot be read.
        files: How many.
        problems: Where it differs from its manifest; empty where it is whole.
    """

    path: Path
    step: int
    tokens: int | None
    is_best: bool
    size: int
    files: int
    problems: tuple[str, ...]


def survey(directory: Path, *, contents: bool) -> Iterator[Surveyed]:
    """Every checkpoint of a run, the first step at the front. Nothing is renamed or removed.

    Args:
        directory: A run, or one checkpoint of it.
        contents: Read every byte and compare hashes; else sizes only.

    Raises:
        ModelFileError: It is neither.
    """
    step = layout.parse_checkpoint_step(directory.name)
    run = directory if step is None else directory.parent
    store = CheckpointStore(run)
    steps = store.steps() if step is None else [step]
    if not directory.is_dir() or not steps:
        raise ModelFileError(f"{directory}: has no checkpoints", "llmt checkpoints list runs/NAME")
    newest = store.steps()[-1]
    best = _state(store.path(newest)).get("best_step")
    for number in steps:
        yield _look(store.path(number), number, is_best=number == best, contents=contents)


def set_aside_names(directory: Path) -> list[str]:
    """Checkpoints that a resume set aside: damaged ones, and those after the one that was named."""
    prefixes = (layout.DAMAGED_PREFIX, layout.LATER_PREFIX)
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(prefixes))


def _look(path: Path, step: int, *, is_best: bool, contents: bool) -> Surveyed:
    tokens = _state(path).get("tokens")
    size = files = 0
    try:
        manifest = read_manifest(path)
        problems = [f"no {layout.MANIFEST}"]
        if manifest is not None:
            size, files = sum(record.size for record in manifest.files.values()), len(manifest.files)
            problems = manifest_problems(path, manifest, contents=contents)
            if manifest.extra.get("step") != step:
                problems.append(f"its manifest says step {manifest.extra.get('step')!r}")
    except ModelFileError as error:
        problems = [error.message]
    return Surveyed(path, step, tokens if isinstance(tokens, int) else None, is_best, size, files, tuple(problems))


def _state(path: Path) -> dict[str, object]:
    try:
        return read_json(path, layout.STATE)
    except ModelFileError:  # what is wrong is said by the manifest
        return {}
