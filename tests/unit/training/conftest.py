"""Small real runs: a text file, the byte tokenizer, a network of two layers."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmt.config.run import TrainConfig
from llmt.errors import Interrupted
from llmt.training.build import Prepared, build_trainer, prepare
from llmt.training.finish import finish
from llmt.training.keeper import RunKeeper
from llmt.training.loop import TrainingLoop
from llmt.training.report import StepReport

TEXT = "".join(f"Line {n}: {'the quick brown fox jumps over it'[n % 9 :]} {n * n}.\n" for n in range(120))


@dataclass
class Run:
    """A run that came to its end, or was stopped."""

    trainer: TrainingLoop
    keeper: RunKeeper
    prepared: Prepared
    reports: list[StepReport] = field(default_factory=list)

    @property
    def weights(self) -> str:
        """SHA-256 over the trained weights, their optimizer's state and what the model computes with."""
        digest = hashlib.sha256()
        optimizer = self.trainer.optimizer
        tensors = optimizer.masters() | optimizer.state() | dict(self.trainer.model.named_parameters())
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Lab:
    """Makes configurations and runs them.

    Args:
        root: Where text, cache and runs are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.text = root / "text.txt"
        self.text.write_text(TEXT, encoding="utf-8")

    def config(self, **settings: Any) -> TrainConfig:
        """A configuration; `training__max_steps=5` sets a value of a section."""
        values: dict[str, Any] = {
            "name": "tiny", "device": "cpu", "threads": 1,
            "model": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
            "tokenizer": {"algo": "byte"},
            "data": {"sources": [str(self.text)], "block_size": 16, "cache_dir": str(self.root / "cache")},
            "training": {
                "per_device_train_batch_size": 4, "precision": "fp32", "compile": "never", "eval_batches": 3,
                "learning_rate": 0.01, "warmup_steps": 2,
            },
            "logging": {"steps": 1},
        }  # fmt: skip
        for key, value in settings.items():
            section, _, name = key.rpartition("__")
            (values.setdefault(section, {}) if section else values)[name] = value
        return TrainConfig.model_validate(values)

    def build(self, config: TrainConfig, name: str = "run", *, resume: bool = False, base: Path | None = None) -> Run:
        """Everything up to the first step."""
        directory = self.root / name
        prepared = prepare(config, directory, base=base, resume=resume, progress=lambda what, done, total: None)
        return Run(*build_trainer(prepared, base=base), prepared)

    def run(
        self,
        config: TrainConfig,
        name: str = "run",
        *,
        resume: bool = False,
        stop_after: int | None = None,
        base: Path | None = None,
        publish: bool = False,
    ) -> Run:
        """Train to the end, or until a stop that is requested after a step."""
        run = self.build(config, name, resume=resume, base=base)
        try:
            for report in run.trainer.run():
                run.reports.append(report)
                run.keeper.log(report)
                if report.step == stop_after:
                    run.trainer.request_stop(2)
        except Interrupted:
            assert stop_after is not None
        if publish:
            finish(run.trainer, run.keeper, run.prepared, base)
        return run


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
