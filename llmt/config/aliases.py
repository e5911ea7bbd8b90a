"""Names that hands type -> the one name of the field, and what their values mean here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alias:
    """Another name for a setting.

    Attributes:
        path: Dotted name of the setting.
        convert: Turns the alias's value into the setting's; raises ValueError where it has no meaning here.
    """

    path: str
    convert: Callable[[Any], Any] | None = None


def _true(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false"):
        raise ValueError(f"must be true or false, not {value!r}")
    return word == "true"


def _amp(value: Any) -> str:
    return "auto" if _true(value) else "fp32"


def _bf16(value: Any) -> str:
    return "bf16" if _true(value) else "fp32"


def _fp16(value: Any) -> str:
    return "fp16" if _true(value) else "auto"


def _forced_cpu(value: Any) -> str:
    return "cpu" if _true(value) else "auto"


def _amp_dtype(value: Any) -> str:
    word = str(value).lower()
    return {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "no": "fp32"}.get(word, word)


def _always(value: Any) -> str:
    return "always" if _true(value) else "never"


def _save_format(value: Any) -> str:
    return "safetensors" if _true(value) else "pytorch"


def _method(value: Any) -> str:
    return str(value).lower()


_MODEL = {
    "d_model": "hidden_size", "n_embd": "hidden_size", "dim": "hidden_size",
    "d_ff": "intermediate_size", "ffn_dim": "intermediate_size",
    "num_layers": "num_hidden_layers", "n_layers": "num_hidden_layers", "n_layer": "num_hidden_layers",
    "num_heads": "num_attention_heads", "n_heads": "num_attention_heads", "n_head": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "num_kv_heads": "num_key_value_heads",
    "max_seq_len": "max_position_embeddings", "n_positions": "max_position_embeddings",
    "layer_norm_eps": "rms_norm_eps", "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range", "dropout": "hidden_dropout", "tie_weights": "tie_word_embeddings",
}  # fmt: skip

_DATA = {
    "train_file": "sources", "train_files": "sources", "data_files": "sources", "data_path": "sources",
    "validation_file": "validation_sources", "eval_file": "validation_sources",
    "val_split": "validation_split", "eval_split": "validation_split",
    "max_length": "block_size", "seq_len": "block_size", "max_seq_length": "block_size",
    "text_field": "text_column", "dataset_text_field": "text_column",
    "dataloader_pin_memory": "pin_memory",
    "dataloader_num_workers": "num_workers", "preprocessing_num_workers": "num_proc", "dataset_num_proc": "num_proc",
}  # fmt: skip

_TRAINING = {
    "batch_size": "per_device_train_batch_size", "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps", "grad_accum_steps": "gradient_accumulation_steps",
    "num_epochs": "num_train_epochs", "epochs": "num_train_epochs",
    "lr": "learning_rate", "optim": "optimizer",
    "lr_scheduler": "lr_scheduler_type", "scheduler": "lr_scheduler_type", "lr_schedule": "lr_scheduler_type",
    "beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon", "adam_eps": "adam_epsilon",
    "grad_clip": "max_grad_norm", "gradient_clipping": "max_grad_norm", "wd": "weight_decay",
    "use_gradient_checkpointing": "gradient_checkpointing", "activation_checkpointing": "gradient_checkpointing",
    "evaluation_strategy": "eval_strategy", "patience": "early_stopping_patience",
    "use_accelerate": "accelerate", "nproc_per_node": "num_processes", "ddp_timeout": "distributed_timeout",
    "auto_find_batch_size": "auto_micro_batch",
    "beta": "dpo_beta", "loss_type": "dpo_loss", "label_smoothing": "dpo_label_smoothing",
    "eval_interval": "eval_steps", "save_interval": "save_steps", "keep_checkpoints": "save_total_limit",
}  # fmt: skip

_LORA = {
    "use_peft": "enabled", "use_lora": "enabled",
    "peft_r": "r", "lora_r": "r", "rank": "r", "lora_rank": "r",
    "peft_alpha": "alpha", "lora_alpha": "alpha", "peft_dropout": "dropout", "lora_dropout": "dropout",
    "peft_target_modules": "target_modules", "lora_target_modules": "target_modules",
    "peft_bias": "bias", "lora_bias": "bias", "init_lora_weights": "init", "lora_modules_to_save": "modules_to_save",
}  # fmt: skip

_CONVERTED = {
    "use_amp": Alias("training.precision", _amp),
    "fp16": Alias("training.precision", _fp16),
    "bf16": Alias("training.precision", _bf16),
    "amp_dtype": Alias("training.precision", _amp_dtype),
    "mixed_precision": Alias("training.precision", _amp_dtype),
    "accelerate_mixed_precision": Alias("training.precision", _amp_dtype),
    "torch_compile": Alias("training.compile", _always),
    "compile_model": Alias("training.compile", _always),
    "force_cpu": Alias("device", _forced_cpu),
    "use_cpu": Alias("device", _forced_cpu),
    "peft_type": Alias("lora.method", _method),
    "logging_steps": Alias("logging.steps"),
    "log_interval": Alias("logging.steps"),
    "model_name_or_path": Alias("base"),
    "run_name": Alias("name"),
    "tokenizer_type": Alias("tokenizer.algo"),
    "tokenizer_path": Alias("tokenizer.path"),
    "num_threads": Alias("threads"),
    "save_safetensors": Alias("training.save_format", _save_format),
    "safe_serialization": Alias("training.save_format", _save_format),
}


def _table() -> dict[str, Alias]:
    table = dict(_CONVERTED)
    for section, names in (("model", _MODEL), ("data", _DATA), ("training", _TRAINING), ("lora", _LORA)):
        table.update({alias: Alias(f"{section}.{field}") for alias, field in names.items()})
    return table


ALIASES = _table()
"""Alias -> setting. An alias is known at the top level, in its own section and as a flag."""


def find_alias(dotted: str) -> Alias | None:
    """The alias behind a dotted key that is no field: by its last part, where the section allows it.

    `training.batch_size` and `batch_size` are the same alias; `model.batch_size` is not.
    """
    section, _, name = dotted.rpartition(".")
    alias = ALIASES.get(name)
    if alias is None:
        return None
    home = alias.path.rpartition(".")[0]
    from_training = section == "training" and name in _CONVERTED
    return alias if section in ("", home) or from_training or (section == "device" and name == "force_cpu") else None
