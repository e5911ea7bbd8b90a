"""`llmt tokenizer inspect`: what a tokenizer makes of text."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.names import BUILTIN
from llmt.config.tasks import TokenizerInspectSettings
from llmt.errors import UsageError

if TYPE_CHECKING:
    from llmt.tokenizers.inspection import Inspection, Sample
    from llmt.tokenizers.spans import Segment

SAMPLE_DOCUMENTS = 50
TYPED_TOKENS = 1000
"""Tokens that are coloured of a text that was typed; of others, as many as are listed."""

_BACKGROUNDS = ("black on #afd7ff", "black on #ffd7af", "black on #afd7af", "black on #d7afd7")
_UNKNOWN = "bold white on red"


@with_settings(TokenizerInspectSettings)
def inspect(
    out: Output,
    given: list[Given],
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="Directory of a tokenizer or model.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text to cut, or - for standard input; else a sample.")
    ] = None,
) -> None:
    """Show how a tokenizer cuts text, and how well."""
    settings = load_task("tokenizer_inspect", TokenizerInspectSettings, flags=given).config
    from llmt.reports.segmentation import PAGE_TOKENS, claim_page, write_page
    from llmt.tokenizers.inspection import Questions, examine
    from llmt.tokenizers.load import load_tokenizer

    page = None if settings.html is None else Path(settings.html).expanduser()
    if page is not None:
        claim_page(page, overwrite=settings.overwrite)
    loaded = load_tokenizer(tokenizer)
    others = {name: load_tokenizer(name) for name in settings.compare}
    coloured = max(settings.limit, 0 if text is None else TYPED_TOKENS)
    questions = Questions(
        PAGE_TOKENS if page is not None else coloured, settings.check, settings.word, sweep=settings.sweep
    )
    inspection = examine(tokenizer, loaded, _sample(settings, text), questions, others)
    if page is not None:
        write_page(page, inspection, overwrite=settings.overwrite)
        out.say(f"page: {page}")
    if out.as_json:
        out.json(inspection.values(settings.limit))
        return
    _show_text(out, inspection.segments[:coloured], inspection.report.tokens)
    _show_tables(out, inspection, settings.limit)


def _sample(settings: TokenizerInspectSettings, text: str | None) -> "Sample":
    """The text to measure on.

    Raises:
        UsageError: Two texts are named.
    """
    from llmt.text.reading import Reading
    from llmt.text.sources import open_blocks
    from llmt.tokenizers.inspection import Sample

    if text is not None and settings.data:
        raise UsageError("TEXT and --data: each names a text", "leave one of them out")
    most = settings.max_characters
    if text is not None and text != "-":
        return Sample(text[:most], "the text given", len(text) > most)
    sources = settings.data or (BUILTIN if text is None else "-",)
    reading = Reading(
        settings.text_column,
        settings.encoding_errors,
        max_samples=SAMPLE_DOCUMENTS if sources == (BUILTIN,) else None,
    )
    joined, is_part = _beginning(open_blocks(sources, reading), most)
    names = ["standard input" if name == "-" else name for name in sources]
    return Sample(joined, ", ".join(names), is_part or reading.max_samples is not None)


def _beginning(blocks: Iterable[str], most: int) -> tuple[str, bool]:
    """Blocks on lines of their own up to `most` characters, and whether there was more."""
    taken: list[str] = []
    length = 0
    for block in blocks:
        if length > most:
            break
        if taken and not taken[-1].endswith("\n"):
            taken.append("\n")
            length += 1
        taken.append(block)
        length += len(block)
    joined = "".join(taken)
    return joined[:most], len(joined) > most


def _show_text(out: Output, segments: "list[Segment]", total: int) -> None:
    """The text itself, token by token."""
    from llmt.reports.tables import plain_segmentation

    if out.colours:
        out.styled(_coloured(segments))
    else:
        out.result(plain_segmentation(segments))
    if len(segments) < total:
        out.result(f"... the first {len(segments):,} of {total:,} tokens")


def _coloured(segments: "list[Segment]") -> Iterator[tuple[str, str]]:
    from llmt.reports.tables import shown_segment

    for number, segment in enumerate(segments):
        style = _BACKGROUNDS[number % len(_BACKGROUNDS)]
        yield shown_segment(segment), _UNKNOWN if segment.kind == "unknown" else style


def _show_tables(out: Output, inspection: "Inspection", limit: int) -> None:
    from llmt.reports.tables import tables

    for table in tables(inspection, limit):
        out.result("")
        out.styled([(table.title, "bold")])
        out.table(table.rows, header=table.header, to_result=True)
        if table.note:
            out.result(table.note)
