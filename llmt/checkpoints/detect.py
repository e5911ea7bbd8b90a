"""A path -> the weight files that it means: one rule, and an error where two of them could be meant.

The names of a model's weights are `model.safetensors`, `pytorch_model.bin`, the indexes of their shards, and `model` or
`pytorch_model` with another ending of PyTorch. Where more than one of them stands in a directory, all have to hold the
same numbers. Where none does, the one PyTorch file of any name is meant.
"""

from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.layout import Format
from llmt.checkpoints.reading import FETCH_AGAIN, is_plain_name, open_inside, read_errors, read_json, shown
from llmt.checkpoints.sharding import is_shard_file_name
from llmt.checkpoints.weightfiles import WeightFiles
from llmt.errors import ModelFileError

_ADAPTERS = (layout.ADAPTER_MODEL, layout.PICKLED_ADAPTER)
_MAX_INDEX = 16 * 2**20
_ENDINGS = (".bin", ".pt", ".pth")
_NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "training_args", "random_states")
_NAMES: dict[str, Format] = {
    layout.MODEL_FILE: "safetensors",
    layout.MODEL_INDEX: "safetensors",
    layout.ADAPTER_MODEL: "safetensors",
    layout.PICKLED_INDEX: "pytorch",
    layout.PICKLED_ADAPTER: "pytorch",
    **dict.fromkeys(layout.PICKLED_NAMES, "pytorch"),
}


def find_weights(path: Path, wanted: Format | None = None) -> WeightFiles:
    """The weights that a file or directory means.

    Args:
        path: A weight file, or the directory of a model.
        wanted: Look at this format alone; None takes what is there.

    Raises:
        ModelFileError: Nothing is there, nothing of the format, or several that differ.
    """
    if not path.exists():
        raise ModelFileError(f"{path}: does not exist", "name a model directory, or a weight file")
    if not path.is_dir():
        return _single_file(path, wanted)
    with read_errors(path):
        present = sorted(entry.name for entry in path.iterdir())
    # A link that leads nowhere counts: what it stood for is missing, and nothing else is meant instead.
    files = [name for name in present if not (path / name).is_dir()]
    found = [_read_named(path, name) for name, kind in _NAMES.items() if name in files and wanted in (None, kind)]
    # An index stands beside the files that it lists; that is one model and not two.
    listed = {name for each in found if each.listed is not None for name in each.names}
    sets = [each for each in found if each.listed is not None or each.names[0] not in listed]
    # An adapter may lie beside the model that it belongs to.
    sets = [each for each in sets if each.names[0] not in _ADAPTERS] or sets
    if not sets:
        return _lone_file(path, files, present, wanted)
    _require_agreement(path, sets)
    return sets[0]


def _require_agreement(directory: Path, sets: list[WeightFiles]) -> None:
    from llmt.checkpoints.agree import disagreement

    for other in sets[1:]:
        if difference := disagreement(sets[0], other):
            names = " and ".join(each.names[0] for each in (sets[0], other))
            raise ModelFileError(
                f"{directory}: holds {names}, and they differ: {difference}",
                "delete the one that is out of date, or name one file",
            )


def holds_weights(directory: Path) -> bool:
    """Whether `find_weights` would look at any file of a directory; nothing is opened."""
    with read_errors(directory):
        present = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    return any(name in _NAMES for name in present) or len(_lone_names(present)) == 1


def _lone_names(present: list[str]) -> list[str]:
    return [name for name in present if name.endswith(_ENDINGS) and not name.startswith(_NOT_WEIGHTS)]


def _single_file(path: Path, wanted: Format | None) -> WeightFiles:
    kind: Format = "safetensors" if path.name.endswith((".safetensors", layout.MODEL_INDEX)) else "pytorch"
    if wanted not in (None, kind):
        raise ModelFileError(f"{path}: is not a file of {wanted}", f"name a file of {wanted}, or a directory with one")
    if path.name.endswith(".index.json"):
        return find_weights_of_index(path)
    return WeightFiles(kind, path.parent, (path.name,), named=True)


def _read_named(directory: Path, name: str) -> WeightFiles:
    if name.endswith(".index.json"):
        return find_weights_of_index(directory / name)
    return WeightFiles(_NAMES[name], directory, (name,))


def _lone_file(directory: Path, files: list[str], present: list[str], wanted: Format | None) -> WeightFiles:
    candidates = [] if wanted == "safetensors" else _lone_names(files)
    if len(candidates) == 1:
        return WeightFiles("pytorch", directory, (candidates[0],))
    if candidates:
        names = some(candidates)
        raise ModelFileError(
            f"{directory}: holds several PyTorch files: {names}", f"name one of them: {directory / candidates[-1]}"
        )
    what = {"safetensors": layout.MODEL_FILE, "pytorch": "PyTorch file (.pt, .pth, .bin) with weights"}
    raise ModelFileError(
        f"{directory}: holds no {what.get(wanted or '', 'weights')}; it holds {some(present) or 'nothing'}",
        "name a .pt, .pth or .bin file, or a directory with one" if wanted == "pytorch" else "name a model directory",
    )


def some(names: list[str]) -> str:
    """A few of the names, as they may stand in a message."""
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def find_weights_of_index(path: Path) -> WeightFiles:
    """The files that an index of shards lists; every one lies beside it.

    Raises:
        ModelFileError: It is no index, or names a file that is not beside it.
    """
    directory = path.parent
    content = read_json(directory, path.name, _MAX_INDEX)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path}: has no weight_map", FETCH_AGAIN)
    kind: Format = "safetensors" if path.name.endswith(".safetensors.index.json") else "pytorch"
    names = tuple(sorted(set(map(str, weight_map.values()))))
    for name in names:
        fits = is_shard_file_name(name) if kind == "safetensors" else is_plain_name(name) and name.endswith(".bin")
        if not fits:
            ending = ".safetensors" if kind == "safetensors" else ".bin"
            raise ModelFileError(f"{path}: {shown(name)} is not a {ending} file beside it", FETCH_AGAIN)
        open_inside(directory, name).close()
    metadata = content.get("metadata")
    kept = metadata.items() if isinstance(metadata, dict) else ()
    text = {key: str(value) for key, value in kept if key != "total_size" and isinstance(value, str | int | float)}
    return WeightFiles(kind, directory, names, weight_map, text)
