"""A model, a tokenizer and texts in memory -> a run: the trainer for those who call llmt from Python."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmt.checkpoints.store import CheckpointStore
from llmt.config.layers import Given
from llmt.config.load import ConfigSource, load_run
from llmt.config.run import TrainConfig
from llmt.data.loader import evaluation_batches
from llmt.data.texts import LanguageModelingDataset, TextData
from llmt.errors import MismatchError, ModelFileError, UsageError
from llmt.evaluation.perplexity import EvalReport, evaluate
from llmt.models.base import BaseLanguageModel
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.llama import foreign_shape, is_llama, parse_llama_config
from llmt.system.estimate import Workload
from llmt.tokenizers.huggingface import as_tokenizer
from llmt.training.corpus import Corpus, check_fits
from llmt.training.directory import claim_directory, held, run_directory
from llmt.training.keeper import RunKeeper
from llmt.training.loop import TrainingLoop
from llmt.training.report import StepReport

if TYPE_CHECKING:
    from llmt.training.build import Prepared

Texts = LanguageModelingDataset | Iterable[Any]


class Trainer:
    """Trains a model on texts in memory, by the loop, the checks and the directories of `llmt train`.

    Args:
        model: A model of llmt or of transformers. It is trained in place.
        tokenizer: A tokenizer of llmt or of transformers.
        train_dataset: A `LanguageModelingDataset`; or strings, or rows with a column `text`, which become one.
        eval_dataset: The same, to validate on.
        config: Every setting of a run; None takes the defaults.
        output_dir: Where the run is kept; None takes that of the configuration, `./runs/NAME`.
        **settings: Single settings by their names or aliases, such as `learning_rate=1e-3` or `max_steps=100`.

    Raises:
        ConfigError: A setting is unknown or has an impossible value; all problems at once.
        DataError: There is no text.
        MismatchError: The tokenizer has more ids than the model.
        UsageError: An adapter or several processes were asked for, or an argument is something else.

    Attributes:
        model: What is trained.
        tokenizer: Its tokenizer.
        config: The settings of the run.
        directory: Where it is kept.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        train_dataset: Texts,
        eval_dataset: Texts | None = None,
        *,
        config: TrainConfig | None = None,
        output_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.model = model if isinstance(model, BaseLanguageModel) else _wrapped(model)
        self.tokenizer = as_tokenizer(tokenizer)
        self.config = _configured(config, output_dir, settings)
        if self.config.lora.enabled or self.config.training.num_processes > 1:
            raise UsageError("Trainer: trains one whole model in one process", "llmt train --lora --base M")
        check_fits(self.tokenizer, self.model.vocab_size, "model")
        size, masks = self.config.data.block_size, bool(self.config.data.document_mask)
        size = min(size, self.model.context_length)
        self._train = _dataset(train_dataset, self.tokenizer, size, masks)
        self._held_out = None if eval_dataset is None else _dataset(eval_dataset, self.tokenizer, size, masks)
        self.directory = run_directory(self.config)

    def run(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[StepReport]:
        """Train to the end, one report a step, and publish the finished model in the run's directory.

        Args:
            resume: Go on from the newest whole checkpoint, if there is one.
            overwrite: Replace the run that stands there.

        Raises:
            BusyOutputError: Another run is there, or another process holds the directory.
            LlmtError: What `llmt train` ends by.
        """
        from llmt.training.finish import finish

        resume = resume and bool(CheckpointStore(self.directory).steps())
        claim_directory(self.directory, resume=resume, overwrite=overwrite)
        with held(self.directory):
            loop, keeper, prepared = self._begin(resume=resume, overwrite=overwrite)
            try:
                for report in loop.run():
                    keeper.log(report)
                    yield report
            finally:
                self._give_back(loop)
            finish(loop, keeper, prepared, None)

    def train(self, *, resume: bool = False, overwrite: bool = False) -> StepReport | None:
        """The same at once; the report of the last step, None where there was none left.

        Raises:
            LlmtError: See `run`.
        """
        last = None
        for report in self.run(resume=resume, overwrite=overwrite):
            last = report
        return last

    def evaluate(self) -> EvalReport:
        """Measure the model as it is on `eval_dataset`.

        Raises:
            UsageError: There is none.
        """
        if self._held_out is None:
            raise UsageError("Trainer.evaluate: there is no eval_dataset", "Trainer(..., eval_dataset=texts)")
        held_out = self._held_out.sequences
        text_bytes = held_out.text_bytes if self.tokenizer.is_lossless else 0
        batches = evaluation_batches(held_out, self.config.training.per_device_train_batch_size)
        return evaluate(self.model, batches, text_bytes=text_bytes)

    def save_model(self, directory: str | Path) -> Path:
        """Write the model as it is and its tokenizer into a directory.

        Raises:
            StorageError: The disk refused.
        """
        return self.model.save_pretrained(directory, tokenizer=self.tokenizer)

    def _begin(self, *, resume: bool, overwrite: bool) -> tuple[TrainingLoop, RunKeeper, "Prepared"]:
        from llmt.training.build import Start, build_trainer, decide

        checkpoint, damaged = None, list[str]()
        if resume:
            checkpoint = CheckpointStore(self.directory).latest(damaged.append)
            if checkpoint is None:
                raise ModelFileError(f"{self.directory}: no whole checkpoint; {'; '.join(damaged)}", "overwrite=True")
        corpus = Corpus(self.tokenizer, TextData(self._train, self._held_out), ())
        start = Start(checkpoint=checkpoint, damaged=tuple(damaged))
        prepared = decide(self.config, self.directory, corpus, self._workload(), start)
        loop, keeper = build_trainer(prepared, base=None, overwrite=overwrite, own=self.model)
        return loop, keeper, prepared

    def _workload(self) -> Workload:
        """Size of one pass."""
        values, training = self.model.model_config(), self.config.training
        shape = parse_llama_config(values, "model")[0] if is_llama(values) else foreign_shape(values)
        batch, parameters = training.per_device_train_batch_size, self.model.num_parameters()
        return Workload(shape, self.model.vocab_size, batch, self._train.block_size, 1.0, parameters)

    def _give_back(self, loop: TrainingLoop) -> None:
        """Leave the model with its trained weights in fp32, whatever it was computed in."""
        values = loop.optimizer.masters() if loop.average is None else loop.average.values
        kept = {name: tensor.clone() for name, tensor in values.items()}
        self.model.to(torch.float32)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        self.model.eval()


def _wrapped(model: Any) -> BaseLanguageModel:
    """A model of transformers behind our interface.

    Raises:
        UsageError: It is no causal language model.
    """
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "config")):
        name = type(model).__name__
        raise UsageError(f"model: a {name} is no language model", "load_model(DIRECTORY), or a model of transformers")
    return HuggingFaceModelWrapper(model)


def _configured(config: TrainConfig | None, output_dir: str | Path | None, settings: dict[str, Any]) -> TrainConfig:
    """The settings of a run: those given singly, by their names here or elsewhere, over a configuration."""
    if config is not None and settings:
        raise UsageError(
            f"Trainer: {next(iter(settings))} beside config", "config.model_copy, or single settings alone"
        )
    if config is None:
        given = [Given(name, value, f"{name}=") for name, value in settings.items()]
        config = load_run(ConfigSource("run"), flags=given, environ={}).config
    if output_dir is not None:
        config = config.model_copy(update={"output_dir": str(output_dir)})
    return config


def _dataset(texts: Texts, tokenizer: Any, block_size: int, masks: bool) -> LanguageModelingDataset:
    """Texts as blocks; blocks as they are, if they are this tokenizer's."""
    if isinstance(texts, LanguageModelingDataset):
        if texts.tokenizer.fingerprint() != tokenizer.fingerprint():
            raise MismatchError("train_dataset: its ids are another tokenizer's", "make it with the same tokenizer")
        return texts
    if isinstance(texts, str):
        raise UsageError("train_dataset: one text, where several are expected", "[text]")
    rows = (row["text"] if isinstance(row, dict) and "text" in row else row for row in texts)
    return LanguageModelingDataset(rows, tokenizer, block_size, document_mask=masks)
