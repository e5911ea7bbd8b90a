"""The value of a file of `torch.save` -> the tensors of a model, under the names that the model itself uses."""

from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints.header import METADATA_KEY
from llmt.checkpoints.reading import RESAVE, shown
from llmt.checkpoints.torch_globals import TensorView
from llmt.errors import ModelFileError

_HOLDERS = ("model_state_dict", "state_dict", "model", "module")
# torch.compile, FSDP and activation checkpointing mark each module that they wrap.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class StateDict:
    """The tensors of a model by name, their names in the file, and the names of what else stood there."""

    views: dict[str, TensorView]
    written: dict[str, str]
    left_out: tuple[str, ...]


def find_state_dict(value: object, path: Path) -> StateDict:
    """Find the state dict in what a file holds, and take the prefixes of wrappers off its names.

    It is the value itself, or what stands in it under `model_state_dict`, `state_dict`, `model` or `module`.

    Args:
        value: What the file describes.
        path: How errors call it.

    Raises:
        ModelFileError: There is none, or it holds what is not a plain tensor with a name.
    """
    left_out: list[str] = []
    for _ in range(3):
        if not isinstance(value, dict):
            break
        holder = next((key for key in _HOLDERS if isinstance(value.get(key), dict)), None)
        if holder is None:
            break
        left_out += [shown(key).strip("'") for key in value if key != holder]
        value = value[holder]
    if not isinstance(value, dict) or not value:
        raise ModelFileError(f"{path}: holds no state dict (a dictionary of tensors)", RESAVE)
    for key, item in value.items():
        _check_entry(key, item, path)
    plain = _plain_names(value, path)
    views = {plain[key]: view for key, view in value.items()}
    return StateDict(views, {name: key for key, name in plain.items()}, tuple(left_out))


def _check_entry(key: object, item: object, path: Path) -> None:
    """An entry of a state dict is a parameter's name and a plain tensor."""
    if not isinstance(key, str):
        raise ModelFileError(f"{path}: in its state dict, {shown(key)} is not text", RESAVE)
    if not isinstance(item, TensorView):
        raise ModelFileError(f"{path}: in its state dict, {shown(key)} is not a plain tensor", RESAVE)
    if not key.isprintable() or len(key) > 1000:
        raise ModelFileError(f"{path}: {shown(key)} is not the name of a parameter", RESAVE)


def _plain_names(views: dict[str, TensorView], path: Path) -> dict[str, str]:
    """Name in the file -> the name without the prefixes of wrappers."""
    plain = {}
    for key in views:
        name = key
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        plain[key] = name
    # DistributedDataParallel wraps the outermost module alone.
    while all(name.startswith("module.") for name in plain.values()):
        plain = {key: name.removeprefix("module.") for key, name in plain.items()}
    if not all(plain.values()) or METADATA_KEY in plain.values():
        raise ModelFileError(f"{path}: one of its tensors has no usable name", RESAVE)
    if len(set(plain.values())) != len(plain):
        raise ModelFileError(f"{path}: two tensors have one name without the prefixes of wrappers", RESAVE)
    return plain
