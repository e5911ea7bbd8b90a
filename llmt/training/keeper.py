"""A run and its directory: checkpoints, the finished model, and what describes them."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, publish_into, staged_directory
from llmt.checkpoints.files import append_line, make_directory, storage_errors, write_text_atomic
from llmt.checkpoints.reading import read_json
from llmt.checkpoints.runs import finished_record
from llmt.checkpoints.saving import save_tensors
from llmt.checkpoints.store import Checkpoint, CheckpointStore
from llmt.checkpoints.weights import load_tensors, load_weights
from llmt.config.load import dump_config
from llmt.config.run import TrainConfig
from llmt.data.batch import Batch
from llmt.models.base import BaseLanguageModel
from llmt.models.lora import LoraModel, write_adapter
from llmt.system.plan import RunPlan
from llmt.tokenizers.base import Tokenizer, special_ids
from llmt.training.average import Average
from llmt.training.card import model_card
from llmt.training.optim import Optimizer
from llmt.training.report import StepReport
from llmt.training.state import RunState, parse_state


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of.

    Attributes:
        state: Position of the run.
        model: Weights by their names in the model's files.
        masters: The trained weights by parameter name, where `model` is their average; else empty.
        optimizer: Its tensors.
    """

    state: RunState
    model: dict[str, Tensor]
    masters: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def copied(self) -> "Contents":
        """The same with tensors of its own, in main memory, that training does not change."""
        copies = [
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for tensors in (self.model, self.masters, self.optimizer)
        ]
        return Contents(self.state, *copies)


class RunKeeper:
    """Writes everything that a run leaves behind. The directory's lock must be held.

    Args:
        directory: The run's directory.
        model: What is trained.
        tokenizer: Its tokenizer.
        config: The run as asked.
        plan: The run as done.
        base: The model under an adapter.
        source: Step of the checkpoint that this process goes on from; it is not removed.
    """

    def __init__(
        self,
        directory: Path,
        model: BaseLanguageModel,
        tokenizer: Tokenizer,
        config: TrainConfig,
        plan: RunPlan,
        base: Path | None = None,
        source: int | None = None,
    ) -> None:
        self.directory = directory
        self.store = CheckpointStore(directory)
        self.plan = plan
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self._base = base
        self.source = source
        self._writing: Callable[[], Path] | None = None
        self._writer: ThreadPoolExecutor | None = None

    def begin(self, audit: dict[str, Any], step: int) -> None:
        """Write the configuration, the plan and the audit of the data; clear what a dead process left.

        Args:
            audit: Content of `audit.json`.
            step: Steps that are done; lines of `metrics.jsonl` about later ones are dropped.
        """
        with storage_errors("creating the run directory", self.directory):
            make_directory(self.directory)
        self.store.clean()
        self._rewind_metrics(step)
        write_text_atomic(self.directory / layout.RUN_CONFIG, dump_config(self._config))
        write_text_atomic(self.directory / layout.PLAN, _json(self.plan.values()))
        write_text_atomic(self.directory / layout.AUDIT, _json(audit))

    def _rewind_metrics(self, step: int) -> None:
        path = self.directory / layout.METRICS
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
        if kept != lines:
            write_text_atomic(path, "".join(kept))

    def save(self, state: RunState, optimizer: Optimizer, average: Average | None = None) -> None:
        """Begin a checkpoint: take what belongs to it; `settle` writes it, or waits until it is written."""
        assert self._writing is None, "settle comes before the next checkpoint"
        contents = self._contents(state, optimizer, average)
        if self._config.training.async_save:
            contents = contents.copied()
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, thread_name_prefix="llmt-save")
            self._writing = self._writer.submit(self._write, contents).result
        else:
            self._writing = partial(self._write, contents)

    def settle(self) -> Path:
        """The directory of the checkpoint that was begun, once it is whole.

        Raises:
            StorageError: The disk refused; earlier checkpoints stand.
        """
        assert self._writing is not None, "nothing was begun"
        finish, self._writing = self._writing, None
        return finish()

    def _contents(self, state: RunState, optimizer: Optimizer, average: Average | None) -> Contents:
        masters = optimizer.masters()
        kept = masters if average is None else average.values
        if isinstance(self._model, LoraModel):
            own = {self._model.adapter_name(name): tensor for name, tensor in kept.items()}
            model = {name: own.get(name, tensor) for name, tensor in self._model.adapter_weights().items()}
        else:
            own = {self._model.saved_name(name): tensor for name, tensor in kept.items()}
            model = {**self._model.weights(), **own}
        return Contents(state, model, masters if average is not None else {}, optimizer.state())

    def _write(self, contents: Contents) -> Path:
        state = contents.state

        def fill(staged: StagedDirectory) -> None:
            self._write_model(staged, contents)
            if contents.masters:
                save_tensors(staged, layout.MASTERS, contents.masters)
            save_tensors(staged, layout.OPTIMIZER, contents.optimizer)
            staged.write_json(layout.STATE, state.values())

        path = self.store.save(state.step, fill)
        limit, steps = self._config.training.save_total_limit, self.store.steps()
        keep = {step for step in (state.best_step, self.source) if step in steps}
        older = sum(step not in steps[-limit:] for step in keep)
        self.store.retain(limit + older, keep=keep)
        return path

    def _write_model(self, staged: StagedDirectory, contents: Contents) -> None:
        self._tokenizer.save_pretrained(staged.path)
        if isinstance(self._model, LoraModel):
            assert self._base is not None
            write_adapter(staged, self._model, self._base, contents.model)
            return
        # What depends on the clock stays out: the same run writes the same bytes.
        state = contents.state
        self._model.write(
            staged,
            weights=contents.model,
            token_ids=special_ids(self._tokenizer),
            save_format=self._config.training.save_format,
            training={"step": state.step, "tokens": state.tokens, "best_step": state.best_step},
        )

    def dump(self, step: int, window: list[Batch], facts: dict[str, Any]) -> Path:
        """Keep the batches of a step that went wrong, and what is known of it, in `diverged-STEP`.

        Raises:
            StorageError: The disk refused.
        """
        tensors: dict[str, Tensor] = {}
        for number, batch in enumerate(window):
            found = {"input_ids": batch.input_ids, "labels": batch.labels, "position_ids": batch.position_ids}
            tensors |= {f"{number}.{name}": tensor for name, tensor in found.items() if tensor is not None}
        path = self.directory / f"{layout.DIVERGED_PREFIX}{step}"
        with staged_directory(path, extra={"step": step}, replace=True) as staged:
            save_tensors(staged, "batches.safetensors", tensors)
            staged.write_json("step.json", facts)
        return path

    def log(self, report: StepReport) -> None:
        """Add a line to `metrics.jsonl`."""
        append_line(self.directory / layout.METRICS, json.dumps(report.metrics()))

    def publish(self, step: int, summary: dict[str, Any]) -> None:
        """Make the model of checkpoint `step` the finished model in the run's root.

        Args:
            step: The best checkpoint, or the last.
            summary: Numbers of the run for its record and its card.

        Raises:
            StorageError: The disk refused.
        """
        source = self.store.path(step)
        kind = "adapter" if self._config.lora.enabled else "full"
        name = self._config.name or self.directory.name
        skipped = (layout.OPTIMIZER, layout.MASTERS, layout.STATE, layout.MANIFEST)
        with publish_into(self.directory, extra={"step": step}) as staged:
            for path in sorted(source.iterdir()):
                if path.name not in skipped:
                    staged.copy_file(source, path.name)
            staged.write_json(layout.RESULT, {**finished_record(name=name, kind=kind, step=step), **summary})
            staged.write_file(layout.MODEL_CARD, model_card(name, kind, dump_config(self._config), summary).encode())


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        state: Position of the run.
        model: Weights by their names in the model's files.
        masters: The trained weights by parameter name, where `model` is their average; else None.
        optimizer: Its tensors.
    """

    state: RunState
    model: dict[str, Tensor]
    masters: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]


def read_checkpoint(checkpoint: Checkpoint) -> Saved:
    """The tensors and the state of a verified checkpoint.

    Raises:
        ModelFileError: A file is damaged or of another format version.
    """
    adapter, masters = checkpoint.path / layout.ADAPTER_MODEL, checkpoint.path / layout.MASTERS
    return Saved(
        read_state(checkpoint),
        load_tensors(adapter) if adapter.exists() else load_weights(checkpoint.path),
        load_tensors(masters) if masters.exists() else None,
        load_tensors(checkpoint.path / layout.OPTIMIZER),
    )


def read_state(checkpoint: Checkpoint) -> RunState:
    """The state of a verified checkpoint.

    Raises:
        ModelFileError: It is of another format version.
    """
    return parse_state(read_json(checkpoint.path, layout.STATE), str(checkpoint.path / layout.STATE))


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite where a power failure left something else."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"
