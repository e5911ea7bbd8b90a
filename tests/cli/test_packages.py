"""A package that cannot be imported stops only the commands that need it."""

from pathlib import Path
from typing import Any

import pytest

HIDE = """
import sys
hidden = sys.argv.pop(1).split(",")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from llmt.cli.app import main
main()
"""

LIGHT = ("datasets", "accelerate", "peft", "transformers", "psutil")


def hidden(llmt: Any, package: str, *arguments: str, cwd: Path) -> Any:
    """Run llmt as if `package` were not installed."""
    return llmt(package, *arguments, cwd=cwd, program=("-c", HIDE))


@pytest.mark.parametrize(
    "command",
    [
        "train runs/quickstart --resume --max-steps 13",
        "eval runs/quickstart",
        pytest.param("generate runs/quickstart -n 3", marks=pytest.mark.slow),
    ],
)
def test_the_main_commands_go_on_without(llmt: Any, workplace: Path, command: str) -> None:
    """`generate`, `eval`, and `train` without `--lora` need none of the packages of other rooms."""
    result = hidden(llmt, ",".join(LIGHT), *command.split(), cwd=workplace)
    assert result.code == 0, result.err


@pytest.mark.parametrize("package", [*(pytest.param(name, marks=pytest.mark.slow) for name in LIGHT), "safetensors"])
def test_each_package_in_turn_is_not_missed(llmt: Any, workplace: Path, package: str) -> None:
    """Without any one of the packages of other rooms, a model still writes."""
    result = hidden(llmt, package, "generate", "runs/quickstart", "-n", "3", cwd=workplace)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("torch", "train quickstart --data text.txt -o new"),
        ("torch", "generate runs/quickstart"),
        ("peft", "train --lora --max-steps 1"),
        ("tokenizers", "tokenizer train text.txt -o new"),
    ],
)
def test_a_missing_package_is_named(llmt: Any, finished: Any, listing_of: Any, package: str, command: str) -> None:
    """A command that needs the package ends with exit 9, in two lines with the command that installs it."""
    before = listing_of(finished[0])
    result = hidden(llmt, package, *command.split(), cwd=finished[0])
    assert result.code == 9, result.err
    assert result.lines[-2].startswith("error: "), result.err
    assert package in result.lines[-2]
    assert result.lines[-1].startswith("hint: python -m pip install")
    assert package in result.lines[-1]
    assert "Traceback" not in result.err
    assert len(result.lines) == 2, result.err
    assert listing_of(finished[0]) == before


@pytest.mark.parametrize(
    "package",
    ["torch", "peft", *(pytest.param(n, marks=pytest.mark.slow) for n in (*LIGHT, "safetensors") if n != "peft")],
)
def test_doctor_tells_what_is_missing(llmt: Any, tmp_path: Path, package: str) -> None:
    """`llmt doctor` runs without any of them, names the one that is missing, and ends with exit 9."""
    result = hidden(llmt, package, "doctor", cwd=tmp_path)
    assert result.code == 9, result.err
    line = next(line for line in result.out.splitlines() if package in line.split())
    assert line.startswith("fail")
    assert "pip install" in line
    assert "Traceback" not in result.err
