"""The whole architecture: token ids -> hidden states, in Llama's parameter names.

Shapes: B batch, T tokens, D hidden_size, H query heads, K key heads, E head size, F feed-forward size,
V vocabulary. Rotary positions (https://arxiv.org/abs/2104.09864) in the rotate-half layout, RMSNorm
(https://arxiv.org/abs/1910.07467), SwiGLU (https://arxiv.org/abs/2002.05202), grouped queries
(https://arxiv.org/abs/2305.13245).
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmt.config.model import ModelConfig
from llmt.errors import UsageError
from llmt.models.attention import causal_attention, document_visibility
from llmt.models.base import BaseLanguageModel
from llmt.models.cache import KeyValueCache
from llmt.models.dropout import dropout
from llmt.models.llama import llama_config

TIED_SELF_LOGIT = 5.0

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the positions, each `(T, E)`, or `(B, 1, T, E)` where rows differ."""


class RMSNorm(nn.Module):
    """Scale each feature vector to unit mean square, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` to `(..., D)`."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Projection(nn.Linear):
    """A linear layer without bias, which draws no numbers where there is no memory for them."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights, unless they are a shape alone."""
        if not self.weight.is_meta:
            super().reset_parameters()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the two halves of every `(B, H, T, E)` head by the angle of its position."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.fp32_blocks = False
        width, keys = config.num_attention_heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = Projection(config.hidden_size, width)
        self.k_proj = Projection(config.hidden_size, keys)
        self.v_proj = Projection(config.hidden_size, keys)
        self.o_proj = Projection(width, config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, cache: KeyValueCache | None, visible: Tensor | None) -> Tensor:
        """`(B, T, D)` to `(B, T, D)`."""
        B, T, _ = x.shape
        query = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, E)
        key = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, E)
        value = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, E)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)  # (B, K, T_seen + T, E)
        dropout = self.dropout if self.training else 0.0
        mixed = causal_attention(
            query, key, value, dropout=dropout, visible=visible, fp32_blocks=self.fp32_blocks
        )  # (B, H, T, E)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Gated feed-forward layer: `(B, T, D)` through `(B, T, F)` to `(B, T, D)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Projection(config.hidden_size, config.intermediate_size)
        self.up_proj = Projection(config.hidden_size, config.intermediate_size)
        self.down_proj = Projection(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, D)` to `(B, T, D)`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = config.hidden_dropout

    def forward(
        self, x: Tensor, rotation: Rotation, cache: KeyValueCache | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """`(B, T, D)` to `(B, T, D)`; `visible` is `(B, 1, T, T)` where documents are kept apart."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), rotation, cache, visible))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.dropout and self.training else x


class Decoder(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


@final
class TransformerLM(BaseLanguageModel):
    """A Llama: `state_dict()` has the keys of `LlamaForCausalLM`, and equal weights give equal logits.

    Args:
        config: Shape of the network.
        vocab_size: Number of tokens V.
        context_length: Longest sequence in tokens, where the configuration does not say.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, context_length: int = 2048) -> None:
        super().__init__()
        self.settings = config
        self.vocab_size = vocab_size
        self.context_length = config.max_position_embeddings or context_length
        self.gradient_checkpointing = False
        self.model = Decoder(config, vocab_size)
        if not config.tie_word_embeddings:
            self.lm_head = Projection(config.hidden_size, vocab_size)

    def initialize(self, seed: int) -> None:
        """Draw all weights anew: normal with `initializer_range`, norms 1, and 0 in the layers that write to the
        residual stream, so that every block begins as the identity (https://arxiv.org/abs/1901.09321).

        Tied embeddings are drawn small enough that a token does not begin by predicting itself: the logit of the
        token at its own position starts at hidden_size * std, which is held to 5.
        """
        size, std = self.settings.hidden_size, self.settings.initializer_range
        embedding_std = min(std, TIED_SELF_LOGIT / size) if self.settings.tie_word_embeddings else std
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.ones_(parameter)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
            else:
                scale = embedding_std if name.endswith("embed_tokens.weight") else std
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)

    def set_dropout(self, attention: float, hidden: float) -> None:
        """Drop this share of attention weights and of features in training from now on."""
        for block in self.model.modules():
            if isinstance(block, Block):
                block.self_attn.dropout, block.dropout = attention, hidden

    def set_fp32_blocks(self, on: bool) -> None:
        """Whether oneDNN multiplies in fp32, which decides how attention is computed: see `causal_attention`."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fp32_blocks = on

    def hidden_states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, D)` final hidden states; each 0 of the `(B, T)` positions begins a document.

        Raises:
            UsageError: Both a cache and positions.
        """
        if cache is not None and position_ids is not None:
            raise UsageError("position_ids: a cache goes on with one document", "leave one of the two out")
        x = self.model.embed_tokens(input_ids)  # (B, T, D)
        if position_ids is None:
            start, visible = 0 if cache is None else cache.length, None
            positions = torch.arange(start, start + input_ids.shape[1], device=self.device)
        else:
            positions, visible = position_ids[:, None], document_visibility(position_ids)
        rotation = self._rotation(positions, x.dtype)
        for block in self.model.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotation, None, visible, use_reentrant=False)
            else:
                x = block(x, rotation, cache, visible)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        return self.model.norm(x)

    def output_weight(self) -> Tensor:
        """The `(V, D)` output head: the embeddings themselves where they are tied."""
        return self.model.embed_tokens.weight if self.settings.tie_word_embeddings else self.lm_head.weight

    def new_cache(self, batch_size: int, length: int) -> KeyValueCache:
        """Room for `batch_size` sequences of `length` tokens."""
        weight = self.model.embed_tokens.weight
        shape = (batch_size, self.settings.kv_heads, length, self.settings.head_dim)
        return KeyValueCache(self.settings.num_hidden_layers, shape, weight.dtype, weight.device)

    def model_config(self) -> dict[str, Any]:
        """A Llama `config.json`."""
        return llama_config(self.settings, self.vocab_size, self.context_length)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosines and sines of `(..., T)` positions, each `(..., T, E)`, computed in fp32."""
        half = self.settings.head_dim // 2
        powers = torch.arange(half, dtype=torch.float32, device=self.device) / half
        angles = positions[..., None].to(torch.float32) * self.settings.rope_theta**-powers
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)
