"""settings -> a tokenizer directory that was checked before it was published."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints.atomic import remove_abandoned, staged_directory
from llmt.checkpoints.files import make_directory, storage_errors
from llmt.config.tasks import TokenizerTrainSettings
from llmt.errors import BusyOutputError, StorageError, UsageError
from llmt.text.find import find_sources
from llmt.text.reading import Reading
from llmt.text.sources import open_blocks
from llmt.tokenizers.fast import TrainableTokenizer
from llmt.tokenizers.files import TOKENIZER_FILE, TOKENIZER_FILES
from llmt.tokenizers.gate import GateReport, check_tokenizer
from llmt.tokenizers.heldout import HeldOut
from llmt.tokenizers.progress import Progress
from llmt.tokenizers.train import options_of, train_tokenizer

MANY_PROCESSES_BYTES = 50_000_000
"""Below this much text, starting processes costs more than they save."""

POOR = 3.0
"""Characters per token: English text at any usual vocabulary size has more."""


@dataclass(frozen=True)
class Built:
    """A published tokenizer and what its check found."""

    directory: Path
    tokenizer: TrainableTokenizer
    report: GateReport

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        notes = []
        asked = (self.tokenizer.training or {}).get("vocab_size_asked")
        if asked is not None and self.report.vocab_size < asked:
            notes.append(f"{asked:,} tokens were asked for; the text supports {self.report.vocab_size:,}")
        if self.tokenizer.options.get("threshold") == "fixed" and self.report.characters_per_token < POOR:
            notes.append(
                f"{self.report.characters_per_token:.2f} characters per token is little: with a fixed threshold the "
                "score spends the vocabulary on rare strings; --threshold anneal does not"
            )
        return tuple(notes)


def build_tokenizer(
    settings: TokenizerTrainSettings, sources: Sequence[str], target: Path, progress: Progress | None = None
) -> Built:
    """Read, train, check and publish.

    Args:
        settings: What was asked.
        sources: Files, folders, patterns, data sets.
        target: The directory to write. It appears whole, or not at all.
        progress: Told how far it is.

    Raises:
        LlmtError: Text that cannot be read, an option that cannot be, a tokenizer that fails its check.
    """
    claim_target(target, overwrite=settings.overwrite)
    _refuse_unread(settings, sources)
    reading = Reading(
        text_column=settings.text_column,
        encoding_errors=settings.encoding_errors,
        config=settings.dataset_config,
        split=settings.dataset_split,
        max_samples=settings.max_samples,
    )
    texts = HeldOut(open_blocks(sources, reading))
    options = settings.model_dump(include=set(options_of(settings.algo)))
    if "num_proc" in options and options["num_proc"] is None:
        options["num_proc"] = (os.cpu_count() or 1) if _size(sources) >= MANY_PROCESSES_BYTES else 1
    tokenizer = train_tokenizer(settings.algo, texts, **options, progress=progress)
    if settings.algo == "byte":
        for _ in texts:  # nothing is learnt, yet there is text to measure on
            pass
    with storage_errors("creating a folder", target.parent):
        make_directory(target.parent)
        remove_abandoned(target.parent)
    with staged_directory(target, extra=None, replace=True) as staged:
        tokenizer.save_pretrained(staged.path)
        sample, held_out = texts.sample()
        report = check_tokenizer(tokenizer, staged.path, sample, held_out=held_out)
        claim_target(target, overwrite=settings.overwrite)  # training took a while: it may be taken by now
    return Built(target, tokenizer, report)


def _refuse_unread(settings: TokenizerTrainSettings, sources: Sequence[str]) -> None:
    asked = settings.model_fields_set & {"dataset_config", "dataset_split"}
    if asked and all(source.kind != "data set" for source in find_sources(sources)):
        name = min(asked).replace("_", "-")
        raise UsageError(f"--{name}: only data sets have it, and none is named", "leave it out, or name hf:NAME")


def _size(sources: Sequence[str]) -> int:
    """Bytes of the files among the sources."""
    files = [Path(source.name) for source in find_sources(sources)]
    return sum(file.stat().st_size for file in files if file.is_file())


def claim_target(target: Path, *, overwrite: bool) -> None:
    """A tokenizer may be written there.

    Raises:
        BusyOutputError: Something stands there that may not be replaced.
        StorageError: What stands above it is no folder.
    """
    above = next((parent for parent in target.absolute().parents if parent.exists()), target)
    if not above.is_dir():
        raise StorageError(f"{target}: {above} is a file", "name another directory with -o")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    others = [path.name for path in target.iterdir() if path.name not in TOKENIZER_FILES] if target.is_dir() else []
    if others or not (target / TOKENIZER_FILE).is_file():
        what = f", and {others[0]} would be lost" if others else ""
        raise BusyOutputError(f"{target}: is no directory of a tokenizer alone{what}", "name another with -o")
    if not overwrite:
        raise BusyOutputError(f"{target}: holds a tokenizer already", "add --overwrite, or name another with -o")
