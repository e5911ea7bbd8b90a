"""A section of settings -> the docstring of each, read from its source when somebody asks.

pydantic can do this while it makes a class; it costs a tenth of a second at every start, and only help needs it.
"""

import ast
import sys
from functools import cache
from importlib.abc import InspectLoader

from pydantic import BaseModel


@cache
def field_docs(section: type[BaseModel]) -> dict[str, str]:
    """Field name -> docstring, those of the classes that it extends included; empty where there is no source."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        found |= _class_docs(cls.__module__).get(cls.__name__, {})
    return {name: found[name] for name in section.model_fields if name in found}


@cache
def _class_docs(module: str) -> dict[str, dict[str, str]]:
    """Of each class at the top of a module: attribute -> the text that stands below it."""
    loader = sys.modules[module].__spec__.loader if module.startswith("llmt.") else None  # type: ignore[union-attr]
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    if source is None:
        return {}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_documented(node)) for node in classes}


def _documented(node: ast.ClassDef) -> list[tuple[str, str]]:
    pairs = []
    for field, text in zip(node.body, node.body[1:], strict=False):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                pairs.append((name, " ".join(words.split())))
    return pairs
