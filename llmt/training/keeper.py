"""A run and its directory: checkpoints, the finished model, and what describes them."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, publish_into
from llmt.checkpoints.files import append_line, write_text_atomic
from llmt.checkpoints.reading import read_json
from llmt.checkpoints.runs import finished_record
from llmt.checkpoints.saving import save_tensors
from llmt.checkpoints.store import Checkpoint, CheckpointStore
from llmt.checkpoints.weights import load_tensors, load_weights
from llmt.config.load import dump_config
from llmt.config.run import TrainConfig
from llmt.models.base import BaseLanguageModel
from llmt.models.lora import LoraModel, write_adapter
from llmt.system.plan import RunPlan
from llmt.tokenizers.base import Tokenizer, special_ids
from llmt.training.card import model_card
from llmt.training.optim import Optimizer
from llmt.training.report import StepReport
from llmt.training.state import RunState, parse_state


class RunKeeper:
    """Writes everything that a run leaves behind. The directory's lock must be held.

    Args:
        directory: The run's directory.
        model: What is trained.
        tokenizer: Its tokenizer.
        config: The run as asked.
        plan: The run as done.
        base: The model under an adapter.
    """

    def __init__(
        self,
        directory: Path,
        model: BaseLanguageModel,
        tokenizer: Tokenizer,
        config: TrainConfig,
        plan: RunPlan,
        base: Path | None = None,
    ) -> None:
        self.directory = directory
        self.store = CheckpointStore(directory)
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self._plan = plan
        self._base = base

    def begin(self, audit: dict[str, Any], step: int) -> None:
        """Write the configuration, the plan and the audit of the data; clear what a dead process left.

        Args:
            audit: Content of `audit.json`.
            step: Steps that are done; lines of `metrics.jsonl` about later ones are dropped.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.store.clean()
        self._rewind_metrics(step)
        write_text_atomic(self.directory / layout.RUN_CONFIG, dump_config(self._config))
        write_text_atomic(self.directory / layout.PLAN, _json(self._plan.values()))
        write_text_atomic(self.directory / layout.AUDIT, _json(audit))

    def _rewind_metrics(self, step: int) -> None:
        path = self.directory / layout.METRICS
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            write_text_atomic(path, "".join(kept))

    def save(self, state: RunState, optimizer: Optimizer) -> Path:
        """Write the checkpoint of a step, then remove those that need not be kept.

        Raises:
            StorageError: The disk refused; earlier checkpoints stand.
        """

        def fill(staged: StagedDirectory) -> None:
            self._write_model(staged, optimizer.masters(), state)
            save_tensors(staged, layout.OPTIMIZER, optimizer.state())
            staged.write_json(layout.STATE, state.values())

        path = self.store.save(state.step, fill)
        limit, best = self._config.training.save_total_limit, state.best_step
        older = best is not None and best not in self.store.steps()[-limit:]
        self.store.retain(limit + older, keep=() if best is None else (best,))
        return path

    def _write_model(self, staged: StagedDirectory, masters: dict[str, Tensor], state: RunState) -> None:
        self._tokenizer.save_pretrained(staged.path)
        if isinstance(self._model, LoraModel):
            assert self._base is not None
            write_adapter(staged, self._model, self._base)
            return
        weights = {self._model.saved_name(name): master for name, master in masters.items()}
        # What depends on the clock stays out: the same run writes the same bytes.
        training = {"step": state.step, "tokens": state.tokens, "best_step": state.best_step}
        self._model.write(
            staged,
            weights=weights,
            token_ids=special_ids(self._tokenizer),
            save_format=self._config.training.save_format,
            training=training,
        )

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
        skipped = (layout.OPTIMIZER, layout.STATE, layout.MANIFEST)
        with publish_into(self.directory, extra={"step": step}) as staged:
            for path in sorted(source.iterdir()):
                if path.name not in skipped:
                    staged.copy_file(source, path.name)
            staged.write_json(layout.RESULT, {**finished_record(name=name, kind=kind, step=step), **summary})
            staged.write_file(layout.MODEL_CARD, model_card(name, kind, self._config, summary).encode())


def read_checkpoint(checkpoint: Checkpoint) -> tuple[RunState, dict[str, Tensor], dict[str, Tensor]]:
    """State, weights and optimizer tensors of a verified checkpoint.

    Raises:
        ModelFileError: A file is damaged or of another format version.
    """
    state = read_state(checkpoint)
    adapter = checkpoint.path / layout.ADAPTER_MODEL
    weights = load_tensors(adapter) if adapter.exists() else load_weights(checkpoint.path)
    return state, weights, load_tensors(checkpoint.path / layout.OPTIMIZER)


def read_state(checkpoint: Checkpoint) -> RunState:
    """The state of a verified checkpoint.

    Raises:
        ModelFileError: It is of another format version.
    """
    return parse_state(read_json(checkpoint.path, layout.STATE), str(checkpoint.path / layout.STATE))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"
