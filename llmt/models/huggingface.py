"""Any causal model of the transformers library, as a `BaseLanguageModel`: the door of transformers."""

import inspect
import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from llmt.errors import MissingPackageError, ModelFileError, UsageError
from llmt.models.attention import document_visibility
from llmt.models.base import BaseLanguageModel, where_given
from llmt.models.cache import KeyValueCache
from llmt.models.loss import IGNORED, TokenLoss, logits_loss

FORBIDDEN_KEYS = ("auto_map", "trust_remote_code", "custom_generate", "_attn_implementation_internal")
"""Keys of a `config.json` that would make a loader run code from the model's own files."""

MASK_WANTED = ("biogpt", "falcon", "opt", "xglm")
"""Architectures that take positions, make no mask from them, and see all that stands before: they are given a mask."""


@final
class HuggingFaceModelWrapper(BaseLanguageModel):
    """A model of another architecture, loaded by `AutoModelForCausalLM` from a local directory.

    Args:
        directory: Its files; safetensors only.
        dtype: Number format of the weights.

    Raises:
        ModelFileError: The files are incomplete, or ask for code of their own.
        MissingPackageError: transformers cannot be imported.
    """

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise MissingPackageError("transformers", str(error)) from None
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        asked = [key for key in FORBIDDEN_KEYS if key in config]
        if asked:
            raise ModelFileError(f"{directory / 'config.json'}: {asked[0]} would run foreign code", "use another model")
        try:
            self.inner, report = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"{directory}: {str(error).splitlines()[0]}", "check the model's files") from None
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelFileError(
                f"{directory}: {len(missing)} tensors are missing, first {missing[0]}", "download again"
            )
        self.vocab_size = self.inner.config.vocab_size
        # Older architectures call it otherwise: GPT-2 says n_positions.
        name = self.inner.config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        self.context_length = int(self.inner.config.to_dict().get(name) or 2048)

    def hidden_states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, D)` final hidden states.

        Raises:
            UsageError: The architecture takes no positions.
        """
        hidden: Tensor = self._read(self.inner.base_model, input_ids, position_ids).last_hidden_state
        return hidden

    def output_weight(self) -> Tensor:
        """The `(V, D)` output head."""
        weight: Tensor = self.inner.get_output_embeddings().weight
        return weight

    def forward(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, V)` logits, with whatever the architecture does to them.

        Raises:
            UsageError: The architecture takes no positions.
        """
        logits: Tensor = self._read(self.inner, input_ids, position_ids).logits
        return logits

    def loss(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> TokenLoss:
        """Next-token loss from the model's own logits; the labels are shifted already."""
        logits = self(input_ids, position_ids=position_ids)
        return TokenLoss(logits_loss(logits.flatten(0, 1), labels.flatten()), int((labels != IGNORED).sum()))

    def new_cache(self, batch_size: int, length: int) -> None:
        """None: these models are read anew for every token."""

    def model_config(self) -> dict[str, Any]:
        """The `config.json` it came with."""
        values: dict[str, Any] = self.inner.config.to_dict()
        return values

    def saved_name(self, parameter: str) -> str:
        """The name without that of the attribute which holds the model here."""
        return parameter.removeprefix("inner.")

    def weights(self) -> dict[str, Tensor]:
        """Every tensor to save, under its own name; a tied head is left out."""
        tied = set(self.inner.all_tied_weights_keys) if self.inner.config.tie_word_embeddings else set()
        return {name: tensor for name, tensor in self.inner.state_dict().items() if name not in tied}

    def _read(self, module: nn.Module, input_ids: Tensor, position_ids: Tensor | None) -> Any:
        """What the whole model or its body says; positions that begin anew are its sign for another document."""
        if position_ids is not None and "position_ids" not in inspect.signature(module.forward).parameters:
            raise UsageError(
                f"position_ids: {type(module).__name__} takes none, it reads a row as one text", "leave them out"
            )
        arguments = where_given(position_ids)
        config = self.inner.config
        # A Falcon with ALiBi counts its places in the mask, and a ready one has none to count.
        if position_ids is not None and config.model_type in MASK_WANTED and not config.to_dict().get("alibi"):
            visible, dtype = document_visibility(position_ids), self.output_weight().dtype
            added = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            arguments["attention_mask"] = added.masked_fill(~visible, torch.finfo(dtype).min)
        return module(input_ids=input_ids, use_cache=False, **arguments)
