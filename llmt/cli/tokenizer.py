"""`llmt tokenizer`: text to a tokenizer, and a look at what it does."""

import time
from collections.abc import Callable
from dataclasses import asdict
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmt.cli.context import CONTEXT
from llmt.cli.inspect import inspect
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.cli.progress import Bar, progress_bar
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.names import BUILTIN
from llmt.config.tasks import TokenizerTrainSettings
from llmt.config.tokenizer import TokenizerTraining
from llmt.errors import UsageError

if TYPE_CHECKING:
    from llmt.tokenizers.build import Built
    from llmt.tokenizers.progress import TrainingProgress

app = typer.Typer(help="Train tokenizers and look into them.", context_settings=CONTEXT)
app.command("inspect", context_settings=CONTEXT)(inspect)


@app.command("train", context_settings=CONTEXT)
@with_settings(TokenizerTrainSettings)
def train(
    out: Output,
    given: list[Given],
    files: Annotated[list[str] | None, typer.Argument(metavar="FILES", help="Text to learn from.")] = None,
) -> None:
    """Learn a tokenizer from text; without FILES, from the documentation inside Python."""
    settings = load_task("tokenizer_train", TokenizerTrainSettings, flags=given).config
    from llmt.tokenizers.build import build_tokenizer

    _refuse_unread(settings.algo, given)
    sources = (*(files or ()), *settings.data) or (BUILTIN,)
    target = Path(expanduser(settings.output_dir or Path("tokenizers") / settings.algo))
    if not target.name:
        raise UsageError(f"-o {target}: a directory needs a name of its own", "-o ./tokenizer")
    started = time.monotonic()
    with progress_bar(out, f"training {settings.algo}") as bar:
        built = build_tokenizer(settings, sources, target, _showing(bar))
    seconds = time.monotonic() - started
    if out.as_json:
        report = asdict(built.report)
        out.json({"directory": str(target), "algo": settings.algo, "seconds": seconds, **report, "notes": built.notes})
        return
    _show(out, built, settings.algo, seconds)


def _refuse_unread(algo: str, given: list[Given]) -> None:
    """A flag that the algorithm does not read is a mistake.

    Raises:
        UsageError: There is one.
    """
    from llmt.tokenizers.train import options_of

    options = {*TokenizerTraining.model_fields, "num_proc"} - {"algo", *options_of(algo)}
    if unread := [g.place for g in given if g.key in options]:
        raise UsageError(f"{unread[0]}: {algo} does not read it", "leave it out, or name another --algo")


def _showing(bar: Bar) -> "Callable[[TrainingProgress], None]":
    """Moves the bar: characters read, then tokens with the speed and the latest piece."""
    begun: list[tuple[float, int]] = []

    def show(progress: "TrainingProgress") -> None:
        if progress.stage == "reading":
            bar.update(progress.done, None, f"{progress.done / 1e6:,.0f} million characters read")
            return
        now = time.monotonic()
        begun.append((now, progress.done))
        seconds = now - begun[0][0]
        speed = f"{(progress.done - begun[0][1]) / seconds:,.0f} merges/s" if seconds > 0 else ""
        piece = f"  {progress.piece!r}" if progress.piece is not None else ""
        bar.update(progress.done, progress.total, f"{progress.done:,} tokens  {speed}{piece}")

    return show


def _show(out: Output, built: "Built", algo: str, seconds: float) -> None:
    report = built.report
    out.result(f"{built.directory}: {algo}, {report.vocab_size:,} tokens, {seconds:.1f} s")
    where = "held-out text" if report.held_out else "the training text (too little to hold any out)"
    out.result(
        f"on {report.characters:,} characters of {where}: {report.characters_per_token:.2f} characters and "
        f"{report.bytes_per_token:.2f} bytes per token, {100 * report.unknown_share:.2f} % unknown, "
        f"{100 * report.vocabulary_used:.1f} % of the vocabulary used"
    )
    tried = f"{report.lines:,} lines and {report.hard_texts} hard texts"
    if not report.losses:
        out.result(f"{tried} come back exactly; ids are equal after reloading, in transformers too")
    else:
        out.result(f"ids of {tried} are equal after reloading, in transformers too")
    for loss in report.losses:
        examples = f", as in {' '.join(loss.examples)}" if loss.examples else ""
        out.result(f"lost: {loss.kind}, in {loss.texts:,} of them{examples}")
    for note in built.notes:
        out.say(f"note: {note}")
    out.say(f"next:  llmt tokenizer inspect {built.directory}")
    out.say(f"       llmt train --tokenizer {built.directory}")
