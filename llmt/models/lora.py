"""A frozen base and a small trainable update: the door of peft."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory
from llmt.checkpoints.saving import save_tensors
from llmt.checkpoints.weights import load_tensors
from llmt.config.training import LoraConfig
from llmt.errors import ConfigError, MismatchError, MissingPackageError, ModelFileError
from llmt.models.base import BaseLanguageModel, where_given
from llmt.models.cache import KeyValueCache
from llmt.models.loss import TokenLoss

BLOCKS = "layers."
ADAPTER_NAME = "default"
PEFT_PREFIX = "base_model.model."
"""What peft puts before the name of a tensor of the base."""


@final
class LoraModel(BaseLanguageModel):
    """A base model whose linear layers carry an adapter of peft.

    Only the adapter is trainable, in fp32 whatever the base is in; a fresh one leaves the logits as they are.

    Args:
        base: The model to adapt; its weights are frozen.
        peft_config: Configuration of the adapter, in peft's terms.
    """

    def __init__(self, base: BaseLanguageModel, peft_config: Any) -> None:
        super().__init__()
        from peft import get_peft_model

        self.peft = get_peft_model(base, peft_config, autocast_adapter_dtype=True)
        self.vocab_size = base.vocab_size
        self.context_length = base.context_length
        self.metadata, self.extras = base.metadata, base.extras

    @property
    def base(self) -> BaseLanguageModel:
        """The model under the adapter."""
        inner: BaseLanguageModel = self.peft.base_model.model
        return inner

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
        """Next-token loss of a batch whose labels are shifted already."""
        return self.base.loss(input_ids, labels, **where_given(position_ids))

    def label_nats(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The negative log-likelihood of each label that is not -100."""
        return self.base.label_nats(input_ids, labels, **where_given(position_ids))

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within it, this is the base alone, without dropout; then everything is as it was."""
        training = self.training
        self.eval()
        try:
            with self.peft.disable_adapter():
                yield
        finally:
            self.train(training)

    def new_cache(self, batch_size: int, length: int) -> KeyValueCache | None:
        """Room for `batch_size` sequences of `length` tokens."""
        return self.base.new_cache(batch_size, length)

    def model_config(self) -> dict[str, Any]:
        """The `config.json` of the base."""
        return self.base.model_config()

    def adapter_weights(self) -> dict[str, Tensor]:
        """The adapter's tensors under the names that peft reads."""
        from peft import get_peft_model_state_dict

        return {self.saved_name(name): tensor for name, tensor in get_peft_model_state_dict(self.peft).items()}

    def saved_name(self, parameter: str) -> str:
        """The name in peft's files, for the base as transformers knows it."""
        return PEFT_PREFIX + self.base.saved_name(parameter.removeprefix(PEFT_PREFIX))

    def adapter_name(self, parameter: str) -> str:
        """The name in peft's files of a trained tensor, by its name in `named_parameters`."""
        plain = parameter.removeprefix("peft.").replace(f"_vector.{ADAPTER_NAME}.weight", "_vector")
        return self.saved_name(plain.replace(f".{ADAPTER_NAME}.", "."))

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of base plus adapter as one full model; this one stays as it is."""
        return copy.deepcopy(self).merge().weights()

    def load_adapter_weights(self, tensors: dict[str, Tensor]) -> None:
        """Take up tensors that `adapter_weights` gave.

        Raises:
            MismatchError: Names or shapes are not this adapter's.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        expected = self.adapter_weights()
        wrong = [n for n in expected if n not in tensors or tensors[n].shape != expected[n].shape]
        wrong += [n for n in tensors if n not in expected]
        if wrong:
            raise MismatchError(f"adapter tensor {wrong[0]} does not fit the base model", "name the adapter's own base")
        own = {name: tensors[self.saved_name(name)] for name in get_peft_model_state_dict(self.peft)}
        set_peft_model_state_dict(self.peft, own)

    def merge(self) -> BaseLanguageModel:
        """Add the update to the base's weights and return the base alone."""
        merged: BaseLanguageModel = self.peft.merge_and_unload()
        return merged


def add_lora(base: BaseLanguageModel, config: LoraConfig) -> LoraModel:
    """Put a fresh adapter on a model.

    Raises:
        ConfigError: A name in `lora.target_modules` matches no linear layer.
        MissingPackageError: peft cannot be imported.
    """
    _require_peft()
    from peft import LoraConfig as PeftLoraConfig

    return LoraModel(
        base,
        PeftLoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=find_targets(base, config.target_modules),
            bias=config.bias,
            use_rslora=config.method == "rslora",
            use_dora=config.method == "dora",
        ),
    )


def find_targets(base: nn.Module, asked: Sequence[str]) -> list[str]:
    """The linear layers of the blocks that get an adapter, by the last part of their names.

    Raises:
        ConfigError: A name matches none; lists those that exist.
    """
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and BLOCKS in name]
    known = sorted({name.rpartition(".")[2] for name in names})
    if not known:
        raise ConfigError(["lora: the base has no linear layers in blocks that llmt knows"], "use a Llama-shaped base")
    if tuple(asked) == ("auto",):
        return known
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ConfigError(
            [
                f"lora.target_modules: no linear layer is called {name}; there are {', '.join(known)}"
                for name in unknown
            ],
            f"--set lora.target_modules={','.join(known[:2])}",
        )
    return list(asked)


def write_adapter(
    staged: StagedDirectory, model: LoraModel, base_directory: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` into a directory being filled.

    `tensors` are written instead of the model's own, under the same names.

    peft leaves out what its own loader of whole models needs for a base that is not transformers':
    the base's path, the task, and that no class is to be imported.
    """
    values = model.peft.peft_config[ADAPTER_NAME].to_dict()
    values |= {
        "base_model_name_or_path": str(base_directory.resolve()),
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "inference_mode": True,
    }
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    staged.write_json(layout.ADAPTER_CONFIG, json.loads(json.dumps(plain, default=str)))
    save_tensors(staged, layout.ADAPTER_MODEL, model.adapter_weights() if tensors is None else dict(tensors))


def load_adapter(base: BaseLanguageModel, directory: Path) -> LoraModel:
    """Put a saved adapter on its base.

    Raises:
        ModelFileError: A file is missing or damaged.
        MismatchError: It belongs to another base.
        MissingPackageError: peft cannot be imported.
    """
    _require_peft()
    from peft import LoraConfig as PeftLoraConfig

    values = read_adapter_config(directory)
    if values.get("peft_type") != "LORA":
        raise ModelFileError(f"{directory}: a {values.get('peft_type')} adapter; this version reads LORA", "use peft")
    known = {f: values[f] for f in PeftLoraConfig.__dataclass_fields__ if f in values and f != "auto_mapping"}
    known |= {"task_type": None, "inference_mode": False, "base_model_name_or_path": None}
    try:
        model = LoraModel(base, PeftLoraConfig(**known))
    except (
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        NotImplementedError,
    ) as error:  # peft checks none of the types
        reason = str(error).strip().partition("\n")[0]
        path = directory / layout.ADAPTER_CONFIG
        raise ModelFileError(
            f"{path}: describes no adapter for this base: {reason}", "copy the adapter again"
        ) from None
    model.load_adapter_weights(load_tensors(directory / layout.ADAPTER_MODEL))
    return model


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The parsed `adapter_config.json`.

    Raises:
        ModelFileError: There is none, or it is no JSON mapping.
    """
    path = directory / layout.ADAPTER_CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: {error}", "name the directory of an adapter") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: is not a mapping", "name the directory of an adapter")
    return values


def _require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("peft", str(error)) from None
