"""One training run as it was asked for: the root of the configuration tree."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llmt.config.base import Count, Flag, Section, Text
from llmt.config.data import DataConfig
from llmt.config.lora import CHANGES_BASE, LoraConfig
from llmt.config.model import ModelConfig
from llmt.config.names import NEWEST
from llmt.config.tokenizer import TokenizerConfig
from llmt.config.training import LoggingConfig, TrainingConfig

Device = Literal["auto", "cpu", "cuda", "mps"]


class TrainConfig(Section):
    """Everything that `llmt train` can be told."""

    name: Text | None = None
    """Name of the run. None takes the name of the template or of the configuration file."""

    output_dir: Text | None = None
    """Directory of the run. None means `./runs/NAME`."""

    base: Text | None = None
    """Directory of a model to go on from, or `hf:NAME` to fetch one from the hub. `newest` is the newest finished run
    under `./runs`, and where there is none, the quickstart model, which is then trained first. None starts from random
    weights; with an adapter it means `newest`."""

    device: Device = "auto"
    """Where to compute: `auto` takes CUDA, then MPS, then the CPU."""

    threads: Count | None = Field(None, gt=0)
    """CPU threads of one operation. None means the physical cores this process may use."""

    portable_numerics: Flag = False
    """Compute with the instructions that every processor of this kind has, so that another one comes to the same bits
    more often. Slower, on the CPU only, and nothing is compiled."""

    seed: Count = Field(42, ge=0)
    """Start of every random number: initial weights, sample order, dropout, the sample at the end."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    lora: LoraConfig = LoraConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        longest = self.model.max_position_embeddings
        if longest is not None and self.data.block_size > longest:
            raise ValueError(
                f"data.block_size {self.data.block_size} is longer than model.max_position_embeddings {longest}"
            )
        return self

    @property
    def takes_newest(self) -> bool:
        """The base is the newest finished run."""
        return self.base == NEWEST or (self.base is None and self.lora.enabled)

    @model_validator(mode="after")
    def _adapter_is_safetensors(self) -> Self:
        if self.lora.enabled and self.training.save_format != "safetensors":
            raise ValueError("save_format pytorch with lora: an adapter is written as safetensors")
        return self

    @model_validator(mode="after")
    def _pairs_are_compared(self) -> Self:
        if self.training.objective != "dpo":
            return self
        moves = {"bias": self.lora.bias != "none", "init": self.lora.init in CHANGES_BASE}
        moved = next((name for name, does in moves.items() if does and self.lora.enabled), None)
        if moved is not None:
            raise ValueError(f"training.objective dpo with lora.{moved}: the base is the reference and may not move")
        if self.lora.enabled and self.lora.method == "adalora":
            raise ValueError(
                "training.objective dpo with lora.method adalora: its penalty belongs to the loss of the next token, "
                "and without it ranks are not taken away as they should be"
            )
        if self.data.streaming:
            raise ValueError("training.objective dpo with data.streaming: a stream has no pairs")
        return self

    @model_validator(mode="after")
    def _portable_is_possible(self) -> Self:
        if self.portable_numerics and self.training.compile == "always":
            raise ValueError("portable_numerics with training.compile always: compiled code is made for this processor")
        if self.portable_numerics and self.device not in ("auto", "cpu"):
            raise ValueError(f"portable_numerics with device {self.device}: it is about the CPU")
        return self
