"""Several adapters on one base that is in memory once, of which one is on it, or none."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from llmt.checkpoints.runs import resolve_model_directory
from llmt.config.names import BASE
from llmt.errors import ModelFileError, UsageError
from llmt.models.adapter_files import LEAVES_BASE, read_adapter_config
from llmt.models.base import BaseLanguageModel
from llmt.models.identity import check_base, weights_hash
from llmt.models.load import load_model
from llmt.models.lora import load_adapter
from llmt.models.open import base_of, is_adapter, tokenizer_directory
from llmt.models.peft_methods import block_linears

_State = list[tuple[nn.Module, dict[str, Any]]]


class AdapterSet:
    """A base and the adapters that were made for it; `model` is the base with the one that was chosen.

    An adapter is put on with `load_adapter`. What that leaves of each module of the base is kept and taken off again:
    modules that were put in the place of others, hooks, parameters. So adapters of any methods stand side by side, a
    choice computes what the adapter alone would, and nothing of another one takes part in it.

    A cache of keys and values belongs to the choice under which it was filled.

    Args:
        base: The model; it is read, and not trained.
        directory: Where it lies.

    Attributes:
        folders: Name -> the directory of what it stands for; the base's comes first.
        active: The name of the choice.
    """

    def __init__(self, base: BaseLanguageModel, directory: Path) -> None:
        self.folders: dict[str, Path] = {BASE: directory}
        self.active = BASE
        self._hash_of = cache(weights_hash)  # all of the base is read for it
        self._base = base.eval()
        self._models: dict[str, BaseLanguageModel] = {BASE: base}
        self._states: dict[str, _State] = {BASE: _state_of(base)}

    @property
    def model(self) -> BaseLanguageModel:
        """The base with the adapter that was chosen; valid until the next choice."""
        return self._models[self.active]

    def tokenizer_folder(self, name: str) -> Path:
        """Where the tokenizer of a name lies: the adapter's own, or the base's where it has none."""
        return tokenizer_directory(self.folders[name], self.folders[BASE])

    def add(self, name: str, directory: Path) -> None:
        """Load one more adapter; the choice stays as it is.

        Args:
            name: How it is chosen.
            directory: A run, a checkpoint or another directory with an adapter.

        Raises:
            ModelFileError: A file is missing or damaged.
            MismatchError: It belongs to another base.
            MissingPackageError: peft cannot be imported.
            UsageError: The name is taken.
        """
        if name in self.folders:
            raise UsageError(f"adapter {name}: the name is taken", f"--adapter OTHER={directory}")
        folder = resolve_model_directory(directory)
        check_base(folder, self.folders[BASE], self._hash_of)
        _restore(self._states[BASE])
        try:
            _own_what_changes(self._base, read_adapter_config(folder))
            model = load_adapter(self._base, folder).to(self._base.device).eval()
            state = _state_of(model)
        finally:
            _restore(self._states[self.active])
        self.folders[name], self._models[name], self._states[name] = folder, model, state

    def choose(self, name: str) -> None:
        """Put this adapter on the base, or with `base` none.

        Raises:
            UsageError: There is none of this name.
        """
        if name not in self.folders:
            raise UsageError(f"adapter {name}: there is none of this name", f"there are {', '.join(self.folders)}")
        _restore(self._states[name])
        self.active = name


def open_adapters(path: Path, adapters: Mapping[str, Path], device: str) -> AdapterSet:
    """Load a model in fp32 with its adapters; the first of them is chosen.

    Args:
        path: A run, checkpoint or model directory; or an adapter, whose base is the one that it names.
        adapters: Name -> directory of an adapter to put on the model.
        device: Where the weights go.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe.
        MismatchError: Model and adapter do not belong together.
        UsageError: A name is taken.
    """
    directory = resolve_model_directory(path)
    if is_adapter(directory):
        if adapters:
            first = next(iter(adapters.values()))
            raise ModelFileError(
                f"{path}: is an adapter itself", f"llmt generate BASE --adapter {path} --adapter {first}"
            )
        adapters = {directory.absolute().name: directory}
        directory = resolve_model_directory(base_of(directory))
    opened = AdapterSet(load_model(directory, device=device), directory)
    for name, folder in adapters.items():
        opened.add(name, folder)
    opened.choose(next(iter(adapters), BASE))
    return opened


def _state_of(model: nn.Module) -> _State:
    """Everything that each module refers to: its children, parameters, buffers and hooks; no tensor is copied."""
    return [(module, _copied(vars(module))) for module in model.modules()]


def _restore(state: _State) -> None:
    for module, attributes in state:
        vars(module).clear()
        vars(module).update(_copied(attributes))


def _copied(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, dict) else value for name, value in attributes.items()}


def _own_what_changes(model: BaseLanguageModel, config: Mapping[str, Any]) -> None:
    """Put other parameters in the place of what an adapter writes into.

    These are biases, the embeddings of transformers, which grow in their places, and weights that it takes its start
    from.
    """
    core: Any = model.core
    ends: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if "bias" in name:
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    if core is not model:
        for end in (core.get_input_embeddings(), core.get_output_embeddings()):
            if end is not None:  # one object stays one where both ends share it
                weight = end.weight
                end.weight = ends.setdefault(id(weight), nn.Parameter(weight.detach(), weight.requires_grad))
    if config.get("init_lora_weights", True) not in LEAVES_BASE:
        for layer in block_linears(core).values():
            layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)
