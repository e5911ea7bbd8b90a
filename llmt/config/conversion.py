"""The settings of every form of `llmt convert`."""

from typing import Literal

from llmt.config.base import Flag, Section, Size, Text


class ConvertSettings(Section):
    """`llmt convert`: PyTorch weights to safetensors."""

    output_dir: Text | None = None
    """Directory to write. None means the source's name with `-safetensors` appended, beside it."""

    max_shard_size: Size = 5_000_000_000
    """Largest file, such as `2GB`."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format that floating weights get. None keeps theirs."""

    verify: Flag = True
    """Read the result back and compare it with the source before it is published."""

    dry_run: Flag = False
    """Look at everything but the numbers, say what would be written, and write nothing."""

    overwrite: Flag = False
    """Replace a model that stands in the output directory."""


class ToPytorchSettings(Section):
    """`llmt convert safetensors-to-pt`: safetensors to PyTorch weights."""

    output_dir: Text | None = None
    """Directory to write. None means the source's name with `-pytorch` appended, beside it."""

    max_shard_size: Size = 5_000_000_000
    """Largest file, such as `2GB`."""

    overwrite: Flag = False
    """Replace a model that stands in the output directory."""


class MergeSettings(Section):
    """`llmt convert merge-lora`: an adapter and its base to one full model."""

    base: Text | None = None
    """Directory of the base model. None takes the one that the adapter names."""

    output_dir: Text | None = None
    """Directory to write. None means the adapter's, with `-merged` appended."""

    max_shard_size: Size = 5_000_000_000
    """Largest file, such as `2GB`."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the result. Halves lose a part of what the adapter changed, which is measured and said."""

    overwrite: Flag = False
    """Replace a model that stands there already."""


class GgufSettings(Section):
    """`llmt convert gguf`: a model to one file for llama.cpp and Ollama."""

    output_file: Text | None = None
    """File to write. None means the model's name with the number format and `.gguf` appended, beside it."""

    dtype: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    """Number format of the matrices; vectors stay `f32`."""

    overwrite: Flag = False
    """Replace a file that stands there already."""
