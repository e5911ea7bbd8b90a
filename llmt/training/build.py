"""configuration -> a trainer that is ready to run."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llmt.checkpoints.files import require_free_space
from llmt.checkpoints.store import Checkpoint, CheckpointStore
from llmt.checkpoints.weights import open_weights
from llmt.config.load import cache_directory
from llmt.config.model import ModelConfig
from llmt.config.names import BUILTIN, BUILTIN_INSTRUCTIONS
from llmt.config.run import TrainConfig
from llmt.data.batch import Batch
from llmt.data.loader import evaluation_batches
from llmt.data.ready import ReadyData
from llmt.errors import DeviceError, MismatchError, ModelFileError, UsageError
from llmt.models.apart import keeps_documents_apart
from llmt.models.base import BaseLanguageModel
from llmt.models.fresh import measured_shape, without_numbers
from llmt.models.identity import weights_hash
from llmt.models.llama import context_of, foreign_shape, is_llama, parse_llama_config
from llmt.models.load import read_config
from llmt.models.lora import LoraModel
from llmt.models.peft_methods import configure, require_peft
from llmt.models.quantized import require_4bit
from llmt.models.transformer import TransformerLM
from llmt.system.allocator import KeptMemory, reuse_memory
from llmt.system.estimate import Workload, checkpoint_bytes
from llmt.system.machine import inspect_machine, measure_speed, try_compile
from llmt.system.plan import PlanLine, RunPlan, choose_device, choose_threads, memory_line, needed_bytes, plan_run
from llmt.system.products import use_onednn
from llmt.training.average import Average
from llmt.training.corpus import Corpus, Progress, check_fits, prepare_corpus
from llmt.training.directory import clear_directory
from llmt.training.fingerprint import MEASURED, WARMUP, fingerprint_of
from llmt.training.groups import require_adamw_8bit
from llmt.training.keeper import RunKeeper, read_state
from llmt.training.limits import total_steps
from llmt.training.loop import TrainingLoop, Validation
from llmt.training.micro_batch import largest_micro_batch
from llmt.training.model import companion_of, go_back, make_fast, make_model, restore, take_model
from llmt.training.objective import check_asked, check_data, objective_of
from llmt.training.optim import Optimizer
from llmt.training.pace import limits_of, schedule_of
from llmt.training.resume import check_same_run, pin_plan, regroups, share_step
from llmt.training.runtime import Runtime
from llmt.training.sample import write_sample
from llmt.training.sanity import Compared, Guard
from llmt.training.state import RunState


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
        regroup: A resume was told to take the sequences of a step in other passes.
        origin: Where the model is made from: the base, or the checkpoint where that is a whole model and the base is
            gone; None makes a new one.
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
    regroup: bool = False
    origin: Path | None = None


def with_sources(config: TrainConfig) -> TrainConfig:
    """The configuration with its data named: an adapter learns instructions, a model learns text.

    Raises:
        DataError: Preferences are to be learnt, and no pairs are named.
        UsageError: They are to be learnt by a whole model.
    """
    check_asked(config)
    if config.data.sources:
        return config
    source = BUILTIN_INSTRUCTIONS if config.lora.enabled else BUILTIN
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": (source,)})})


def check_device(config: TrainConfig) -> None:
    """Refuse a device that is absent or does not fit the configuration, before anything is read or written.

    Raises:
        DeviceError: It was named and is not here, or what computes is not the CPU, or not CUDA, and has to be.
        MissingPackageError: A package for it is missing.
    """
    device, _ = choose_device(config.device, inspect_machine())
    if config.portable_numerics and device.kind != "cpu":
        raise DeviceError(f"portable_numerics: it is about the CPU, and {device.kind} would compute", "--device cpu")
    if config.lora.enabled and config.lora.quantize != "none":
        require_4bit(device.kind)


def prepare(
    config: TrainConfig,
    directory: Path,
    *,
    base: Path | None,
    resume: "Going | bool",
    progress: Progress,
    runtime: Runtime | None = None,
) -> Prepared:
    """Look at the machine, read the text, decide.

    Args:
        config: The run as asked.
        directory: Where it is kept.
        base: Directory of the model to go on from.
        resume: Go on from a checkpoint: True takes the newest whole one.
        progress: Told about the work.
        runtime: The processes that share the run; the first reads the text, and its decisions count.

    Raises:
        ConfigError: An adapter does not fit the base.
        DeviceError: Something was asked for that this machine does not have.
        DataError: The text cannot be trained on.
        MismatchError: The checkpoint belongs to another run.
        OutOfMemoryError: Not even one sequence fits.
    """
    runtime = runtime or Runtime()
    machine = inspect_machine()
    device, _ = choose_device(config.device, machine)
    if config.training.optimizer == "adamw_8bit":
        require_adamw_8bit(device.kind)
    torch.set_num_threads(choose_threads(config.threads, machine).value)
    going = resume if isinstance(resume, Going) else Going()
    checkpoint, damaged = _find_checkpoint(directory, going, runtime) if resume else (None, ())
    _check_adapter(config, base, checkpoint)
    source = checkpoint.path if checkpoint is not None else base
    if checkpoint is not None and base is not None and not config.lora.enabled and not base.exists():
        base = checkpoint.path  # which is a whole model
    config, shortened = within_context(config, base)

    def read() -> Corpus:
        where = cache_directory(config.data.cache_dir)
        return prepare_corpus(config, where, tokenizer_directory=source, progress=progress)

    corpus = runtime.on_main(read) or read()  # the others find what the first one prepared
    check_data(config, pairs=corpus.pairs)
    if isinstance(corpus.data, ReadyData):
        corpus.data.audit.check_budgets(config.data)
    work = _workload(config, corpus, base)
    start = Start(base, checkpoint, damaged, going.data_change, runtime, _facts(config, base), going.writes)
    return decide(config, directory, corpus, work, start, shortened)


@dataclass(frozen=True)
class Going:
    """How a run goes on.

    Attributes:
        step: The checkpoint; None takes the newest whole one.
        data_change: Go on though the training text changed.
        rename: Set damaged checkpoints aside; not where the run is only looked at.
        writes: Checkpoints will follow, which need room.
    """

    step: int | None = None
    data_change: bool = False
    rename: bool = True
    writes: bool = True


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        base: Directory of the model to go on from.
        checkpoint: What a resume goes on from.
        damaged: Checkpoints that were passed over, one sentence each.
        data_change: Go on though the training text changed.
        runtime: The processes that share the run.
        facts: What the run depends on beside what is known of every run, by name.
        writes: Checkpoints will follow, which need room.
    """

    base: Path | None = None
    checkpoint: Checkpoint | None = None
    damaged: tuple[str, ...] = ()
    data_change: bool = False
    runtime: Runtime = field(default_factory=Runtime)
    facts: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = True


def decide(
    config: TrainConfig,
    directory: Path,
    corpus: Corpus,
    work: Workload,
    start: Start,
    lines: tuple[PlanLine, ...] = (),
) -> Prepared:
    """Everything that is left open, decided by the machine and by what the run goes on from.

    Args:
        config: The run as asked.
        directory: Where it is kept.
        corpus: What it is trained on.
        work: Size of one pass.
        start: What it begins with.
        lines: Decisions that were made already.

    Raises:
        DeviceError: Something was asked for that this machine does not have.
        MismatchError: The checkpoint belongs to another run.
        OutOfMemoryError: Not even one sequence fits.
        UsageError: Early stopping was asked for, and nothing is held out.
    """
    if config.training.early_stopping_patience is not None and corpus.data.validation is None:
        raise UsageError(
            "training.early_stopping_patience: counts validations, and nothing is held out", "--validation-split 0.05"
        )
    runtime, checkpoint, machine, regroup = start.runtime, start.checkpoint, inspect_machine(), False
    device, why = choose_device(config.device, machine)
    state = None if checkpoint is None else read_state(checkpoint)
    sequences = _sequences(config, runtime, state)
    steps = total_steps(
        samples_per_step=sequences,
        samples=corpus.data.samples,
        max_steps=config.training.max_steps,
        epochs=config.training.num_train_epochs,
        max_tokens=config.training.max_tokens,
        tokens_per_sample=corpus.data.tokens_per_sample,
    )
    speed = measure_speed(device.kind, torch.get_num_threads())
    plan = plan_run(config, machine, device, why, speed, work, steps, sequences)
    plan = replace(plan, lines=plan.lines + lines)
    if state is not None:
        regroup = regroups(state, config)
        plan = share_step(
            pin_plan(state, plan, config, runtime.world_size, regroup=regroup), sequences, runtime.world_size
        )
        each = replace(work, batch_size=plan.micro_batch)
        needed = needed_bytes(config, device, machine, each, plan.precision, accumulates=plan.accumulation > 1)
        kept = tuple(memory_line(needed) if line.name == "memory" else line for line in plan.lines)
        plan = replace(plan, estimated_bytes=needed, lines=kept)
    plan = _with_working_compiler(plan, config)
    plan = RunPlan.of_values(runtime.share(plan.values()))
    fingerprint = fingerprint_of(config, plan, runtime.world_size, start.facts)
    fingerprint |= {
        "data": corpus.data.fingerprint,
        "tokenizer": corpus.tokenizer.fingerprint(),
        "processor": device.name,
    }
    notes: tuple[str, ...] = ()
    if state is not None:
        # Validations are compared with those before, whatever the passes are; and what has warmed up stays so.
        fingerprint |= {key: (state.fingerprint or {}).get(key, fingerprint[key]) for key in (MEASURED, WARMUP)}
        notes = tuple(check_same_run(state, fingerprint, data_change=start.data_change))
        if config.training.max_time is not None:
            notes += ("the learning rate follows the clock (training.max_time)",)
    if start.writes:
        _require_room(directory, config, work, resumes=None if checkpoint is None else checkpoint.step)
    return Prepared(
        config, directory, corpus, plan, work, checkpoint, fingerprint, start.damaged, notes, regroup, start.base
    )


def _require_room(directory: Path, config: TrainConfig, work: Workload, *, resumes: int | None) -> None:
    """Refuse to begin where checkpoints would not fit; those that a resume finds take their room already."""
    # The one being written and the best; later ones take the place of those before them, or are tried again.
    kept = min(config.training.save_total_limit, 2) + 1
    if resumes is not None:
        kept = max(kept - sum(step <= resumes for step in CheckpointStore(directory).steps()), 1)
    size = checkpoint_bytes(
        work.parameters, work.trainable, adapter=config.lora.enabled, average=config.training.ema_decay is not None
    )
    require_free_space(directory, kept * size, f"{kept} checkpoint{'s' * (kept > 1)}", files=12 * kept)


def _sequences(config: TrainConfig, runtime: Runtime, state: RunState | None) -> int:
    """Sequences of a step, over all processes: those of the run that goes on, whoever shares them now."""
    alone = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
    before = {} if state is None or state.fingerprint is None else state.fingerprint
    return int(before.get("sequences", alone * int(before.get("processes", runtime.world_size))))


def build_trainer(
    prepared: Prepared,
    *,
    base: Path | None,
    overwrite: bool = False,
    runtime: Runtime | None = None,
    own: BaseLanguageModel | None = None,
) -> tuple[TrainingLoop, RunKeeper]:
    """Make the model, the optimizer and the loop, and put them where a resume left off.

    Args:
        prepared: What was decided.
        base: Directory of the model to go on from.
        overwrite: Remove the run that stands there, once everything else has been made.
        runtime: The processes that share the run.
        own: The model to train, instead of one that the configuration describes.

    Raises:
        MismatchError: The checkpoint belongs to another run, or the model cannot keep documents apart.
        ModelFileError: The base or the checkpoint cannot be read.
        OutOfMemoryError: Not even one sequence fits, where that is tried.
    """
    config, corpus, data = prepared.config, prepared.corpus, prepared.corpus.data
    runtime = runtime or Runtime()
    torch.set_num_threads(prepared.plan.threads)
    if prepared.plan.fp32_products == "onednn":
        use_onednn()
    model, optimizer = _model_and_optimizer(prepared, own)
    if prepared.plan.reuse_memory:
        reuse_memory()
    prepared = _tried(prepared, model, optimizer, runtime)
    plan = prepared.plan
    source = None if prepared.checkpoint is None else prepared.checkpoint.step
    keeper = RunKeeper(prepared.directory, model, corpus.tokenizer, config, plan, base, source)
    loader = data.loader(
        plan.micro_batch, config.seed, plan.num_workers, plan.pin_memory, runtime.rank, runtime.world_size
    )
    limits = limits_of(config, plan, data.samples, runtime.world_size)
    loop = TrainingLoop(
        model,
        optimizer,
        loader,
        schedule_of(config, plan, prepared.fingerprint[WARMUP]),
        limits,
        keeper,
        config.seed,
        runtime,
    )
    _equip(loop, prepared, runtime, fresh=base is None and own is None and prepared.checkpoint is None)
    if config.training.retry_on_divergence:
        loop.go_back = partial(go_back, loop, keeper)
    if prepared.checkpoint is not None:
        restore(loop, prepared.checkpoint)
    if plan.precision == "fp16":
        loop.scale_loss()
    runtime.prepare(model, optimizer)
    runtime.on_main(lambda: _begin(prepared, keeper, loop.state.step, overwrite=overwrite))
    return loop, keeper


def _model_and_optimizer(prepared: Prepared, own: BaseLanguageModel | None) -> tuple[BaseLanguageModel, Optimizer]:
    """What is trained, and what moves it."""
    config, corpus = prepared.config, prepared.corpus
    if own is None:
        model, exact = make_model(config, prepared.plan, corpus.tokenizer, prepared.origin)
    else:
        model, exact = take_model(config, prepared.plan, own)
    if corpus.data.masks and not keeps_documents_apart(model):
        raise MismatchError(
            "data.document_mask: this model reads across the documents of a sequence",
            "--no-document-mask, or for pairs another base",
        )
    make_fast(model, prepared.plan)
    return model, Optimizer(model, config.training, exact, companion_of(model))


def _equip(loop: TrainingLoop, prepared: Prepared, runtime: Runtime, *, fresh: bool) -> None:
    """What a loop does beside its steps."""
    config, model = prepared.config, loop.model
    loop.fingerprint, loop.notes = prepared.fingerprint, prepared.notes
    loop.kept_memory = KeptMemory() if prepared.plan.reuse_memory else None
    if isinstance(model, LoraModel):
        model.trained_on = prepared.fingerprint["base"]
    loop.objective = objective_of(config.training)
    loop.guard = Guard(model, loop.optimizer, fresh=fresh, own=isinstance(model, TransformerLM | LoraModel))
    if config.training.objective == "dpo":
        loop.guard.compares = Compared.of(config.lora, fresh=prepared.checkpoint is None)
    loop.validation = _validation(prepared, runtime)
    if config.training.ema_decay is not None:
        loop.average = Average(loop.optimizer, config.training.ema_decay)
    if config.logging.sample_strategy != "end" and config.logging.sample_tokens:
        loop.sampler = partial(write_sample, model, prepared.corpus.tokenizer, config)


def _begin(prepared: Prepared, keeper: RunKeeper, step: int, *, overwrite: bool) -> None:
    if overwrite:
        clear_directory(prepared.directory)
    if prepared.checkpoint is not None:
        keeper.store.set_later_aside(step)
    keeper.begin(prepared.corpus.data.audit_values(), step)


def _tried(prepared: Prepared, model: BaseLanguageModel, optimizer: Optimizer, runtime: Runtime) -> Prepared:
    """The plan with the largest micro-batch that fits, where it is to be found by trial.

    A resume keeps its own, unless the trial is new to the run.
    """
    config, plan = prepared.config, prepared.plan
    if not config.training.auto_micro_batch:
        return prepared
    if prepared.checkpoint is not None and not prepared.regroup:
        return prepared
    block, vocab_size, masks = config.data.block_size, model.vocab_size, prepared.corpus.data.masks
    objective = objective_of(config.training)

    def attempt(micro: int) -> None:
        torch.compiler.reset()  # what is compiled for too many shapes is run as it is, without a word
        # An eighth more, and moments that are not there yet: a step needs some room beside the trial's.
        moments = [torch.empty_like(weight.master).fill_(0) for weight in optimizer.weights for _ in range(2)]
        rows = micro + math.ceil(micro / 8) if micro > 1 else 1
        ids = torch.randint(vocab_size, (rows, block + 1), generator=torch.Generator().manual_seed(0))
        ids = ids.to(model.device)
        positions = (torch.arange(block, device=model.device) % (block // 2 + 1)).repeat(rows, 1) if masks else None
        batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), rows * block, positions)
        try:
            objective.summed(model, batch).backward()
            optimizer.accumulate()
        finally:  # what did not fit leaves no gradients to the first step
            for weight in optimizer.weights:
                weight.parameter.grad = weight.master.grad = None
        del moments

    sequences = plan.micro_batch * plan.accumulation
    model.train()
    with torch.compiler.set_stance("default"):  # loads what the first step loads
        micro, reason = largest_micro_batch(sequences, attempt, plan.device)
    torch.compiler.reset()
    micro = -runtime.highest(-micro)
    fingerprint = {**prepared.fingerprint, "micro_batch": micro}
    notes = tuple(note for note in prepared.notes if not note.startswith("micro_batch "))
    before = None if prepared.checkpoint is None else (read_state(prepared.checkpoint).fingerprint or {})
    if before is not None and before.get("micro_batch", micro) != micro:
        notes += (f"micro_batch {before['micro_batch']} -> {micro}",)
    plan = plan.with_micro_batch(micro, sequences // micro, reason)
    return replace(prepared, plan=plan, fingerprint=fingerprint, notes=notes)


def _with_working_compiler(plan: RunPlan, config: TrainConfig) -> RunPlan:
    """The plan after torch.compile was tried, where it is planned.

    Raises:
        DeviceError: It does not work and `always` was asked.
    """
    problem = try_compile(plan.device) if plan.compile else ""
    if plan.compile and config.lora.quantize != "none":
        problem = "layers in 4 bits are not compiled"
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


def _facts(config: TrainConfig, base: Path | None) -> dict[str, str | None]:
    """What computes with the model beside torch, and the weights under an adapter, which no checkpoint holds."""
    foreign = not is_llama(read_config(base)) if base is not None else bool(config.model.huggingface)
    names = ["transformers"] * foreign + ["peft"] * config.lora.enabled
    frozen = weights_hash(base) if base is not None and config.lora.enabled else None
    return {"base": frozen, **{name: version(name) for name in names}}


def _find_checkpoint(directory: Path, going: Going, runtime: Runtime) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint to go on from, and the damaged ones that were passed over; the first process sets them aside."""
    store, damaged = CheckpointStore(directory), list[str]()
    if going.step is not None:
        return store.verified(going.step), ()
    found = runtime.on_main(lambda: store.latest(damaged.append, rename=going.rename))
    step = runtime.share(None if found is None else found.step)
    if step is None:
        raise ModelFileError(f"{directory}: no whole checkpoint; {'; '.join(damaged)}", "llmt train   starts a new run")
    return found or store.verified(step), tuple(damaged)


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
        if config.tokenizer.added_tokens:
            vocab_size = max(vocab_size, corpus.tokenizer.vocab_size)  # the model gets room for them
        check_fits(corpus.tokenizer, vocab_size, str(base))
    elif model.huggingface or model.custom:
        values, counted = measured_shape(model, vocab_size, config.data.block_size)
        model, vocab_size = foreign_shape(values), int(values["vocab_size"])
        check_fits(corpus.tokenizer, vocab_size, "model.huggingface")
    trainable = _adapter_share(config, model, vocab_size) if config.lora.enabled else 1.0
    batch, length = config.training.per_device_train_batch_size, config.data.block_size
    return Workload(model, vocab_size, batch, length, trainable, counted)


def _check_adapter(config: TrainConfig, base: Path | None, checkpoint: Checkpoint | None) -> None:
    """A fresh adapter fits the layers of the base, before any text is read.

    Raises:
        ConfigError: It does not; names the layers that there are.
        MissingPackageError: peft cannot be imported.
    """
    model = None
    if base is not None and checkpoint is None and config.lora.enabled:
        model = without_numbers(read_config(base), str(base))
    if model is not None:
        require_peft()
        configure(model.core, config.lora, (), 1)


def _adapter_share(config: TrainConfig, model: ModelConfig, vocab_size: int) -> float:
    """Share of the parameters that is trained: an adapter on all linear layers of the blocks, and what is trained whole
    at the ends.
    """
    inner = 4 * (model.hidden_size + model.hidden_size) + 3 * (model.hidden_size + model.intermediate_size)
    ends = sum(name in ("embed_tokens", "lm_head") for name in config.lora.modules_to_save)
    trained = config.lora.r * inner * model.num_hidden_layers + ends * vocab_size * model.hidden_size
    return min(trained / model.num_parameters(vocab_size), 1.0)


def _validation(prepared: Prepared, runtime: Runtime) -> Validation | None:
    """The held-out sequences, each process its share; only a whole pass over them has a number of bytes."""
    held_out = prepared.corpus.data.validation
    if held_out is None:
        return None
    # As many sequences however they are batched: what was measured before a resume is compared with it.
    count = min(prepared.fingerprint[MEASURED] or held_out.count, held_out.count)

    def batches() -> Iterator[Batch]:
        found = evaluation_batches(held_out, prepared.plan.micro_batch, count)
        return islice(found, runtime.rank, None, runtime.world_size)

    lossless = prepared.corpus.tokenizer.is_lossless  # bits for each byte mean nothing where bytes are dropped
    return Validation(batches, held_out.text_bytes if count == held_out.count and lossless else 0)
