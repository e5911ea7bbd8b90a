"""Whether a run may go on: what must be the same, and what may differ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmt.checkpoints import layout
from llmt.config.fields import walk_fields
from llmt.config.load import ConfigSource, load_run
from llmt.config.run import TrainConfig
from llmt.errors import MismatchError
from llmt.system.memory import physical_cores
from llmt.system.plan import PlanLine, RunPlan
from llmt.system.products import can_use_onednn
from llmt.training.fingerprint import ASKED, CHANGES, SCHEDULE, asked_passes
from llmt.training.state import RunState

MAY_DIFFER = {
    "name", "output_dir", "base", "device", "threads",
    "data.cache_dir", "data.num_proc", "data.num_workers", "data.pin_memory",
    "data.max_dropped", "data.max_truncated", "data.max_duplicates", "data.max_unknown", "data.max_overlap",
    "training.max_steps", "training.num_train_epochs", "training.max_tokens", "training.max_time",
    "training.eval_strategy", "training.eval_steps", "training.early_stopping_patience",
    "training.early_stopping_threshold", "training.save_strategy", "training.save_steps", "training.save_total_limit",
    "training.save_format", "training.async_save", "training.stop_on_divergence", "training.retry_on_divergence",
    "training.auto_micro_batch", "training.gradient_checkpointing", "training.compile", "training.accelerate",
    "training.num_processes", "training.distributed_backend", "training.distributed_timeout",
    "logging.steps", "logging.sample_strategy", "logging.sample_steps", "logging.sample_prompt",
    "logging.sample_tokens",
}  # fmt: skip
"""Settings that a resume may change: none of them changes what a step computes from what."""

PASSES = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
"""Settings that a resume may change together: a step has as many sequences as before."""

PINNED = ("precision", "fp32_products", "threads", "micro_batch", "compile")
"""Decisions that a resume takes over where they were left open, so that the numbers stay the same bit for bit."""


def differences(directory: Path, config: TrainConfig) -> list[str]:
    """The settings that a resume has to leave alone and that a configuration has otherwise than the run there.

    Raises:
        ConfigError: The run's own configuration cannot be read.
    """
    saved = _saved_config(directory)
    same_step = _sequences(saved) == _sequences(config)
    found = []
    for field in walk_fields(TrainConfig):
        before, now = _value(saved, field.path), _value(config, field.path)
        if before != now and field.path not in MAY_DIFFER and not (same_step and field.path in PASSES):
            found.append(f"{field.path}: {before} -> {now}")
    return found


def regroups(state: RunState, config: TrainConfig) -> bool:
    """Whether a resume was told to take the sequences of a step in other passes than the checkpoint's run."""
    now = asked_passes(config)
    before = (state.fingerprint or {}).get(ASKED, now)
    return bool(before[0] != now[0] or (now[1] and not before[1]))


def _saved_config(directory: Path) -> TrainConfig:
    return load_run(ConfigSource(directory.name, path=directory / layout.RUN_CONFIG), environ={}).config


def _sequences(config: TrainConfig) -> int:
    return config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps


def check_same_config(directory: Path, config: TrainConfig) -> None:
    """The configuration of a resume is that of the run, but for what may differ.

    Raises:
        MismatchError: It is not; names every difference.
    """
    found = differences(directory, config)
    if found:
        raise MismatchError(
            f"{directory}: the run differs: {'; '.join(found)}",
            f"llmt train {directory} --resume   takes the run's own settings",
        )


def check_same_run(state: RunState, fingerprint: dict[str, Any], *, data_change: bool = False) -> list[str]:
    """Text, tokenizer and the base under an adapter are those of the checkpoint.

    Args:
        state: That of the checkpoint.
        fingerprint: What the resumed run depends on; steps at which the text changed are added to it.
        data_change: Another text is allowed.

    Returns:
        What else differs, so that the run goes on but not bit for bit.

    Raises:
        MismatchError: They are not.
    """
    before = dict(state.fingerprint or {})
    changes = list(before.pop(CHANGES, []))
    notes = []
    for key, what in (("data", "the training text"), ("tokenizer", "the tokenizer"), ("base", "the base model")):
        if before.get(key) == fingerprint[key]:
            continue
        if key != "data" or not data_change:
            allowed = "; or --allow-data-change goes on with it" if key == "data" else ""
            raise MismatchError(
                f"{what} changed since step {state.step}",
                f"put it back as it was, or start a new run with --base on the last checkpoint{allowed}",
            )
        before[key] = fingerprint[key]
        changes.append(state.step)
        notes.append(f"{what} changed since step {state.step}")
    notes += [
        f"{key} {before[key]} -> {now}"
        for key, now in fingerprint.items()
        if key != ASKED and before.get(key, now) != now
    ]
    if fingerprint["device"] != "cpu":
        notes.append(f"{fingerprint['device']} adds in no fixed order")
    if changes:
        fingerprint[CHANGES] = changes
    return notes


def pin_plan(state: RunState, plan: RunPlan, asked: TrainConfig, processes: int, *, regroup: bool = False) -> RunPlan:
    """The plan of a resume: what the run decided by itself stays decided, on the same kind of device.

    Args:
        state: That of the checkpoint, which knows what its steps were computed with.
        plan: What would be decided today.
        asked: The configuration: what it names is not left open.
        processes: How many share a step now.
        regroup: Other passes were asked for.
    """
    before = dict(state.fingerprint or {})
    if before.get("device") != plan.device:
        return plan
    before.setdefault("fp32_products", "torch")  # before there was a choice
    kept: dict[str, Any] = {key: before[key] for key in PINNED if key in before}
    if asked.training.compile != "auto":
        kept.pop("compile", None)
    if regroup:
        kept.pop("micro_batch", None)
    if asked.threads is not None or before.get("processes") != processes:
        kept.pop("threads", None)  # more processes share the cores, or fewer
    lines = tuple(_pin_line(line, kept, before.get(SCHEDULE)) for line in plan.lines)
    pinned = replace(plan, lines=lines, **kept)
    return pinned.without_onednn() if pinned.fp32_products == "onednn" and not can_use_onednn() else pinned


def share_step(plan: RunPlan, sequences: int, processes: int) -> RunPlan:
    """The plan of each of several processes, which together take so many sequences in a step.

    What is read in which step stays the same for every number of processes.

    Raises:
        MismatchError: They cannot be divided among so many.
    """
    own, rest = divmod(sequences, processes)
    if rest:
        divides = max(n for n in range(1, processes) if sequences % n == 0)
        raise MismatchError(
            f"a step of this run has {sequences} sequences, which {processes} processes cannot share",
            f"--num-processes {divides}",
        )
    if plan.micro_batch * plan.accumulation == own:
        return plan
    micro = max(n for n in range(1, min(plan.micro_batch, own) + 1) if own % n == 0)
    return plan.with_micro_batch(micro, own // micro, f"{sequences} sequences a step, as the run began")


def _pin_line(line: PlanLine, kept: dict[str, Any], before: int | None) -> PlanLine:
    if line.name in kept:
        more = line.name == "threads" and kept["threads"] > physical_cores()
        here = f", though this process may use {physical_cores()} cores" if more else ""
        return replace(line, value=kept[line.name], reason=f"as the run began{here}")
    if line.name == "steps" and before not in (None, line.value):
        return replace(line, reason=f"{line.reason}; was {before}, so the learning rate follows a new curve from here")
    return line


def _value(config: TrainConfig, path: str) -> Any:
    node: Any = json.loads(config.model_dump_json())
    for part in path.split("."):
        node = node[part]
    return node
