"""The YAML reader: a value or one located error for every document."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.config import strictyaml
from llmt.config.load import ConfigSource, load_run
from llmt.errors import ConfigError

SCALARS: list[tuple[str, Any]] = [
    ("1", 1),
    ("0", 0),
    ("-3", -3),
    ("+3", 3),
    ("10_000", 10_000),
    ("1e-4", 1e-4),
    ("3e-4", 3e-4),
    ("1E3", 1000.0),
    ("1.5e+2", 150.0),
    ("0.95", 0.95),
    ("-0.5", -0.5),
    (".5", 0.5),
    ("1.", 1.0),
    ("1_000.5", 1000.5),
    ("5k", "5k"),
    ("10M", "10M"),
    ("2GB", "2GB"),
    ("010", "010"),
    ("007.5", "007.5"),
    ("0o17", "0o17"),
    ("0x1F", "0x1F"),
    ("0b11", "0b11"),
    ("12:30", "12:30"),
    ("1:30:00", "1:30:00"),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("Off", "Off"),
    ("y", "y"),
    ("true", True),
    ("True", True),
    ("FALSE", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("NaN", "NaN"),
    (".nan", ".nan"),
    (".inf", ".inf"),
    ("Infinity", "Infinity"),
    ("1e999", "1e999"),
    ("9" * 5000, "9" * 5000),
    ("2024-01-01", "2024-01-01"),
    ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
    ("1.2.3", "1.2.3"),
    ("a b", "a b"),
    ("狐", "狐"),
    ("C:\\Users\\x", "C:\\Users\\x"),
    ("'1'", "1"),
    ('"null"', "null"),
    ('"a\\tb"', "a\tb"),
    ('"\\ud83e\\udd8a"', "🦊"),
    ("[1, a, 'b,c']", [1, "a", "b,c"]),
    ("{b: 1}", {"b": 1}),
    ("[]", []),
    ("=", "="),
    ("|\n  two\n  lines\n", "two\nlines\n"),
    (">\n  two\n  parts\n", "two parts\n"),
    ("x # a comment", "x"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_values_are_what_they_look_like(text: str, value: Any) -> None:
    """No octal, no base 60, no yes or no, no dates; exponents and underscores are numbers."""
    read = strictyaml.load(f"a: {text}", "f").values["a"]
    assert read == value
    assert type(read) is type(value)


REFUSED: list[tuple[str, str, str]] = [
    ("duplicate", "a: 1\na: 2", "2:1: a: given twice"),
    ("duplicate below", "t:\n  a: 1\n  b: 1\n  a: 2", "4:3: a: given twice"),
    ("duplicate in flow", "{a: 1, a: 2}", "1:8: a: given twice"),
    ("duplicate in JSON", '{"a": 1,\n "a": 2}', "2:2: a: given twice"),
    ("alias", "a: &x 1\nb: *x", "2:4: aliases"),
    ("alias bomb", "a: &a [x]\nb: &b [*a, *a]", "2:8: aliases"),
    ("merge key", "a: &a {x: 1}\nb: {<<: *a}", "2:9: aliases"),
    ("undefined alias", "b: *nothing", "1:4: aliases"),
    ("python tag", "a: !!python/object/apply:os.system [ls]", "1:4: the tag"),
    ("python key", "!!python/name:os.system a: 1", "1:1: the tag"),
    ("string tag", "a: !!str 5", "1:4: the tag"),
    ("integer tag", 'a: !!int "5"', "1:4: the tag"),
    ("binary tag", "a: !!binary aGk=", "1:4: the tag"),
    ("own tag", "a: !mine 5", "1:4: the tag"),
    ("set tag", "a: !!set {x, y}", "1:4: the tag"),
    ("deep list", "a: " + "[" * 3000, "1:23: nested more than 20"),
    ("deep list alone", "[" * 3000 + "]" * 3000, "1:21: nested more than 20"),
    ("deep mapping", "{a: " * 3000, "1:81: nested more than 20"),
    ("deep indentation", "\n".join(" " * n + "a:" for n in range(40)), "21:21: nested more than 20"),
    ("tab", "a:\n\tb: 1", "2:1: "),
    ("unclosed list", "a: [1, 2", "1:9: "),
    ("unclosed quote", 'a: "x', "1:6: "),
    ("bad indentation", "a: 1\n   b: 2", "2:5: "),
    ("two documents", "a: 1\n---\nb: 2", "2:1: "),
    ("list key", "? [a]\n: 1", "1:3: a key must be a name"),
    ("no key", ": 1", "1:1: "),
    ("empty key", '{"": 1}', "1:2: a key must be a name"),
    ("no value syntax", "a: b: c", "1:5: "),
    ("reserved", "a: @x", "1:4: "),
    ("percent", "a: %x", "1:4: "),
    ("NUL", "a: 1\nb: x\0y", "2:5: the character U+0000"),
    ("escape", "a: \x1b[31m", "1:4: the character U+001B"),
    ("half a pair", 'a: "\\ud83e"', "1:4: half of an escaped"),
    ("no such character", 'a: 1\nb: "\\Uffffffff"', "2:"),
    ("endless version", "%YAML " + "9" * 5000 + ".1\n---\na: 1", "1:"),
    ("unknown escape", 'a: "\\q"', "1:6: "),
    ("text at the top", "just words", "1:1: must be a mapping"),
    ("number at the top", "5", "1:1: must be a mapping"),
    ("list at the top", "- a\n- b", "1:1: must be a mapping"),
    ("text below a list", "- a\nb: 1", "2:1: "),
]


@pytest.mark.parametrize(("document", "problem"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_is_located(tmp_path: Path, document: str, problem: str) -> None:
    """A refused document is one problem that begins with file:line:column, and never a traceback."""
    path = tmp_path / "run.yaml"
    path.write_text(document, encoding="utf-8", newline="")
    with pytest.raises(ConfigError) as caught:
        load_run(ConfigSource("run", path=path), environ={})
    assert len(caught.value.problems) == 1
    assert caught.value.message.startswith(f"{path}:{problem}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"a: \xff", ":1:4: not UTF-8"),
        ("name: ä\nseed: 1 # ü".encode() + b"\xe4", ":2:12: not UTF-8"),
        ("a: 1".encode("utf-16"), ":1:1: not UTF-8"),
        (b"# x\n" * 300_000, ": larger than 1000000 bytes"),
    ],
)
def test_bytes_that_are_no_small_utf8_file_are_refused(tmp_path: Path, raw: bytes, problem: str) -> None:
    """Other encodings and files over 1 MB are refused, by place."""
    path = tmp_path / "run.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=re.escape(f"{path}{problem}")):
        load_run(ConfigSource("run", path=path), environ={})


@pytest.mark.parametrize("document", ["", "\n", "# only a comment\n", "---\n", "{}", "null", "\ufeff"])
def test_an_empty_file_changes_nothing(tmp_path: Path, document: str) -> None:
    """A file without settings is the defaults."""
    path = tmp_path / "run.yaml"
    path.write_text(document, encoding="utf-8")
    loaded = load_run(ConfigSource("run", path=path), environ={})
    assert loaded.origins == {}
    assert loaded.config == type(loaded.config)()


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path, newline: str) -> None:
    """A file from any system is read, and its places count from the first visible character."""
    path = tmp_path / "run.yaml"
    path.write_text(f"\ufeffseed: 7{newline}training:{newline}  max_steps: 5k{newline}", encoding="utf-8", newline="")
    loaded = load_run(ConfigSource("run", path=path), environ={})
    assert (loaded.config.seed, loaded.config.training.max_steps) == (7, 5000)
    assert loaded.origins == {"seed": f"{path}:1:1", "training.max_steps": f"{path}:3:3"}


def test_places_are_those_of_the_keys() -> None:
    """Every key has its line and column, lists of mappings included."""
    located = strictyaml.load("a: 1\nb:\n  c: [x, {d: 1}]\n", "f")
    assert located.places == {"a": "f:1:1", "b": "f:2:1", "b.c": "f:3:3", "b.c.1.d": "f:3:11"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), (" 5 ", 5), ("[a, b]", ["a", "b"]), ("a, b", "a, b"), ("null", None), ("a: b", "a: b"), ("#x", "#x")],
)
def test_values_of_flags_are_scalars_or_flow(text: str, value: Any) -> None:
    """Outside brackets nothing is syntax."""
    assert strictyaml.parse_value(text) == value


@pytest.mark.parametrize("text", ["[a", "[*a]", "{a: 1, a: 2}", "[a] b"])
def test_broken_values_of_flags_are_value_errors(text: str) -> None:
    """A list that does not close is a ValueError that says where."""
    with pytest.raises(ValueError, match=r"^value:1:\d+: "):
        strictyaml.parse_value(text)


TRICKY = [
    "1e-4",
    "null",
    "yes",
    "no",
    "on",
    "#",
    "# x",
    "a: b",
    "- a",
    "",
    " ",
    "\n",
    "a\n",
    "\n\n a",
    "~",
    "true",
    "010",
]
TRICKY += [
    "1_000",
    ".5",
    "0x1F",
    "12:30",
    "2024-01-01",
    "=",
    "<<",
    "*a",
    "&a",
    "!t",
    "%",
    "@",
    "`",
    "'",
    '"',
    "\\",
    "|",
]
TRICKY += [
    "\ud7ff",
    "\u2028",
    "\x85",
    "\xa0",
    "\ufeff",
    "🦊",
    "\x00",
    "\x1b",
    "\r",
    "\r\n",
    "\t",
    "a\tb",
    "0\x850",
    "0\u20290",
    "a\r\nb",
    "a\n\nb",
    "a\n b",
    "x " * 200,
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(CHARACTERS) | st.sampled_from(TRICKY) | st.lists(st.sampled_from(TRICKY)).map("".join)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.none() | st.booleans() | NUMBERS | TEXTS


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts_are_read_back(text: str) -> None:
    """What looks like another type, a comment or syntax is still that text after writing and reading."""
    assert strictyaml.load(strictyaml.dump({"a": text, "l": [text]}), "f").values == {"a": text, "l": [text]}


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES | st.lists(VALUES, max_size=4), max_size=3))
def test_reading_undoes_writing(values: dict[str, Any]) -> None:
    """`load(dump(x)) == x` for all plain values, type by type."""
    read = strictyaml.load(strictyaml.dump(values), "f").values
    assert read == values
    assert repr(read) == repr(values)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.booleans() | NUMBERS | st.text(CHARACTERS), min_size=1))
def test_json_is_read(values: dict[str, Any]) -> None:
    """JSON is YAML here: what `json.dumps` writes is read to the same values."""
    assert strictyaml.load(json.dumps(values), "f").values == values


@given(st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`,? \n\t\\x1")))
def test_any_document_is_a_value_or_a_configuration_error(document: str) -> None:
    """No text raises anything but ConfigError."""
    message = "f:1:1: "
    try:
        strictyaml.load(document, "f")
    except ConfigError as error:
        message = error.message
    assert re.match(r"f:\d+:\d+: ", message)
