""".pt, .pth, .bin -> safetensors, byte by byte, without torch."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, publish_into, staged_directory
from llmt.checkpoints.files import require_free_space, storage_errors
from llmt.checkpoints.header import encode_header, file_order
from llmt.checkpoints.pickled import PickledFile, PickledTensor, open_pickled
from llmt.checkpoints.reading import FETCH_AGAIN, is_plain_name, open_inside, read_errors, read_json, shown
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE, ShardPlan, index_json, plan_shards
from llmt.errors import BusyOutputError, ModelFileError

_PATTERNS = ("*.bin", "*.pt", "*.pth")
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states")
_PREFERRED = "model.embed_tokens.weight"


@dataclass(frozen=True)
class ConvertPlan:
    """What is to be converted into what.

    `copied` are small files to copy along; `stem` is how the new names begin; `listed` is the source's own
    index, tensor name -> file name, where it has one.
    """

    sources: tuple[Path, ...]
    output: Path
    copied: tuple[Path, ...]
    stem: str
    max_shard_size: int
    listed: Mapping[str, str] | None


@dataclass(frozen=True)
class ConvertProgress:
    """How far a conversion is: bytes of tensors written, of how many, and the file under way."""

    done: int
    total: int
    file: str


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did; always its last event.

    `size` is the bytes of all tensors, `parameters` their numbers, `tied` maps each name that was left out to
    the name that holds the same numbers, `copied` names the files that were copied along.
    """

    output: Path
    files: tuple[str, ...]
    tensors: int
    parameters: int
    size: int
    seconds: float
    tied: Mapping[str, str]
    copied: tuple[str, ...]


ConvertEvent: TypeAlias = ConvertProgress | ConvertReport
_Chosen: TypeAlias = dict[str, tuple[PickledFile, PickledTensor]]


def convert_to_safetensors(
    source: Path,
    output: Path | None = None,
    *,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
) -> Iterator[ConvertEvent]:
    """Write the weights of PyTorch files as safetensors; the originals stay. Reports as it goes.

    The model appears in `output` whole or not at all. Nothing in the source is executed.

    Args:
        source: A file of `torch.save`, or a directory with one, or with the shards of one model.
        output: Where to write. By default the directory itself, or for a file the folder beside it named by
            its stem.
        max_shard_size: Bytes of tensors per file.
        overwrite: Replace weights that are there already.

    Raises:
        ModelFileError: The source is missing, damaged, unsafe or ambiguous.
        BusyOutputError: There are weights in `output`, and `overwrite` is off.
        StorageError: The disk refused.
    """
    yield from run_conversion(plan_conversion(source, output, max_shard_size=max_shard_size, overwrite=overwrite))


def plan_conversion(
    source: Path,
    output: Path | None = None,
    *,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
) -> ConvertPlan:
    """Find what is to be converted; looks at names only. Arguments and errors as `convert_to_safetensors`."""
    sources = find_pickled(source)
    if output is None:
        output = source if source.is_dir() else _folder_beside(source)
    _require_free_output(output, overwrite)
    beside = sources[0].parent
    copied = []
    if output.resolve() != beside.resolve():
        copied = [beside / name for name in layout.COMPANIONS if (beside / name).is_file()]
    stem = "adapter_model" if sources[0].name == layout.PICKLED_ADAPTER else "model"
    indexed = source.is_dir() and (source / layout.PICKLED_INDEX).exists()
    listed = _read_index(source) if indexed else None
    return ConvertPlan(sources, output, tuple(copied), stem, max_shard_size, listed)


def _require_free_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise BusyOutputError(f"{output}: is a file, a directory is to be written", "name one with --output-dir")
    present = [path.name for path in output.iterdir()] if output.is_dir() else []
    weights = sorted(filter(layout.is_weight_file, present))
    if weights and not overwrite:
        raise BusyOutputError(f"{output}: holds {weights[0]} already", "add --overwrite, or name another --output-dir")


def _folder_beside(file: Path) -> Path:
    return file.with_suffix("") if file.suffix else file.with_name(f"{file.name}-safetensors")


def find_pickled(source: Path) -> tuple[Path, ...]:
    """The PyTorch files that `source` means: itself, or all files of the one model in the directory.

    Raises:
        ModelFileError: Nothing is there, nothing of PyTorch, or several things.
    """
    if not source.exists():
        raise ModelFileError(f"{source}: does not exist", "name a .pt, .pth or .bin file, or a directory with one")
    if source.is_file():
        return (source,)
    if (source / layout.PICKLED_INDEX).exists():
        return tuple(source / name for name in sorted(set(_read_index(source).values())))
    if (source / layout.PICKLED_MODEL).exists():
        return (source / layout.PICKLED_MODEL,)
    with read_errors(source):
        found = sorted({path for pattern in _PATTERNS for path in source.glob(pattern) if path.is_file()})
    candidates = [path for path in found if not path.name.startswith(_NOT_WEIGHTS)]
    if len(candidates) == 1:
        return (candidates[0],)
    if candidates:
        names = _some([path.name for path in candidates])
        raise ModelFileError(f"{source}: holds several PyTorch files: {names}", f"llmt convert {candidates[-1]}")
    names = _some(sorted(path.name for path in source.iterdir())) or "nothing"
    raise ModelFileError(
        f"{source}: holds no PyTorch file (.pt, .pth, .bin) with weights; it holds {names}",
        "name a .pt, .pth or .bin file, or a directory with one",
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_index(directory: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of sharded PyTorch files; every file lies in `directory`."""
    path = directory / layout.PICKLED_INDEX
    weight_map = read_json(directory, layout.PICKLED_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path}: has no weight_map", FETCH_AGAIN)
    for name in dict.fromkeys(map(str, weight_map.values())):
        if not is_plain_name(name) or not name.endswith(".bin"):
            raise ModelFileError(f"{path}: {shown(name)} is not a .bin file beside it", FETCH_AGAIN)
        open_inside(directory, name).close()
    return weight_map


def run_conversion(plan: ConvertPlan) -> Iterator[ConvertEvent]:
    """Execute a plan; events and errors as `convert_to_safetensors`."""
    start = time.monotonic()
    with ExitStack() as stack:
        opened = [stack.enter_context(open_pickled(path)) for path in plan.sources]
        chosen, tied = _choose_tensors(plan, opened)
        sizes = {name: tensor.nbytes for name, (_, tensor) in chosen.items()}
        shards = plan_shards(sizes, plan.max_shard_size, plan.stem)
        require_free_space(plan.output, shards.total_size)
        with _publishing(plan.output) as staged:
            yield from _write_shards(staged, shards, chosen)
            written = tuple(staged.names())
            for path in plan.copied:
                staged.write_file(path.name, _file_pieces(path))
    yield ConvertReport(
        output=plan.output,
        files=written,
        tensors=len(chosen),
        parameters=sum(math.prod(tensor.shape) for _, tensor in chosen.values()),
        size=shards.total_size,
        seconds=time.monotonic() - start,
        tied=tied,
        copied=tuple(path.name for path in plan.copied),
    )


def _choose_tensors(plan: ConvertPlan, opened: list[PickledFile]) -> tuple[_Chosen, dict[str, str]]:
    """Each tensor with the file that holds it, tied ones once; and the names left out for the names kept."""
    named: _Chosen = {}
    for file in opened:
        for tensor in file.tensors:
            if tensor.name in named:
                raise ModelFileError(f"{file.path}: {shown(tensor.name)} is in another file too", FETCH_AGAIN)
            named[tensor.name] = (file, tensor)
    if plan.listed is not None:
        held = {name: file.path.name for name, (file, _) in named.items()}
        differing = sorted(name for name, _ in held.items() ^ plan.listed.items())
        if differing:
            index = plan.sources[0].with_name(layout.PICKLED_INDEX)
            raise ModelFileError(f"{index}: it and its files disagree about {shown(differing[0])}", FETCH_AGAIN)
    keepers: dict[tuple[object, ...], str] = {}
    for name, (file, tensor) in named.items():
        if name == _PREFERRED or (file, tensor.place) not in keepers:
            keepers[file, tensor.place] = name
    chosen, tied = {}, {}
    for name, (file, tensor) in named.items():
        keeper = keepers[file, tensor.place]
        if keeper == name or not tensor.nbytes:
            chosen[name] = (file, tensor)
        else:
            tied[name] = keeper
    return chosen, tied


@contextmanager
def _publishing(output: Path) -> Iterator[StagedDirectory]:
    """A new directory appears at once; into one that exists, the files are moved one by one."""
    if output.exists():
        with publish_into(output, extra=None) as staged:
            yield staged
    else:
        with storage_errors("creating a folder", output):
            output.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(output, extra=None) as staged:
            yield staged


def _write_shards(staged: StagedDirectory, shards: ShardPlan, chosen: _Chosen) -> Iterator[ConvertProgress]:
    done = 0
    for name, members in shards.files.items():
        tensors = {member: chosen[member] for member in members}
        order = file_order((member, tensor.dtype, tensor.shape) for member, (_, tensor) in tensors.items())
        header = encode_header(order, {})
        size = len(header) + sum(tensor.nbytes for _, tensor in tensors.values())
        with staged.new_file(name, size) as output:
            output.write(header)
            for member, _, _ in order:
                file, tensor = tensors[member]
                for piece in file.read(tensor):
                    output.write(piece)
                    done += len(piece)
                    yield ConvertProgress(done, shards.total_size, name)
    if len(shards.files) > 1:
        staged.write_file(layout.MODEL_INDEX, index_json(shards).encode())


def _file_pieces(path: Path) -> Iterator[bytes]:
    with open_inside(path.parent, path.name) as file, read_errors(path):
        while piece := file.read(2**20):
            yield piece
