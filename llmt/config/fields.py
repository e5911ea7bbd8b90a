"""The settings as a list: dotted name, type, default and help of every field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmt.config.docs import field_docs


@dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
        path: Dotted name, such as `training.max_steps`.
        section: The section that holds it.
        type_name: How its type is called in help texts.
        default: The default value.
        choices: The allowed words, for a choice.
        is_flag: It is true or false.
    """

    path: str
    section: type[BaseModel]
    type_name: str
    default: Any
    choices: tuple[str, ...] = ()
    is_flag: bool = False

    @property
    def help(self) -> str:
        """Its docstring, on one line."""
        return field_docs(self.section).get(self.path.rpartition(".")[2], "")

    @property
    def default_text(self) -> str:
        """The default as one would type it."""
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default)) or "empty"
        if self.default is None:
            return "null"
        return str(self.default).lower() if self.is_flag else str(self.default)


def walk_fields(section: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """Every setting of a tree of sections, in order of definition."""
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from walk_fields(info.annotation, path + ".")
        else:
            yield _field(path, section, info)


def subsections(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section below a section, with its dotted name."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield f"{prefix}{name}", info.annotation
            yield from subsections(info.annotation, f"{prefix}{name}.")


def json_schema(section: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a tree of sections, with the docstring of every setting."""
    schema = section.model_json_schema()
    nodes = [(section, schema), *((cls, schema["$defs"][cls.__name__]) for _, cls in subsections(section))]
    for cls, node in nodes:
        for name, text in field_docs(cls).items():
            node["properties"][name]["description"] = text
    return schema


def _field(path: str, section: type[BaseModel], info: FieldInfo) -> Field:
    choices: tuple[str, ...] = ()
    names = set()
    for kind in _alternatives(info.annotation):
        if get_origin(kind) is Literal:
            choices += get_args(kind)
        elif kind is not type(None):
            names.add("list" if get_origin(kind) is tuple else kind.__name__)
    described = "|".join(choices) or {"int": "count", "str": "text", "float": "number", "bool": "true|false"}.get(
        "".join(sorted(names)), "".join(sorted(names))
    )
    return Field(path, section, described, info.default, choices, names == {"bool"})


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without the pydantic metadata around them."""
    origin = get_origin(annotation)
    if origin is Union or type(annotation).__name__ == "UnionType":
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    if hasattr(annotation, "__metadata__"):
        return _alternatives(annotation.__origin__)
    return (annotation,)
