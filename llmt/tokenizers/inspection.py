"""tokenizer, text, questions -> everything there is to show, as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.compare import Comparison, compare_tokenizers, compared, measure_named
from llmt.tokenizers.history import WordHistory, word_histories
from llmt.tokenizers.inspect import Probe, TokenizerReport, probe
from llmt.tokenizers.scripts import ScriptShare, measure_scripts
from llmt.tokenizers.spans import Segment, locate, make_segments
from llmt.tokenizers.sweep import SweepPoint, sweep_sizes
from llmt.tokenizers.vocabulary import VocabularyReport, measure_vocabulary


@dataclass(frozen=True, slots=True)
class Sample:
    """The text that is measured.

    Attributes:
        text: The text.
        source: Where it came from, in words.
        is_part: There was more of it.
    """

    text: str
    source: str
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Questions:
    """What to look at besides the text.

    Attributes:
        segments: Tokens of the segmentation to keep, from the first.
        check: Dead tokens that are checked for being unreachable, at most.
        word: Show how these words are built.
        sweep: Measure smaller vocabularies of the same training.
    """

    segments: int = 1000
    check: int = 20_000
    word: str | None = None
    sweep: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """All answers about one tokenizer.

    Attributes:
        name: What the tokenizer was called.
        source: Where the text came from.
        is_part: The text is the beginning of a longer one.
        report: Numbers of the whole text.
        segments: The first tokens of the text.
        scripts: What each script has.
        vocabulary: What of the vocabulary occurs.
        probes: Digits and white space.
        histories: How words are built, where that was asked.
        comparison: This tokenizer and the others, where there are others.
        sweep: Smaller vocabularies, where that was asked.
    """

    name: str
    source: str
    is_part: bool
    report: TokenizerReport
    segments: list[Segment]
    scripts: list[ScriptShare]
    vocabulary: VocabularyReport
    probes: list[Probe]
    histories: list[WordHistory]
    comparison: list[Comparison]
    sweep: list[SweepPoint]

    def values(self, limit: int) -> dict[str, Any]:
        """Everything as values for JSON, those of the report on the top level; `limit` tokens of the text."""
        report = replace(self.report, segmentation=self.report.segmentation[:limit])
        values = asdict(replace(self, report=report, segments=self.segments[:limit]))
        return {**values.pop("report"), **values}


def examine(
    name: str, tokenizer: Tokenizer, sample: Sample, questions: Questions, others: Mapping[str, Tokenizer]
) -> Inspection:
    """Answer every question about a tokenizer on one text.

    Args:
        name: What the tokenizer is called.
        tokenizer: The tokenizer.
        sample: The text.
        questions: What else to look at.
        others: Tokenizers to compare with, by name.

    Raises:
        DataError: A tokenizer makes no token of the text.
        UsageError: A question that this kind of tokenizer has no answer to.
    """
    text = well_formed(sample.text)
    histories = [] if questions.word is None else word_histories(tokenizer, questions.word)
    report = measure_named(name, tokenizer, text)
    ids = [token_id for _, token_id in report.segmentation]
    spans = locate(tokenizer, text, ids)
    return Inspection(
        name=name,
        source=sample.source,
        is_part=sample.is_part,
        report=report,
        segments=make_segments(tokenizer, text, ids[: questions.segments], spans),
        scripts=measure_scripts(text, spans, [token_id == tokenizer.unk_token_id for token_id in ids]),
        vocabulary=measure_vocabulary(tokenizer, text, ids, questions.check),
        probes=probe(tokenizer),
        histories=histories,
        comparison=[compared(name, report), *compare_tokenizers(others, text)] if others else [],
        sweep=sweep_sizes(tokenizer, text) if questions.sweep else [],
    )
