"""Llama-shaped model directory -> one GGUF file, which llama.cpp and the programs on top of it run.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Header and vocabulary are written by the `gguf`
package; the numbers are converted and written one tensor at a time, each at its place.
"""

import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from llmt.checkpoints import layout
from llmt.checkpoints.files import NewFile, fsync_directory, new_file, require_free_space, storage_errors, write_at
from llmt.checkpoints.output import folder_beside
from llmt.checkpoints.reading import FETCH_AGAIN, open_file, read_json, shown
from llmt.checkpoints.runs import resolve_model_directory
from llmt.checkpoints.weights import Described, WeightReader, open_weights
from llmt.config.model import ModelConfig
from llmt.errors import BusyOutputError, MissingPackageError, ModelFileError, UsageError
from llmt.export.gguf_tokenizer import GgufTokenizer, TokenType, read_gguf_tokenizer
from llmt.models.foreign import check_config
from llmt.models.llama import LLAMA_TYPES, is_llama, parse_llama_config
from llmt.models.load import EMBEDDINGS, TIED_HEAD, read_config
from llmt.models.transformer import TransformerLM

GgufDtype = Literal["f32", "f16", "bf16", "q8_0"]
"""Number format of the matrices; norms are always f32."""

MAGIC = b"GGUF"

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
# A block of 32 numbers of q8_0 has one scale in f16, the largest of them divided by 127.
_LARGEST = {"F16": 65504.0, "Q8_0": 65504.0 * 127}
# llama.cpp treats tokens of models with these words in their name in ways of its own, or fails over them.
_NAMES_WITH_MEANING = ("phi3", "phi-3", "modern-bert")
_OTHER_MODEL = "transformers runs it; llama.cpp's own convert_hf_to_gguf.py may know it"


@dataclass(frozen=True)
class GgufReport:
    """What was written.

    Attributes:
        path: The file.
        dtype: Number format of its matrices.
        tensors: Number of tensors.
        parameters: Their numbers.
        size: Bytes of the file.
        seconds: How long it took.
        pre_tokenizer: llama.cpp's name for how text is split into words.
        unused_tokens: Rows of the model that no token of the tokenizer has.
        chat_template: Whether one is in the file.
        kept_f16: Matrices that are f16 since q8_0 needs rows of a multiple of 32 numbers.
    """

    path: Path
    dtype: GgufDtype
    tensors: int
    parameters: int
    size: int
    seconds: float
    pre_tokenizer: str
    unused_tokens: int
    chat_template: bool
    kept_f16: int


@dataclass(frozen=True)
class _Planned:
    """A tensor of the file: its name and type there, its shape, its bytes, and the heads whose rows are reordered."""

    name: str
    type: Any
    shape: tuple[int, ...]
    nbytes: int
    heads: int


def export_gguf(
    directory: Path, output: Path | None = None, *, dtype: GgufDtype = "f16", overwrite: bool = False
) -> GgufReport:
    """Write a model with its tokenizer as one GGUF file, which appears whole or not at all.

    Args:
        directory: A finished run, a checkpoint or any model directory with a tokenizer.json.
        output: The file. By default `NAME-DTYPE.gguf` beside the directory.
        dtype: Number format of the matrices.
        overwrite: Replace a GGUF file that stands there.

    Raises:
        UsageError: `dtype` is no format.
        ModelFileError: A file is missing, damaged or unsafe, or describes what llama.cpp would compute or read in
            another way.
        MismatchError: The tokenizer has more tokens than the model.
        BusyOutputError: The output exists.
        StorageError: The disk refused. What was there stays.
        MissingPackageError: gguf cannot be imported.
    """
    start = time.monotonic()
    if dtype not in get_args(GgufDtype):
        raise UsageError(f"dtype {dtype!r}: it must be one of {', '.join(get_args(GgufDtype))}")
    gguf = _library()
    directory = resolve_model_directory(directory)
    values = _llama_values(directory)
    config, vocab_size, context = parse_llama_config(values, str(directory / layout.CONFIG_FILE))
    tokenizer = read_gguf_tokenizer(directory, vocab_size, _ends(directory, values))
    output = output or folder_beside(directory, f"{dtype}.gguf")
    _require_free(output, overwrite)
    with open_weights(directory) as reader:
        planned = _plan(gguf, reader, config, vocab_size, dtype)
        require_free_space(output.parent, sum(_padded(gguf, plan.nbytes) for plan in planned.values()))
        with _published(output, overwrite) as (file, path):
            with closing(gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])) as writer:
                _describe_model(writer, config, context, directory.resolve().name)
                writer.add_vocab_size(vocab_size)
                writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
                writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
                _describe_tokenizer(writer, tokenizer)
                _write_head(gguf, writer, list(planned.values()))
            _write_tensors(gguf, file, reader, planned)
            size = os.fstat(file.fileno()).st_size
    return GgufReport(
        path=output,
        dtype=dtype,
        tensors=len(planned),
        parameters=sum(math.prod(plan.shape) for plan in planned.values()),
        size=size,
        seconds=time.monotonic() - start,
        pre_tokenizer=tokenizer.pre,
        unused_tokens=tokenizer.types.count(TokenType.UNUSED),
        chat_template=tokenizer.chat_template is not None,
        kept_f16=sum(dtype == "q8_0" and plan.type.name == "F16" for plan in planned.values()),
    )


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError("gguf", str(error)) from None
    return gguf


def _llama_values(directory: Path) -> dict[str, Any]:
    """The `config.json` of a model that llama.cpp computes as `TransformerLM` does."""
    if not (directory / layout.CONFIG_FILE).is_file():  # `resolve_model_directory` lets an adapter pass
        raise ModelFileError(f"{directory}: is an adapter", f"llmt convert merge-lora {directory}")
    values = read_config(directory)
    name = str(directory / layout.CONFIG_FILE)
    check_config(values, name)
    if problem := _shape_problem(values):
        raise ModelFileError(f"{name}: {problem}, and this writes plain Llamas", _OTHER_MODEL)
    return values


def _shape_problem(values: Mapping[str, Any]) -> str | None:
    """What keeps a model from being a plain Llama; None where nothing does."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    # What transformers takes where a Mistral does not say.
    window = values.get("sliding_window", 4096 if values.get("model_type") == "mistral" else None)
    reasons = {
        f"model_type is {shown(values.get('model_type'))}": values.get("model_type") not in LLAMA_TYPES,
        "attention_bias is set": values.get("attention_bias"),
        "mlp_bias is set": values.get("mlp_bias"),
        f"sliding_window is {shown(window)}": window,
        f"hidden_act is {shown(values.get('hidden_act'))}": values.get("hidden_act", "silu") != "silu",
        f"its rotary positions are scaled ({shown(rope_type)})": rope_type != "default",
        f"partial_rotary_factor is {shown(partial)}": partial not in (None, 1),
        "its heads are not hidden_size / num_attention_heads wide, or a value has no meaning": not is_llama(values),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _ends(directory: Path, values: Mapping[str, Any]) -> list[int]:
    """The ids at which the model's own settings end a generation."""
    found = values.get("eos_token_id")
    if (directory / layout.GENERATION_CONFIG).is_file():
        found = read_json(directory, layout.GENERATION_CONFIG).get("eos_token_id", found)
    return [number for number in (found if isinstance(found, list) else [found]) if type(number) is int]


def _require_free(output: Path, overwrite: bool) -> None:
    """Refuse to write where something is that may not be replaced."""
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_file():
        raise BusyOutputError(f"{output}: is a folder or a link, a file is to be written", "name another file")
    if not overwrite:
        raise BusyOutputError(f"{output}: exists already", "add --overwrite, or name another file")
    with open_file(output) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BusyOutputError(f"{output}: is no GGUF file, so --overwrite leaves it alone", "name another file")


def _plan(
    gguf: ModuleType, reader: WeightReader, config: ModelConfig, vocab_size: int, dtype: str
) -> dict[str, _Planned]:
    """What each tensor of the weight files becomes, by its name there; a second copy of a tied matrix is left out."""
    with torch.device("meta"):
        expected = {
            name: tuple(tensor.shape) for name, tensor in TransformerLM(config, vocab_size).state_dict().items()
        }
    found = dict(reader.described)
    if config.tie_word_embeddings and EMBEDDINGS in found:
        found.pop(TIED_HEAD, None)
    elif config.tie_word_embeddings:  # some writers keep the other name of the one matrix
        expected = {TIED_HEAD if name == EMBEDDINGS else name: shape for name, shape in expected.items()}
    _check_tensors(expected, found, reader.files.directory)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    planned = {}
    for name, shape in expected.items():
        kind = _type(gguf, shape, dtype)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2], 0)
        own = EMBEDDINGS if name == TIED_HEAD and config.tie_word_embeddings else name
        planned[name] = _Planned(
            name=names.get_name(own, try_suffixes=(".weight",)),
            type=kind,
            shape=shape,
            nbytes=math.prod(shape) // block * size,
            heads=heads,
        )
    return planned


def _type(gguf: ModuleType, shape: Sequence[int], dtype: str) -> Any:
    """The number format of a tensor, by llama.cpp's own rules."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    kind = types[dtype.upper()]
    return types.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind


def _check_tensors(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Described], directory: Path) -> None:
    """Every expected tensor is there, in its shape and as plain numbers, and no other."""
    if differing := sorted(expected.keys() ^ found.keys()):
        what = "lacks" if differing[0] in expected else "holds, beside what its configuration describes,"
        raise ModelFileError(f"{directory}: {what} {shown(differing[0])}", FETCH_AGAIN)
    for name, shape in expected.items():
        if found[name].shape != shape or not found[name].dtype.is_floating_point:
            raise ModelFileError(
                f"{directory}: {name} is {found[name].dtype} of shape {found[name].shape}, expected are numbers of "
                f"shape {shape}",
                FETCH_AGAIN,
            )


@contextmanager
def _published(output: Path, overwrite: bool) -> Iterator[tuple[NewFile, Path]]:
    """A new file beside `output`, and its path; it takes the name `output` once the body is done."""
    with storage_errors("creating a folder", output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{layout.TEMPORARY_PREFIX}{output.name}-{secrets.token_hex(4)}")
    try:
        with new_file(temporary, hashed=False) as file:
            yield file, temporary
        _require_free(output, overwrite)
        with storage_errors("publishing", output):
            os.replace(temporary, output)
            fsync_directory(output.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _describe_model(writer: Any, config: ModelConfig, context: int, name: str) -> None:
    writer.add_type("model")
    if not any(word in name.lower() for word in _NAMES_WITH_MEANING):
        writer.add_name(name)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


def _describe_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, of whatever split
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    for role, token_id in tokenizer.ids.items():
        getattr(writer, f"add_{role}_token_id")(token_id)
    # Said in either case: by some names llama.cpp adds one unasked.
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _write_head(gguf: ModuleType, writer: Any, planned: Sequence[_Planned]) -> None:
    """All that stands before the numbers."""
    for plan in planned:
        writer.add_tensor_info(plan.name, plan.shape, np.dtype(np.float32), plan.nbytes, plan.type)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write_tensors(gguf: ModuleType, file: NewFile, reader: WeightReader, planned: Mapping[str, _Planned]) -> None:
    """Each tensor at its place behind the head, in the order in which they are read."""
    places, end = {}, _padded(gguf, os.fstat(file.fileno()).st_size)
    for name, plan in planned.items():
        places[name] = end
        end += _padded(gguf, plan.nbytes)
    os.truncate(file.fileno(), end)  # what is between tensors is zero
    for name, tensor in reader.tensors(torch.float32, mapped=True):
        if name in planned:
            values = _reordered(tensor.numpy(), planned[name].heads)
            try:
                data = _encode(gguf, values, planned[name].type)
            except OverflowError as error:
                hint = "export it as bf16 or f32" if np.isfinite(values).all() else FETCH_AGAIN
                raise ModelFileError(f"{reader.files.directory}: {name}: {error}", hint) from None
            write_at(file.fileno(), places[name], data.view(np.uint8).data)


def _reordered(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The `(heads * E, D)` rows of queries or keys in the order of llama.cpp, which turns neighbours as a pair.

    Here the two halves of a head turn as pairs (convert_hf_to_gguf.py, `permute`). 0 heads: as they are.
    """
    if not heads:
        return values
    rows, width = values.shape
    return np.ascontiguousarray(values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2)).reshape(rows, width)


def _encode(gguf: ModuleType, values: NDArray[np.float32], kind: Any) -> NDArray[Any]:
    """Numbers in the format of the file.

    Raises:
        OverflowError: Some are not finite, or do not fit.
    """
    largest = max(float(values.max()), -float(values.min()))
    if not largest <= _LARGEST.get(kind.name, float(np.finfo(np.float32).max)):  # not a number is never less
        raise OverflowError(f"it holds {largest:g}, which {kind.name.lower()} cannot")
    return np.ascontiguousarray(gguf.quants.quantize(values, kind))


def _padded(gguf: ModuleType, size: int) -> int:
    """Bytes up to the next place where a tensor may begin."""
    return int(gguf.GGUFWriter.ggml_pad(size, gguf.GGUF_DEFAULT_ALIGNMENT))
