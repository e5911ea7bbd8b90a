"""settings of an adapter and a model -> a configuration of peft: which method, on which layers. A door of peft."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from llmt.config.lora import LoraConfig
from llmt.errors import ConfigError, MissingPackageError

_LORA = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "bias": "bias", "init": "init_lora_weights"}
_IN_BLOCK = re.compile(r"(^|\.)\d+\.")
_LISTED = 12

FEEDFORWARD = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")
"""Layers of which IA3 scales what goes in, not what comes out: the last of a feed-forward part."""

SETTINGS_OF = {
    "LORA": {"trainable_token_indices", "ensure_weight_tying"},
    "ADALORA": {"trainable_token_indices", "ensure_weight_tying"},
}
"""Type of peft -> what it knows beside its layers: new rows of an embedding, and an output head that is tied to it."""


@dataclass(frozen=True)
class Method:
    """A method of peft.

    Attributes:
        peft_type: Its name in `adapter_config.json`.
        names: Our settings -> its own names for them.
        fixed: What else it is told.
        low_rank: Its update is a product of matrices of rank r, which cannot be larger than the layer.
        takes_conv1d: It knows the layers of GPT-2, which are no nn.Linear.
    """

    peft_type: str
    names: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    low_rank: bool = False
    takes_conv1d: bool = True


METHODS = {
    "lora": Method("LORA", _LORA, low_rank=True),
    "rslora": Method("LORA", _LORA, {"use_rslora": True}, low_rank=True),
    "dora": Method("LORA", _LORA, {"use_dora": True}, low_rank=True),
    "adalora": Method(
        "ADALORA", {"r": "target_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "bias": "bias"}, low_rank=True
    ),
    "loha": Method("LOHA", {"r": "r", "alpha": "alpha", "dropout": "rank_dropout"}, takes_conv1d=False),
    "lokr": Method("LOKR", {"r": "r", "alpha": "alpha", "dropout": "rank_dropout"}, takes_conv1d=False),
    "vera": Method("VERA", {"r": "r", "dropout": "vera_dropout", "bias": "bias"}),
    "hra": Method("HRA", {"r": "r", "bias": "bias"}, takes_conv1d=False),
    "miss": Method("MISS", {"r": "r", "dropout": "miss_dropout", "bias": "bias"}, takes_conv1d=False),
    "ia3": Method("IA3", {}),
}
"""`lora.method` -> how peft does it."""

TYPES = {method.peft_type for method in METHODS.values()}
"""The types of adapter that are read."""


def require_peft() -> None:
    """See that peft can be imported.

    Raises:
        MissingPackageError: It cannot.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("peft", str(error)) from None


def class_of(peft_type: str) -> Any:
    """The class of peft's configuration of one type."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]


def configure(model: nn.Module, config: LoraConfig, token_ids: Sequence[int], total_steps: int) -> Any:
    """The configuration of a fresh adapter.

    Args:
        model: What peft is to change.
        config: The settings.
        token_ids: Tokens whose embeddings are trained too.
        total_steps: Length of the run, along which AdaLoRA spends its ranks.

    Raises:
        ConfigError: A name matches nothing, or a rank is larger than a layer; names them.
    """
    method = METHODS[config.method]
    init = True if config.init == "default" else config.init
    asked = {"r": config.r, "alpha": config.alpha, "dropout": config.dropout, "bias": config.bias, "init": init}
    targets = find_targets(model, config)
    values: dict[str, Any] = {
        "target_modules": targets,
        "modules_to_save": _modules_to_save(model, config.modules_to_save, targets) or None,
        **method.fixed,
        **{method.names[name]: value for name, value in asked.items() if name in method.names},
    }
    if config.method == "adalora":
        values |= _budget(config.r, total_steps)
    if config.method == "ia3":
        values["feedforward_modules"] = [name for name in targets if name.rpartition(".")[2] in FEEDFORWARD]
    return class_of(method.peft_type)(**values, **_of_ends(model, config, token_ids))


def _of_ends(model: nn.Module, config: LoraConfig, token_ids: Sequence[int]) -> dict[str, Any]:
    """What is trained of the embedding and of the output head beside the layers of the blocks.

    Raises:
        ConfigError: The method cannot do it.
    """
    values: dict[str, Any] = {}
    known = SETTINGS_OF.get(METHODS[config.method].peft_type, set())
    whole = any(_ends_with(end, name) for end in ends_of(model) for name in config.modules_to_save)
    if config.modules_to_save and _is_tied_elsewhere(model):
        if "ensure_weight_tying" not in known:
            what = f"lora.modules_to_save: {config.method} cannot train what the output head shares"
            raise ConfigError([what], "--lora-method lora")
        values["ensure_weight_tying"] = True
    if token_ids and not whole:
        if "trainable_token_indices" not in known:
            raise ConfigError(
                [f"tokenizer.added_tokens: {config.method} does not learn new tokens"],
                "--set lora.modules_to_save=embed_tokens, or --lora-method lora",
            )
        values["trainable_token_indices"] = {name: list(token_ids) for name in ends_of(model)}
    return values


def find_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """The layers that get an adapter, by the last part of their names where that tells them from all others.

    Raises:
        ConfigError: A name matches none, or a layer is too small for the rank; lists those that exist.
    """
    inner = block_linears(model)
    if not inner:
        raise ConfigError(["lora: the base has no linear layers"], "use a base with nn.Linear layers")
    if not METHODS[config.method].takes_conv1d:
        inner = {name: module for name, module in inner.items() if isinstance(module, nn.Linear)}
    if not inner:
        raise ConfigError([f"lora.method {config.method}: cannot adapt the layers of this base"], "--lora-method lora")
    if not config.target_modules:
        raise ConfigError(["lora.target_modules: is empty"], "--lora-target-modules auto")
    chosen = _chosen(inner, config.target_modules)
    name, least = min(((n, min(_shape(module))) for n, module in chosen.items()), key=lambda found: found[1])
    if METHODS[config.method].low_rank and least < config.r:
        shape = " x ".join(map(str, _shape(chosen[name])))
        raise ConfigError([f"lora.r: {config.r} is more than {name} ({shape}) can have"], f"--lora-r {least}")
    short = sorted({_short(name) for name in chosen})
    named = {name for name, _ in model.named_modules() if any(_ends_with(name, end) for end in short)}
    return short if named == set(chosen) else sorted(chosen)


def block_linears(model: nn.Module) -> dict[str, Any]:
    """The linear layers of the blocks by name; of a model without blocks, all but its output head."""
    layers = {name: module for name, module in model.named_modules() if _is_linear(module)}
    inner = {name: module for name, module in layers.items() if _IN_BLOCK.search(name)}
    rows = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    return inner or {name: module for name, module in layers.items() if module.weight.shape[0] not in rows}


def _chosen(layers: Mapping[str, nn.Module], asked: Sequence[str]) -> dict[str, Any]:
    """The layers that were asked for."""
    if tuple(asked) == ("auto",):
        return dict(layers)
    problems, found = [], dict[str, Any]()
    for wanted in asked:
        hit = {name: layer for name, layer in layers.items() if _matches(name, wanted)}
        if not hit:
            problems.append(
                f"lora.target_modules: no linear layer is called {wanted}; there are {_listed(map(_short, layers))}"
            )
        found |= hit
    if problems:
        two = ",".join(sorted({_short(name) for name in layers})[:2])
        raise ConfigError(problems, f"--set lora.target_modules={two}")
    return found


def _modules_to_save(model: nn.Module, asked: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The modules that are trained whole, by the names that were asked for.

    Raises:
        ConfigError: There is no such module with weights, or it gets an adapter already.
    """
    whole = {name for name, module in model.named_modules() if name and list(module.parameters(recurse=False))}
    known = {name for name in whole if not any(_ends_with(name, target) for target in targets)}
    problems = [
        f"lora.modules_to_save: no other module is called {wanted}; there are {_listed(map(_short, known))}"
        for wanted in asked
        if not any(_ends_with(name, wanted) for name in known)
    ]
    if problems:
        raise ConfigError(problems, "--set lora.modules_to_save=embed_tokens")
    return list(asked)


def _budget(rank: int, total_steps: int) -> dict[str, int]:
    """When AdaLoRA takes ranks away: from a tenth of the steps to seven tenths (https://arxiv.org/abs/2303.10512)."""
    return {
        "init_r": math.ceil(1.5 * rank),
        "total_step": total_steps,
        "tinit": total_steps // 10,
        "tfinal": total_steps * 3 // 10,
        "deltaT": max(total_steps // 100, 1),
    }


def ends_of(model: nn.Module) -> list[str]:
    """The names of the embedding, and of the output head where that has numbers of its own."""
    embeddings = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    rows = max((module.num_embeddings for module in embeddings.values()), default=0)
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == rows and not _IN_BLOCK.search(name)
    ]
    weights = {id(module.weight) for module in embeddings.values()}
    own = [name for name in heads if id(model.get_submodule(name).weight) not in weights]
    return [name for name, module in embeddings.items() if module.num_embeddings == rows] + own


def _is_tied_elsewhere(model: Any) -> bool:
    """Whether a model of transformers has its output head as a second module around its embedding's numbers."""
    heads = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return heads is not None and heads.weight is model.get_input_embeddings().weight


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # what GPT-2 has for it


def _shape(layer: Any) -> tuple[int, ...]:
    """Of its matrix; numbers in 4 bits lie otherwise."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


def _short(name: str) -> str:
    """The last part of a name; of one that ends in a number, from the last word on."""
    parts = name.split(".")
    words = [place for place, part in enumerate(parts) if not part.isdigit()]
    return ".".join(parts[words[-1] :])


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _matches(name: str, wanted: str) -> bool:
    return _ends_with(name, wanted) or fnmatchcase(name, wanted) or fnmatchcase(name, f"*.{wanted}")


def _listed(names: Iterable[str]) -> str:
    known = sorted(set(names))
    return ", ".join(known[:_LISTED]) + (f" and {len(known) - _LISTED} more" if len(known) > _LISTED else "")
