"""What the numbers of a run depend on, by name; kept in every checkpoint and compared by a resume."""

from collections.abc import Mapping
from typing import Any

import torch

from llmt.checkpoints.manifest import llmt_version
from llmt.config.run import TrainConfig
from llmt.system.plan import RunPlan
from llmt.training.schedule import warmup_steps

SCHEDULE = "steps of the schedule"
"""Where the learning rate reaches its floor; None where it is constant."""

CHANGES = "data_changes"
"""The steps at which a resume went on with another text."""

MEASURED = "eval_sequences"
"""How many held-out sequences a validation measures; None for all of them."""


WARMUP = "warmup_steps"
"""How many steps the rate rises; a resume over another length keeps them."""

ASKED = "asked_passes"
"""Sequences of a pass as asked, and whether they were to be found by trial: a resume that asks otherwise is heard."""


def fingerprint_of(config: TrainConfig, plan: RunPlan, world_size: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depends on beside its text, its tokenizer and its processor.

    Args:
        config: The run as asked.
        plan: The run as decided.
        world_size: Processes that share a step.
        facts: More of it.
    """
    training = config.training
    measured = None if training.eval_batches is None else training.eval_batches * training.per_device_train_batch_size
    return {
        "base": None,
        "llmt": llmt_version(),
        "torch": torch.__version__,
        "device": plan.device,
        "precision": plan.precision,
        "fp32_products": plan.fp32_products,
        "threads": plan.threads,
        "compile": plan.compile,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processes": world_size,
        "micro_batch": plan.micro_batch,
        "sequences": plan.micro_batch * plan.accumulation * world_size,
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_time": training.max_time,
        MEASURED: measured,
        WARMUP: warmup_steps(plan.total_steps, training.warmup_steps, training.warmup_ratio),
        ASKED: asked_passes(config),
        SCHEDULE: None if training.lr_scheduler_type == "constant" else plan.total_steps,
        **facts,
    }


def asked_passes(config: TrainConfig) -> list[int | bool]:
    """See `ASKED`."""
    return [config.training.per_device_train_batch_size, config.training.auto_micro_batch]
