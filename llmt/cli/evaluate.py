"""`llmt eval`: loss, perplexity and bits per byte; of pairs, which answer is preferred."""

import json
from dataclasses import dataclass, field
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
from llmt.config.run import TrainConfig
from llmt.config.tasks import EvalSettings
from llmt.errors import MismatchError, ModelFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmt.data.batch import Batch
    from llmt.data.sequences import Sequences
    from llmt.models.base import BaseLanguageModel
    from llmt.tokenizers.base import Tokenizer
    from llmt.training.objective import Report

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

    Without --data, on the held-out part of the text that the model was trained on. Of pairs of answers: the loss of
    preferences, how often the chosen answer is preferred, and by how much.
    """
    settings = load_task("eval", EvalSettings, flags=given).config
    from llmt.data.loader import evaluation_batches

    opened = open_with_tokenizer(model, settings.adapter, settings.device)
    loaded, directory = opened.model, opened.directory
    trained = _trained_on(directory)
    size = _context(settings.block_size, loaded.context_length, None if trained is None else trained.data.block_size)
    text = _text_to_measure(settings, directory, opened.tokenizer, size)
    sequences = text.sequences
    batches = evaluation_batches(sequences, settings.batch_size)
    whole = settings.max_batches is None or settings.max_batches * settings.batch_size >= sequences.count
    countable = whole and opened.tokenizer.is_lossless
    if settings.max_batches is not None:
        batches = (batch for batch, _ in zip(batches, range(settings.max_batches), strict=False))
    with progress_bar(out, "evaluating") as bar:
        measure = _compare(loaded, trained) if sequences.pairs else _predict(loaded, sequences.text_bytes * countable)
        report = measure(batches, lambda tokens: bar.update(tokens, sequences.trained))
    values = {**report.values(), **text.lost, "data": text.name, "block_size": size, "device": opened.device}
    if settings.output is not None:
        _write(Path(settings.output), values)
    if out.as_json:
        out.json(values)
        return
    why = "only a part was measured" if not whole or text.lost else "the tokenizer drops bytes"
    lost = [(name.replace("_", " "), f"{count:,}, longer than the context") for name, count in text.lost.items()]
    out.table([*_figures(report, why), *lost, ("data", text.name), ("context", f"{size} tokens")], to_result=True)


def _predict(
    model: "BaseLanguageModel", text_bytes: int
) -> "Callable[[Iterator[Batch], Callable[[int], None]], Report]":
    """What measures text."""
    from llmt.evaluation.perplexity import evaluate as measure

    return lambda batches, progress: measure(model, batches, text_bytes=text_bytes, progress=progress)


def _compare(
    model: "BaseLanguageModel", trained: TrainConfig | None
) -> "Callable[[Iterator[Batch], Callable[[int], None]], Report]":
    """What measures pairs, with the loss of the run.

    Raises:
        UsageError: The model is not an adapter.
    """
    from llmt.evaluation.preference import evaluate_preference
    from llmt.models.lora import LoraModel
    from llmt.training.objective import preference_loss

    if not isinstance(model, LoraModel):
        raise UsageError(
            "the data holds pairs of answers, which are measured against the base under an adapter, and this is a "
            "whole model",
            "llmt eval ADAPTER, or --text-column chosen for the loss of these texts",
        )
    loss = preference_loss((trained or TrainConfig()).training)
    return lambda batches, progress: evaluate_preference(model, batches, loss, progress=progress)


def _figures(report: "Report", why: str) -> list[tuple[str, Any]]:
    """The numbers in words; `why` says of bits per byte why they are not known."""
    from llmt.evaluation.preference import PreferenceReport

    if isinstance(report, PreferenceReport):
        return [
            ("chosen preferred", f"{100 * report.reward_accuracy:.2f} % of {report.pairs:,} pairs"),
            ("reward margin", f"{report.reward_margin:.4f}"),
            ("loss", f"{report.loss:.4f} per pair"),
            ("tokens", f"{report.tokens:,}"),
        ]
    bits = f"{report.bits_per_byte:.4f}" if report.bits_per_byte is not None else f"not known: {why}"
    return [
        ("bits per byte", bits),
        ("perplexity", f"{report.perplexity:.3f}"),
        ("loss", f"{report.loss:.4f} nats per token"),
        ("tokens", f"{report.tokens:,}"),
    ]


def _context(asked: int | None, longest: int, trained: int | None) -> int:
    """Length of the sequences to measure: as asked, else as trained, and never more than the model holds.

    Raises:
        UsageError: More was asked.
    """
    if asked is not None and asked > longest:
        raise UsageError(f"--block-size {asked}: the model's context is {longest} tokens", "leave it out")
    return asked or min(longest, trained or longest)


@dataclass(frozen=True)
class _Text:
    """What is measured.

    Attributes:
        sequences: The text, divided.
        name: What it is called.
        lost: What became of documents or pairs that were too long, and of how many.
    """

    sequences: "Sequences"
    name: str
    lost: dict[str, int] = field(default_factory=dict)


def _text_to_measure(settings: EvalSettings, directory: Path, tokenizer: "Tokenizer", size: int) -> _Text:
    """The text that was named or held out, read and divided as that of the run was."""
    from llmt.checkpoints.runs import read_finished
    from llmt.data.open import open_data

    if settings.data:
        return _named_text(settings, _trained_on(directory) or TrainConfig(), tokenizer, size)
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
    return _Text(opened.validation, f"held-out part of {', '.join(data.sources)}")


def _named_text(settings: EvalSettings, trained: TrainConfig, tokenizer: "Tokenizer", size: int) -> _Text:
    """The text of `--data`, all of it.

    Raises:
        UsageError: `--truncation` where no document is too long, since the row of all of them is cut.
    """
    from llmt.data.prepare import prepare_shards
    from llmt.data.ready import choose_packing, ready_data

    config = _data_to_measure(settings, trained, size)
    cache = cache_directory(None)
    prepared = prepare_shards(config, tokenizer, cache / "shards")
    if prepared.text.pairs:
        config = _as_pairs(config)
        prepared = prepare_shards(config, tokenizer, cache / "shards")
    elif settings.truncation not in (None, "split") and choose_packing(config, prepared) == "blocks":
        raise UsageError(
            f"--truncation {settings.truncation}: this text is cut into blocks, as that of the run was, so that no "
            "document is too long",
            "leave it out",
        )
    ready = ready_data(config, prepared, cache / "packed")
    packing = ready.audit.packing
    left_out = packing.dropped_documents.count + packing.all_masked.count * ready.pairs
    lost = {"left_out": left_out, "cut_off": packing.truncated_documents.count}
    return _Text(ready.train.parts[0], ", ".join(settings.data), {name: count for name, count in lost.items() if count})


def _as_pairs(config: DataConfig) -> DataConfig:
    """The same without what a run on other documents may have done, and pairs cannot be."""
    packing = "auto" if config.packing == "blocks" else config.packing
    return config.model_copy(update={"packing": packing, "train_on_prompt": False, "document_mask": None})


def _data_to_measure(settings: EvalSettings, trained: TrainConfig, size: int) -> DataConfig:
    """The settings of the run's data, for other text, all of which is measured, but for what is too long."""
    kept = trained.data.model_dump(include=set(_AS_TRAINED))
    if settings.truncation is not None:
        kept["truncation"] = settings.truncation
    elif trained.training.objective == "dpo" and settings.text_column is None:
        kept["truncation"] = trained.data.truncation
    if settings.text_column is not None:
        kept |= {"text_column": settings.text_column, "format": "text", "columns": {}, "prompt_template": None}
    if settings.encoding_errors is not None:
        kept["encoding_errors"] = settings.encoding_errors
    return DataConfig(**kept, sources=settings.data, validation_split=0.0, block_size=size)


def _run_config(directory: Path) -> Path | None:
    """The configuration of the run that a directory is, or is a checkpoint of."""
    return next((p for p in (directory / "config.yaml", directory.parent / "config.yaml") if p.is_file()), None)


def _trained_on(directory: Path) -> TrainConfig | None:
    """The settings of the run that the model came from, where it was trained here."""
    path = _run_config(directory)
    return load_run(ConfigSource("run", path=path), environ={}).config if path is not None else None


def _write(path: Path, values: dict[str, Any]) -> None:
    from llmt.checkpoints.files import write_text_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(values, indent=2) + "\n")
