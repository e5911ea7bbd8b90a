"""The shape of the network, in LlamaConfig's names."""

from typing import Self

from pydantic import Field, model_validator

from llmt.config.base import Count, Flag, Mapping, Number, Section


class ModelConfig(Section):
    """A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

    hidden_size: Count = Field(256, gt=0)
    """Width of the residual stream, in features."""

    intermediate_size: Count = Field(704, gt=0)
    """Width of the gated feed-forward layer, in features."""

    num_hidden_layers: Count = Field(6, gt=0)
    """Number of blocks."""

    num_attention_heads: Count = Field(4, gt=0)
    """Number of query heads; divides `hidden_size`."""

    num_key_value_heads: Count | None = Field(None, gt=0)
    """Number of key and value heads; divides `num_attention_heads`. None means one for each query head."""

    max_position_embeddings: Count | None = Field(None, gt=0)
    """Longest context in tokens. None means `data.block_size`."""

    rope_theta: Number = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""

    rms_norm_eps: Number = Field(1e-5, gt=0)
    """Added to the mean square inside RMSNorm."""

    tie_word_embeddings: Flag = True
    """Use one matrix for the input embeddings and the output head."""

    initializer_range: Number = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""

    attention_dropout: Number = Field(0.0, ge=0, lt=1)
    """Share of attention weights dropped in training."""

    hidden_dropout: Number = Field(0.0, ge=0, lt=1)
    """Share of features dropped in training where a layer joins the residual stream."""

    huggingface: Mapping = Field({})
    """Another architecture of transformers, from scratch: `model_type` and other keys of its `config.json`, such as
    `{model_type: gpt2, n_layer: 4}`. The settings above are not used then. Vocabulary and context follow the text."""

    custom: Mapping = Field({})
    """A registered model class of one's own: its `model_type`, and arguments of its constructor. The settings above
    are not used then. `LLMT_PLUGINS` names the module that registers it."""

    @model_validator(mode="after")
    def _one_architecture(self) -> Self:
        if self.huggingface and self.custom:
            raise ValueError("huggingface and custom are two architectures: give one")
        for name, values in (("huggingface", self.huggingface), ("custom", self.custom)):
            if values and not isinstance(values.get("model_type"), str):
                raise ValueError(f"{name} has no model_type, such as {{model_type: gpt2}}")
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, and {self.head_dim} is odd")
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.kv_heads}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, resolved."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.hidden_size // self.num_attention_heads

    def num_parameters(self, vocab_size: int) -> int:
        """Trainable parameters of the whole network with a vocabulary of `vocab_size` tokens."""
        attention = 2 * self.hidden_size * (self.num_attention_heads + self.kv_heads) * self.head_dim
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + self.hidden_size
