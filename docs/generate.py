"""The settings and the commands as they are in the code -> `config.md` and `cli.md`.

`python docs/generate.py` writes both pages; `--check` compares them with what stands here and exits 1 where they
differ.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from llmt.cli.app import command_line
from llmt.cli.options import SHORT, flag_name
from llmt.config.aliases import ALIASES
from llmt.config.base import Section
from llmt.config.fields import Field, subsections, walk_fields
from llmt.config.run import TrainConfig
from llmt.config.tasks import TASKS

FOLDER = Path(__file__).parent
COMMANDS = {
    "tokenizer_train": "llmt tokenizer train",
    "tokenizer_inspect": "llmt tokenizer inspect",
    "eval": "llmt eval",
    "generate": "llmt generate",
    "convert": "llmt convert",
    "safetensors_to_pt": "llmt convert safetensors-to-pt",
    "merge_lora": "llmt convert merge-lora",
    "gguf": "llmt convert gguf",
    "doctor": "llmt doctor",
}
SHARED = ("device", "seed")
"""Settings that `LLMT_DEVICE` and `LLMT_SEED` give to every command."""

BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}

CONFIG_HEAD = """\
# Settings

Written by `python docs/generate.py`; do not edit it by hand.

A value comes from the first of these places that has one: a flag or `--set NAME=VALUE`, an environment variable,
the configuration file, the template that it builds on, the default. `llmt config show --origin` prints where each
value of a run was set.

How values are written: a count is `5000`, `10_000`, `5k` or `10M`; a size is `2GB`, `500MB` or `1.5GiB`; a duration
is `90s`, `5m` or `1h30m`; a switch is `true` or `false`; where the text says None, write `null`. A list is written in
brackets in a file, and with commas on the command line and in the environment.
"""

CLI_HEAD = """\
# Commands

Written by `python docs/generate.py`; do not edit it by hand.

Every command has `--help` (`-h`). In the name of an option `_` and `-` are the same. Results go to standard output,
everything else to standard error. What a setting means in full, its environment variable and its other names stand
in [config.md](config.md).
"""


def config_page() -> str:
    """The text of `config.md`: every setting of every command."""
    parts = [CONFIG_HEAD, "## A training run", "", _sentence(TrainConfig), ""]
    groups = dict(subsections(TrainConfig))
    described: set[str] = set()
    for field in walk_fields(TrainConfig):
        group = field.path.rpartition(".")[0]
        if group and group not in described:
            described.add(group)
            parts += [f"## {group}", "", _sentence(groups[group]), ""]
        aliases = sorted(name for name, alias in ALIASES.items() if alias.path == field.path)
        parts += _setting(field, TrainConfig, field.path, aliases)
    for task, section in TASKS.items():
        parts += [f"## {COMMANDS[task]}", "", _sentence(section), ""]
        for field in walk_fields(section):
            parts += _setting(field, section, f"{task}.{field.path}", [])
    return "\n".join(parts).rstrip() + "\n"


def cli_page() -> str:
    """The text of `cli.md`: every command with its arguments and options."""
    parts = [CLI_HEAD]
    for path, command in walk_commands():
        parts += _command(path, command)
    return "\n".join(parts).rstrip() + "\n"


def walk_commands(command: Any = None, path: tuple[str, ...] = ("llmt",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group of the command line with the words that call it, in order of definition."""
    here = typer.main.get_command(command_line()) if command is None else command
    yield path, here
    for name, inner in getattr(here, "commands", {}).items():
        yield from walk_commands(inner, (*path, name))


def _sentence(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def _setting(field: Field, section: type[Section], path: str, aliases: list[str]) -> list[str]:
    variable = "LLMT_" + path.upper().replace(".", "__")
    shared = [f"`LLMT_{field.path.upper()}`"] if section is not TrainConfig and field.path in SHARED else []
    flags = [f"`--{flag_name(field.path)}`"]
    flags += [f"`--no-{flag_name(field.path)}`"] if field.is_flag else []
    flags += [f"`{SHORT[field.path]}`"] if field.path in SHORT else []
    lines = [
        f"### {path}",
        "",
        field.help,
        "",
        f"- Type: {_type(field, section)}",
        f"- Default: {_default(field)}",
        f"- Environment: {', '.join([f'`{variable}`', *shared])}",
        f"- Flag: {', '.join(flags)}",
    ]
    lines += [f"- Also: {', '.join(f'`{name}`' for name in aliases)}"] if aliases else []
    return [*lines, ""]


def _type(field: Field, section: type[Section]) -> str:
    words = [f"`{name}`" for name in field.choices] or [field.type_name.replace("true|false", "`true` or `false`")]
    return ", ".join([" or ".join(words), *_bounds(section, field.path)])


def _bounds(section: type[Section], path: str) -> Iterator[str]:
    """What pydantic demands of a number, in words."""
    *groups, leaf = path.split(".")
    sections = dict(subsections(section))
    info = sections[".".join(groups)].model_fields[leaf] if groups else section.model_fields[leaf]
    for limit in info.metadata:
        for name, words in BOUNDS.items():
            if hasattr(limit, name):
                yield f"{words} {getattr(limit, name):g}"


def _default(field: Field) -> str:
    if field.default is None or field.default == ():
        return "none" if field.default is None else "empty"
    return f"`{field.default_text}`" if field.default_text else "empty text"


def _command(path: tuple[str, ...], command: Any) -> list[str]:
    name = " ".join(path)
    usage = " ".join(command.collect_usage_pieces(typer.Context(command, info_name=path[-1])))
    parts = [f"## {name}", "", *_help(command.help), "```text", f"{name} {usage}", "```", ""]
    inner = getattr(command, "commands", {})
    if inner:
        parts += [
            f"- [`{name} {key}`](#{'-'.join((*path, key))}): {_first(value.help)}" for key, value in inner.items()
        ]
        parts.append("")
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    if arguments:
        parts += ["Arguments:", ""]
        parts += [f"- `{p.metavar or (p.name or '').upper()}`: {p.help}" for p in arguments]
        parts.append("")
    options = [p for p in command.params if p.opts[0].startswith("-")]
    panels: dict[str, list[Any]] = {}
    for option in options:
        if not option.hidden:
            panels.setdefault(option.rich_help_panel or "Options", []).append(option)
    for panel in sorted(panels, key=lambda panel: panel != "Options"):
        parts += [f"{panel[0].upper()}{panel[1:]}:", "", *map(_option, panels[panel]), ""]
    others = sorted(option.opts[0] for option in options if option.hidden)
    if others:
        parts += ["Other names of settings:", "", ", ".join(f"`{name}`" for name in others) + ".", ""]
    return parts


def _help(text: str | None) -> list[str]:
    lines: list[str] = []
    for paragraph in (text or "").split("\n\n"):
        lines += [" ".join(paragraph.split()), ""]
    return lines


def _first(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _option(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else f" {option.metavar or 'TEXT'}"
    shown = ", ".join(f"`{name}{value}`" for name in names)
    default = f" Default: `{option.show_default}`." if isinstance(option.show_default, str) else ""
    return f"- {shown}: {option.help}{default}"


PAGES = {"config.md": config_page, "cli.md": cli_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them under `--check`; the exit code."""
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8", newline="\n")
            sys.stdout.write(f"wrote {path}\n")
    if stale and "--check" in arguments:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run python docs/generate.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
