"""Any causal model of the transformers library, as a `BaseLanguageModel`: the door of transformers."""

import difflib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from llmt.checkpoints.reading import FETCH_AGAIN, shown
from llmt.checkpoints.weights import WeightReader
from llmt.errors import MissingPackageError, ModelFileError, UsageError
from llmt.models.attention import document_visibility
from llmt.models.base import BaseLanguageModel, where_given
from llmt.models.cache import KeyValueCache
from llmt.models.foreign import check_config, require_layers
from llmt.models.hub import find_model
from llmt.models.loss import IGNORED, TokenLoss, label_nats, logits_loss, token_loss

MASK_WANTED = ("biogpt", "falcon", "opt", "xglm")
"""Architectures that take positions, make no mask from them, and see all that stands before: they are given a mask."""

_MEANINGLESS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError)
"""What building a model raises for values that its architecture has no meaning for."""


@final
class HuggingFaceModelWrapper(BaseLanguageModel):
    """A model of another architecture.

    `from_pretrained` opens one, from a directory or from the hub; `from_config` makes one with random weights.

    Args:
        inner: A causal language model of transformers.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.vocab_size = inner.config.vocab_size
        self.context_length = int(_value(inner.config, "max_position_embeddings") or 2048)
        self._plain_head: bool | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        safe_serialization: bool | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        local_files_only: bool = True,
    ) -> Self:
        """Open a model of any architecture, Llama too, as transformers computes it.

        Args:
            path: A model directory, a weight file, or the name of a model on the hub.
            safe_serialization: True takes safetensors alone, False PyTorch files alone, None what is there.
            device: Where the weights go.
            dtype: What floating weights become; None keeps what the files have.
            local_files_only: Do not ask the hub; its cache on this machine is looked at all the same.

        Raises:
            ModelFileError: A file is missing, damaged or unsafe, or its tensors are not those of its configuration.
            HubError: The hub does not have it, or cannot be reached.
        """
        found = find_model(path, local_files_only=local_files_only)
        return super().from_pretrained(found, safe_serialization, device=device, dtype=dtype)

    @classmethod
    def from_config(cls, values: Mapping[str, Any], seed: int = 42) -> Self:
        """A model with random weights, drawn as its architecture draws them.

        Args:
            values: Keys of a `config.json`: `model_type`, and what differs from that architecture's defaults.
            seed: Start of the random numbers.

        Raises:
            ModelFileError: There is no such architecture, or a value has no meaning for it.
            MissingPackageError: transformers cannot be imported.
        """
        name = "model.huggingface"
        check_config(values, name)
        config = parse_config(values, name)
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        try:
            with _quiet():
                return cls(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        except _MEANINGLESS as error:
            raise ModelFileError(f"{name}: {_reason(error)}", "check its values") from None

    @classmethod
    def from_weights(
        cls, values: Mapping[str, Any], reader: WeightReader, dtype: torch.dtype | None, name: str
    ) -> Self:
        """A model from its configuration and open weight files, whose tensors become its parameters.

        Args:
            values: The parsed `config.json`, after `check_config`.
            reader: The weight files.
            dtype: What floating weights become; None keeps what the files have.
            name: How errors call the configuration.

        Raises:
            ModelFileError: A file is damaged, there is no such architecture, or the tensors are not its own.
        """
        config = parse_config(values, name)
        require_layers(_value(config, "num_hidden_layers"), len(reader.described), name)
        from transformers import AutoModelForCausalLM

        try:
            with _quiet():
                with torch.device("meta"):
                    model_class = type(AutoModelForCausalLM.from_config(config))
                tensors = dict(reader.tensors(dtype, mapped=True))
                # Given tensors, it opens no file; it only matches names, old spellings among them.
                inner, report = model_class.from_pretrained(
                    None,
                    config=config,
                    state_dict=tensors,
                    dtype=dtype or _common_dtype(tensors.values()),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except (*_MEANINGLESS, OSError) as error:
            raise ModelFileError(f"{name}: {_reason(error)}", "check the model's files") from None
        _check_report(report, str(reader.files.directory))
        return cls(inner)

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
        """Next-token loss from the model's own logits; the labels are shifted already.

        Where these are the head times the final hidden states and nothing else, they never exist whole.
        """
        if self._has_plain_head(position_ids):
            hidden = self.hidden_states(input_ids, None, position_ids)
            return token_loss(hidden, self.output_weight(), labels, self.exact_head)
        logits = self(input_ids, position_ids=position_ids)
        return TokenLoss(logits_loss(logits.flatten(0, 1), labels.flatten()), int((labels != IGNORED).sum()))

    def label_nats(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of each label that is not -100, from the model's own logits."""
        if self._has_plain_head(position_ids):
            return label_nats(self.hidden_states(input_ids, None, position_ids), self.output_weight(), labels)
        counted = labels != IGNORED
        logits = self(input_ids, position_ids=position_ids)[counted].to(torch.float32)
        return nn.functional.cross_entropy(logits, labels[counted], reduction="none")

    @property
    def core(self) -> nn.Module:
        """The model of transformers itself."""
        core: nn.Module = self.inner
        return core

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

    def _has_plain_head(self, position_ids: Tensor | None) -> bool:
        """Whether logits are the head times the final hidden states, without bias, scale or bound: tried once."""
        body, head = self.inner.base_model, self.inner.get_output_embeddings()
        linear = type(head) is nn.Linear  # an adapter's layer is one too, and does more
        if body is self.inner or not linear or head.bias is not None:
            return False
        if position_ids is not None and not _takes_positions(body):
            return False
        if self._plain_head is None:
            self._plain_head = self._try_plain_head()
        return self._plain_head

    @torch.no_grad()
    def _try_plain_head(self) -> bool:
        training, ids = self.training, torch.arange(min(4, self.vocab_size), device=self.device)[None]
        self.eval()  # dropout would differ between the two
        said = self._read(self.inner.base_model, ids, None)
        logits = self(ids)
        self.train(training)
        hidden, weight = getattr(said, "last_hidden_state", None), self.output_weight()
        if hidden is None or (hidden.shape[-1], hidden.dtype) != (weight.shape[1], weight.dtype) or not logits.any():
            return False
        return torch.equal(logits, nn.functional.linear(hidden, weight))

    def _read(self, module: nn.Module, input_ids: Tensor, position_ids: Tensor | None) -> Any:
        """What the whole model or its body says; positions that begin anew are its sign for another document."""
        if position_ids is not None and not _takes_positions(module):
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


def parse_config(values: Mapping[str, Any], name: str) -> Any:
    """The configuration object of transformers that the values describe.

    Args:
        values: Keys of a `config.json`, after `check_config`.
        name: How errors call them.

    Raises:
        ModelFileError: There is no such architecture, or a value has no meaning for it.
        MissingPackageError: transformers cannot be imported.
    """
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    except ImportError as error:
        raise MissingPackageError("transformers", str(error)) from None
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CAUSAL:
        close = difflib.get_close_matches(str(kind), CAUSAL)
        meant = f", did you mean {close[0]}?" if close else ""
        raise ModelFileError(
            f"{name}: model_type {shown(kind)} is no causal language model of transformers{meant}",
            "name one, such as gpt2, llama or qwen2, or register a class of your own",
        )
    plain = {key: value for key, value in values.items() if "_implementation" not in key}
    try:
        return CONFIG_MAPPING[kind].from_dict(plain)
    except (*_MEANINGLESS, StrictDataclassError) as error:
        raise ModelFileError(f"{name}: {_reason(error)}", "check its values") from None


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


def _value(config: Any, name: str) -> Any:
    """A value of a configuration; older architectures call it otherwise: GPT-2 says n_positions."""
    return config.to_dict().get(config.attribute_map.get(name, name))


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The number format of most floating weights."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _reason(error: BaseException) -> str:
    """What an error of a library says, on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_report(report: Mapping[str, Any], directory: str) -> None:
    """No tensor is missing, left over or of another shape: transformers would draw it at random, or drop it."""
    for key, what in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "holds"),
        ("mismatched_keys", "has another shape of"),
    ):
        names = sorted(str(item[0]) if isinstance(item, tuple) else str(item) for item in report[key])
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ModelFileError(f"{directory}: {what} {names[0]}{more}, unlike its configuration", FETCH_AGAIN)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no tables of transformers: llmt says itself what is wrong."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
