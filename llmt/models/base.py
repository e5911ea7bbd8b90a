"""What the rest of llmt asks of a language model."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, publish_into, remove_abandoned, staged_directory
from llmt.checkpoints.files import make_directory, storage_errors
from llmt.checkpoints.metadata import Metadata, encode_metadata
from llmt.checkpoints.saving import drop_tied, save_weights
from llmt.checkpoints.sharding import DEFAULT_SHARD_SIZE
from llmt.errors import BusyOutputError, UsageError
from llmt.models.cache import KeyValueCache
from llmt.models.loss import TokenLoss, label_nats, token_loss
from llmt.models.resize import check_size, resize_vocabulary
from llmt.tokenizers.base import Tokenizer, special_ids
from llmt.units import parse_size


@dataclass(frozen=True)
class Extras:
    """What a model directory says besides weights and shape, and keeps when it is saved again.

    Attributes:
        token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`.
        generation: Its `generation_config.json`.
    """

    token_ids: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


def where_given(position_ids: Tensor | None) -> dict[str, Tensor]:
    """The positions as arguments of a call: a model that does not know them works where there are none."""
    return {} if position_ids is None else {"position_ids": position_ids}


class BaseLanguageModel(nn.Module, ABC):
    """A causal language model.

    A subclass is constructed with `vocab_size`, `context_length` and its own options by keyword, gives the latter to
    `super().__init__`, and defines `hidden_states` and `output_weight`. Once it is registered
    (`registry.register_model`), logits, loss, training, evaluation, generation, saving and loading follow.

    Args:
        options: What the constructor needs besides the sizes, to be written into `config.json`: plain JSON values.

    Attributes:
        model_type: Its name in `config.json`; set when the class is registered.
        vocab_size: Number of tokens V that it knows.
        context_length: Longest sequence it was made for, in tokens.
        options: See above.
        metadata: What stood beside its weights when they were loaded; it is saved with them again.
        extras: Special ids and `generation_config.json` of the directory it came from, likewise.
        exact_head: The fp32 values that `output_weight` was rounded from, while a step of a run computes a loss that is
            to give them its gradient.
    """

    model_type: ClassVar[str] = ""
    vocab_size: int
    context_length: int

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.metadata = Metadata()
        self.extras = Extras()
        self.exact_head: Tensor | None = None

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

    def new_cache(self, batch_size: int, length: int) -> KeyValueCache | None:
        """Room for `batch_size` sequences of `length` tokens; None where the model has no such cache."""
        return None

    def model_config(self) -> dict[str, Any]:
        """What goes into `config.json`, in the names of the transformers library.

        Raises:
            UsageError: The class was not registered, so that nobody could open what is saved.
        """
        if not self.model_type:
            name = type(self).__name__
            raise UsageError(f"{name}: has no model_type", "put @register_model('my_model') above the class")
        sizes = {"vocab_size": self.vocab_size, "max_position_embeddings": self.context_length}
        return {"model_type": self.model_type, "architectures": [type(self).__name__], **sizes, **self.options}

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
        return token_loss(hidden, self.output_weight(), labels, self.exact_head)

    def label_nats(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of each label that is not -100, `(N,)` in their order; their sum is the loss.

        Args:
            input_ids: `(B, T)` token ids.
            labels: `(B, T)` next tokens, -100 where nothing is predicted.
            position_ids: See `hidden_states`.
        """
        hidden = self.hidden_states(input_ids, None, **where_given(position_ids))
        return label_nats(hidden, self.output_weight(), labels)

    def adapter_off(self) -> AbstractContextManager[None]:
        """Within it, an adapter's model is its base alone, without dropout: what preferences are measured against.

        Raises:
            UsageError: This is a whole model.
        """
        raise UsageError(
            "preferences are measured against the base under an adapter, and this is a whole model",
            "llmt train dpo --base MODEL --data PAIRS makes an adapter",
        )

    def weights(self) -> dict[str, Tensor]:
        """Every tensor to save, under the names of the transformers library; what is one in memory, once."""
        return drop_tied(self.state_dict())

    def saved_name(self, parameter: str) -> str:
        """The name that `weights` has for a name of `named_parameters`."""
        return parameter

    @property
    def core(self) -> nn.Module:
        """The module whose layers another library may change: this one, or the one that it is wrapped around."""
        return self

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

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        safe_serialization: bool | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = torch.float32,
    ) -> Self:
        """Open a model.

        Args:
            path: A model directory, or one weight file; its configuration stands beside it or in its metadata.
            safe_serialization: True takes safetensors alone, False PyTorch files alone, None what is there. PyTorch
                files are read without running anything in them.
            device: Where the weights go.
            dtype: What floating weights become; None keeps what the files have.

        Raises:
            ModelFileError: A file is missing, damaged or unsafe, several differ, the tensors are not those that the
                configuration describes, or it is a model of another class.
        """
        # By name: that module knows every class, and so imports this one.
        load = import_module("llmt.models.load")
        model: Self = load.load_model(
            path, device=device, dtype=dtype, safe_serialization=safe_serialization, wanted=cls
        )
        return model

    def save_pretrained(
        self,
        directory: str | Path,
        safe_serialization: bool = True,
        max_shard_size: int | str = "5GB",
        *,
        tokenizer: Tokenizer | None = None,
        token_ids: Mapping[str, int | None] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a model directory that `AutoModelForCausalLM` opens.

        A new directory appears whole or not at all. Of a model that stands there, every weight file is replaced or
        removed, and between the two there is no model rather than a mixed one. Other files stay.

        Args:
            directory: Where.
            safe_serialization: Write safetensors; False writes files of PyTorch. Where the package safetensors cannot
                be imported, so that nothing else here could open them, files of PyTorch are written with a warning.
            max_shard_size: Largest file, in bytes or as text such as `"1.5GB"`; a larger tensor has a file of its own.
            tokenizer: Is saved beside the weights and gives the special ids.
            token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`, where there is no tokenizer.
            training: Numbers of the run, to be kept with the weights; None keeps those that were loaded.

        Raises:
            ValueError: The size is none.
            BusyOutputError: The directory is a run, or a checkpoint of one.
            StorageError: The disk refused.
        """
        path, limit = Path(directory), parse_size(max_shard_size)
        if tokenizer is not None:
            token_ids = {**special_ids(tokenizer), **(token_ids or {})}
        if (path / layout.RUN_CONFIG).exists() or (path / layout.STATE).exists():
            raise BusyOutputError(f"{path}: is a run or its checkpoint, and its record would not fit", "name another")
        with storage_errors("creating a folder", path):
            make_directory(path.parent)
        with storage_errors("looking at the folder", path):
            remove_abandoned(path if path.is_dir() else path.parent)
        publish = publish_into if path.is_dir() else staged_directory
        with publish(path, extra={}) as staged:
            if tokenizer is not None:
                tokenizer.save_pretrained(staged.path)
            self.write(
                staged,
                token_ids=token_ids,
                save_format=choose_format(safe_serialization),
                max_shard_size=limit,
                training=training,
            )
        return path

    def write(
        self,
        staged: StagedDirectory,
        *,
        weights: Mapping[str, Tensor] | None = None,
        token_ids: Mapping[str, int | None] | None = None,
        save_format: layout.Format = "safetensors",
        max_shard_size: int = DEFAULT_SHARD_SIZE,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `config.json`, `generation_config.json` and the weights into a directory being filled.

        Args:
            staged: Where.
            weights: Tensors to write instead of the module's own, such as fp32 masters.
            token_ids: Special ids of the tokenizer; a name without an id is not written.
            save_format: Kind of the weight files.
            max_shard_size: Largest file in bytes.
            training: See `save_pretrained`.

        Raises:
            StorageError: The disk refused.
        """
        tensors = {**self.weights(), **(weights or {})}
        given = self.extras.token_ids if token_ids is None else token_ids
        ids = {name: value for name, value in given.items() if value is not None}
        dtype = next(
            (str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()), "float32"
        )
        config = {**self.model_config(), **ids, "dtype": dtype}
        staged.write_json(layout.CONFIG_FILE, config)
        staged.write_json(layout.GENERATION_CONFIG, self._generation(ids))
        metadata = replace(
            self.metadata, config=config, training=self.metadata.training if training is None else training
        )
        save_weights(
            staged, tensors, save_format=save_format, max_shard_size=max_shard_size, metadata=encode_metadata(metadata)
        )

    def _generation(self, ids: Mapping[str, Any]) -> dict[str, Any]:
        """`generation_config.json`: the one that was loaded, and the special ids where it does not hold them."""
        loaded = dict(self.extras.generation or {"do_sample": True})
        for name, value in ids.items():
            several = loaded.get(name)
            if not (isinstance(several, list) and value in several):
                loaded[name] = value
        return loaded


def choose_format(safe_serialization: bool) -> layout.Format:
    """The format of weight files; with a warning, PyTorch's where safetensors was asked for and cannot be imported."""
    if not safe_serialization:
        return "pytorch"
    if find_spec("safetensors") is not None:
        return "safetensors"
    warnings.warn(
        "the package safetensors cannot be imported: pytorch_model.bin is written instead "
        "(python -m pip install safetensors)",
        stacklevel=3,
    )
    return "pytorch"
