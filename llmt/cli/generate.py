"""`llmt generate`: text from a model, as it is written."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llmt.cli.opening import open_with_tokenizer
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.tasks import GenerateSettings
from llmt.errors import DataError, UsageError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a model directory or an adapter.")]


@with_settings(GenerateSettings)
def generate(out: Output, given: list[Given], model: Model) -> None:
    """Write text with a model: from prompts, a file of prompts, or nothing.

    The prompt comes from --prompt, --prompts-file, or standard input where that is a pipe.
    """
    settings = load_task("generate", GenerateSettings, flags=given).config
    prompts = _prompts(settings)
    if settings.output is not None and not Path(settings.output).absolute().parent.is_dir():
        raise UsageError(f"--output {settings.output}: its directory does not exist", "make it first")
    from llmt.generation.sampling import Sampling
    from llmt.generation.text import stream_text

    opened = open_with_tokenizer(model, settings.adapter, settings.device)
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, settings.repetition_penalty)
    written: list[dict[str, str]] = []
    for prompt in prompts or [_piped()]:
        for number in range(settings.num_return_sequences):
            pieces = stream_text(
                opened.model, opened.tokenizer, prompt, sampling,
                max_new_tokens=settings.max_new_tokens, seed=settings.seed + number,
            )  # fmt: skip
            written.append({"prompt": prompt, "text": _show(out, prompt, pieces)})
    if out.as_json:
        out.json({"results": written})
    if settings.output is not None:
        from llmt.checkpoints.files import write_text_atomic

        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in written]
        write_text_atomic(Path(settings.output), "".join(lines))


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
    """The prompt in standard input where that is a pipe or a file; else none, and the model begins."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    piped = sys.stdin.read()
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
