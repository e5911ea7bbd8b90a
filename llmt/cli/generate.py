"""`llmt generate`: text from a model, as it is written."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmt.cli.opening import OpenedSet, adapters_by_name, open_with_adapters
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.cli.signals import Stopped
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.names import BASE
from llmt.config.tasks import GenerateSettings
from llmt.errors import DataError, Interrupted, UsageError

if TYPE_CHECKING:
    from llmt.generation.sampling import Sampling

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a model directory or an adapter.")]


@with_settings(GenerateSettings)
def generate(out: Output, given: list[Given], model: Model) -> None:
    """Write text with a model, or talk with it: from prompts, a file of prompts, a conversation, or nothing.

    The prompt comes from --prompt, --prompts-file, or standard input where that is a pipe; with --chat every line of
    standard input is a turn.
    """
    settings = load_task("generate", GenerateSettings, flags=given).config
    adapters = adapters_by_name(settings.adapter)
    prompts = _prompts(settings)
    _require_sense(settings)
    from llmt.generation.sampling import Sampling

    opened = open_with_adapters(model, adapters, settings.device)
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty)
    written: list[dict[str, Any]] = []
    if settings.chat:
        _talk(out, opened, sampling, settings)
        return
    for prompt in prompts or [_piped()]:
        written += _continued(out, opened, prompt, sampling, settings)
    if out.as_json:
        out.json({"results": written})
    _save(settings.output, written)


def _talk(out: Output, opened: OpenedSet, sampling: "Sampling", settings: GenerateSettings) -> None:
    """A conversation; the file gets what was said, whatever ends it.

    Raises:
        Interrupted: A signal ended it, and what was said is in the file.
    """
    from llmt.cli.chat import talk
    from llmt.generation.chat import Manner

    said: list[dict[str, Any]] = []
    is_whole = False
    try:
        talk(out, opened, Manner(sampling, settings.max_new_tokens, settings.seed), settings.system, said)
        is_whole = True
    except Stopped as stop:
        if settings.output is None or not said:
            raise
        message = f"stopped, what was said is in {settings.output}"
        raise Interrupted(message, "the same command begins another conversation", stop.signum) from None
    finally:
        if is_whole or said:
            _save(settings.output, said)


def _require_sense(settings: GenerateSettings) -> None:
    """Refuse settings that exclude each other, and a file that cannot be written.

    Raises:
        UsageError: One of them, with what to type.
    """
    if settings.output is not None and not Path(settings.output).absolute().parent.is_dir():
        raise UsageError(f"--output {settings.output}: its directory does not exist", "make it first")
    if settings.chat and (settings.prompt or settings.prompts_file is not None):
        raise UsageError(
            "--chat: the turns come from standard input, and prompts were named",
            "leave out --prompt and --prompts-file",
        )
    if settings.chat and settings.num_return_sequences > 1:
        raise UsageError("--chat: a turn has one answer", "leave out --num-return-sequences")
    if settings.system is not None and not settings.chat:
        raise UsageError("--system: opens a conversation, and this is none", "--chat --system TEXT")


def _continued(
    out: Output, opened: OpenedSet, prompt: str, sampling: "Sampling", settings: GenerateSettings
) -> Iterator[dict[str, Any]]:
    """Each continuation of a prompt, after it was shown; of several adapters those of each in turn."""
    from llmt.generation.text import stream_text

    several = opened.adapters
    names = [name for name in several.folders if name != BASE] if settings.adapter else [several.active]
    for name in names:
        several.choose(name)
        for number in range(settings.num_return_sequences):
            pieces = stream_text(
                several.model, opened.tokenizers[name], prompt, sampling,
                max_new_tokens=settings.max_new_tokens, seed=settings.seed + number,
            )  # fmt: skip
            if len(names) > 1 and not out.as_json:
                out.result(f"[{name}]")
            named = {"adapter": name} if settings.adapter else {}
            yield {**named, "prompt": prompt, "text": _show(out, prompt, pieces)}


def _save(output: str | None, written: Sequence[dict[str, Any]]) -> None:
    """Write one object a line, where a file was named."""
    if output is not None:
        from llmt.checkpoints.files import write_text_atomic

        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in written]
        # A stray byte of the command line is a lone surrogate, which UTF-8 cannot hold and JSON can spell so.
        write_text_atomic(Path(output), "".join(lines).encode(errors="backslashreplace").decode())


def _prompts(settings: GenerateSettings) -> list[str]:
    """Every prompt that was named, in order."""
    prompts = list(settings.prompt)
    if settings.prompts_file is not None:
        try:
            text = Path(settings.prompts_file).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise DataError(f"--prompts-file {settings.prompts_file}: does not exist", "name a text file") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"--prompts-file {settings.prompts_file}: not UTF-8 at byte {error.start}", "save it as UTF-8"
            ) from None
        prompts += [line for line in text.splitlines() if line]
    return prompts


def _piped() -> str:
    """The prompt in standard input where that is a pipe or a file; else none, and the model begins.

    Raises:
        DataError: It is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        piped = sys.stdin.read()
        piped.encode()  # some locales let stray bytes through
    except UnicodeError:
        raise DataError("standard input: not UTF-8", "save it as UTF-8, or name a file: --prompts-file") from None
    return piped.rstrip("\n") if piped.strip() else ""


def _show(out: Output, prompt: str, pieces: Iterator[str]) -> str:
    """Stream one continuation after its prompt; return it whole."""
    if out.as_json:
        return "".join(pieces)
    text = []
    out.stream(prompt)
    for piece in pieces:
        out.stream(piece)
        text.append(piece)
    out.stream("\n")
    return "".join(text)
