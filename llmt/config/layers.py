"""Settings from several places -> one validated section, with the place of every value."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from llmt.config.aliases import ALIASES, find_alias
from llmt.config.base import Section
from llmt.config.fields import subsections, walk_fields
from llmt.errors import ConfigError

SectionType = TypeVar("SectionType", bound=Section)


@dataclass(frozen=True)
class Given:
    """One value as somebody wrote it.

    Attributes:
        key: Dotted name as written, aliases included.
        value: The plain value.
        place: Where it was written, such as `run.yaml:3:5` or `--max-steps`.
    """

    key: str
    value: Any
    place: str


@dataclass(frozen=True)
class Loaded(Generic[SectionType]):
    """A validated section and where its values come from.

    Attributes:
        config: The section.
        origins: Dotted name of every value that is not a default -> its place.
        notes: What to tell the user once: aliases that were read.
    """

    config: SectionType
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass
class _Merge:
    """The values so far; a later layer replaces what an earlier one said."""

    section: type[Section]
    values: dict[str, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = {f.path for f in walk_fields(self.section)}
        self.groups = {path for path, _ in subsections(self.section)}
        leaves = [path.rpartition(".")[2] for path in self.paths]
        self.unique = {p.rpartition(".")[2]: p for p in self.paths if leaves.count(p.rpartition(".")[2]) == 1}

    def add(self, layer: Iterable[Given]) -> None:
        """Put one layer on top."""
        seen: dict[str, Given] = {}
        for given in layer:
            placed = self._resolve(given)
            if placed is None:
                continue
            path = placed.key
            if path in seen and seen[path].value != placed.value:
                if placed.value == "auto":  # leaves open what the other settles: `fp16: false` beside `bf16: true`
                    continue
                if seen[path].value != "auto":
                    self.problems.append(f"{given.place}: {given.key}: contradicts {seen[path].place}")
            seen[path] = placed
        self.values.update(seen)

    def _resolve(self, given: Given) -> Given | None:
        if given.key in self.paths:
            return given
        if given.key in self.groups:
            if given.value is not None:
                self.problems.append(f"{given.place}: {given.key}: is a group of settings, not one value")
            return None
        alias = find_alias(given.key)
        if alias is not None and alias.path in self.paths:
            self.notes[given.key] = f"{given.key} is read as {alias.path} ({given.place})"
            try:
                value = given.value if alias.convert is None else alias.convert(given.value)
            except ValueError as error:
                self.problems.append(f"{given.place}: {given.key}: {error}")
                return None
            return Given(alias.path, value, given.place)
        if given.key in self.unique:
            return Given(self.unique[given.key], given.value, given.place)
        self.problems.append(f"{given.place}: {given.key}: unknown key{self._suggest(given.key)}")
        return None

    def _suggest(self, key: str) -> str:
        group, _, leaf = key.rpartition(".")
        siblings = {p.rpartition(".")[2]: p for p in self.paths if p.rpartition(".")[0] == group}
        names = {p.rpartition(".")[2]: p for p in self.paths} | {a: a for a in ALIASES if ALIASES[a].path in self.paths}
        names |= {path: path for path in self.paths | self.groups}
        near = difflib.get_close_matches(leaf, siblings, 1, 0.6) + difflib.get_close_matches(leaf, names, 1, 0.75)
        close = difflib.get_close_matches(leaf, near, 1, 0) or difflib.get_close_matches(key, names, 1, 0.75)
        if not close:
            return ""
        return f", did you mean {close[0] if close[0] in siblings else names[close[0]]}?"


def merge(
    section: type[SectionType], layers: Iterable[Iterable[Given]], problems: Iterable[str] = ()
) -> Loaded[SectionType]:
    """Validate the values of all layers at once, the last layer first in rank.

    Args:
        section: The root of the tree.
        layers: Lowest rank first.
        problems: What was found wrong while the layers were read.

    Raises:
        ConfigError: Every problem of every layer, each with its place.
    """
    merged = _Merge(section, problems=list(problems))
    for layer in layers:
        merged.add(layer)
    try:
        config = section.model_validate(_nest(merged.values))
    except ValidationError as error:
        merged.problems += [_explain(dict(item), merged.values) for item in error.errors()]
    if merged.problems:
        raise ConfigError(merged.problems, "llmt config show --origin   lists every setting and where it was set")
    origins = {path: given.place for path, given in merged.values.items()}
    return Loaded(config, origins, tuple(merged.notes.values()))


def check(section: type[Section], layer: Iterable[Given]) -> list[str]:
    """What is wrong in one layer by itself: its keys and values, not how they fit those of other layers."""
    merged = _Merge(section)
    merged.add(layer)
    try:
        section.model_validate(_nest(merged.values))
    except ValidationError as error:
        errors = [dict(item) for item in error.errors()]
        merged.problems += [_explain(item, merged.values) for item in errors if _path(item) in merged.values]
    return merged.problems


def setting_of(key: str) -> str:
    """The dotted name behind a key as written: an alias's field, or the key itself."""
    alias = find_alias(key)
    return alias.path if alias is not None else key


def flatten(
    values: Mapping[str, Any], places: Mapping[str, str], groups: Iterable[str], prefix: str = ""
) -> list[Given]:
    """The leaves of a nested mapping: groups are entered, everything else is a value."""
    known = set(groups)
    given: list[Given] = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and (dotted in known or dotted == "device"):
            given += flatten(value, places, known, f"{dotted}.")
        else:
            given.append(Given(dotted, value, places.get(dotted, dotted)))
    return given


def _nest(values: Mapping[str, Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, given in values.items():
        *groups, leaf = path.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = given.value
    return tree


_PLAIN = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _path(error: Mapping[str, Any]) -> str:
    return ".".join(part for part in error["loc"] if isinstance(part, str))


def _explain(error: Mapping[str, Any], values: Mapping[str, Given]) -> str:
    path = _path(error)
    given = values.get(path)
    why = _PLAIN.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if given is None:
        named = [g.place for p, g in values.items() if p.startswith(f"{path}.") and p.rpartition(".")[2] in why]
        return ": ".join(part for part in (", ".join(named), path, why) if part)
    value = "null" if given.value is None else reprlib.repr(given.value)
    shown = "" if why.startswith(value) else f", not {value}"
    return f"{given.place}: {path}: {why}{shown}"
