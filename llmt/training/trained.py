"""a model -> what of it is trained: tensors and numbers, by kind of layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmt.models.base import BaseLanguageModel


@dataclass(frozen=True)
class TrainedPart:
    """The trained tensors of one kind of layer.

    Attributes:
        name: What the layers are called.
        tensors: How many tensors.
        parameters: How many numbers they hold.
    """

    name: str
    tensors: int
    parameters: int


def trained_parts(model: BaseLanguageModel) -> list[TrainedPart]:
    """What is trained, in the order of the model; equal layers of all blocks are one line."""
    sums: dict[str, list[int]] = {}
    layers = list(_adapted(model))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = max((one for one in layers if name.startswith(f"{one}.")), key=len, default=_owner(name))
            found = sums.setdefault(layer.rpartition(".")[2], [0, 0])
            found[0] += 1
            found[1] += parameter.numel()
    return [TrainedPart(name, *counted) for name, counted in sums.items()]


def _adapted(model: BaseLanguageModel) -> Iterator[str]:
    """The layers that peft has put its own around."""
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") or hasattr(module, "original_module"):
            yield name


def _owner(name: str) -> str:
    """The module that has a parameter."""
    return name.rpartition(".")[0] or name
