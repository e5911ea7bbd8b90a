"""an inspection -> one HTML page that needs nothing else: no script, no font, no image, no network."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from llmt.checkpoints.files import write_text_atomic
from llmt.errors import BusyOutputError, StorageError
from llmt.reports.tables import Table, measured_text, shown_segment, tables
from llmt.tokenizers.inspection import Inspection
from llmt.tokenizers.spans import visible

PAGE_TOKENS = 20_000
"""Tokens of the text that a page shows."""

TABLE_TOKENS = 500
"""Tokens of the text in the page's table of tokens."""

COLOURS = 4

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --c0: #cfe8ff; --c1: #ffe3c2; --c2: #d5f2cf; --c3: #eed9f7; --bad: #ffb3b3; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --c0: #1d4466; --c1: #66451d; --c2: #2b5425; --c3: #53316b; --bad: #7d2222; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
.text {{ font: 15px/1.8 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
.text span {{ border-radius: 3px; }}
.c0 {{ background: var(--c0); }} .c1 {{ background: var(--c1); }}
.c2 {{ background: var(--c2); }} .c3 {{ background: var(--c3); }}
.bytes {{ font-style: italic; }} .unknown {{ background: var(--bad); outline: 1px solid; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }}
.note {{ opacity: .7; }}
.bar {{ display: inline-block; height: .7em; background: var(--c0); outline: 1px solid; }}
</style>
</head>
<body>
"""


def segmentation_page(inspection: Inspection) -> str:
    """The page: the text with each token coloured, its piece and id when pointed at, and every table.

    Whatever comes from the text or the tokenizer is escaped, and its control characters are spelled out.
    """
    return "".join(_parts(inspection))


def write_page(path: Path, inspection: Inspection, *, overwrite: bool) -> None:
    """Write the page.

    Raises:
        BusyOutputError: Something is there already, and `overwrite` is false or it is no file.
        StorageError: The file system refused.
    """
    claim_page(path, overwrite=overwrite)
    write_text_atomic(path, segmentation_page(inspection))


def claim_page(path: Path, *, overwrite: bool) -> None:
    """The page may be written there.

    Raises:
        BusyOutputError: Something is there already, and `overwrite` is false or it is no file.
        StorageError: Its folder does not exist.
    """
    if path.is_dir():
        raise BusyOutputError(f"{path}: is a folder", "name a file, such as page.html")
    if path.exists() and not overwrite:
        raise BusyOutputError(f"{path}: exists already", "add --overwrite, or name another file")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"{path}: its folder does not exist", "make it first")


def _parts(inspection: Inspection) -> Iterator[str]:
    title = escape(f"{visible(inspection.name)}: tokens of {measured_text(inspection)}")
    yield _HEAD.format(title=title)
    yield f'<h1>{title}</h1>\n<h2>Text</h2>\n<div class="text">'
    for number, segment in enumerate(inspection.segments):
        hover = escape(f"{visible(segment.piece)}  id {segment.token_id}", quote=True)
        kinds = f"c{number % COLOURS}" if segment.kind == "text" else f"c{number % COLOURS} {segment.kind}"
        yield f'<span class="{kinds}" title="{hover}">{escape(shown_segment(segment))}</span>'
    yield "</div>\n"
    if len(inspection.segments) < inspection.report.tokens:
        yield f'<p class="note">the first {len(inspection.segments):,} of {inspection.report.tokens:,} tokens</p>\n'
    for table in tables(inspection, TABLE_TOKENS):
        yield from _table(table)
    if inspection.sweep:
        yield from _bars(inspection)
    yield "</body>\n</html>\n"


def _table(table: Table) -> Iterator[str]:
    yield f"<h2>{escape(table.title)}</h2>\n<table>\n"
    if table.header:
        yield _row("th", table.header)
    for row in table.rows:
        yield _row("td", row)
    yield "</table>\n"
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>\n'


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"


def _bars(inspection: Inspection) -> Iterator[str]:
    """Characters per token as bars, one for each size of the sweep."""
    most = max(point.characters_per_token for point in inspection.sweep)
    yield "<table>\n"
    for point in inspection.sweep:
        bar = f'<span class="bar" style="width: {30 * point.characters_per_token / most:.2f}rem"></span>'
        yield f"<tr><td>{point.vocab_size:,}</td><td>{bar}</td></tr>\n"
    yield "</table>\n"
