"""`model_type` -> the class that computes it: how a model of one's own becomes known.

A class is known once `register_model` ran. Two ways bring its module in when it is asked for: an installed package
names it under the entry points `llmt.models`, or the variable `LLMT_PLUGINS` does. A model file never does.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from llmt.errors import UsageError
from llmt.models.base import BaseLanguageModel
from llmt.models.llama import LLAMA_TYPES

GROUP = "llmt.models"

_KNOWN: dict[str, type[BaseLanguageModel]] = {}
_Model = TypeVar("_Model", bound=type[BaseLanguageModel])


def register_model(model_type: str) -> Callable[[_Model], _Model]:
    """Make a class known: a decorator.

    Its instances are saved with this `model_type` in `config.json`, and a directory that says so is opened as one.

    Args:
        model_type: Its name, which no other architecture has.

    Raises:
        UsageError: The name is taken by another class.
    """

    def register(cls: _Model) -> _Model:
        known = _KNOWN.get(model_type)
        # A module that is loaded again brings a new class of the same name.
        if model_type in LLAMA_TYPES or (known is not None and known.__qualname__ != cls.__qualname__):
            raise UsageError(f"model_type {model_type!r} is taken", "choose another name")
        cls.model_type = model_type
        _KNOWN[model_type] = cls
        return cls

    return register


def find_model_class(model_type: str) -> type[BaseLanguageModel] | None:
    """The class that was registered as `model_type`; None where there is none.

    Raises:
        UsageError: A plugin cannot be imported.
    """
    if model_type not in _KNOWN:
        from llmt.config.load import plugins

        for name in plugins():
            _import_plugin(name)
        for entry in entry_points(group=GROUP, name=model_type):
            entry.load()
    return _KNOWN.get(model_type)


def known_models() -> list[str]:
    """The names that were registered so far."""
    return sorted(_KNOWN)


def _import_plugin(name: str) -> None:
    """Import a module by its name, or a file by its path, once."""
    try:
        if not name.endswith(".py"):
            importlib.import_module(name)
        else:
            _import_file(Path(name).resolve())
    except (ImportError, SyntaxError, OSError) as error:
        raise UsageError(f"LLMT_PLUGINS: {name} cannot be imported: {error}", "name a module or a .py file") from error


def _import_file(path: Path) -> None:
    known = sys.modules.get(path.stem)
    if known is not None and known.__dict__.get("__file__") == str(path):
        return
    # A file may have the name of a module that is loaded already.
    name = path.stem if known is None else f"llmt_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    whole = False
    try:
        spec.loader.exec_module(module)
        whole = True
    finally:
        if not whole:
            del sys.modules[name]
