"""`llmt eval`: loss, perplexity and bits per byte."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmt.cli.opening import open_with_tokenizer
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.cli.progress import progress_bar
from llmt.config.data import DataConfig
from llmt.config.layers import Given
from llmt.config.load import ConfigSource, cache_directory, load_run, load_task
from llmt.config.tasks import EvalSettings
from llmt.errors import MismatchError, ModelFileError, UsageError

if TYPE_CHECKING:
    from llmt.data.sequences import Sequences
    from llmt.tokenizers.base import Tokenizer

_AS_TRAINED = (
    "format",
    "text_column",
    "columns",
    "prompt_template",
    "chat_template",
    "train_on_prompt",
    "split_on",
    "packing",
    "document_mask",
    "encoding_errors",
)
"""How the text of the run was read and divided."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint, a model directory or an adapter.")]


@with_settings(EvalSettings)
def evaluate(out: Output, given: list[Given], model: Model) -> None:
    """Measure a model on text: loss, perplexity and bits per byte.

    Without --data, on the held-out part of the text that the model was trained on.
    """
    settings = load_task("eval", EvalSettings, flags=given).config
    from llmt.data.loader import evaluation_batches
    from llmt.evaluation.perplexity import evaluate as measure

    opened = open_with_tokenizer(model, settings.adapter, settings.device)
    loaded, directory = opened.model, opened.directory
    trained = _trained_on(directory)
    size = _context(settings.block_size, loaded.context_length, None if trained is None else trained.block_size)
    sequences, source = _held_out(settings, directory, opened.tokenizer, size)
    batches = evaluation_batches(sequences, settings.batch_size)
    whole = settings.max_batches is None or settings.max_batches * settings.batch_size >= sequences.count
    countable = whole and opened.tokenizer.is_lossless
    if settings.max_batches is not None:
        batches = (batch for batch, _ in zip(batches, range(settings.max_batches), strict=False))
    with progress_bar(out, "evaluating") as bar:
        report = measure(
            loaded,
            batches,
            text_bytes=sequences.text_bytes if countable else 0,
            progress=lambda tokens: bar.update(tokens, sequences.trained),
        )
    values = {**report.values(), "data": source, "block_size": size, "device": opened.device}
    if settings.output is not None:
        _write(Path(settings.output), values)
    if out.as_json:
        out.json(values)
        return
    why = "only a part was measured" if not whole else "the tokenizer drops bytes"
    bits = f"{report.bits_per_byte:.4f}" if report.bits_per_byte is not None else f"not known: {why}"
    rows: list[tuple[str, Any]] = [
        ("bits per byte", bits),
        ("perplexity", f"{report.perplexity:.3f}"),
        ("loss", f"{report.loss:.4f} nats per token"),
        ("tokens", f"{report.tokens:,}"),
        ("data", source),
        ("context", f"{size} tokens"),
    ]
    out.table(rows, to_result=True)


def _context(asked: int | None, longest: int, trained: int | None) -> int:
    """Length of the sequences to measure: as asked, else as trained, and never more than the model holds.

    Raises:
        UsageError: More was asked.
    """
    if asked is not None and asked > longest:
        raise UsageError(f"--block-size {asked}: the model's context is {longest} tokens", "leave it out")
    return asked or min(longest, trained or longest)


def _held_out(settings: EvalSettings, directory: Path, tokenizer: "Tokenizer", size: int) -> tuple["Sequences", str]:
    """The sequences to measure on, read and divided as those of the run were, and what they are called."""
    from llmt.checkpoints.runs import read_finished
    from llmt.data.open import open_data
    from llmt.data.prepare import prepare_shards
    from llmt.data.ready import ready_data

    if settings.data:
        config = _data_to_measure(settings, _trained_on(directory) or DataConfig(), size)
        cache = cache_directory(None)
        prepared = prepare_shards(config, tokenizer, cache / "shards")
        return ready_data(config, prepared, cache / "packed").train.parts[0], ", ".join(settings.data)
    path = _run_config(directory)
    if path is None:
        raise ModelFileError(
            f"{directory}: was not trained here, so it has no held-out text", "llmt eval MODEL --data FILE"
        )
    data = load_run(ConfigSource(directory.name, path=path), environ={}).config.data
    opened = open_data(data.model_copy(update={"block_size": size}), tokenizer, cache_directory(data.cache_dir))
    run = read_finished(path.parent)
    if run is not None and run.record.get("data_fingerprint") != opened.fingerprint:
        raise MismatchError(
            f"{directory}: the text of its run changed since", "put it back as it was, or llmt eval MODEL --data FILE"
        )
    if opened.validation is None:
        raise ModelFileError(f"{directory}: its run held nothing out", "llmt eval MODEL --data FILE")
    return opened.validation, f"held-out part of {', '.join(data.sources)}"


def _data_to_measure(settings: EvalSettings, trained: DataConfig, size: int) -> DataConfig:
    """The settings of the run's data, for other text, all of which is measured."""
    kept = trained.model_dump(include=set(_AS_TRAINED))
    if settings.text_column is not None:
        kept |= {"text_column": settings.text_column, "format": "text", "columns": {}, "prompt_template": None}
    if settings.encoding_errors is not None:
        kept["encoding_errors"] = settings.encoding_errors
    return DataConfig(**kept, sources=settings.data, validation_split=0.0, block_size=size)


def _run_config(directory: Path) -> Path | None:
    """The configuration of the run that a directory is, or is a checkpoint of."""
    return next((p for p in (directory / "config.yaml", directory.parent / "config.yaml") if p.is_file()), None)


def _trained_on(directory: Path) -> DataConfig | None:
    """The data settings of the run that the model came from, where it was trained here."""
    path = _run_config(directory)
    return load_run(ConfigSource("run", path=path), environ={}).config.data if path is not None else None


def _write(path: Path, values: dict[str, Any]) -> None:
    from llmt.checkpoints.files import write_text_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(values, indent=2) + "\n")
