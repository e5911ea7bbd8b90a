"""The names that people type: commands, flags, public names."""

import json
from pathlib import Path
from typing import Any

import pytest

import llmt
from llmt.cli.app import command_line

SURFACE = Path(__file__).with_name("surface.txt")


def _walk(command: Any, path: str) -> list[str]:
    """`COMMAND: FLAGS ARGUMENTS` of a command and of those below it; hidden flags in parentheses."""
    names = []
    for param in command.params:
        flags = [*param.opts, *param.secondary_opts]
        if param.param_type_name == "argument":
            names.append(param.metavar or param.name.upper())
        else:
            names += [f"({flag})" if param.hidden else flag for flag in flags]
    lines = [f"{path}: {' '.join(sorted(names))}"]
    for name, child in getattr(command, "commands", {}).items():
        lines += _walk(child, f"{path} {name}")
    return lines


def test_commands_and_flags_are_those_of_the_record() -> None:
    """Every command with every flag is in surface.txt; a change of the surface changes that file too."""
    import typer

    found = sorted(_walk(typer.main.get_command(command_line()), "llmt"))
    assert found == SURFACE.read_text(encoding="utf-8").splitlines()


def test_public_names_load() -> None:
    """The public names are exactly these, and each can be imported."""
    assert llmt.__all__ == [
        "__author__", "__email__", "__version__", "BPETokenizer", "BaseLanguageModel", "BaseTokenizer",
        "ByteTokenizer", "EvalReport", "HFTokenizerWrapper", "HuggingFaceModelWrapper", "LanguageModelingDataset",
        "LlmtError", "ModelConfig", "Sampling", "StepReport", "Tokenizer", "TrainConfig", "Trainer", "TransformerLM",
        "UnigramTokenizer", "WordPieceTokenizer", "evaluate", "get_memory_usage", "load_model", "load_tokenizer",
        "register_model", "stream_text", "train_tokenizer",
    ]  # fmt: skip
    for name in llmt.__all__:
        assert getattr(llmt, name)
    assert set(llmt.__all__) <= set(dir(llmt))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    """`llmt.nothing` fails as any module does."""
    with pytest.raises(AttributeError, match="nothing"):
        llmt.nothing  # noqa: B018


def test_version_is_that_of_the_package(inside: Any) -> None:
    """`--version` and `-V` print the name and the version."""
    for flag in ("--version", "-V"):
        result = inside(flag)
        assert (result.code, result.out) == (0, f"llmt {llmt.__version__}\n")


def test_llmt_alone_prints_help(inside: Any) -> None:
    """`llmt` with nothing else is the help and no error; so are `-h` and `--help`, at every command."""
    alone = inside()
    assert alone.code == 0
    assert "Usage: llmt" in alone.out
    for command in ("", "train", "tokenizer train", "convert", "convert merge-lora", "config show", "doctor"):
        for flag in ("-h", "--help"):
            result = inside(*command.split(), flag)
            assert result.code == 0
            assert "Usage: llmt" in result.out
            assert result.err == ""


def test_underscores_are_dashes_in_flags(inside: Any) -> None:
    """`--max_steps` is `--max-steps`, and so is every other flag."""
    result = inside("config", "show", "--max_steps", "7", "--no-tie_word_embeddings", "--json")
    values = json.loads(result.out)["config"]
    assert values["training"]["max_steps"] == 7
    assert values["model"]["tie_word_embeddings"] is False


def test_python_m_llmt_is_llmt(llmt: Any, tmp_path: Path) -> None:
    """The module and the console script are one program."""
    result = llmt("--version", cwd=tmp_path)
    assert result.code == 0
    assert result.out.startswith("llmt ")


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_scripts(llmt: Any, tmp_path: Path, shell: str, word: str) -> None:
    """The completion script of each shell can be had."""
    result = llmt(cwd=tmp_path, env={"_LLMT_COMPLETE": f"source_{shell}"})
    assert result.code == 0, result.err
    assert word in result.out


def test_completion_completes(llmt: Any, tmp_path: Path) -> None:
    """What the script asks for is answered: commands, and flags of a command."""
    for line, word, expected in (("llmt t", "1", "tokenizer"), ("llmt train --max-st", "2", "--max-steps")):
        env = {"_LLMT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": word}
        result = llmt(cwd=tmp_path, env=env)
        assert result.code == 0, result.err
        assert expected in result.out.split()


HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", "tokenizers", "safetensors", "pyarrow"}
LOADED = """
import sys
from llmt.cli.app import run
code = run(sys.argv[1:])
print(code, *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["--version"], 0),
        (["config", "show"], 0),
        (["config", "schema"], 0),
        (["train", "nothing-of-that-name"], 2),
        (["train", "--max-steps", "-3"], 2),
        (["train", "--no-such-flag"], 2),
        (["train", "--set", "training.learning_rat=3"], 2),
        (["generate", "--temperature", "cold", "runs/x"], 2),
        (["generate"], 2),
        (["eval", "x", "--batch-size", "0"], 2),
        (["tokenizer", "train", "--algo", "magic"], 2),
        (["convert", "x", "--max-shard-size", "huge"], 2),
        (["doctor", "--device", "abacus"], 2),
    ],
)
def test_help_and_configuration_errors_load_nothing_heavy(
    llmt: Any, tmp_path: Path, arguments: list[str], code: int
) -> None:
    """Neither a help text nor a mistake in the configuration imports a heavy package."""
    result = llmt(*arguments, cwd=tmp_path, program=("-c", LOADED))
    said, *modules = result.lines[-1].split()
    assert int(said) == code, result.err
    assert HEAVY & set(modules) == set()
