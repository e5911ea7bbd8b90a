"""gradients -> weights: fp32 masters, parameter groups and the optimizers over them.

A parameter that computes in bf16 has a master in fp32 that the optimizer moves; the parameter is its
rounded copy. A parameter in fp32 is its own master. Everything is known by parameter name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmt.config.training import TrainingConfig
from llmt.errors import MismatchError
from llmt.training.muon import PlainMuon

MATRIX_PREFIX = "layers."

ENTRIES: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
    PlainMuon: ("momentum_buffer",),
}
"""The tensors that each optimizer keeps for a weight."""


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
        optimizer: What moves them.
        peak: Peak learning rate.
        weights: The tensors.
    """

    optimizer: torch.optim.Optimizer
    peak: float
    weights: tuple[Weight, ...]


class Optimizer:
    """Every optimizer of a run behind one step.

    Args:
        model: Its parameters that require a gradient are trained. They may be in bf16.
        config: Rates, moments and decay.
        exact: fp32 values of the parameters by name, from before they were rounded; those that are
            missing start from the rounded ones.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, exact: Mapping[str, Tensor] | None = None) -> None:
        values = exact or {}
        self.weights = [_weight(name, p, values.get(name)) for name, p in model.named_parameters() if p.requires_grad]
        self.groups = _groups(self.weights, config)

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to its peak times `factor`."""
        for group in self.groups:
            for options in group.optimizer.param_groups:
                options["lr"] = group.peak * factor

    def accumulate(self) -> None:
        """Add the gradients of bf16 parameters to their masters' in fp32, and clear them."""
        for weight in self.weights:
            gradient = weight.parameter.grad
            if not weight.is_copy or gradient is None:
                continue
            if weight.master.grad is None:
                weight.master.grad = gradient.to(torch.float32)
            else:
                weight.master.grad.add_(gradient)
            weight.parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """The fp32 gradients of this step, in the order of `weights`; a tensor without one is left out."""
        return [w.master.grad for w in self.weights if w.master.grad is not None]

    def step(self) -> None:
        """Move the masters, copy them into the parameters and clear the gradients."""
        for group in self.groups:
            group.optimizer.step()
        with torch.no_grad():
            for weight in self.weights:
                weight.master.grad = None
                if weight.is_copy:
                    weight.parameter.copy_(weight.master)

    def masters(self) -> dict[str, Tensor]:
        """Name -> fp32 weight."""
        return {w.name: w.master.detach() for w in self.weights}

    def state(self) -> dict[str, Tensor]:
        """Optimizer tensors as `name.key`, in their own number format."""
        return {f"{name}.{key}": value for name, key, value in self._entries()}

    def load(self, masters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Take up weights and optimizer tensors as `masters` and `state` gave them.

        Raises:
            MismatchError: Names or shapes differ.
        """
        with torch.no_grad():
            for weight in self.weights:
                saved = masters.get(weight.name)
                if saved is None or saved.shape != weight.master.shape:
                    held = "no such tensor" if saved is None else tuple(saved.shape)
                    raise MismatchError(
                        f"{weight.name}: the checkpoint holds {held}, the model needs {tuple(weight.master.shape)}",
                        "resume with the configuration that the run began with",
                    )
                weight.master.copy_(saved)
                weight.parameter.copy_(weight.master)
        owners = {w.name: (g.optimizer, w) for g in self.groups for w in g.weights}
        for key, value in state.items():
            name, _, entry = key.rpartition(".")
            if name not in owners or entry not in ENTRIES[type(owners[name][0])]:
                raise MismatchError(f"{key}: no such optimizer tensor", "resume with the same optimizer and adapter")
            optimizer, weight = owners[name]
            optimizer.state[weight.master][entry] = value.to(weight.master.device, copy=True)

    def _entries(self) -> Iterator[tuple[str, str, Tensor]]:
        for group in self.groups:
            for weight in group.weights:
                for key, value in group.optimizer.state.get(weight.master, {}).items():
                    if isinstance(value, Tensor):
                        yield weight.name, key, value


def _weight(name: str, parameter: nn.Parameter, exact: Tensor | None) -> Weight:
    if parameter.dtype == torch.float32:
        return Weight(name, parameter, parameter)
    source = parameter.detach() if exact is None else exact.detach()
    return Weight(name, parameter, source.to(parameter.device, torch.float32, copy=True).requires_grad_(True))


def _groups(weights: list[Weight], config: TrainingConfig) -> list[Group]:
    """Matrices of the blocks go to Muon where it is asked for; norms and biases are never decayed."""
    muon = [w for w in weights if config.optimizer == "muon" and w.master.ndim == 2 and MATRIX_PREFIX in w.name]
    taken = {w.name for w in muon}
    rest = [w for w in weights if w.name not in taken]
    groups = []
    if muon:
        kind = PlainMuon if all(w.parameter.dtype == torch.float32 for w in muon) else torch.optim.Muon
        optimizer = kind(
            [w.master for w in muon],
            lr=config.muon_learning_rate,
            momentum=config.muon_momentum,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # updates as large as AdamW's, whatever the matrix's shape
        )
        groups.append(Group(optimizer, config.muon_learning_rate, tuple(muon)))
    for decayed, decay in ((True, config.weight_decay), (False, 0.0)):
        members = [w for w in rest if (w.master.ndim >= 2) is decayed]
        if members:
            groups.append(Group(_adamw(members, config, decay), config.learning_rate, tuple(members)))
    return groups


def _adamw(weights: list[Weight], config: TrainingConfig, decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [w.master for w in weights],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=decay,
        fused=True,
    )
