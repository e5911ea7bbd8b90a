"""`llmt tokenizer`: text to a tokenizer, and a look at what it does."""

from pathlib import Path
from typing import Annotated

import typer

from llmt.cli.context import CONTEXT
from llmt.cli.inspect import inspect
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.cli.progress import progress_bar
from llmt.config.data import BUILTIN, EncodingErrors
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.tasks import TokenizerTrainSettings
from llmt.errors import BusyOutputError, UsageError

app = typer.Typer(help="Train tokenizers and look into them.", context_settings=CONTEXT)

app.command("inspect", context_settings=CONTEXT)(inspect)

SAMPLE_DOCUMENTS = 50


@app.command("train", context_settings=CONTEXT)
@with_settings(TokenizerTrainSettings)
def train(
    out: Output,
    given: list[Given],
    files: Annotated[list[str] | None, typer.Argument(metavar="FILES", help="Text to learn from.")] = None,
) -> None:
    """Learn a tokenizer from text; without FILES, from the documentation inside Python."""
    settings = load_task("tokenizer_train", TokenizerTrainSettings, flags=given).config
    from llmt.checkpoints.atomic import staged_directory
    from llmt.text.sources import open_documents
    from llmt.tokenizers.inspect import inspect_tokenizer
    from llmt.tokenizers.train import OPTIONS, train_tokenizer

    unread = [g.place for g in given if g.key in _TRAINING_OPTIONS and g.key not in OPTIONS[settings.algo]]
    if unread:
        raise UsageError(f"{unread[0]}: {settings.algo} does not read it", "leave it out, or name another --algo")
    sources = (*(files or ()), *settings.data) or (BUILTIN,)
    target = Path(settings.output_dir or Path("tokenizers") / settings.algo).expanduser()
    _claim(target, overwrite=settings.overwrite)
    options = settings.model_dump(include=set(_TRAINING_OPTIONS))
    with progress_bar(out, f"training {settings.algo}") as bar:
        texts = (
            document.text
            for document in open_documents(
                sources, text_column=settings.text_column, encoding_errors=settings.encoding_errors
            )
        )
        trained = train_tokenizer(settings.algo, texts, **options, progress=lambda done, total: bar.update(done, total))
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged_directory(target, extra=None, replace=True) as staged:
        trained.save_pretrained(staged.path)
    report = inspect_tokenizer(trained, _sample(sources, settings.encoding_errors, settings.text_column))
    values = {"directory": str(target), "algo": settings.algo, "vocab_size": trained.vocab_size,
              "characters_per_token": report.characters_per_token}  # fmt: skip
    if out.as_json:
        out.json(values)
        return
    out.result(
        f"{target}: {settings.algo}, {trained.vocab_size:,} tokens, "
        f"{report.characters_per_token:.2f} characters per token"
    )
    if trained.vocab_size < settings.vocab_size and settings.algo != "byte":
        out.say(f"note: {settings.vocab_size:,} were asked for; the text supports {trained.vocab_size:,}")
    out.say(f"next:  llmt tokenizer inspect {target}")
    out.say(f"       llmt train --tokenizer {target}")


_TRAINING_OPTIONS = (
    "vocab_size", "min_frequency", "split", "style", "threshold", "max_subword_length", "continuation_prefix",
)  # fmt: skip


def _claim(target: Path, *, overwrite: bool) -> None:
    """A tokenizer may be written there.

    Raises:
        BusyOutputError: Something stands there that may not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "tokenizer.json").is_file() or (target / "config.json").exists():
        raise BusyOutputError(f"{target}: exists and is no tokenizer of its own", "name another directory with -o")
    if not overwrite:
        raise BusyOutputError(f"{target}: holds a tokenizer already", "add --overwrite, or name another with -o")


def _sample(sources: tuple[str, ...], encoding_errors: EncodingErrors = "strict", column: str = "text") -> str:
    """The first documents of a corpus, as a text to measure on."""
    from llmt.text.sources import open_documents

    documents = open_documents(sources, text_column=column, encoding_errors=encoding_errors)
    texts = [document.text for document, _ in zip(documents, range(SAMPLE_DOCUMENTS), strict=False)]
    return "\n".join(texts)[:1_000_000]
