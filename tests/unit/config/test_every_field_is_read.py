"""No setting is parsed and never read."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import llmt
from llmt.config.fields import walk_fields
from llmt.config.run import TrainConfig
from llmt.config.tasks import TASKS

ROOT = Path(llmt.__file__).parent
RECEIVERS = {"config", "settings", "asked", "self"}
"""What a section is called besides its own name."""


@cache
def reads() -> dict[str, set[str]]:
    """Attribute name -> the last names of what it is read from, outside `llmt/config`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                found[node.attr].add(
                    owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
                )
    return found


@pytest.mark.parametrize("path", [field.path for field in walk_fields(TrainConfig)])
def test_every_setting_of_a_run_is_read(path: str) -> None:
    """Some module outside `llmt/config` reads the attribute, from its section or from a configuration."""
    section, _, name = path.rpartition(".")
    assert reads()[name] & (RECEIVERS | {section}), f"{path}: read from {sorted(reads()[name]) or 'nowhere'}"


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_of_a_command_is_read(task: str) -> None:
    """The same for the settings of the other commands."""
    unread = [f.path for f in walk_fields(TASKS[task]) if not reads()[f.path] & (RECEIVERS | {"tokenizer"})]
    assert not unread
