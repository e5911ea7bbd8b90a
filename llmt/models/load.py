"""model directory -> model on a device."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmt.checkpoints import layout
from llmt.checkpoints.manifest import hash_file, read_manifest
from llmt.checkpoints.metadata import decode_metadata
from llmt.checkpoints.reading import FETCH_AGAIN, read_json
from llmt.checkpoints.weights import Described, WeightReader, open_weights
from llmt.errors import ModelFileError
from llmt.models.base import BaseLanguageModel, Extras
from llmt.models.foreign import check_config, require_layers
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.llama import is_llama, parse_llama_config
from llmt.models.registry import find_model_class
from llmt.models.transformer import TransformerLM

TIED_HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")
# Lengths of one kind of use: they would override what other programs ask for.
_NOT_KEPT = ("max_new_tokens", "max_length", "_from_model_config", "transformers_version")


def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    safe_serialization: bool | None = None,
    wanted: type[BaseLanguageModel] = BaseLanguageModel,
) -> BaseLanguageModel:
    """Open a model: Llama-shaped as `TransformerLM`, registered ones as their class, any other through transformers.

    Weights of a directory with a manifest are compared with it; others are mapped, where nothing has to be converted.

    Args:
        path: A model directory, or one weight file; its configuration stands beside it or in its metadata.
        device: Where the weights go.
        dtype: What floating weights become; None keeps what the files have.
        safe_serialization: True takes safetensors alone, False PyTorch files alone, None what is there.
        wanted: The class to make; `HuggingFaceModelWrapper` takes Llama-shaped models too.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe, two sets of weights differ, the tensors are not those
            that the configuration describes, or it is a model of another class than the one wanted.
    """
    path = Path(path)
    values = read_config(path) if path.is_dir() else None
    kind: layout.Format | None = {None: None, True: "safetensors", False: "pytorch"}[safe_serialization]
    with open_weights(path, kind) as reader:
        metadata = decode_metadata(reader.metadata)
        if values is None:
            values = _config_of_file(reader, metadata.config)
        name = str(reader.files.directory / layout.CONFIG_FILE)
        check_config(values, name)
        cls = _class_of(values, wanted, name)
        if cls is TransformerLM:
            model: BaseLanguageModel = _fill(_empty_transformer(values, reader, name), reader, dtype, device)
        elif cls is HuggingFaceModelWrapper:
            model = HuggingFaceModelWrapper.from_weights(values, reader, dtype, name).to(device)
        else:
            model = _fill(_construct(cls, values, name), reader, dtype, device)
        model.metadata = replace(metadata, config=values)
        model.extras = _extras(reader.files.directory, values)
    return model


def _empty_transformer(values: Mapping[str, Any], reader: WeightReader, name: str) -> TransformerLM:
    """A Llama without numbers."""
    config, vocab_size, context = parse_llama_config(values, name)
    require_layers(config.num_hidden_layers, len(reader.described), name)
    try:
        with torch.device("meta"):
            return TransformerLM(config, vocab_size, context)
    except (RuntimeError, OverflowError) as error:
        raise ModelFileError(f"{name}: {str(error).splitlines()[0]}", FETCH_AGAIN) from None


def _class_of(values: Mapping[str, Any], wanted: type[BaseLanguageModel], name: str) -> type[BaseLanguageModel]:
    """The class that opens a configuration: a registered one, llmt's own, or the one that takes any."""
    found: type[BaseLanguageModel] | None = TransformerLM if is_llama(values) else None
    found = found or find_model_class(str(values.get("model_type"))) or HuggingFaceModelWrapper
    if issubclass(found, wanted):
        return found
    if wanted is HuggingFaceModelWrapper and found is TransformerLM:
        return wanted
    raise ModelFileError(
        f"{name}: describes a {values.get('model_type')}, which is a {found.__name__} and not a {wanted.__name__}",
        "load_model opens any",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model directory, compared with its manifest where one lists it.

    Raises:
        ModelFileError: There is none, it is no JSON mapping, or it is not the one that was written.
    """
    if not (directory / layout.CONFIG_FILE).exists():
        raise ModelFileError(f"{directory}: has no {layout.CONFIG_FILE}", "name a model directory")
    manifest = read_manifest(directory)
    record = None if manifest is None else manifest.files.get(layout.CONFIG_FILE)
    if record is not None and hash_file(directory, layout.CONFIG_FILE) != record:
        raise ModelFileError(f"{directory / layout.CONFIG_FILE}: is not the one that was written", FETCH_AGAIN)
    return read_json(directory, layout.CONFIG_FILE)


def _config_of_file(reader: WeightReader, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a single weight file: beside it, or in it."""
    directory = reader.files.directory
    if (directory / layout.CONFIG_FILE).exists():
        return read_config(directory)
    if kept:
        return dict(kept)
    raise ModelFileError(
        f"{reader.files.paths[0]}: has no {layout.CONFIG_FILE} beside it, and none in its metadata",
        "put the model's config.json beside it",
    )


def _extras(directory: Path, values: Mapping[str, Any]) -> Extras:
    generation = {}
    if (directory / layout.GENERATION_CONFIG).is_file():
        found = read_json(directory, layout.GENERATION_CONFIG)
        generation = {key: value for key, value in found.items() if key not in _NOT_KEPT}
    return Extras({role: values[role] for role in _ROLES if role in values}, generation)


def _construct(cls: type[BaseLanguageModel], values: Mapping[str, Any], name: str) -> BaseLanguageModel:
    """A registered class from its own configuration."""
    ours = ("model_type", "architectures", "dtype", "vocab_size", "max_position_embeddings", *_ROLES)
    options = {key: value for key, value in values.items() if key not in ours}
    try:
        return cls(vocab_size=values["vocab_size"], context_length=values["max_position_embeddings"], **options)
    except KeyError as error:
        raise ModelFileError(f"{name}: {error.args[0]} is missing", FETCH_AGAIN) from None
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ModelFileError(f"{name}: {cls.__name__} cannot be made of it: {error}", FETCH_AGAIN) from None


def _fill(model: BaseLanguageModel, reader: WeightReader, dtype: torch.dtype | None, device: str) -> BaseLanguageModel:
    """Put weights straight into the places of a model; no second copy of them is made."""
    places = model.state_dict(keep_vars=True)
    renamed = _tied_names(places, reader.described)
    found = {renamed.get(name, name): described for name, described in reader.described.items()}
    _check_names(places, found, reader.files.directory)
    # What was one object under two names stays one.
    tensors: dict[int, Tensor] = {}
    for name, tensor in reader.tensors(dtype, mapped=True):
        place, value = places[renamed.get(name, name)], tensor.to(device)
        if id(place) in tensors and not torch.equal(tensors[id(place)], value):
            raise ModelFileError(
                f"{reader.files.directory}: {name} differs from the tensor that the configuration ties it to",
                FETCH_AGAIN,
            )
        trained = value.is_floating_point() and place.requires_grad
        tensors[id(place)] = nn.Parameter(value, trained) if isinstance(place, nn.Parameter) else value
    for name, place in places.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensors[id(place)])
    return model if device == "cpu" else model.to(device)


def _tied_names(places: Mapping[str, Tensor], found: Mapping[str, Described]) -> dict[str, str]:
    """Other names for what a file holds, where input and output share one matrix.

    Some writers keep the head and drop the embeddings, some keep both.
    """
    tied = TIED_HEAD not in places and EMBEDDINGS in places and TIED_HEAD in found
    return {TIED_HEAD: EMBEDDINGS} if tied else {}


def _check_names(places: Mapping[str, Tensor], found: Mapping[str, Described], directory: Path) -> None:
    """Every place is filled in its shape, under one of its names, and nothing is left over."""
    filled = {id(places[name]) for name in found if name in places}
    missing = sorted(name for name, place in places.items() if id(place) not in filled)
    extra = sorted(set(found) - set(places))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which the configuration does not describe"
        more = len(missing) + len(extra) - 1
        raise ModelFileError(f"{directory}: {what}" + (f" (and {more} more names differ)" if more else ""), FETCH_AGAIN)
    for name, described in found.items():
        if described.shape != places[name].shape:
            raise ModelFileError(
                f"{directory}: {name} has shape {described.shape}, the configuration says {tuple(places[name].shape)}",
                FETCH_AGAIN,
            )
