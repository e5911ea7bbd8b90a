"""A model, a tokenizer and texts in memory -> a run: the trainer for those who call llmt from Python."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
from llmt.models.transformer import Block, TransformerLM
from llmt.system.allocator import can_reuse_memory, return_memory
from llmt.system.estimate import Workload
from llmt.system.machine import inspect_machine, use_portable_numerics
from llmt.system.plan import PlanLine, choose_backend, choose_device, choose_threads
from llmt.system.products import as_before
from llmt.tokenizers.huggingface import as_tokenizer
from llmt.training.corpus import Corpus, check_fits
from llmt.training.directory import claim_directory, held, run_directory
from llmt.training.keeper import RunKeeper
from llmt.training.loop import TrainingLoop
from llmt.training.model import release
from llmt.training.report import StepReport
from llmt.training.resume import check_same_config
from llmt.training.runtime import Runtime, open_runtime
from llmt.training.worker import world_size

if TYPE_CHECKING:
    from llmt.training.build import Prepared

Texts = LanguageModelingDataset | Iterable[Any]

OF_DATA = ("block_size", "document_mask", "text_column", "num_workers", "pin_memory")
"""The settings of `data` that mean something for texts in memory."""


class Trainer:
    """Trains a model on texts in memory, by the loop, the checks and the directories of `llmt train`.

    Args:
        model: A model of llmt or of transformers. It is trained in place.
        tokenizer: A tokenizer of llmt or of transformers.
        train_dataset: A `LanguageModelingDataset`; or strings, or rows with a column of text, which become one.
        eval_dataset: The same, to validate on.
        config: Every setting of a run; None takes the defaults. Of its sections `model` and `tokenizer` nothing is
            read, and of `data` only `OF_DATA`.
        output_dir: Where the run is kept; None takes that of the configuration, `./runs/NAME`.
        **settings: Single settings by their names or aliases, such as `learning_rate=1e-3` or `max_steps=100`.

    Raises:
        ConfigError: A setting is unknown or has an impossible value; all problems at once.
        DataError: There is no text.
        MismatchError: The tokenizer has more ids than the model, or a data set longer blocks than it reads.
        UsageError: An adapter or several processes were asked for, a setting would not be read, or an argument is
            something else.

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
        asked, given = _configured(config, output_dir, settings)
        if not self.model.num_parameters(trainable=True):
            raise UsageError("model: none of its weights is trainable", "requires_grad_(True) for some of them")
        check_fits(self.tokenizer, self.model.vocab_size, "model")
        self._train = self._dataset(train_dataset, "train_dataset", asked)
        self._held_out = None if eval_dataset is None else self._dataset(eval_dataset, "eval_dataset", asked)
        self._lines = self._shortened(train_dataset, asked, given="data.block_size" in given)
        # What is written down is what is done.
        done = {"block_size": self._train.block_size, "document_mask": self._train.document_mask}
        self.config = asked.model_copy(update={"data": asked.data.model_copy(update=done)})
        self.directory = run_directory(self.config)

    def run(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[StepReport]:
        """Train to the end, one report a step, and publish the finished model in the run's directory.

        Published is the best checkpoint where there is an `eval_dataset`, and else the last; the model in memory has
        the weights of the last step, or their average where one is kept. Who leaves the loop early, or is
        interrupted, keeps the checkpoints that stand.

        Args:
            resume: Go on from the newest whole checkpoint, if there is one.
            overwrite: Replace the run that stands there.

        Warns of damaged checkpoints that are passed over, of a resume that is not the same bit for bit, and of what
        the disk refuses and the run does without.

        Raises:
            BusyOutputError: Another run is there, or another process holds the directory.
            MismatchError: The run to go on from has other texts, settings or weights.
            UsageError: Both are asked for.
            LlmtError: What `llmt train` ends by.
        """
        from llmt.training.finish import finish

        if resume and overwrite:
            raise UsageError("Trainer: resume and overwrite: one goes on, the other starts again", "one of the two")
        resume = resume and CheckpointStore(self.directory).holds_any()
        claim_directory(self.directory, self.config, resume=resume, overwrite=overwrite)
        with _process(self.config) as runtime, held(self.directory):
            loop, keeper, prepared, rounded = self._begin(runtime, resume=resume, overwrite=overwrite)
            for sentence in prepared.damaged:
                _warn(sentence)
            if loop.notes:
                _warn(f"the resume is not bit for bit: {', '.join(loop.notes)}")
            try:
                for report in loop.run():
                    for sentence in (*report.warnings, keeper.log(report)):
                        _warn(sentence)
                    yield report
                for sentence in loop.unsaid:
                    _warn(sentence)
            finally:
                kept = loop.optimizer.masters() if loop.average is None else loop.average.values
                self._take(rounded | kept)
                release(self.model)
            _warn(finish(loop, keeper, prepared, None).warning)

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
            BusyOutputError: The directory is a run.
            StorageError: The disk refused.
        """
        return self.model.save_pretrained(directory, tokenizer=self.tokenizer)

    def _begin(
        self, runtime: Runtime, *, resume: bool, overwrite: bool
    ) -> tuple[TrainingLoop, RunKeeper, "Prepared", dict[str, Tensor]]:
        """Everything up to the first step, and the exact values of what lower precision would round."""
        from llmt.training.build import Start, build_trainer, decide

        checkpoint, damaged = None, list[str]()
        if resume:
            _check_settings(self.directory, self.config)
            checkpoint = CheckpointStore(self.directory).latest(damaged.append)
            if checkpoint is None:
                raise ModelFileError(f"{self.directory}: no whole checkpoint; {'; '.join(damaged)}", "overwrite=True")
        corpus = Corpus(self.tokenizer, TextData(self._train, self._held_out), ())
        start = Start(checkpoint=checkpoint, damaged=tuple(damaged), runtime=runtime, facts=self._facts())
        prepared = decide(self.config, self.directory, corpus, self._workload(), start, self._lines)
        exact = {} if prepared.plan.precision == "fp32" else self._values()
        loop = None
        try:
            loop, keeper = build_trainer(prepared, base=None, overwrite=overwrite, runtime=runtime, own=self.model)
        finally:
            if loop is None:
                self._take(exact)
                release(self.model)
        buffers = {name: tensor for name, tensor in exact.items() if name not in dict(self.model.named_parameters())}
        return loop, keeper, prepared, buffers | loop.optimizer.frozen

    def _facts(self) -> dict[str, Any]:
        """What a resume depends on that neither the settings nor the model's files tell."""
        if isinstance(self.model, HuggingFaceModelWrapper):
            return {"transformers": version("transformers")}
        rates = {(b.self_attn.dropout, b.dropout) for b in self.model.modules() if isinstance(b, Block)}
        return {"dropout": [list(pair) for pair in sorted(rates)]}

    def _workload(self) -> Workload:
        """Size of one pass."""
        values, training = self.model.model_config(), self.config.training
        shape = parse_llama_config(values, "model")[0] if is_llama(values) else foreign_shape(values)
        parameters = self.model.num_parameters()
        share = self.model.num_parameters(trainable=True) / max(parameters, 1)
        batch = training.per_device_train_batch_size
        counted = None if isinstance(self.model, TransformerLM) else parameters
        return Workload(shape, self.model.vocab_size, batch, self._train.block_size, share, counted)

    def _values(self) -> dict[str, Tensor]:
        """A copy of the parameters, and of the buffers that no file holds, such as rotary frequencies."""
        saved = self.model.state_dict().keys()
        parameters = {name for name, _ in self.model.named_parameters()}
        wanted = [(name, tensor) for name, tensor in self._tensors() if name in parameters or name not in saved]
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in wanted}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    @torch.no_grad()
    def _take(self, values: Mapping[str, Tensor]) -> None:
        """Put the model into fp32, with these values by name, whatever it was computed in."""
        self.model.to(torch.float32)
        for name, tensor in self._tensors():
            if name in values:
                tensor.copy_(values[name])
        self.model.eval()

    def _dataset(self, texts: Texts, what: str, asked: TrainConfig) -> LanguageModelingDataset:
        """Texts as blocks; blocks as they are, if they are this tokenizer's and the model can read them."""
        context, data = self.model.context_length, asked.data
        if not isinstance(texts, LanguageModelingDataset):
            size = min(data.block_size, context)
            return LanguageModelingDataset(
                texts, self.tokenizer, size, document_mask=bool(data.document_mask), text_column=data.text_column
            )
        if texts.tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise MismatchError(f"{what}: its ids are another tokenizer's", "make it with the same tokenizer")
        if texts.block_size > context:
            raise MismatchError(
                f"{what}: blocks of {texts.block_size} ids, and the model reads {context}", f"block_size={context}"
            )
        return texts

    def _shortened(self, texts: Texts, asked: TrainConfig, *, given: bool) -> tuple[PlanLine, ...]:
        """The line of the plan about blocks that are shorter than asked; blocks that are made already stay."""
        size, wanted = self._train.block_size, asked.data.block_size
        if isinstance(texts, LanguageModelingDataset):
            if given and size != wanted:
                raise UsageError(
                    f"Trainer: block_size {wanted}, and train_dataset has blocks of {size}", "leave it out"
                )
            return ()
        if size == wanted:
            return ()
        return (PlanLine("block_size", size, f"the context of the model, {wanted} was asked"),)


def _warn(sentence: str) -> None:
    if sentence:
        warnings.warn(sentence, stacklevel=3)


def _wrapped(model: Any) -> BaseLanguageModel:
    """A model of transformers behind our interface.

    Raises:
        UsageError: It is no causal language model.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "PeftModel" in kinds:
        raise UsageError("model: Trainer trains whole models, not adapters", "llmt train --lora --base M")
    if "PreTrainedModel" not in kinds or model.get_output_embeddings() is None:
        name = type(model).__name__
        raise UsageError(f"model: a {name} is no language model", "load_model(DIRECTORY), or a model of transformers")
    return HuggingFaceModelWrapper(model)


def _configured(
    config: TrainConfig | None, output_dir: str | Path | None, settings: dict[str, Any]
) -> tuple[TrainConfig, set[str]]:
    """The settings of a run, and the names of those that were given singly."""
    paths: set[str] = set()
    if config is not None and settings:
        raise UsageError(
            f"Trainer: {next(iter(settings))} beside config", "config.model_copy, or single settings alone"
        )
    if config is None:
        given = [Given(name, value, f"{name}=") for name, value in settings.items()]
        loaded = load_run(ConfigSource("run"), flags=given, environ={})
        config, paths = loaded.config, set(loaded.origins)
        for path in loaded.origins:
            _refuse_unread(path)
    if config.training.objective != "next_token":
        raise UsageError(
            f"Trainer: training.objective {config.training.objective} compares answers, and texts in memory have none",
            "llmt train dpo --base M --data PAIRS",
        )
    if config.lora.enabled or config.training.num_processes > 1:
        raise UsageError("Trainer: trains one whole model in one process", "llmt train --lora --base M")
    if output_dir is not None:
        config = config.model_copy(update={"output_dir": str(output_dir)})
    return config, paths


def _refuse_unread(path: str) -> None:
    """A setting that is given by itself means something here."""
    section, _, name = path.rpartition(".")
    brought = {"model": "model", "tokenizer": "tokenizer", "data": "text"}
    if path == "base":
        section = "model"
    if section == "lora" and name != "enabled":
        raise UsageError("Trainer: trains one whole model in one process", "llmt train --lora --base M")
    if section in brought and not (section == "data" and name in OF_DATA):
        raise UsageError(f"Trainer: {path} is not read: the {brought[section]} is given as it is", "leave it out")


def _check_settings(directory: Path, config: TrainConfig) -> None:
    try:
        check_same_config(directory, config)
    except MismatchError as error:
        raise MismatchError(error.message, "resume with the settings that the run began with") from None


@contextmanager
def _process(config: TrainConfig) -> Iterator[Runtime]:
    """This process as the only one of a run, with its threads and libraries; afterwards they are as they were."""
    if world_size() > 1:
        raise UsageError(
            f"Trainer: trains in one process, and a launcher started {world_size()}", "torchrun -m llmt train"
        )
    if config.portable_numerics:
        use_portable_numerics()
    machine, before = inspect_machine(), torch.get_num_threads()
    device, _ = choose_device(config.device, machine)
    torch.set_num_threads(choose_threads(config.threads, machine).value)
    runtime = open_runtime(config, device.kind, choose_backend(config, device).value)
    try:
        with as_before():
            yield runtime
    finally:
        runtime.close()
        torch.set_num_threads(before)
        if device.kind == "cpu" and can_reuse_memory():
            return_memory()
