"""weights -> groups: which optimizer moves what at which rate, and the tensors that it keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmt.config.training import TrainingConfig
from llmt.errors import DeviceError, MissingPackageError
from llmt.training.muon import BatchedMuon
from llmt.training.sgd import DecoupledSGD

Kind = Literal["adamw", "muon", "sgd", "adafactor", "adamw_8bit"]

MATRIX_PREFIX = "layers."

ENTRIES: dict[Kind, tuple[frozenset[str], ...]] = {
    "adamw": (frozenset({"step", "exp_avg", "exp_avg_sq"}),),
    "muon": (frozenset({"momentum_buffer"}),),
    "sgd": (frozenset({"momentum_buffer"}),),
    "adafactor": (frozenset({"step", "row_var", "col_var"}), frozenset({"step", "variance"})),
    "adamw_8bit": (
        frozenset({"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}),
        frozenset({"step", "state1", "state2"}),
    ),
}
"""The tensors that each optimizer keeps for a weight: one of these sets, or none before its first gradient."""


@dataclass(frozen=True)
class Weight:
    """One trained tensor.

    Attributes:
        name: Its name in `named_parameters`.
        parameter: What the model computes with.
        master: What the optimizer moves; the same tensor where the precision is fp32.
    """

    name: str
    parameter: nn.Parameter
    master: Tensor

    @property
    def is_copy(self) -> bool:
        """The parameter is a rounded copy of the master."""
        return self.master is not self.parameter


@dataclass(frozen=True)
class Group:
    """Parameters that share an optimizer and its rates.

    Attributes:
        kind: Which optimizer.
        optimizer: What moves them.
        peak: Peak learning rate.
        weights: The tensors.
    """

    kind: Kind
    optimizer: torch.optim.Optimizer
    peak: float
    weights: tuple[Weight, ...]


def make_groups(weights: Sequence[Weight], config: TrainingConfig) -> list[Group]:
    """Matrices of the blocks go to Muon where it is asked for; matrices are decayed, norms and biases never are.

    Raises:
        DeviceError: The optimizer does not run where the weights are, or its package is missing.
    """
    kind, groups = config.optimizer, list[Group]()
    taken: set[str] = set()
    if kind == "muon":
        matrices = [w for w in weights if w.master.ndim == 2 and MATRIX_PREFIX in w.name]
        taken = {w.name for w in matrices}
        if matrices:
            groups.append(Group("muon", _muon(matrices, config), config.muon_learning_rate, tuple(matrices)))
    others: Kind = "adamw" if kind == "muon" else kind
    rest = [w for w in weights if w.name not in taken]
    for decayed, decay in ((True, config.weight_decay), (False, 0.0)):
        members = [w for w in rest if (w.master.ndim >= 2) is decayed]
        if members:
            optimizer = _MAKERS[others]([w.master for w in members], config, decay)
            groups.append(Group(others, optimizer, config.learning_rate, tuple(members)))
    return groups


def require_adamw_8bit(device: str) -> Any:
    """The class `AdamW8bit` of bitsandbytes, for weights on a kind of device.

    Raises:
        DeviceError: The device is not CUDA.
        MissingPackageError: The package cannot be imported.
    """
    if device != "cuda":
        raise DeviceError(
            f"training.optimizer adamw_8bit: needs CUDA, and the weights are on {device}",
            "llmt train --optimizer adamw",
        )
    try:
        return import_module("bitsandbytes.optim").AdamW8bit
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are looked for at import
        raise MissingPackageError("bitsandbytes", str(error)) from error


def _muon(weights: Sequence[Weight], config: TrainingConfig) -> torch.optim.Optimizer:
    bf16 = any(w.parameter.dtype == torch.bfloat16 for w in weights)
    return BatchedMuon(
        [w.master for w in weights],
        torch.bfloat16 if bf16 else torch.float32,
        lr=config.muon_learning_rate,
        momentum=config.muon_momentum,
        ns_steps=config.muon_ns_steps,
        weight_decay=config.weight_decay,
    )


def _adamw(masters: list[Tensor], config: TrainingConfig, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        masters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=decay,
        fused=True,
    )


def _sgd(masters: list[Tensor], config: TrainingConfig, decay: float) -> torch.optim.Optimizer:
    return DecoupledSGD(masters, config.learning_rate, config.sgd_momentum, decay)


def _adafactor(masters: list[Tensor], config: TrainingConfig, decay: float) -> torch.optim.Optimizer:
    """Adafactor of Shazeer and Stern, 2018 (https://arxiv.org/abs/1804.04235), without relative step sizes."""
    return torch.optim.Adafactor(
        masters,
        lr=config.learning_rate,
        # The root of the paper's 1e-30: torch's own 1e-7 is more than most mean squares of gradients. And a rate is
        # multiplied by the size of the weights but by no less than 1: matrices that begin at zero would hardly move.
        eps=(1e-15, 1.0),
        weight_decay=decay,
        foreach=False,
    )


def _adamw_8bit(masters: list[Tensor], config: TrainingConfig, decay: float) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits, by blocks: Dettmers et al., 2022 (https://arxiv.org/abs/2110.02861)."""
    found: torch.optim.Optimizer = require_adamw_8bit(masters[0].device.type)(
        masters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=decay,
    )
    return found


_MAKERS: dict[Kind, Callable[[list[Tensor], TrainingConfig, float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "adamw_8bit": _adamw_8bit,
}
