"""shards -> the sequences of a run, with the account of every token. Plans of packing are kept in the cache."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmt.checkpoints.atomic import staged_directory
from llmt.checkpoints.files import storage_errors
from llmt.checkpoints.manifest import manifest_problems, read_manifest
from llmt.checkpoints.reading import read_json
from llmt.config.data import DataConfig
from llmt.data.audit import DataAudit, PackingAudit
from llmt.data.loader import SampledData
from llmt.data.mixture import TrainingSet
from llmt.data.packing import Packed, block_audit, pack
from llmt.data.sequences import BlockSequences, PackedSequences, Sequences
from llmt.data.shards import ShardSet, map_array
from llmt.data.store import PreparedData, discard, remove_abandoned
from llmt.errors import DataError, ModelFileError, StorageError
from llmt.units import format_size

Packing = Literal["blocks", "best_fit", "none"]

_PACK_FORMAT = 1
_META = "packed.json"
_PLACE = np.dtype("<i8")


@dataclass(frozen=True)
class ReadyData(SampledData):
    """A corpus that is ready to be trained on.

    Attributes:
        prepared: The ids.
        packing: How they are divided into sequences.
        train: The sequences to train on.
        validation: The held-out sequences; None when nothing is held out.
        audit: What was read and what becomes of it, in numbers.
    """

    prepared: PreparedData
    packing: Packing
    train: TrainingSet
    validation: Sequences | None
    audit: DataAudit

    @property
    def fingerprint(self) -> str:
        """SHA-256 of content, tokenizer and options."""
        return self.prepared.fingerprint

    @property
    def pairs(self) -> bool:
        """Documents lie in pairs, a chosen one and a rejected one."""
        return self.prepared.text.pairs > 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done and what is worth knowing, one sentence each."""
        return *self.prepared.notes, self._divided(), *self._mixed(), *self.audit.notes()

    def describe(self) -> str:
        """What is trained on, in a phrase."""
        text = self.audit.text
        return f"{text.documents:,} documents, {format_size(text.text_bytes)}, {text.tokens:,} tokens"

    def audit_values(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {**self.audit.values(), "notes": list(self.notes)}

    def _mixed(self) -> list[str]:
        """How much of a run comes from each source of a mixture, a sentence each."""
        if not self.train.weights:
            return []
        each = zip(self.train.shares(), self.train.passes(), strict=True)
        return [
            f"source {number}: {100 * share:.1f} % of the sequences, gone through {passes:.2f} times in an epoch"
            for number, (share, passes) in enumerate(each, 1)
        ]

    def _divided(self) -> str:
        """How the text is divided, in a sentence."""
        size, packing = self.train.block_size, self.audit.packing
        what = {
            "blocks": f"{packing.sequences:,} blocks of {size:,} tokens",
            "best_fit": f"packed into {packing.sequences:,} sequences of {size:,} tokens, "
            f"{100 * packing.filled / max(packing.capacity, 1):.1f} % full",
            "none": f"{packing.sequences:,} sequences of up to {size:,} tokens, one for each "
            + ("pair" if self.pairs else "document or part of it"),
        }[self.packing]
        together = " and pairs together" if self.pairs else ""
        return what + (f", documents kept apart{together}" if self.train.masks else "")


def ready_data(config: DataConfig, prepared: PreparedData, cache_dir: Path) -> ReadyData:
    """Divide shards into sequences; what was packed in the same way before is read from the cache.

    Args:
        config: The length and the packing.
        prepared: The ids.
        cache_dir: Where plans are kept; made when it is not there.

    Raises:
        DataError: Too little text, nothing to learn, or a document that is too long.
        LlmtError: Tokens are not accounted for.
        StorageError: The disk refused.
    """
    packing = choose_packing(config, prepared)
    if packing == "blocks" and config.truncation != "split":
        raise DataError(
            f"data.truncation {config.truncation}: blocks cut the row of all documents", "--packing best_fit or none"
        )
    pairs = prepared.text.pairs > 0
    if pairs:
        _require_room_for_pairs(config, packing)
    masks = pairs or (packing == "best_fit" if config.document_mask is None else config.document_mask)
    plan = _Plan(config, prepared, packing, cache_dir, masks)
    train = [plan.sequences(f"train-{number}", shards) for number, shards in enumerate(prepared.train)]
    held = None if prepared.validation is None else plan.sequences("validation", prepared.validation)
    audit = PackingAudit()
    for _, counted in train + ([held] if held is not None else []):
        audit = audit.plus(counted)
    whole = DataAudit(prepared.text, audit)
    whole.reconcile()
    samples = TrainingSet(tuple(sequences for sequences, _ in train), config.mixture)
    _require_enough(samples, config)
    return ReadyData(prepared, packing, samples, held[0] if held is not None else None, whole)


def choose_packing(config: DataConfig, prepared: PreparedData) -> Packing:
    """What `auto` means for this text: blocks, unless there are prompts or conversations."""
    if config.packing != "auto":
        return config.packing
    return "best_fit" if prepared.text.supervised else "blocks"


@dataclass(frozen=True)
class _Plan:
    config: DataConfig
    prepared: PreparedData
    packing: Packing
    cache_dir: Path
    masks: bool

    @property
    def pairs(self) -> bool:
        """Documents lie in pairs."""
        return self.prepared.text.pairs > 0

    def sequences(self, name: str, shards: ShardSet) -> tuple[Sequences, PackingAudit]:
        """The sequences of one split, and what becomes of its tokens."""
        size = self.config.block_size
        if self.packing == "blocks":
            blocks = BlockSequences(shards, size, document_mask=self.masks)
            return blocks, block_audit(blocks.count, blocks.trained, shards.targets, size)
        packed = self._packed(name, shards)
        # Bits for each byte need every label of the text.
        whole = not packed.audit.truncated and not packed.audit.dropped_documents.count
        sequences = PackedSequences(
            shards,
            size,
            packed.pieces,
            packed.edges,
            trained=packed.audit.trained,
            whole=whole,
            document_mask=self.masks,
        )
        sequences.pairs = self.pairs
        return sequences, packed.audit

    def _packed(self, name: str, shards: ShardSet) -> Packed:
        """The plan of one split, from the cache or made now."""
        config = self.config
        text = [self.prepared.fingerprint, name, self.pairs]
        decides = [_PACK_FORMAT, *text, config.block_size, self.packing, config.truncation]
        directory = self.cache_dir / hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        found = _open(directory)
        if found is not None:
            return found
        share = self.packing == "best_fit"
        made = pack(shards, config.block_size, config.truncation, share=share, pairs=self.pairs)
        with storage_errors("making the cache folder", self.cache_dir):
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.cache_dir)
        discard(directory)
        try:
            with staged_directory(directory, extra={}) as staged:
                staged.write_file("pieces.bin", made.pieces.astype(_PLACE).tobytes())
                staged.write_file("edges.bin", made.edges.astype(_PLACE).tobytes())
                meta = {"pieces": len(made.pieces), "edges": len(made.edges), "audit": asdict(made.audit)}
                staged.write_json(_META, meta)
        except StorageError:
            # Another process may have published the same plan meanwhile.
            if _open(directory) is None:
                raise
        return made


def _open(directory: Path) -> Packed | None:
    """The plan in a folder, or None where it is damaged or absent."""
    try:
        manifest = read_manifest(directory)
        if manifest is None or manifest_problems(directory, manifest, contents=True):
            return None
        meta: dict[str, Any] = read_json(directory, _META)
        return Packed(
            map_array(directory / "pieces.bin", _PLACE, 2 * meta["pieces"]).reshape(-1, 2),
            map_array(directory / "edges.bin", _PLACE, meta["edges"]),
            PackingAudit.parse(meta["audit"]),
        )
    except (ModelFileError, KeyError, TypeError):
        return None


def _require_room_for_pairs(config: DataConfig, packing: Packing) -> None:
    """Both documents of a pair stand in one sequence, apart, and what they answer is not learnt."""
    if packing == "blocks":
        raise DataError("data.packing blocks: would part the two answers of a pair", "--packing best_fit or none")
    if config.document_mask is False:
        raise DataError("data.document_mask: each of two answers would read the other", "--document-mask")
    if config.train_on_prompt:
        raise DataError("data.train_on_prompt: what two answers share prefers neither", "--no-train-on-prompt")


def _require_enough(train: TrainingSet, config: DataConfig) -> None:
    if not any(part.trained for part in train.parts):
        hint = "a longer --block-size" if train.parts[0].pairs else "--train-on-prompt"
        raise DataError("data.sources: nothing in it is learnt: all of it is masked or left out", hint)
    for source, weight, part in zip(config.sources, config.mixture, train.parts, strict=False):
        if weight and not part.count:
            raise DataError(
                f"{source}: no sequence of it is left to train on, and it has a weight of {weight:g}",
                "leave it out of the mixture, or --truncation split",
            )
    tokens, size = sum(part.shards.targets for part in train.parts), config.block_size
    if all(isinstance(part, BlockSequences) for part in train.parts) and tokens < size:
        raise DataError(
            f"data.sources: {tokens + 1} tokens to train on, a block of {size} needs {size + 1}",
            f"give more text, or --set data.block_size={max(tokens, 2)}",
        )
