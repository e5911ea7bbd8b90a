"""the Trainer of transformers, and the plainest loop with `torch.save` -> the same faults as llmt."""

import os
import warnings
from pathlib import Path
from typing import Any

from harness.lab import TEXT, Lab, sha256

STEPS, SAVE = 6, 2


def prepare_hf(lab: Lab, place: Path) -> None:
    """An empty folder; its model is made of a seed."""
    (place / "run").mkdir()


def hf_trainer(directory: Path, dropout: float = 0.0, **settings: Any) -> Any:
    """A Trainer over the text as bytes: the shape of the tiny model of llmt."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    ids = torch.tensor(list(TEXT.encode()), dtype=torch.long)
    rows = [{"input_ids": ids[i : i + 16], "labels": ids[i : i + 16]} for i in range(0, 16 * 40, 16)]
    shape = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        attention_dropout=dropout,
    )  # fmt: skip
    values: dict[str, Any] = {
        "max_steps": STEPS, "save_steps": SAVE, "save_total_limit": 1, "per_device_train_batch_size": 4,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 100, "seed": 1,
        "learning_rate": 0.01,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(directory), **(values | settings))
    return Trainer(model=LlamaForCausalLM(shape), args=arguments, train_dataset=rows, eval_dataset=rows)


def train_hf(**settings: Any) -> None:
    """Train from the last checkpoint that the Trainer finds, and save the model."""
    from transformers.trainer_utils import get_last_checkpoint

    trainer = hf_trainer(Path("run"), **settings)
    last = get_last_checkpoint("run") if Path("run").is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model("run")


def digest_hf(place: Path) -> str:
    """The hash of the saved model."""
    path = place / "run" / "model.safetensors"
    return sha256(path) if path.exists() else "none"


def train_plain() -> None:
    """Momentum on one matrix; every step overwrites the one checkpoint."""
    import torch

    path = Path("run", "checkpoint.pt")
    state = {"step": torch.tensor(0), "weights": torch.ones(64, 64), "moment": torch.zeros(64, 64)}
    if path.exists():
        state = torch.load(path, weights_only=True)
    while state["step"] < STEPS:
        gradient = state["weights"].sin() + state["step"]
        state["moment"] = 0.9 * state["moment"] + gradient
        state["weights"] = state["weights"] - 0.01 * state["moment"]
        state["step"] = state["step"] + 1
        with open(path, "wb", buffering=0) as file:
            torch.save(state, file)
    if os.path.getsize(path) == 0:
        raise ValueError("nothing was written")


def digest_plain(place: Path) -> str:
    """The hash of the weights in the checkpoint."""
    path = place / "run" / "checkpoint.pt"
    return sha256(path) if path.exists() else "none"
