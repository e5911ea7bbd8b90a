"""A frozen base and a small trainable update: a door of peft."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory
from llmt.checkpoints.saving import save_tensors
from llmt.checkpoints.weights import open_weights
from llmt.config.lora import LoraConfig
from llmt.errors import ConfigError, MismatchError, ModelFileError
from llmt.models.adalora import RankBudget
from llmt.models.adapter_files import AGAIN, PREFIX, checked_fields, read_adapter_config
from llmt.models.base import BaseLanguageModel, where_given
from llmt.models.cache import KeyValueCache
from llmt.models.loss import TokenLoss
from llmt.models.peft_methods import TYPES, block_linears, class_of, configure, ends_of, require_peft
from llmt.models.quantized import quantize_linears, require_4bit

ADAPTER_NAME = "default"
TIED_HEAD = f"{PREFIX}lm_head.weight"


@final
class LoraModel(BaseLanguageModel):
    """A base model that carries an adapter of peft.

    Only the adapter is trainable; a fresh one leaves the logits as they are.

    Args:
        base: The model to adapt; its weights are frozen.
        peft_config: Configuration of the adapter, in peft's terms.

    Attributes:
        base: The model under the adapter, whose layers peft has put its own around.
        peft: peft's own view of it.
        trained_on: The hash of the base's weights, for whoever opens the adapter; empty where it is not known.
        budget: Takes ranks away in training, where the method is AdaLoRA.
    """

    peft: Any

    def __init__(self, base: BaseLanguageModel, peft_config: Any) -> None:
        super().__init__()
        from peft import get_peft_model

        # Not registered as a module: its layers are those of the base, and would be found twice.
        self.__dict__["peft"] = get_peft_model(base.core, peft_config, autocast_adapter_dtype=False)
        self.base = base
        self.vocab_size = base.vocab_size
        self.context_length = base.context_length
        self.metadata, self.extras = base.metadata, base.extras
        self.trained_on = ""
        tuner = self.peft.base_model
        self.budget = RankBudget(tuner, base.core) if hasattr(tuner, "rankallocator") else None
        self._saved_names = self._find_saved_names()
        self._is_off = False

    def hidden_states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, D)` final hidden states."""
        return self.base.hidden_states(input_ids, cache, **where_given(position_ids))

    def output_weight(self) -> Tensor:
        """The `(V, D)` output head of the base."""
        return self.base.output_weight()

    def forward(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`(B, T)` token ids to `(B, T, V)` logits."""
        logits: Tensor = self.base(input_ids, cache, **where_given(position_ids))
        return logits

    def loss(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> TokenLoss:
        """Next-token loss of a batch whose labels are shifted already; in training with AdaLoRA's penalty on it."""
        found = self.base.loss(input_ids, labels, **where_given(position_ids))
        if self.budget is None or not self.training:
            return found
        return TokenLoss(found.nats + found.tokens * self.budget.penalty(), found.tokens)

    def label_nats(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of each label that is not -100."""
        return self.base.label_nats(input_ids, labels, **where_given(position_ids))

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within it, this is the base alone, without dropout; then everything is as it was."""
        if self._is_off:
            yield
            return
        # peft's own context first takes stock of the whole model, which takes longer than a small step.
        tuner, training = self.peft.base_model, self.training
        before = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        if training:
            self.eval()
        self._is_off = True
        try:
            tuner.disable_adapter_layers()
            yield
        finally:
            tuner.enable_adapter_layers()  # which trains all of what is active
            self._is_off = False
            for parameter, trained in before:
                if parameter.requires_grad != trained:
                    parameter.requires_grad_(trained)
            if training:
                self.train()

    def new_cache(self, batch_size: int, length: int) -> KeyValueCache | None:
        """Room for `batch_size` sequences of `length` tokens."""
        return self.base.new_cache(batch_size, length)

    def model_config(self) -> dict[str, Any]:
        """The `config.json` of the base."""
        return self.base.model_config()

    def adapter_weights(self) -> dict[str, Tensor]:
        """The adapter's tensors under the names that peft reads."""
        from peft import get_peft_model_state_dict

        found: dict[str, Tensor] = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        return found

    def adapter_name(self, parameter: str) -> str:
        """The name in peft's files of a trained tensor, by its name in `named_parameters`."""
        return self._saved_names[parameter]

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of base plus adapter as one full model; this one stays as it is."""
        return copy.deepcopy(self).merge().weights()

    def load_adapter_weights(self, tensors: dict[str, Tensor]) -> None:
        """Take up tensors that `adapter_weights` gave.

        Raises:
            MismatchError: Names or shapes are not this adapter's.
        """
        from peft import set_peft_model_state_dict

        expected = self.adapter_weights()
        if TIED_HEAD not in expected:  # the embedding once more, for peft
            tensors = {name: tensor for name, tensor in tensors.items() if name != TIED_HEAD}
        wrong = [n for n in expected if n not in tensors or tensors[n].shape != expected[n].shape]
        wrong += [n for n in tensors if n not in expected]
        if wrong:
            raise MismatchError(f"adapter tensor {wrong[0]} does not fit the base model", "name the adapter's own base")
        set_peft_model_state_dict(self.peft, tensors)

    def merge(self) -> BaseLanguageModel:
        """Add the update to the base's weights and return the base alone."""
        self.peft.merge_and_unload()
        return self.base

    def _find_saved_names(self) -> dict[str, str]:
        """Parameter -> its name in peft's files, by where its numbers lie."""
        places = {tensor.data_ptr(): name for name, tensor in self.adapter_weights().items()}
        return {name: places[p.data_ptr()] for name, p in self.named_parameters() if p.data_ptr() in places}


def add_lora(
    base: BaseLanguageModel,
    config: LoraConfig,
    *,
    token_ids: Sequence[int] = (),
    total_steps: int = 1,
    dtype: torch.dtype = torch.float32,
) -> LoraModel:
    """Put a fresh adapter on a model.

    Args:
        base: The model; its weights are frozen.
        config: What is put on it.
        token_ids: Tokens whose embeddings are trained too.
        total_steps: Length of the run.
        dtype: What layers in 4 bits compute in.

    Raises:
        ConfigError: A name matches no layer, or the rank is larger than one.
        DeviceError: Layers in 4 bits were asked for, and the base is not on CUDA.
        MissingPackageError: peft, or for layers in 4 bits bitsandbytes, cannot be imported.
    """
    require_peft()
    peft_config = configure(base.core, config, token_ids, total_steps)
    if config.quantize == "4bit":
        quantize_linears(base.core, block_linears(base.core), require_4bit(base.device.type), dtype)
    try:
        return LoraModel(base, peft_config)
    except (TypeError, ValueError) as error:  # what peft itself refuses: a kind of layer, a rank
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError([f"lora.method {config.method}: {reason}"], "--lora-method lora") from None


def write_adapter(
    staged: StagedDirectory, model: LoraModel, base_directory: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` into a directory being filled.

    peft leaves out what its own loader of whole models needs for a base that is not transformers':
    the base's path, the task, and that no class is to be imported.

    Args:
        staged: Where.
        model: Base and adapter.
        base_directory: The base's directory.
        tensors: Are written instead of the model's own, under the same names.
    """
    values = model.peft.peft_config[ADAPTER_NAME].to_dict()
    values |= {
        "base_model_name_or_path": str(base_directory.resolve()),
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "inference_mode": True,
    }
    found = model.adapter_weights() if tensors is None else dict(tensors)
    ends = [tensor for name, tensor in found.items() if name.endswith("embed_tokens.weight")]
    if ends and _is_tied(model.base):
        # There the head is a module of its own, which peft ties and yet looks for.
        values["ensure_weight_tying"] = True
        found[TIED_HEAD] = ends[0]
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    staged.write_json(layout.ADAPTER_CONFIG, json.loads(json.dumps(plain, default=str)))
    metadata = {"format": "pt"} | ({layout.BASE_HASH: model.trained_on} if model.trained_on else {})
    save_tensors(staged, layout.ADAPTER_MODEL, found, metadata)


def load_adapter(base: BaseLanguageModel, directory: Path) -> LoraModel:
    """Put a saved adapter on its base.

    Args:
        base: The model; where the adapter has learnt tokens that it lacks, it gets room for them.
        directory: Holds the adapter.

    Raises:
        ModelFileError: A file is missing or damaged.
        MismatchError: It belongs to another base.
        MissingPackageError: peft cannot be imported.
    """
    require_peft()
    values, path = read_adapter_config(directory), directory / layout.ADAPTER_CONFIG
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ModelFileError(
            f"{directory}: a {kind} adapter; this version reads {', '.join(sorted(TYPES))}", "use peft"
        )
    with open_weights(directory / layout.ADAPTER_MODEL) as reader:
        trained_on, tensors = reader.metadata.get(layout.BASE_HASH, ""), dict(reader.tensors())
    known = checked_fields(values, class_of(kind).__dataclass_fields__, tensors, path)
    if base.core is base:
        known.pop("ensure_weight_tying", None)
    _make_room(base, known, tensors, directory)
    try:
        model = LoraModel(base, class_of(kind)(**known))
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelFileError(f"{path}: describes no adapter for this base: {reason}", AGAIN) from None
    model.load_adapter_weights(tensors)
    model.trained_on = trained_on
    return model


def _make_room(
    base: BaseLanguageModel, known: Mapping[str, Any], tensors: Mapping[str, Tensor], directory: Path
) -> None:
    """Rows for tokens that were added when the adapter was trained: those at the end of its vocabulary."""
    learnt = known.get("trainable_token_indices") or {}
    lists = list(learnt.values()) if isinstance(learnt, dict) else [learnt]
    ids = [number for numbers in lists if isinstance(numbers, list) for number in numbers]
    if not all(isinstance(number, int) and number >= 0 for number in ids) or len(lists) > 2:
        raise ModelFileError(f"{directory / layout.ADAPTER_CONFIG}: its trainable_token_indices are no ids", AGAIN)
    most = max(ids, default=-1)
    if most >= base.vocab_size + len(ids):
        raise MismatchError(
            f"{directory}: learnt the token {most}, and the base has {base.vocab_size:,}", "name the adapter's own base"
        )
    whole = [tensors[name] for name in (f"{PREFIX}{end}.weight" for end in ends_of(base.core)) if name in tensors]
    size = max([most + 1, *(len(rows) for rows in whole)])
    if size > base.vocab_size:
        base.requires_grad_(True)  # another adapter may have frozen it; this one will
        base.resize_token_embeddings(size)


def _is_tied(base: BaseLanguageModel) -> bool:
    """Whether the output head is the embedding, and no module of its own as in transformers."""
    return base.core is base and bool(base.model_config().get("tie_word_embeddings"))
