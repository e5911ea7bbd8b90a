"""a frozen model -> the same with the linear layers of its blocks in 4 bits. A door of bitsandbytes.

NF4 with doubly quantised scales: Dettmers et al., "QLoRA: efficient finetuning of quantized LLMs", 2023
(https://arxiv.org/abs/2305.14314).
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from llmt.errors import ConfigError, DeviceError, MissingPackageError


def require_4bit(device: str) -> Any:
    """The module of layers of bitsandbytes, for a kind of device.

    Raises:
        DeviceError: The device is not CUDA.
        MissingPackageError: The package cannot be imported.
    """
    if device != "cuda":
        raise DeviceError(f"lora.quantize 4bit: needs CUDA, and {device} would compute", "--set lora.quantize=none")
    try:
        return import_module("bitsandbytes.nn")
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are looked for at import
        raise MissingPackageError("bitsandbytes", str(error)) from error


def quantize_linears(model: Any, names: Iterable[str], layers: Any, dtype: torch.dtype) -> None:
    """Put layers in 4 bits, in place; their numbers are rounded, and computed with in `dtype`.

    Args:
        model: Holds the layers, on the device where they will be.
        names: Of the layers.
        layers: What `require_4bit` gave.
        dtype: Number format of the products.

    Raises:
        ConfigError: A layer is of another kind.
    """
    for name in sorted(names):
        owner, _, leaf = name.rpartition(".")
        plain = model.get_submodule(name)
        if not isinstance(plain, nn.Linear):
            raise ConfigError([f"lora.quantize: {name} is a {type(plain).__name__}, no nn.Linear"], "--quantize none")
        packed = layers.Linear4bit(
            plain.in_features, plain.out_features, bias=plain.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        weight = plain.weight.detach()
        packed.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", module=packed)
        if plain.bias is not None:
            packed.bias = nn.Parameter(plain.bias.detach(), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, packed.to(weight.device))
    model.is_loaded_in_4bit = True  # by this peft knows which layers to put around them
