"""The documentation says what the code does."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import typer

import llmt
from llmt.cli.app import command_line
from llmt.config.aliases import find_alias
from llmt.config.fields import walk_fields
from llmt.config.load import read_environment
from llmt.config.run import TrainConfig

ROOT = Path(__file__).parents[2]
GENERATED = ("config.md", "cli.md")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
HOSTS = {"arxiv.org", "keepachangelog.com", "kellerjordan.github.io", "semver.org"}
"""Hosts that a page may link to. No registry of packages is among them: how to install is the installer's matter."""

COMMANDS_AT_LEAST = 75
BLOCKS_AT_LEAST = 7
FORBIDDEN = ("index-url", "find-links")


class Place(NamedTuple):
    """Something on a page: where it stands, and what it says."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def _blocks(page: Path, language: str) -> Iterator[Place]:
    """The fenced blocks of a language, each with the line of its fence."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Place(page, text.count("\n", 0, match.start()) + 1, match[1])


def _commands() -> Iterator[Place]:
    """Every `llmt ...` line of a shell block, and every `llmt ...` inside a sentence or table."""
    for page in WRITTEN:
        for block in _blocks(page, "sh"):
            for number, line in enumerate(block.text.splitlines(), 1):
                if re.match(r"(LLMT_\w+=\S+ )*llmt\b", line):
                    yield Place(page, block.line + number, line)
        outside = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), page.read_text("utf-8"), flags=re.M | re.S)
        for number, line in enumerate(outside.splitlines(), 1):
            yield from (Place(page, number, text) for text in re.findall(r"`(llmt [^`]+)`", line))


COMMANDS = list(_commands())
BLOCKS = [block for page in WRITTEN for block in _blocks(page, "python")]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _resolve(words: list[str]) -> tuple[Any, list[str], str]:
    """The command that the words call, what is left for it, and its name."""
    command, name = typer.main.get_command(command_line()), "llmt"
    rest = words[1:]
    while inner := getattr(command, "commands", {}):
        if rest and rest[0] in inner:
            command, name, rest = inner[rest[0]], f"{name} {rest[0]}", rest[1:]
        elif hasattr(command, "default_command") and rest and rest[0] not in ("--help", "-h"):
            command = inner[command.default_command]
        else:
            break
    return command, rest, name


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    """`python docs/generate.py` would change nothing."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == _generator().PAGES[name]()


def test_every_setting_and_every_command_has_a_heading() -> None:
    """The generated pages leave nothing out."""
    settings = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    commands = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"\n### {field.path}\n" in settings for field in walk_fields(TrainConfig))
    assert all(f"\n## {' '.join(path)}\n" in commands for path, _ in _generator().walk_commands())


def test_tables_of_speed_are_what_was_measured() -> None:
    """`python -m tests.bench.page` would change nothing: no number on these pages was written by hand."""
    command = [sys.executable, "-m", "tests.bench.page", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.count("<!-- end -->") >= 6


def test_generated_pages_do_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow terminal with colours gives the same text."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    page = _generator().cli_page()
    assert page == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert "\x1b" not in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Each link to a file or heading of the project finds it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        assert not anchor or anchor in _anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_names_a_registry_or_a_workplace(page: Path) -> None:
    """Links go to few known hosts, and the project speaks of itself alone."""
    text = page.read_text(encoding="utf-8")
    hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s)`>\"]+", text)}
    assert hosts <= HOSTS
    assert not [word for word in FORBIDDEN if word in text.lower()]


def test_the_number_of_documented_commands_only_grows() -> None:
    """The search for commands still finds them."""
    assert len(COMMANDS) >= COMMANDS_AT_LEAST


@pytest.mark.parametrize("place", COMMANDS, ids=str)
def test_documented_commands_parse(place: Place) -> None:
    """Each command exists, takes each option that is shown with it, and knows each setting."""
    words = shlex.split(place.text.partition(" > ")[0], comments=True)
    variables = [word for word in words if word.startswith("LLMT_") and "=" in word]
    problems: list[str] = []
    list(read_environment(dict(variable.split("=", 1) for variable in variables), problems))
    assert not problems
    command, rest, name = _resolve(words[len(variables) :])
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if getattr(command, "commands", {}) or {"--help", "-h"} & set(rest):
        assert {word for word in rest if word != "--help"} <= known | {"-h"}
        return
    if not rest:
        return  # a command that a sentence names, without its argument
    context = command.make_context(name, rest)
    settings = {field.path for field in walk_fields(TrainConfig)}
    for assignment in context.params.get("sets") or ():
        key = assignment.partition("=")[0]
        assert key in settings or find_alias(key) or key in {s.rpartition(".")[2] for s in settings}, key


def test_the_number_of_python_blocks_only_grows() -> None:
    """The search for blocks still finds them."""
    assert len(BLOCKS) >= BLOCKS_AT_LEAST


@pytest.mark.parametrize("place", BLOCKS, ids=str)
def test_python_blocks_compile_and_import_what_exists(place: Place) -> None:
    """Each block is Python, and each name that it takes from llmt is there."""
    tree = ast.parse(place.text)
    compile(tree, str(place), "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "llmt":
            names = {alias.name for alias in node.names}
            there = llmt.__all__ if node.module == "llmt" else dir(importlib.import_module(str(node.module)))
            assert names <= set(there)


def test_the_readme_is_short() -> None:
    """A stranger reads it to the end: less than 150 lines."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_changelog_names_this_version() -> None:
    """The newest section of the changelog is the version of the package."""
    newest = re.search(r"^## \[([^\]]+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest is not None
    assert newest[1] == llmt.__version__


def test_every_decision_has_its_number() -> None:
    """Decisions are numbered without a gap, and the heading says the number of the file."""
    files = sorted(os.listdir(ROOT / "docs" / "decisions"))
    for number, name in enumerate(files, 1):
        assert name.startswith(f"{number:04d}-")
        text = (ROOT / "docs" / "decisions" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. ")
