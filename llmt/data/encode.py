"""documents -> ids, each with whether it is learnt."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import NamedTuple, TypeVar

from llmt.data.pieces import Piece, is_seamless, pieces_of
from llmt.errors import DataError
from llmt.text.documents import Document, Message
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bulk import BulkEncoder

T = TypeVar("T")

Render = Callable[[Sequence[Sequence[Message]]], Sequence["Sequence[Piece] | DataError"]]
"""Conversations -> the pieces of each, or why its template refuses it."""


class EncodedPiece(NamedTuple):
    """Ids of a row, all learnt or none."""

    ids: Sequence[int]
    learnt: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as ids.

    Attributes:
        pieces: In order; joined they are the document, without the end-of-text id.
        text_bytes: UTF-8 bytes of what was encoded.
        trained_bytes: UTF-8 bytes of what is learnt.
        end_learnt: The end-of-text id after it is learnt: it ends something that is.
    """

    pieces: tuple[EncodedPiece, ...]
    text_bytes: int
    trained_bytes: int
    end_learnt: bool


class DocumentEncoder:
    """Encodes documents in batches; use it as a context, which ends its processes.

    A prompt and its completion are encoded each for itself, so that the prompt has the ids that it will have when it is
    used. A tokenizer that puts something at the start of every text (a space, say) gets both in one, and each id
    belongs where its first character lies.

    Args:
        tokenizer: Makes the ids.
        num_proc: As `BulkEncoder`.
        train_on_prompt: Prompts are learnt too; of conversations `render` says what is.
        render: Writes conversations.
    """

    def __init__(self, tokenizer: Tokenizer, num_proc: int | None, *, train_on_prompt: bool, render: Render) -> None:
        self._tokenizer = tokenizer
        self._bulk = BulkEncoder(tokenizer, num_proc)
        self._train_on_prompt = train_on_prompt
        self._render = render
        self._seamless = is_seamless(tokenizer)

    def __enter__(self) -> "DocumentEncoder":
        """Itself; processes start when there is work for them."""
        self._bulk.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the processes."""
        self._bulk.__exit__(kind, error, at)

    def encode(
        self, batches: Iterable[Sequence[tuple[Document, T]]]
    ) -> Iterator[list[tuple[Document, T, Encoded | DataError]]]:
        """Each document with what came along with it and its ids, in order, or why it cannot be written.

        Raises:
            DataError: A process died.
            OutOfMemoryError: One was killed, as the system does where memory runs out.
        """
        waiting: deque[tuple[Sequence[tuple[Document, T]], list[Sequence[Piece] | DataError]]] = deque()

        def texts() -> Iterator[list[str]]:
            for batch in batches:
                written = self._written([document for document, _ in batch])
                waiting.append((batch, written))
                yield [text for pieces in written if not isinstance(pieces, DataError) for text in self._texts(pieces)]

        for ids in self._bulk.encode(texts()):
            batch, written = waiting.popleft()
            encoded = iter(ids)
            yield [
                (document, along, pieces if isinstance(pieces, DataError) else self._put_together(pieces, encoded))
                for (document, along), pieces in zip(batch, written, strict=True)
            ]

    def _written(self, documents: Sequence[Document]) -> list[Sequence[Piece] | DataError]:
        conversations = iter(self._render([document.messages for document in documents if document.messages]))
        found: list[Sequence[Piece] | DataError] = []
        for document in documents:
            if not document.messages:
                found.append(pieces_of(document, train_on_prompt=self._train_on_prompt))
                continue
            pieces = next(conversations)
            if isinstance(pieces, DataError):
                pieces = DataError(f"{document.source}: {pieces.message}", pieces.hint)
            elif document.answers is not None and not self._train_on_prompt:
                pieces = _last_turns(pieces, document.answers)
            found.append(pieces)
        return found

    def _texts(self, pieces: Sequence[Piece]) -> list[str]:
        """What is encoded of a document: each piece, or each stretch between control tokens."""
        if self._seamless:
            return [piece.text for piece in pieces if piece.token_id is None]
        return ["".join(piece.text for piece in stretch) for stretch in _stretches(pieces)]

    def _put_together(self, pieces: Sequence[Piece], encoded: Iterator[list[int]]) -> Encoded:
        found: list[EncodedPiece] = []
        if self._seamless:
            for piece in pieces:
                ids = next(encoded) if piece.token_id is None else [piece.token_id]
                found.append(EncodedPiece(ids, piece.learnt))
        else:
            stretches = iter(_stretches(pieces))
            between = True
            for piece in pieces:
                if piece.token_id is not None:
                    found.append(EncodedPiece([piece.token_id], piece.learnt))
                elif between:
                    found += self._divide(next(stretches), next(encoded))
                between = piece.token_id is not None
        sizes = [(len(piece.text.encode("utf-8", "surrogatepass")), piece.learnt) for piece in pieces]
        end_learnt = next((piece.learnt for piece in reversed(pieces) if piece.text.strip()), True)
        trained = sum(size for size, learnt in sizes if learnt)
        return Encoded(tuple(found), sum(size for size, _ in sizes), trained, end_learnt)

    def _divide(self, stretch: Sequence[Piece], ids: list[int]) -> list[EncodedPiece]:
        """The ids of a stretch, each learnt as the piece in which its first character lies."""
        if len(stretch) == 1:
            return [EncodedPiece(ids, stretch[0].learnt)]
        text = "".join(piece.text for piece in stretch)
        found: list[EncodedPiece] = []
        numbers = iter(zip(ids, self._tokenizer.offsets(text), strict=True))
        held = next(numbers, None)
        end = 0
        for piece in stretch:
            end += len(piece.text)
            mine: list[int] = []
            while held is not None and (held[1][0] < end or piece is stretch[-1]):
                mine.append(held[0])
                held = next(numbers, None)
            found.append(EncodedPiece(mine, piece.learnt))
        return found


def _last_turns(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """The pieces with only the last turns of the assistant learnt; between two of them stands what is not."""
    stretches = [list(stretch) for _, stretch in groupby(pieces, key=lambda piece: piece.learnt)]
    turns = [stretch for stretch in stretches if stretch[0].learnt]
    for turn in turns[: max(len(turns) - count, 0)]:
        turn[:] = [piece._replace(learnt=False) for piece in turn]
    return [piece for stretch in stretches for piece in stretch]


def _stretches(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces between control tokens."""
    found: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece.token_id is not None:
            found.append([])
        else:
            found[-1].append(piece)
    return [stretch for stretch in found if stretch]
