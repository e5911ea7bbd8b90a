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
from llmt.config.tokenizer import TokenizerTraining
from llmt.tokenizers.load import KINDS
from llmt.tokenizers.train import options_of

ROOT = Path(llmt.__file__).parent
RECEIVERS = {"config", "settings", "asked", "self"}
"""What a section is called besides its own name."""

RESOLVED = {"model.num_key_value_heads": "kv_heads"}
"""Settings that are read through a property which resolves them."""

PASSED_ON = {f"tokenizer.{name}" for name in TokenizerTraining.model_fields} - {"tokenizer.algo"}
"""Settings that `train_tokenizer` gets as keywords, all at once."""

HANDED_ON = {"tokenizer_train": ("tokenizers/build.py",)}
"""Commands whose settings another module reads."""


def reads(path: Path) -> dict[str, set[str]]:
    """Attribute name -> the last names of what a module reads it from."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            found[node.attr].add(name)
    return found


@cache
def all_reads() -> dict[str, set[str]]:
    """The same for every module outside `llmt/config`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent.name != "config":
            for name, owners in reads(path).items():
                found[name] |= owners
    return found


@pytest.mark.parametrize("path", sorted({field.path for field in walk_fields(TrainConfig)} - PASSED_ON))
def test_every_setting_of_a_run_is_read(path: str) -> None:
    """Some module outside `llmt/config` reads the attribute, from its section or from a configuration."""
    section, _, name = path.rpartition(".")
    owners = all_reads()[RESOLVED.get(path, name)]
    assert owners & (RECEIVERS | {section}), f"{path}: read from {sorted(owners) or 'nowhere'}"


def test_every_setting_of_a_tokenizer_is_passed_on() -> None:
    """Each is an option of at least one algorithm."""
    assert {path.rpartition(".")[2] for path in PASSED_ON} <= {name for kind in KINDS for name in options_of(kind)}


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_of_a_command_is_read_there(task: str) -> None:
    """The module that loads the settings of a command, or the one it hands them to, reads each of them."""
    path = next(p for p in (ROOT / "cli").glob("*.py") if f'load_task("{task}"' in p.read_text(encoding="utf-8"))
    places = [path, *(ROOT / name for name in HANDED_ON.get(task, ()))]
    found = {name for place in places for name, owners in reads(place).items() if owners & {"settings", "asked"}}
    passed = {path.rpartition(".")[2] for path in PASSED_ON} | {"num_proc"} if task in HANDED_ON else set()
    assert set(TASKS[task].model_fields) <= found | passed
