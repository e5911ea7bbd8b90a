"""What the rest of llmt asks of a language model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, staged_directory
from llmt.checkpoints.saving import save_weights
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE
from llmt.errors import UsageError
from llmt.models.cache import KeyValueCache
from llmt.models.loss import TokenLoss, token_loss
from llmt.models.resize import check_size, resize_vocabulary
from llmt.units import parse_size


def where_given(position_ids: Tensor | None) -> dict[str, Tensor]:
    """The positions as arguments of a call: a model that does not know them works where there are none."""
    return {} if position_ids is None else {"position_ids": position_ids}


class BaseLanguageModel(nn.Module, ABC):
    """A causal language model.

    Attributes:
        vocab_size: Number of tokens V that it knows.
        context_length: Longest sequence it was made for, in tokens.
    """

    vocab_size: int
    context_length: int

    @abstractmethod
    def hidden_states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, D)` final hidden states.

        Args:
            input_ids: Token ids.
            cache: Earlier keys and values; the new ones are appended to it.
            position_ids: `(B, T)`, the place of each input in its document: a 0 begins another one, which sees
                nothing of those before it. None where a row is one text.

        Raises:
            UsageError: Positions are given and cannot be followed.
        """

    @abstractmethod
    def output_weight(self) -> Tensor:
        """The `(V, D)` matrix that turns hidden states into logits."""

    @abstractmethod
    def new_cache(self, batch_size: int, length: int) -> KeyValueCache | None:
        """Room for `batch_size` sequences of `length` tokens; None where the model has no such cache."""

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """What goes into `config.json`, in the names of the transformers library."""

    def forward(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, V)` logits; the arguments are those of `hidden_states`."""
        hidden = self.hidden_states(input_ids, cache, **where_given(position_ids))
        return F.linear(hidden, self.output_weight())

    def loss(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> TokenLoss:
        """Next-token loss of a batch whose labels are shifted already.

        Args:
            input_ids: `(B, T)` token ids.
            labels: `(B, T)` next tokens, -100 where nothing is predicted.
            position_ids: See `hidden_states`.
        """
        hidden = self.hidden_states(input_ids, None, **where_given(position_ids))
        return token_loss(hidden, self.output_weight(), labels)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor to save, under the names of the transformers library."""
        return dict(self.state_dict())

    def saved_name(self, parameter: str) -> str:
        """The name that `weights` has for a name of `named_parameters`."""
        return parameter

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Number of weights, tied ones counted once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def resize_token_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, *, shrink: bool = False
    ) -> nn.Embedding:
        """Make room for tokens that were added to the tokenizer, in place; new rows are the mean of the old ones.

        The parameters are new objects: an optimizer that was made before goes on with the old ones, so make it
        after this.

        Args:
            new_num_tokens: Number of tokens wanted, usually `len(tokenizer)`.
            pad_to_multiple_of: Round up to a multiple of this, which some devices compute faster.
            shrink: Allow fewer tokens than there are.

        Returns:
            The input embedding.

        Raises:
            UsageError: Tokens would be lost, the embeddings are frozen, or the multiple is none.
        """
        size = new_num_tokens
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise UsageError(f"pad_to_multiple_of {pad_to_multiple_of}: it must be 1 or more", "64 is usual")
        if pad_to_multiple_of is not None:
            size += -size % pad_to_multiple_of
        check_size(self.vocab_size, size, shrink, self.output_weight())
        embedding = resize_vocabulary(self, self.output_weight(), size)
        self.vocab_size = size
        return embedding

    def save_pretrained(
        self,
        directory: str | Path,
        max_shard_size: int | str = "5GB",
        *,
        token_ids: Mapping[str, int | None] | None = None,
    ) -> Path:
        """Write a model directory that `AutoModelForCausalLM` opens, whole or not at all.

        Args:
            directory: Where; must not exist yet.
            max_shard_size: Largest file, in bytes or as text.
            token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id` of the tokenizer.

        Raises:
            StorageError: The directory exists, or the disk refused.
        """
        path = Path(directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_directory(path, extra={}) as staged:
            self.write(staged, token_ids=token_ids, max_shard_size=parse_size(max_shard_size))
        return path

    def write(
        self,
        staged: StagedDirectory,
        *,
        weights: Mapping[str, Tensor] | None = None,
        token_ids: Mapping[str, int | None] | None = None,
        max_shard_size: int = DEFAULT_SHARD_SIZE,
    ) -> None:
        """Write `config.json`, `generation_config.json` and the weights into a directory being filled.

        Args:
            staged: Where.
            weights: Tensors to write instead of the module's own, such as fp32 masters.
            token_ids: Special ids of the tokenizer; a name without an id is not written.
            max_shard_size: Largest file in bytes.

        Raises:
            StorageError: The disk refused.
        """
        tensors = {**self.weights(), **(weights or {})}
        ids = {name: value for name, value in (token_ids or {}).items() if value is not None}
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        staged.write_json(layout.CONFIG_FILE, {**self.model_config(), **ids, "dtype": dtype})
        staged.write_json(layout.GENERATION_CONFIG, {"do_sample": True, **ids})
        save_weights(staged, tensors, max_shard_size=max_shard_size)
