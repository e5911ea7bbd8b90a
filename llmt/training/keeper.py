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
from llmt.errors import StorageError
from llmt.models.base import BaseLanguageModel
from llmt.models.lora import LoraModel, write_adapter
from llmt.system.plan import RunPlan
from llmt.tokenizers.base import Tokenizer, special_ids
from llmt.training.average import Average
from llmt.training.card import model_card
from llmt.training.objective import Report
from llmt.training.optim import Optimizer
from llmt.training.report import StepReport, evaluation_metrics
from llmt.training.state import RunState, Written, parse_state


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of.

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

    def copied(self) -> "Contents":
        """The same with tensors of its own, in main memory, that training does not change."""
        masters = None if self.masters is None else _copied(self.masters)
        return Contents(self.state, _copied(self.model), masters, _copied(self.optimizer))


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
        self._writing: Callable[[], Written] | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._first = 1
        self._unlogged: list[str] = []

    def begin(self, audit: dict[str, Any], step: int) -> None:
        """Write the configuration, the plan and the audit of the data.

        Args:
            audit: Content of `audit.json`.
            step: Steps that are done; lines of `metrics.jsonl` about later ones are dropped.
        """
        with storage_errors("creating the run directory", self.directory):
            make_directory(self.directory)
        self._first = step + 1
        self.rewind(step)
        write_text_atomic(self.directory / layout.RUN_CONFIG, dump_config(self._config))
        write_text_atomic(self.directory / layout.PLAN, _json(self.plan.values()))
        write_text_atomic(self.directory / layout.AUDIT, _json(audit))

    def rewind(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` about steps after this one: they are made again.

        Raises:
            StorageError: The disk refused.
        """
        self._unlogged = [line for line in self._unlogged if _step_of(line) <= step]
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

    def settle(self) -> Written:
        """The checkpoint that was begun, once it is whole.

        Raises:
            StorageError: The disk refused; earlier checkpoints stand.
        """
        assert self._writing is not None, "nothing was begun"
        finish, self._writing = self._writing, None
        return finish()

    def close(self) -> None:
        """Wait until nothing is written beside training: the lock of the run may be given up then."""
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _contents(self, state: RunState, optimizer: Optimizer, average: Average | None) -> Contents:
        masters = optimizer.masters()
        kept = masters if average is None else average.values
        if isinstance(self._model, LoraModel):
            own = {self._model.adapter_name(name): tensor for name, tensor in kept.items()}
            model = {name: own.get(name, tensor) for name, tensor in self._model.adapter_weights().items()}
        else:
            own = {self._model.saved_name(name): tensor for name, tensor in (optimizer.frozen | kept).items()}
            model = {**self._model.weights(), **own}
        return Contents(state, model, None if average is None else masters, optimizer.state())

    def _write(self, contents: Contents) -> Written:
        state = contents.state

        def fill(staged: StagedDirectory) -> None:
            self._write_model(staged, contents)
            if contents.masters is not None:
                save_tensors(staged, layout.MASTERS, contents.masters)
            save_tensors(staged, layout.OPTIMIZER, contents.optimizer)
            staged.write_json(layout.STATE, state.values())

        path = self.store.save(state.step, fill)
        limit, steps = self._config.training.save_total_limit, self.store.steps()
        keep = {step for step in (state.best_step, self.source) if step in steps}
        older = sum(step not in steps[-limit:] for step in keep)
        try:
            self.store.retain(limit + older, keep=keep)
        except StorageError as error:  # the new one stands all the same
            return Written(path, error.message)
        return Written(path)

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

    def log(self, report: StepReport) -> str:
        """Add a line to `metrics.jsonl`, where one is due; a line that the disk refuses is written with the next.

        Returns:
            What the disk refused, when that begins; else nothing.
        """
        due = report.step % self._config.logging.steps == 0 or report.step == self._first
        if not due and report.evaluation is None:
            return ""
        return self._add_line(report.step, report.metrics())

    def log_validation(self, step: int, evaluation: Report) -> str:
        """Add a line about the validation of a step that was made up for; returns what `log` returns."""
        return self._add_line(step, {"step": step, **evaluation_metrics(evaluation)})

    def _add_line(self, step: int, values: dict[str, Any]) -> str:
        refused = bool(self._unlogged)
        self._unlogged.append(json.dumps(values))
        try:
            self._log_rest()
        except StorageError as error:
            return "" if refused else f"step {step}: {error.message}; the line is kept and written later"
        return ""

    def _log_rest(self) -> None:
        while self._unlogged:
            append_line(self.directory / layout.METRICS, self._unlogged[0])
            del self._unlogged[0]

    def publish(self, step: int, summary: dict[str, Any]) -> None:
        """Make the model of checkpoint `step` the finished model in the run's root.

        Args:
            step: The best checkpoint, or the last.
            summary: Numbers of the run for its record and its card.

        Raises:
            StorageError: The disk refused.
        """
        self._log_rest()
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


def read_checkpoint(checkpoint: Checkpoint) -> Contents:
    """The tensors and the state of a verified checkpoint.

    Raises:
        ModelFileError: A file is damaged or of another format version.
    """
    adapter, masters = checkpoint.path / layout.ADAPTER_MODEL, checkpoint.path / layout.MASTERS
    return Contents(
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


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinite where a power failure left something else."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"
