"""an inspection -> tables of text, for the terminal and for a page alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmt.tokenizers.history import WordHistory
from llmt.tokenizers.inspection import Inspection
from llmt.tokenizers.spans import Segment, quoted, visible
from llmt.tokenizers.vocabulary import VocabularyReport

SEPARATOR = "|"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        title: What it shows.
        header: Names of the columns.
        rows: The cells. Control characters are spelled out.
        note: A sentence below it, or nothing.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def tables(inspection: Inspection, limit: int) -> Iterator[Table]:
    """Every table of an inspection, the numbers of the whole text first.

    Args:
        inspection: What was measured.
        limit: Tokens of the text in the table of tokens.
    """
    yield _statistics(inspection)
    yield _tokens(inspection.segments[:limit], inspection.report.tokens)
    yield _scripts(inspection)
    yield _vocabulary(inspection.vocabulary)
    yield _probes(inspection)
    for word in inspection.histories:
        yield _word(word)
    if inspection.comparison:
        yield _comparison(inspection)
    if inspection.sweep:
        yield _sweep(inspection)


def plain_segmentation(segments: Sequence[Segment]) -> str:
    """The text with a bar between tokens; unknown tokens are written `<?text>`."""
    return SEPARATOR.join(shown_segment(segment) for segment in segments)


def shown_segment(segment: Segment) -> str:
    """The text of a token as it can be printed: a line feed is an arrow and a new line."""
    text = visible(segment.text, newline="\u21b5\n")
    return f"<?{text}>" if segment.kind == "unknown" else text


def measured_text(inspection: Inspection) -> str:
    """What was measured, in words."""
    count = f"{inspection.report.characters:,} characters"
    return f"{visible(inspection.source)}, {'the first ' if inspection.is_part else ''}{count}"


def _statistics(inspection: Inspection) -> Table:
    report = inspection.report
    rows = [
        ("tokenizer", visible(inspection.name)),
        ("text", measured_text(inspection)),
        ("vocab size", f"{report.vocab_size:,}"),
        ("characters", f"{report.characters:,}"),
        ("bytes", f"{report.bytes:,}"),
        ("words", f"{report.words:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("characters per token", f"{report.characters_per_token:.3f}"),
        ("bytes per token", f"{report.bytes_per_token:.3f}"),
        ("tokens per word", f"{report.tokens_per_word:.3f}"),
        ("unknown", _percent(report.unknown_share)),
        ("vocabulary used", _percent(report.vocabulary_used)),
        ("round trip", _yes(report.roundtrip)),
        ("longest tokens", _list(report.longest)),
    ]
    return Table("Statistics", (), rows)


def _tokens(segments: Sequence[Segment], total: int) -> Table:
    rows = [(visible(part.piece), str(part.token_id), quoted(part.text)) for part in segments]
    note = f"the first {len(rows):,} of {total:,}" if len(rows) < total else ""
    return Table("Tokens", ("token", "id", "text"), rows, note)


def _scripts(inspection: Inspection) -> Table:
    rows = [
        (
            share.script,
            f"{share.characters:,}",
            f"{share.tokens:,}",
            _decimal(share.characters_per_token),
            "" if share.unknown_share is None else _percent(share.unknown_share),
        )
        for share in inspection.scripts
    ]
    header = ("script", "characters", "tokens", "characters per token", "unknown")
    return Table("Scripts", header, rows, "a token counts for the script of its first visible character")


def _vocabulary(report: VocabularyReport) -> Table:
    rows = [
        ("used in the text", f"{report.used:,}"),
        ("dead: not in the text", f"{report.dead:,} ({_percent(report.dead_share)}), {report.dead_special} special"),
        ("dead, such as", _list(report.dead_examples)),
        ("unreachable", f"{report.unreachable:,} of {report.checked:,} dead tokens checked"),
        ("unreachable, such as", _list(report.unreachable_examples)),
        ("not checked", f"{report.unchecked:,}, parts of characters or above the limit"),
        ("longest", _list(report.longest)),
    ]
    note = f"checked: its own text was encoded, alone and after up to {report.contexts} other characters"
    return Table("Vocabulary", (), [row for row in rows if row[1]], note)


def _probes(inspection: Inspection) -> Table:
    rows = [
        (quoted(probe.text), _yes(probe.roundtrip), " ".join(quoted(part.text) for part in probe.tokens))
        for probe in inspection.probes
    ]
    return Table("Digits and white space", ("text", "round trip", "tokens"), rows)


def _word(history: WordHistory) -> Table:
    rows = [
        (
            f"{merge.rank:,}",
            *(quoted(text) for text in merge.shown),
            "" if merge.count is None else f"{merge.count:,}",
            "" if merge.score is None else f"{merge.score:.3g}",
        )
        for merge in history.merges
    ]
    note = "cut into " + " ".join(quoted(part.text) for part in history.tokens)
    header = ("rank", "left", "right", "piece", "count", "score")
    return Table(f"How {visible(history.word)} is built", header, rows, note)


def _comparison(inspection: Inspection) -> Table:
    rows = [
        (
            f"{row.vocab_size:,}",
            f"{row.tokens:,}",
            f"{row.characters_per_token:.3f}",
            f"{row.bytes_per_token:.3f}",
            f"{row.tokens_per_word:.3f}",
            _percent(row.unknown_share),
            _yes(row.roundtrip),
            _percent(row.vocabulary_used),
            visible(row.name),
        )
        for row in inspection.comparison
    ]
    header = (
        *("vocab\nsize", "tokens", "chars\nper token", "bytes\nper token", "tokens\nper word"),
        *("unknown", "round\ntrip", "vocab\nused", "tokenizer"),
    )
    return Table("Comparison", header, rows)


def _sweep(inspection: Inspection) -> Table:
    rows = [
        (
            f"{point.vocab_size:,}",
            f"{point.tokens:,}",
            f"{point.characters_per_token:.3f}",
            f"{point.bytes_per_token:.3f}",
            _percent(point.unknown_share),
            _percent(point.vocabulary_used),
        )
        for point in inspection.sweep
    ]
    header = ("vocab size", "tokens", "characters per token", "bytes per token", "unknown", "vocabulary used")
    return Table("Vocabulary sizes of the same training", header, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _list(texts: Sequence[str]) -> str:
    return " ".join(quoted(text) for text in texts)
