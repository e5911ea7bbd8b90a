"""How the weights are learnt, and the settings of logs."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llmt.config.base import Count, Duration, Flag, Number, Section, Text

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainingConfig(Section):
    """Optimisation, stopping, validation and checkpoints."""

    objective: Literal["next_token", "dpo"] = "next_token"
    """What is learnt: the next token, or with `dpo` which of two answers is preferred, by direct preference
    optimisation of an adapter against its base (https://arxiv.org/abs/2305.18290)."""

    dpo_beta: Number = Field(0.1, gt=0)
    """How strongly `dpo` holds the adapter to its base: higher stays nearer."""

    dpo_loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Loss of a pair under `dpo`: `sigmoid` as in its paper, `hinge` (https://arxiv.org/abs/2309.06657), or `ipo` of
    likelihoods for each token (https://arxiv.org/abs/2310.12036)."""

    dpo_label_smoothing: Number = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs that `dpo` takes to be the wrong way round; with `dpo_loss: sigmoid` only."""

    max_steps: Count | None = Field(None, gt=0)
    """Stop after this many optimizer steps."""

    num_train_epochs: Number | None = Field(None, gt=0)
    """Stop after this many passes over the training text. With none of `max_steps`, `max_tokens` and this, one
    pass."""

    max_tokens: Count | None = Field(None, gt=0)
    """Stop after the step that reaches this many trained tokens."""

    max_time: Duration | None = None
    """Stop after this much wall time, such as `5m` or `1h30m`, if no other stop comes first. The learning rate then
    follows the clock where that is ahead of the steps, so that it reaches its floor at either end; such a run is not
    repeatable bit for bit."""

    per_device_train_batch_size: Count = Field(16, gt=0)
    """Sequences that pass through the model at once."""

    gradient_accumulation_steps: Count = Field(1, gt=0)
    """Passes summed before each optimizer step."""

    learning_rate: Number = Field(3e-3, ge=0)
    """Peak learning rate of AdamW, SGD and Adafactor."""

    optimizer: Literal["adamw", "muon", "sgd", "adafactor", "adamw_8bit"] = "muon"
    """`adamw` for everything, or `muon` for the matrices of the blocks and AdamW for the rest; `sgd` with
    momentum; `adafactor`, whose moments take little memory (https://arxiv.org/abs/1804.04235); `adamw_8bit` with the
    package bitsandbytes on CUDA."""

    muon_learning_rate: Number = Field(0.01, ge=0)
    """Peak learning rate of Muon (https://kellerjordan.github.io/posts/muon/), scaled so that its updates are
    as large as AdamW's at the same rate (https://arxiv.org/abs/2502.16982)."""

    muon_momentum: Number = Field(0.95, ge=0, lt=1)
    """Momentum of Muon."""

    muon_ns_steps: Count = Field(5, ge=1, le=10)
    """Iterations by which Muon orthogonalises an update: fewer cost less, and 3 learnt as much for each step of small
    models to within a hundredth of a bit."""

    sgd_momentum: Number = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""

    weight_decay: Number = Field(0.1, ge=0)
    """Decoupled decay, applied to matrices and never to norms."""

    adam_beta1: Number = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""

    adam_beta2: Number = Field(0.95, ge=0, lt=1)
    """Decay of AdamW's second moment."""

    adam_epsilon: Number = Field(1e-8, gt=0)
    """Added to the root of AdamW's second moment."""

    max_grad_norm: Number = Field(1.0, ge=0)
    """Clip the global gradient norm to this. 0 turns clipping off."""

    lr_scheduler_type: Literal["constant", "linear", "cosine", "polynomial", "warmup_stable_decay"] = "cosine"
    """Shape of the learning rate after warm-up. `warmup_stable_decay` stays at the peak and falls over the last
    `lr_decay_ratio` of the steps (https://arxiv.org/abs/2404.06395)."""

    warmup_steps: Count | None = Field(None, ge=0)
    """Steps of linear warm-up. None means `warmup_ratio` of all steps."""

    warmup_ratio: Number = Field(0.05, ge=0, le=1)
    """Share of all steps spent on warm-up, where `warmup_steps` is not given."""

    min_lr_ratio: Number = Field(0.0, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""

    lr_power: Number = Field(1.0, gt=0)
    """Exponent of the polynomial schedule."""

    lr_decay_ratio: Number = Field(0.2, gt=0, le=1)
    """Share of all steps over which `warmup_stable_decay` falls."""

    ema_decay: Number | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights with this decay. The average is what is validated, kept as
    the model and published."""

    precision: Precision = "auto"
    """Number format of the computation. Weights are kept in fp32 besides. `fp16` scales the loss so that small
    gradients survive; a step that overflows is computed again with half the scale."""

    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the blocks with torch.compile. `auto` does so where a compiler exists and the run is long
    enough to win the time back."""

    gradient_checkpointing: Flag = False
    """Recompute each block in the backward pass: less memory, a third more work."""

    auto_micro_batch: Flag = False
    """Find by trial, before the first step, the largest micro-batch that fits into memory. The sequences of a step stay
    the same: accumulation makes up for it."""

    num_processes: Count = Field(1, gt=0)
    """Processes that share a step, each with its own micro-batch, on this machine."""

    accelerate: Flag = False
    """Go through the package accelerate with one process too. With several, it is always used."""

    distributed_backend: Literal["auto", "gloo", "nccl"] = "auto"
    """How processes talk to each other."""

    distributed_timeout: Duration = 300.0
    """How long a process waits for the others before it takes them for lost."""

    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """Validate every `eval_steps`, after each pass over the text, or never. At the end of a run that validates, it is
    always done."""

    eval_steps: Count | None = Field(None, gt=0)
    """Validate every this many steps. None validates ten times a run, by the clock where only that ends it."""

    eval_batches: Count | None = Field(None, gt=0)
    """Batches of `per_device_train_batch_size` in one validation during training. None takes all held-out text."""

    early_stopping_patience: Count | None = Field(None, gt=0)
    """Stop after this many validations in a row that were not better than the best."""

    early_stopping_threshold: Number = Field(0.0, ge=0)
    """How much lower than the best a validation loss has to be to count as better for early stopping."""

    stop_on_divergence: Flag = False
    """Stop where the loss explodes, instead of only saying so. A loss or gradient that is no number always stops."""

    retry_on_divergence: Flag = False
    """Where a run diverges, go back to its last checkpoint and try again, once: for memory or a device that may err.
    What was no chance happens again, and stops the run."""

    save_strategy: Literal["steps", "epoch"] = "steps"
    """Write a checkpoint every `save_steps`, or after each pass over the text."""

    save_steps: Count | None = Field(None, gt=0)
    """Write a checkpoint every this many steps. None writes five a run, by the clock where only that ends it."""

    save_total_limit: Count = Field(2, ge=1)
    """Newest checkpoints that are kept; the best is kept besides."""

    save_format: Literal["safetensors", "pytorch"] = "safetensors"
    """Kind of the model's weight files; an adapter is always written as safetensors."""

    async_save: Flag = False
    """Copy what a checkpoint needs and write it while training goes on. Takes the memory of one more copy of weights
    and moments."""

    @model_validator(mode="after")
    def _smoothing_is_read(self) -> Self:
        if self.dpo_label_smoothing and self.dpo_loss != "sigmoid":
            raise ValueError(f"dpo_label_smoothing is for dpo_loss sigmoid, and dpo_loss is {self.dpo_loss}")
        return self

    @model_validator(mode="after")
    def _patience_is_measured(self) -> Self:
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError("early_stopping_patience counts validations, and eval_strategy is no")
        return self


class LoggingConfig(Section):
    """What a run says while it works."""

    steps: Count = Field(10, gt=0)
    """Write a line of metrics every this many steps."""

    sample_strategy: Literal["end", "steps", "epoch"] = "end"
    """When the model writes a sample of text: at the end of the run, or also every `sample_steps` or after each pass
    over the text."""

    sample_steps: Count | None = Field(None, gt=0)
    """Write a sample every this many steps. None writes ten a run, by the clock where only that ends it."""

    sample_prompt: Text = ""
    """Start of the sample. Empty lets the model begin."""

    sample_tokens: Count = Field(80, ge=0)
    """Length of a sample, in tokens. 0 writes none."""
