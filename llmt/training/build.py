"""configuration -> a trainer that is ready to run."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmt.checkpoints.files import require_free_space
from llmt.checkpoints.store import Checkpoint, CheckpointStore
from llmt.checkpoints.weights import open_weights
from llmt.config.load import cache_directory
from llmt.config.model import ModelConfig
from llmt.config.names import BUILTIN, BUILTIN_INSTRUCTIONS
from llmt.config.run import TrainConfig
from llmt.data.loader import evaluation_batches
from llmt.data.ready import ReadyData
from llmt.errors import DeviceError, MismatchError, ModelFileError
from llmt.models.apart import keeps_documents_apart
from llmt.models.base import BaseLanguageModel
from llmt.models.fresh import measured_shape, new_model
from llmt.models.llama import context_of, foreign_shape, is_llama, parse_llama_config
from llmt.models.load import load_model, read_config
from llmt.models.lora import LoraModel, add_lora
from llmt.models.transformer import TransformerLM
from llmt.system.estimate import Workload, checkpoint_bytes
from llmt.system.machine import inspect_machine, measure_speed, try_compile
from llmt.system.plan import PlanLine, RunPlan, choose_device, choose_threads, plan_run
from llmt.tokenizers.base import special_ids
from llmt.training.corpus import Corpus, Progress, check_fits, prepare_corpus
from llmt.training.directory import clear_directory
from llmt.training.keeper import RunKeeper, read_checkpoint, read_state
from llmt.training.optim import Optimizer
from llmt.training.resume import check_same_run, pin_plan, weights_fingerprint
from llmt.training.schedule import Schedule, warmup_steps
from llmt.training.trainer import Limits, Trainer, total_steps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Prepared:
    """Everything that is decided before weights exist.

    Attributes:
        config: The run as asked, data sources filled in.
        directory: Where it is kept.
        corpus: Tokenizer and shards.
        plan: What will be done.
        work: Size of one pass.
        checkpoint: What a resume goes on from.
        fingerprint: What the run depends on, by name.
        damaged: Checkpoints that were passed over, one sentence each.
        notes: Why a resumed run is not the same bit for bit, one phrase each.
    """

    config: TrainConfig
    directory: Path
    corpus: Corpus
    plan: RunPlan
    work: Workload
    checkpoint: Checkpoint | None
    fingerprint: dict[str, Any]
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def with_sources(config: TrainConfig) -> TrainConfig:
    """The configuration with its data named: an adapter learns instructions, a model learns text."""
    if config.data.sources:
        return config
    source = BUILTIN_INSTRUCTIONS if config.lora.enabled else BUILTIN
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": (source,)})})


def check_device(config: TrainConfig) -> None:
    """Refuse a device that is absent before anything is read or written.

    Raises:
        DeviceError: It was named and is not here.
    """
    choose_device(config.device, inspect_machine())


def prepare(config: TrainConfig, directory: Path, *, base: Path | None, resume: bool, progress: Progress) -> Prepared:
    """Look at the machine, read the text, decide.

    Args:
        config: The run as asked.
        directory: Where it is kept.
        base: Directory of the model to go on from.
        resume: Go on from the newest whole checkpoint.
        progress: Told about the work.

    Raises:
        DeviceError: Something was asked for that this machine does not have.
        DataError: The text cannot be trained on.
        MismatchError: The checkpoint belongs to another run.
        OutOfMemoryError: Not even one sequence fits.
    """
    machine = inspect_machine()
    device, why = choose_device(config.device, machine)
    torch.set_num_threads(choose_threads(config.threads, machine).value)
    checkpoint, damaged = _newest(directory) if resume else (None, ())
    source = checkpoint.path if checkpoint is not None else base
    config, shortened = within_context(config, base)
    corpus = prepare_corpus(
        config, cache_directory(config.data.cache_dir), tokenizer_directory=source, progress=progress
    )
    if isinstance(corpus.data, ReadyData):
        corpus.data.audit.check_budgets(config.data)
    work = _workload(config, corpus, base)
    steps = total_steps(
        samples_per_step=work.batch_size * config.training.gradient_accumulation_steps,
        samples=corpus.data.samples,
        max_steps=config.training.max_steps,
        epochs=config.training.num_train_epochs,
        max_tokens=config.training.max_tokens,
        tokens_per_sample=corpus.data.tokens_per_sample,
    )
    speed = measure_speed(device.kind, torch.get_num_threads())
    plan = plan_run(config, machine, device, why, speed, work, steps)
    plan = _with_working_compiler(replace(plan, lines=plan.lines + shortened), config)
    if checkpoint is not None:
        plan = pin_plan(directory, plan, config)
    fingerprint = _fingerprint(config, corpus, plan, base)
    notes = () if checkpoint is None else tuple(check_same_run(read_state(checkpoint), fingerprint))
    # The newest, the best, the one being written, and the finished model in the root.
    kept = config.training.save_total_limit + 3
    require_free_space(directory, kept * checkpoint_bytes(work.parameters, work.trainable))
    return Prepared(config, directory, corpus, plan, work, checkpoint, fingerprint, damaged, notes)


def build_trainer(prepared: Prepared, *, base: Path | None, overwrite: bool = False) -> tuple[Trainer, RunKeeper]:
    """Make the model, the optimizer and the trainer, and put them where a resume left off.

    With `overwrite`, the run that stood there is removed once everything else has been made.

    Raises:
        MismatchError: The checkpoint belongs to another run, or the model cannot keep documents apart.
        ModelFileError: The base or the checkpoint cannot be read.
    """
    config, plan, corpus = prepared.config, prepared.plan, prepared.corpus
    torch.set_num_threads(plan.threads)
    model, exact = _model(config, plan, corpus, base)
    if corpus.data.masks and not keeps_documents_apart(model):
        raise MismatchError(
            "data.document_mask: this model reads across the documents of a sequence", "--no-document-mask"
        )
    _compile(model, plan)
    optimizer = Optimizer(model, config.training, exact)
    data = corpus.data
    loader = data.loader(plan.micro_batch, config.seed, plan.num_workers, plan.pin_memory)
    keeper = RunKeeper(prepared.directory, model, corpus.tokenizer, config, plan, base)
    schedule, limits = _schedule(config, plan), _limits(config, plan, data.samples)
    trainer = Trainer(model, optimizer, loader, schedule, limits, keeper, config.seed)
    trainer.fingerprint, trainer.notes = prepared.fingerprint, prepared.notes
    if data.validation is not None:
        _validate(trainer, prepared)
    if prepared.checkpoint is not None:
        _restore(trainer, prepared.checkpoint)
    if overwrite:
        clear_directory(prepared.directory)
    keeper.begin(data.audit_values(), trainer.state.step)
    return trainer, keeper


def _with_working_compiler(plan: RunPlan, config: TrainConfig) -> RunPlan:
    """The plan after torch.compile was tried, where it is planned.

    Raises:
        DeviceError: It does not work and `always` was asked.
    """
    problem = try_compile(plan.device) if plan.compile else ""
    if not problem:
        return plan
    if config.training.compile == "always":
        raise DeviceError(f"training.compile always: {problem}", "llmt train --compile auto")
    lines = (replace(line, value=False, reason=problem) if line.name == "compile" else line for line in plan.lines)
    return replace(plan, compile=False, lines=tuple(lines))


def within_context(config: TrainConfig, base: Path | None) -> tuple[TrainConfig, tuple[PlanLine, ...]]:
    """The configuration with blocks no longer than the model's context, and the line of the plan that says so."""
    values = {**config.model.huggingface, **config.model.custom} if base is None else read_config(base)
    context = context_of(values)
    asked = config.data.block_size
    if context is None or asked <= context:
        return config, ()
    data = config.data.model_copy(update={"block_size": context})
    line = PlanLine("block_size", context, f"the context of the model, {asked} was asked")
    return config.model_copy(update={"data": data}), (line,)


def _newest(directory: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    damaged: list[str] = []
    checkpoint = CheckpointStore(directory).latest(damaged.append)
    if checkpoint is None:
        raise ModelFileError(f"{directory}: no whole checkpoint; {'; '.join(damaged)}", "llmt train   starts a new run")
    return checkpoint, tuple(damaged)


def _workload(config: TrainConfig, corpus: Corpus, base: Path | None) -> Workload:
    model, vocab_size, counted = config.model, corpus.tokenizer.vocab_size, None
    if base is not None:
        values = read_config(base)
        if is_llama(values):
            model, vocab_size, _ = parse_llama_config(values, str(base))
        else:
            model, vocab_size = foreign_shape(values), int(values.get("vocab_size", vocab_size))
            with open_weights(base) as reader:
                counted = sum(math.prod(tensor.shape) for tensor in reader.described.values())
        check_fits(corpus.tokenizer, vocab_size, str(base))
    elif model.huggingface or model.custom:
        values, counted = measured_shape(model, vocab_size, config.data.block_size)
        model, vocab_size = foreign_shape(values), int(values["vocab_size"])
        check_fits(corpus.tokenizer, vocab_size, "model.huggingface")
    trainable = _adapter_share(config, model, vocab_size) if config.lora.enabled else 1.0
    batch, length = config.training.per_device_train_batch_size, config.data.block_size
    return Workload(model, vocab_size, batch, length, trainable, counted)


def _adapter_share(config: TrainConfig, model: ModelConfig, vocab_size: int) -> float:
    """Share of the parameters that an adapter on all linear layers of the blocks trains."""
    inner = 4 * (model.hidden_size + model.hidden_size) + 3 * (model.hidden_size + model.intermediate_size)
    return min(config.lora.r * inner * model.num_hidden_layers / model.num_parameters(vocab_size), 1.0)


def _model(
    config: TrainConfig, plan: RunPlan, corpus: Corpus, base: Path | None
) -> tuple[BaseLanguageModel, dict[str, Tensor]]:
    """The model in its compute precision, and the fp32 values of what will be trained."""
    dtype = DTYPES[plan.precision]
    if base is not None:
        model = load_model(base, device=plan.device)
        if isinstance(model, TransformerLM):
            model.set_dropout(config.model.attention_dropout, config.model.hidden_dropout)
    else:
        ids = special_ids(corpus.tokenizer)
        fresh = new_model(config.model, corpus.tokenizer.vocab_size, config.data.block_size, config.seed, ids)
        model = fresh.to(plan.device)
    if isinstance(model, TransformerLM):
        model.gradient_checkpointing = config.training.gradient_checkpointing
    elif config.training.gradient_checkpointing:
        raise MismatchError("gradient checkpointing is offered for Llama-shaped models only", "leave it out")
    if config.lora.enabled:
        torch.manual_seed(config.seed)
        return add_lora(model.to(dtype), config.lora), {}
    exact = {name: p.detach() for name, p in model.named_parameters()} if plan.precision != "fp32" else {}
    exact = {name: value.clone() for name, value in exact.items()}
    return model.to(dtype), exact


def _compile(model: BaseLanguageModel, plan: RunPlan) -> None:
    """Compile each block by itself: equal blocks share one compilation."""
    inner = model.base if isinstance(model, LoraModel) else model
    if plan.compile and isinstance(inner, TransformerLM):
        for block in inner.model.layers:
            block.compile(dynamic=False)


def _schedule(config: TrainConfig, plan: RunPlan) -> Schedule:
    training = config.training
    warmup = warmup_steps(plan.total_steps, training.warmup_steps, training.warmup_ratio)
    return Schedule(training.lr_scheduler_type, plan.total_steps, warmup, training.min_lr_ratio, training.lr_power)


def _limits(config: TrainConfig, plan: RunPlan, samples: int | None) -> Limits:
    training, total = config.training, plan.total_steps
    stops = [total] if training.max_tokens is None else []
    if training.max_steps is not None:
        stops.append(training.max_steps)
    if training.num_train_epochs is not None and samples is not None:
        stops.append(math.ceil(training.num_train_epochs * samples / (plan.micro_batch * plan.accumulation)))
    return Limits(
        # A run by tokens ends when they are reached, though short blocks may need a step more.
        max_steps=min(stops, default=2 * total + 1),
        max_tokens=training.max_tokens,
        max_seconds=training.max_time,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        eval_steps=training.eval_steps or max(math.ceil(total / 10), 1),
        save_steps=training.save_steps or max(math.ceil(total / 5), 1),
        max_grad_norm=training.max_grad_norm,
    )


def _validate(trainer: Trainer, prepared: Prepared) -> None:
    """Hold out the validation sequences; only a whole pass over them has a number of bytes."""
    held_out = prepared.corpus.data.validation
    assert held_out is not None
    batch, limit = prepared.plan.micro_batch, prepared.config.training.eval_batches
    whole = limit is None or limit * batch >= held_out.count

    def batches() -> Any:
        found = evaluation_batches(held_out, batch)
        return found if limit is None else (item for item, _ in zip(found, range(limit), strict=False))

    lossless = prepared.corpus.tokenizer.is_lossless  # bits for each byte mean nothing where bytes are dropped
    trainer.validate_with(batches, held_out.text_bytes if whole and lossless else 0)


def _fingerprint(config: TrainConfig, corpus: Corpus, plan: RunPlan, base: Path | None) -> dict[str, Any]:
    return {
        # The checkpoints of an adapter do not hold the weights below it.
        "base": weights_fingerprint(base) if base is not None and config.lora.enabled else None,
        "data": corpus.data.fingerprint,
        "tokenizer": corpus.tokenizer.fingerprint(),
        "torch": torch.__version__,
        "device": plan.device,
        "precision": plan.precision,
        "threads": plan.threads,
        "compile": plan.compile,
    }


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    state, weights, optimizer = read_checkpoint(checkpoint)
    if isinstance(trainer.model, LoraModel):
        trainer.model.load_adapter_weights(weights)
        masters = trainer.optimizer.masters()
    else:
        saved = {w.name: trainer.model.saved_name(w.name) for w in trainer.optimizer.weights}
        masters = {name: weights[key] for name, key in saved.items() if key in weights}
        with torch.no_grad():
            # What is not trained belongs to the model too: buffers, and parameters that its class froze.
            for key, tensor in trainer.model.weights().items():
                if key in weights and key not in saved.values():
                    tensor.copy_(weights[key])
    trainer.optimizer.load(masters, optimizer)
    trainer.resume(state)
