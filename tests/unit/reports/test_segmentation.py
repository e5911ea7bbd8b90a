"""The page and the tables of an inspection."""

from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from llmt.errors import BusyOutputError, StorageError
from llmt.reports.segmentation import segmentation_page, write_page
from llmt.reports.tables import plain_segmentation, shown_segment, tables
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.inspection import Inspection, Questions, Sample, examine
from llmt.tokenizers.spans import segment
from llmt.tokenizers.train import train_tokenizer

LINES = [f"the miller said {n} sacks were carried over the bridge, and <b>more</b> & more\n" for n in range(40)]
HOSTILE = '<script>alert("x")</script> & "q" \' </div> \x1b[2J\x07\u202e\u200d\n\t日本 the miller'
BPE = train_bpe(LINES, vocab_size=340)
BERT = train_tokenizer("wordpiece", LINES, vocab_size=200, style="bert")


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    """Everything asked for, on a text that tries to be markup."""
    questions = Questions(word="carried <b>", sweep=True)
    return examine("<i>bpe</i>", BPE, Sample(HOSTILE, "a <u>source</u>"), questions, {"bert": BERT})


class Page(HTMLParser):
    """Reads a page: its tags, attributes and the text of each element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tokens: list[str] = []
        self.cells: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin an element."""
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "span" and "title" in dict(attrs):
            self.tokens.append("")
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """End it; nothing is left open inside."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        if self.open and self.open[-1] == "span":
            self.tokens[-1] += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_page_needs_nothing_else(inspection: Inspection) -> None:
    """No script, no address, no outside resource, every element closed; only our own elements occur."""
    page = Page(segmentation_page(inspection))
    assert page.open == []
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "span", "p", "table", "tr", "td", "th"),
    }
    names = {name for _, attributes in page.tags for name in attributes}
    assert names == {"lang", "charset", "http-equiv", "content", "name", "class", "title", "style"}
    assert "http:" not in segmentation_page(inspection)
    assert "https:" not in segmentation_page(inspection)
    assert "url(" not in segmentation_page(inspection)


def test_the_page_shows_every_token(inspection: Inspection) -> None:
    """Each token once, in order, with piece and id when pointed at; the text of others is never markup."""
    page = Page(segmentation_page(inspection))
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    ids = BPE.encode(HOSTILE)
    assert [title.rpartition(" ")[2] for title in titles if title] == [str(token_id) for token_id in ids]
    assert page.tokens == [shown_segment(part) for part in segment(BPE, HOSTILE)]
    colours = [attributes["class"] for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert all((a or "").split()[0] != (b or "").split()[0] for a, b in pairwise(colours))


def test_no_control_character_is_in_the_page(inspection: Inspection) -> None:
    """Escapes, bells, direction marks and joiners are spelled out."""
    assert not set(segmentation_page(inspection)) & set("\x1b\x07\u202e\u200d\x00\t")


def test_every_table_is_in_the_page(inspection: Inspection) -> None:
    """Statistics, scripts, vocabulary, probes, words, comparison and sweep: the cells are those of the tables."""
    cells = Page(segmentation_page(inspection)).cells
    found = list(tables(inspection, 500))
    titles = [table.title for table in found]
    assert titles == [
        "Statistics", "Tokens", "Scripts", "Vocabulary", "Digits and white space", "How carried is built",
        "How <b> is built", "Comparison", "Vocabulary sizes of the same training",
    ]  # fmt: skip
    expected = [
        cell for table in found for row in ((table.header,) if table.header else ()) + tuple(table.rows) for cell in row
    ]
    assert cells[: len(expected)] == expected
    for table in found:
        assert all(len(row) == len(table.header) for row in table.rows if table.header)
        assert "\n" not in "".join(cell for row in table.rows for cell in row)


def test_tables_repeat_the_numbers(inspection: Inspection) -> None:
    """What stands in a table is what was measured."""
    rows = {table.title: table.rows for table in tables(inspection, 5)}
    statistics = dict(rows["Statistics"])
    assert statistics["tokens"] == f"{len(BPE.encode(HOSTILE)):,}"
    assert statistics["characters per token"] == f"{len(HOSTILE) / len(BPE.encode(HOSTILE)):.3f}"
    assert len(rows["Tokens"]) == 5
    assert [row[0] for row in rows["Scripts"]] == [share.script for share in inspection.scripts]
    assert sum(int(row[2].replace(",", "")) for row in rows["Scripts"]) == len(BPE.encode(HOSTILE))
    assert [row[-1] for row in rows["Comparison"]] == ["<i>bpe</i>", "bert"]
    assert [int(row[1].replace(",", "")) for row in rows["Comparison"]] == [
        len(BPE.encode(HOSTILE)),
        len(BERT.encode(HOSTILE)),
    ]
    assert [row[0] for row in rows["Vocabulary sizes of the same training"]] == ["258", str(BPE.vocab_size)]


def test_a_long_text_is_cut_and_says_so() -> None:
    """Only the first tokens are shown, and the page says of how many."""
    text = "".join(LINES)
    short = examine("bpe", BPE, Sample(text, "lines", is_part=True), Questions(segments=7), {})
    page = segmentation_page(short)
    assert len(Page(page).tokens) == 7
    assert f"the first 7 of {len(BPE.encode(text)):,} tokens" in page
    assert f"the first {len(text):,} characters" in page


def test_plain_segmentation_has_bars() -> None:
    """Tokens stand between bars; unknown ones are marked, and parts of characters are bytes."""
    assert plain_segmentation(segment(BERT, "the 日 miller")) == "the|<?日>|miller"
    assert plain_segmentation(segment(BPE, "é\n")) == "<C3>|<A9>|\u21b5\n"


def test_an_existing_file_is_kept(tmp_path: Path, inspection: Inspection) -> None:
    """Only `overwrite` replaces a file; a folder is never replaced, and a missing folder is not made."""
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(BusyOutputError, match=r"page\.html"):
        write_page(path, inspection, overwrite=False)
    assert path.read_text() == "mine"
    write_page(path, inspection, overwrite=True)
    assert path.read_text(encoding="utf-8") == segmentation_page(inspection)
    with pytest.raises(BusyOutputError, match="folder"):
        write_page(tmp_path, inspection, overwrite=True)
    with pytest.raises(StorageError):
        write_page(tmp_path / "no" / "page.html", inspection, overwrite=False)
