"""findings -> what is said about the data of a run, and what stops it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmt.config.data import DataConfig
from llmt.data.findings import Finding
from llmt.errors import DataError, LlmtError
from llmt.text.documents import Layout

_BOUNDED = {
    "max_dropped": ("tokens are left out", "dropped_documents"),
    "max_truncated": ("tokens are cut off", "truncated_documents"),
    "max_duplicates": ("documents repeat an earlier one", "duplicates"),
    "max_unknown": ("tokens are unknown", ""),
    "max_overlap": ("held-out texts stand in data.sources too", "overlap"),
}
"""Budget -> what it bounds, and the finding whose places are named."""


@dataclass(frozen=True)
class TextAudit:
    """What was read and stored, in numbers, whatever is packed of it. Sizes are bytes of UTF-8.

    Attributes:
        documents: Texts that were read and held something, before any was left out or cut.
        supervised: Those with a prompt or with turns, of which only a part is learnt.
        conversations: Those with turns.
        pairs: Those with a chosen and a rejected answer; all of them or none.
        characters: Their characters.
        text_bytes: Their size.
        stored_bytes: Size of what was made into ids: without what is left out, with what a chat template writes.
        tokens: Ids to be predicted in both splits, end-of-text ids among them.
        held_out_documents: Documents that are validated on; with fewer than 20 in a source, ends of documents.
        held_out_bytes: Their size.
        shortest_bytes: The shortest text.
        longest_bytes: The longest text.
        largest_id: The largest id that occurs.
        end_of_text: End-of-text ids; one begins each split, and one ends each document.
        end_of_text_inside: Those that the text itself holds.
        unknown_tokens: Ids of the unknown token.
        duplicates: Documents whose text had been read before, left out or not.
        deduplicated: How many of these were left out.
        empty: Rows and files without text.
        bad: Rows that could not be read and were passed over.
        replaced: Characters U+FFFD: bytes that were not UTF-8, here or earlier.
        spelled: Documents that spell a special token; it stays ordinary text.
        overlap: Documents of `data.sources` that `data.validation_sources` holds too; they are left out of training.
        overlap_kept: Those of them that are trained on nevertheless, being too long to be left out.
        overlap_share: Share of the texts of `data.validation_sources` that `data.sources` holds as well.
        formats: Source -> what its rows are, and by which columns.
        layout: The kind of row that every document is of; None where there are several, or others.
    """

    documents: int
    supervised: int
    conversations: int
    characters: int
    text_bytes: int
    stored_bytes: int
    tokens: int
    held_out_documents: int
    held_out_bytes: int
    shortest_bytes: int
    longest_bytes: int
    largest_id: int
    end_of_text: int
    end_of_text_inside: int
    unknown_tokens: int
    pairs: int = 0
    duplicates: Finding = field(default_factory=Finding)
    deduplicated: int = 0
    empty: Finding = field(default_factory=Finding)
    bad: Finding = field(default_factory=Finding)
    replaced: Finding = field(default_factory=Finding)
    spelled: Finding = field(default_factory=Finding)
    overlap: Finding = field(default_factory=Finding)
    overlap_kept: int = 0
    overlap_share: float = 0.0
    formats: dict[str, str] = field(default_factory=dict)
    layout: Layout | None = None

    @property
    def bytes_per_token(self) -> float:
        """How much text a token holds on average, of what was stored."""
        return self.stored_bytes / max(self.tokens, 1)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "TextAudit":
        """What `asdict` made of one.

        Raises:
            TypeError: It is something else.
        """
        findings = {
            key: Finding(**value) for key, value in values.items() if isinstance(value, dict) and key != "formats"
        }
        return cls(**{**values, **findings})


@dataclass(frozen=True)
class PackingAudit:
    """What becomes of the tokens in one epoch, both splits together.

    Attributes:
        sequences: Sequences to train on.
        trained: Ids that are learnt, and in the held-out split measured.
        masked: Ids that are read and not learnt: prompts, turns of users.
        dropped: Ids left out with their document, or because nothing of their sequence is learnt.
        truncated: Ids cut off the end of long documents.
        capacity: Ids that all sequences could hold.
        truncated_documents: Documents that were cut off.
        dropped_documents: Documents that were left out.
        all_masked: Parts of documents of which nothing is learnt.
    """

    sequences: int = 0
    trained: int = 0
    masked: int = 0
    dropped: int = 0
    truncated: int = 0
    capacity: int = 0
    truncated_documents: Finding = field(default_factory=Finding)
    dropped_documents: Finding = field(default_factory=Finding)
    all_masked: Finding = field(default_factory=Finding)

    @property
    def filled(self) -> int:
        """Ids that stand in sequences."""
        return self.trained + self.masked

    @property
    def total(self) -> int:
        """Every id is one of these."""
        return self.trained + self.masked + self.dropped + self.truncated

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "PackingAudit":
        """What `asdict` made of one.

        Raises:
            TypeError: It is something else.
        """
        findings = {key: Finding(**value) for key, value in values.items() if isinstance(value, dict)}
        return cls(**{**values, **findings})

    def plus(self, other: "PackingAudit") -> "PackingAudit":
        """Both together; the capacity is that of all sequences."""
        sums: dict[str, Any] = {}
        for key, value in self.__dict__.items():
            more = getattr(other, key)
            if isinstance(value, Finding):
                joined = [*value.examples, *more.examples]
                sums[key] = Finding(value.count + more.count, joined[:3])
            else:
                sums[key] = value + more
        return PackingAudit(**sums)


@dataclass(frozen=True)
class DataAudit:
    """Everything that is known about the data of a run before its first step."""

    text: TextAudit
    packing: PackingAudit

    @property
    def trained_share(self) -> float:
        """Share of the tokens that is learnt or measured."""
        return self.packing.trained / max(self.packing.total, 1)

    def reconcile(self) -> None:
        """Every token that came in is trained, masked, dropped or truncated.

        Raises:
            LlmtError: It is not: a bug, which must not train.
        """
        if self.packing.total != self.text.tokens:
            raise LlmtError(
                f"data: {self.text.tokens:,} tokens came in, {self.packing.total:,} are read, left out or cut off",
                "report it, with audit.json",
            )

    def check_budgets(self, config: DataConfig) -> None:
        """Turn findings into errors where the configuration bounds them.

        Raises:
            DataError: A bound is passed; the first is named, with where.
        """
        budgets = {
            "max_dropped": config.max_dropped,
            "max_truncated": config.max_truncated,
            "max_duplicates": config.max_duplicates,
            "max_unknown": config.max_unknown,
            "max_overlap": config.max_overlap,
        }
        shares = self.shares()
        for name, limit in budgets.items():
            share = shares[name]
            if limit is not None and share > limit:
                what, place = _BOUNDED[name]
                where = self._finding(place).where() if place else ""
                raise DataError(
                    f"data.{name}: {100 * share:.4g} % of the {what}, more than {100 * limit:.4g} %{where}",
                    f"look at them with llmt data audit, or allow it: --set data.{name}={share + 5e-5:.4f}",
                )

    def shares(self) -> dict[str, float]:
        """What each budget bounds, as a share."""
        text, packing = self.text, self.packing
        tokens, documents = max(text.tokens, 1), max(text.documents, 1)
        return {
            "max_dropped": packing.dropped / tokens,
            "max_truncated": packing.truncated / tokens,
            "max_duplicates": text.duplicates.count / documents,
            "max_unknown": text.unknown_tokens / tokens,
            "max_overlap": text.overlap_share,
        }

    def values(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {
            **asdict(self.text),
            **asdict(self.packing),
            "bytes_per_token": self.text.bytes_per_token,
            "trained_share": self.trained_share,
        }

    def notes(self) -> Iterator[str]:
        """What somebody should know before training on it, one sentence each."""
        text, packing = self.text, self.packing
        yield from self._formats()
        if packing.masked:
            yield f"{100 * self.trained_share:.1f} % of the tokens are learnt, {packing.masked:,} are only read"
        yield from _counted(text.duplicates, f"of {text.documents:,} documents repeat an earlier one")
        if text.deduplicated:
            yield f"{text.deduplicated:,} repeated documents are left out"
        yield from _counted(text.overlap, "documents are left out of training, since they are held out")
        if text.overlap_kept:
            yield f"{text.overlap_kept:,} of these are trained on nevertheless, being long: validation flatters"
        if packing.truncated:
            yield from _counted(packing.truncated_documents, f"documents lose their end, {packing.truncated:,} tokens")
        yield from _counted(packing.dropped_documents, f"documents are dropped, {packing.dropped:,} tokens")
        yield from _counted(packing.all_masked, "parts of documents hold nothing that is learnt")
        yield from _counted(text.bad, "rows could not be read and are passed over")
        yield from _counted(text.empty, "rows or files hold no text and are passed over")
        yield from _counted(text.replaced, "characters are U+FFFD: text was lost when it was decoded")
        yield from _counted(text.spelled, "documents spell a special token, which stays ordinary text")
        if text.unknown_tokens:
            yield f"{text.unknown_tokens:,} tokens are unknown, {100 * text.unknown_tokens / text.tokens:.3g} %"
        if text.end_of_text_inside:
            yield f"{text.end_of_text_inside:,} end-of-text tokens stand inside documents"

    def _formats(self) -> Iterator[str]:
        """What the rows of the sources are, one sentence for all that are alike."""
        alike: dict[str, list[str]] = {}
        for source, form in self.text.formats.items():
            alike.setdefault(form, []).append(source)
        for form, sources in alike.items():
            more = f" and {len(sources) - 1:,} more" if len(sources) > 1 else ""
            yield f"{sources[0]}{more}: {form}"

    def _finding(self, name: str) -> Finding:
        found = {**self.text.__dict__, **self.packing.__dict__}[name]
        assert isinstance(found, Finding)
        return found


def _counted(finding: Finding, what: str) -> Iterator[str]:
    if finding.count:
        yield f"{finding.count:,} {what}{finding.where()}"
