"""texts -> how often each word occurs, in one process or several."""

from collections.abc import Iterable, Iterator
from itertools import chain

from llmt.text.blocks import cut_blocks
from llmt.tokenizers.pretokenize import WordStyle
from llmt.tokenizers.progress import Progress, TrainingProgress
from llmt.tokenizers.table import WordTable

BLOCK_CHARACTERS = 500_000
REPORT_CHARACTERS = 1_000_000
PROCESSES_FROM = 2_000_000
"""Characters from which further processes are started."""


def count_words(
    texts: Iterable[str], style: WordStyle, num_proc: int = 1, progress: Progress | None = None
) -> dict[str, int]:
    """How often each word occurs. What is held is bounded by the different words, not by the text.

    Args:
        texts: Documents. No word spans two of them.
        style: Which pattern; `bert` also brings the text into Unicode's NFC form.
        num_proc: Processes that count; the table is the same for any number. A short text is counted here.
        progress: Told how many characters were read, about every million.

    Raises:
        DataError: A process that counted died.
        OutOfMemoryError: One was killed, as the system does where memory runs out.
    """
    blocks = _told(_blocks(texts), progress)
    table = WordTable(style)
    if num_proc > 1:
        first, held = [], 0
        for block in blocks:
            first.append(block)
            held += sum(map(len, block))
            if held >= PROCESSES_FROM:
                from llmt.tokenizers.workers import count_in_processes

                count_in_processes(chain(first, blocks), table, num_proc)
                return table.words()
        blocks = iter(first)
    for block in blocks:
        table.add(block)
    return table.words()


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents of about `BLOCK_CHARACTERS` together; long ones in parts that end where no word is cut."""
    block: list[str] = []
    held = 0
    for text in texts:
        long = len(text) > 2 * BLOCK_CHARACTERS
        for part in cut_blocks([text], size=BLOCK_CHARACTERS, uncut=len(text) + 1) if long else (text,):
            block.append(part)
            held += len(part)
            if held >= BLOCK_CHARACTERS:
                yield block
                block, held = [], 0
    if block:
        yield block


def _told(blocks: Iterable[list[str]], progress: Progress | None) -> Iterator[list[str]]:
    done = said = 0
    for block in blocks:
        done += sum(map(len, block))
        if progress is not None and done - said >= REPORT_CHARACTERS:
            progress(TrainingProgress("reading", done))
            said = done
        yield block
    if progress is not None and done > said:
        progress(TrainingProgress("reading", done))
