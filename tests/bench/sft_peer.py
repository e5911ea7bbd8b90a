"""trl's SFTTrainer on the rows of a run of llmt: the same token ids in the same order, under the same settings."""

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

Pair = tuple[list[int], list[int]]
"""Token ids of a row, and its labels in trl's terms: not shifted, -100 where nothing is learnt."""


@dataclass(frozen=True)
class Recipe:
    """How both train: AdamW, linear warm-up and a linear fall, one row for each sequence, loss of the answers.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows of a step.
        learning_rate: At its peak.
        r: Rank of the adapter; alpha is twice as much, and there is no dropout.
        warmup: Steps of warm-up.
        weight_decay: Of the adapter's matrices.
        betas: Of AdamW.
        max_grad_norm: Gradients are clipped to it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    r: int
    warmup: int = 10
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0

    @property
    def alpha(self) -> int:
        """The update is scaled by alpha / r."""
        return 2 * self.r

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def of_llmt(self) -> dict[str, Any]:
        """As `training` of llmt names it."""
        return {
            "max_steps": self.steps, "per_device_train_batch_size": self.batch_size, "warmup_steps": self.warmup,
            "learning_rate": self.learning_rate, "optimizer": "adamw", "lr_scheduler_type": "linear",
            "weight_decay": self.weight_decay, "adam_beta1": self.betas[0], "adam_beta2": self.betas[1],
            "max_grad_norm": self.max_grad_norm,
        }  # fmt: skip

    def of_trl(self, folder: Path, seed: int) -> Any:
        """As trl names it."""
        from trl import SFTConfig

        return SFTConfig(
            output_dir=str(folder), seed=seed, max_steps=self.steps, per_device_train_batch_size=self.batch_size,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, adam_beta1=self.betas[0],
            adam_beta2=self.betas[1], max_grad_norm=self.max_grad_norm, completion_only_loss=True, packing=False,
            train_sampling_strategy="sequential", bf16=False, use_cpu=True, gradient_checkpointing=False,
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip


def trained_by_trl(recipe: Recipe, base: Path, rows: Path, prepared: Any, folder: Path) -> dict[str, Any]:
    """A run of trl: its losses by step, and the held-out loss after it, measured by llmt on its saved adapter.

    Args:
        recipe: How to train.
        base: Directory of the base.
        rows: File of the questions.
        prepared: The run of llmt on the same file, whose order and schedule are taken.
        folder: Where it may write.
    """
    import datasets
    from peft import LoraConfig
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import AutoTokenizer, PrinterCallback, set_seed
    from trl import SFTTrainer

    from llmt.training.fingerprint import WARMUP
    from llmt.training.pace import schedule_of

    datasets.disable_progress_bars()
    seed = prepared.config.seed
    set_seed(seed)
    ours = rows_of_llmt(recipe, prepared)
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = texts_in_order(recipe, rows, prepared, tokenizer.eos_token)
    trainer = SFTTrainer(
        model=str(base), args=recipe.of_trl(folder, seed), train_dataset=datasets.Dataset.from_list(asked),
        processing_class=tokenizer, peft_config=LoraConfig(
            r=recipe.r, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    require_same(ours, [(row["input_ids"], row["labels"]) for row in trainer.train_dataset])
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer()
    # transformers' own linear schedule begins at zero, a step later than llmt's.
    schedule = schedule_of(prepared.config, prepared.plan, prepared.fingerprint[WARMUP])
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, schedule.factor)
    trainer.train()
    trainer.save_model(str(folder))
    losses = [round(line["loss"], 6) for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "after": held_out_loss(base, folder, prepared)}


def rows_of_llmt(recipe: Recipe, prepared: Any) -> list[Pair]:
    """The rows that a run of llmt reads, as trl would hold them."""
    data, config = prepared.corpus.data, prepared.config
    batches = data.loader(recipe.batch_size, config.seed, 0, False).batches()
    found: list[Pair] = []
    for batch in islice(batches, recipe.steps):
        for ids, labels in zip(batch.input_ids.numpy(), batch.labels.numpy(), strict=True):
            end = int(np.flatnonzero(labels != -100)[-1])  # a row ends with what is learnt, and padding follows
            found.append(([*ids[: end + 1].tolist(), int(labels[end])], [-100, *labels[: end + 1].tolist()]))
    return found


def texts_in_order(recipe: Recipe, rows: Path, prepared: Any, end: str) -> list[dict[str, str]]:
    """The same rows as trl is given them: a row of llmt begins with the end of the text before it."""
    from llmt.text.prompts import ANSWER, QUESTION_PROMPT

    every = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    found = prepared.corpus.data.train.find(prepared.config.seed, 0, recipe.steps * recipe.batch_size)
    chosen = [every[number] for _, number in found]
    return [{"prompt": end + QUESTION_PROMPT.format(**row), "completion": ANSWER.format(**row)} for row in chosen]


def require_same(ours: list[Pair], theirs: list[Pair]) -> None:
    """Stop where a row has other token ids, or other tokens of it are learnt."""
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own != other:
            sys.exit(f"row {number}: llmt reads {own}, trl reads {other}")


def held_out_loss(base: Path, adapter: Path, prepared: Any) -> float:
    """Nats for each answer token."""
    from llmt.data.loader import evaluation_batches
    from llmt.evaluation.perplexity import evaluate
    from llmt.models.load import load_model
    from llmt.models.lora import load_adapter

    batches = partial(evaluation_batches, prepared.corpus.data.validation, prepared.plan.micro_batch)
    return evaluate(load_adapter(load_model(base), adapter), batches(), text_bytes=0).loss
