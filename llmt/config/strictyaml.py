"""YAML text -> plain values with the line and column of each: the only door of PyYAML.

Stricter than YAML: no aliases, no tags, no duplicate keys, no yes/no/on/off, no octal or base-60 numbers,
at most 1 MB and 20 levels. `1e-4` and `10_000` are numbers; `007` and numbers too large for a float are text.
"""

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import yaml

from llmt.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NUMBER = 300
"""Longest spelling of a number, in characters."""

_WHOLE = r"[-+]?(?:0|[1-9][0-9_]*)"
_INT = re.compile(_WHOLE)
_FLOAT = re.compile(rf"(?:{_WHOLE}(?:\.[0-9_]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True)
class Located:
    """Plain values, and the place of every key.

    Attributes:
        values: What the text says.
        places: Dotted key -> `name:line:column`.
    """

    values: Any
    places: dict[str, str] = field(default_factory=dict)


class _RefusedError(Exception):
    """A construct that this reader does not take, with its mark."""

    def __init__(self, mark: Any, why: str) -> None:
        super().__init__(why)
        self.mark = mark
        self.why = why


def parse_scalar(text: str) -> Any:
    """The value of one unquoted scalar: null, boolean, integer, float or the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if len(text) > MAX_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text) and isfinite(number := float(text.replace("_", ""))):
        return number
    return text


def parse_value(text: str) -> Any:
    """A value given in a flag or an environment variable: a scalar, or a flow list or mapping.

    Raises:
        ValueError: The list or mapping is not well formed.
    """
    if not text.lstrip().startswith(("[", "{")):
        return parse_scalar(text.strip())
    try:
        return load(text, "value").values
    except ConfigError as error:
        raise ValueError(error.message) from None


def load(text: str, name: str) -> Located:
    """Read a whole document.

    Args:
        text: The YAML (or JSON) text.
        name: How errors and places call the file.

    Raises:
        ConfigError: Not YAML, or a construct that is refused; names line and column.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError([f"{name}: larger than {MAX_BYTES} bytes"], "check that this is a configuration file")
    located = Located({}, {})
    try:
        node = _compose(text)
        if node is None:
            return located
        return Located(_construct(node, "", name, located.places), located.places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError([f"{where}: {error.problem}"], "check the indentation and the quotes there") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        where = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        problem = f"the character U+{ord(text[error.position]):04X} cannot stand here"
        raise ConfigError([f"{where}: {problem}"], "save the file as plain UTF-8 text") from None
    except _RefusedError as error:
        where = f"{name}:{error.mark.line + 1}:{error.mark.column + 1}"
        raise ConfigError([f"{where}: {error.why}"], "write the value out in full") from None


def _compose(text: str) -> yaml.Node | None:
    """The node graph, refusing aliases and deep nesting while the events arrive, before anything expands."""
    loader = yaml.SafeLoader(text)
    try:
        _refuse_unsafe(loader)
    except (ValueError, OverflowError):  # PyYAML lets chr() and int() fail on "\\Uffffffff"
        raise _RefusedError(loader.get_mark(), "no such character") from None
    return yaml.compose(text, Loader=yaml.SafeLoader)


def _refuse_unsafe(loader: yaml.SafeLoader) -> None:
    depth = 0
    while loader.check_event():
        event = loader.get_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _RefusedError(event.start_mark, "aliases (*name) are not read")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _RefusedError(event.start_mark, f"the tag {event.tag} is not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _RefusedError(event.start_mark, f"nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _construct(node: yaml.Node, path: str, name: str, places: dict[str, str]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return parse_scalar(node.value) if node.style is None else _joined(node)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, f"{path}.{i}", name, places) for i, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or not key:
            raise _RefusedError(key_node.start_mark, "a key must be a name")
        if key in values:
            raise _RefusedError(key_node.start_mark, f"{key}: given twice")
        dotted = f"{path}.{key}" if path else key
        places[dotted] = f"{name}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        values[key] = _construct(value_node, dotted, name, places)
    return values


def _joined(node: yaml.ScalarNode) -> str:
    """The text of a quoted scalar; JSON spells one character above U+FFFF as two escapes."""
    text = str(node.value)
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _RefusedError(node.start_mark, "half of an escaped character pair") from None


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = text.strip() != text or len(text.splitlines()) > 1 or not isinstance(parse_scalar(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _represent_text)


def dump(values: dict[str, Any]) -> str:
    """YAML text that `load` reads back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
