"""gradients -> weights: fp32 masters, and every optimizer of a run behind one step.

A parameter that computes in bf16 or fp16 has a master in fp32 that the optimizer moves; the parameter is its rounded
copy. A parameter in fp32 is its own master. Everything is known by parameter name.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from llmt.config.training import TrainingConfig
from llmt.errors import MismatchError
from llmt.training.groups import ENTRIES, Weight, make_groups

AT_ONCE = 1 << 20
"""Values that are taken at once where torch makes a copy of them, such as to add them to a sum in another format."""

COMPANION = "companion."
"""What the names of a companion's tensors begin with, beside those of the optimizers."""


class Companion(Protocol):
    """What moves weights besides the optimizers, after each step."""

    def after_move(self) -> None:
        """A step is done; its gradients are there still."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it goes on with, by name."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        ...


class Optimizer:
    """Every optimizer of a run behind one step.

    Args:
        model: Its parameters that require a gradient are trained. They may be in bf16 or fp16.
        config: Rates, moments and decay.
        exact: fp32 values of the parameters by name, from before they were rounded; those that are
            missing start from the rounded ones.
        companion: Moves weights too.

    Attributes:
        frozen: fp32 values, by name, of rounded parameters that are not trained: they are saved as they were.

    Raises:
        DeviceError: The optimizer does not run where the model is, or its package is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        exact: Mapping[str, Tensor] | None = None,
        companion: Companion | None = None,
    ) -> None:
        values = exact or {}
        self.weights = [_weight(name, p, values.get(name)) for name, p in model.named_parameters() if p.requires_grad]
        self.frozen = {n: values[n] for n, p in model.named_parameters() if not p.requires_grad and n in values}
        self.groups = make_groups(self.weights, config)
        self._copies = [w for w in self.weights if w.is_copy]
        self._companion = companion

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to its peak times `factor`."""
        for group in self.groups:
            for options in group.optimizer.param_groups:
                options["lr"] = group.peak * factor

    def accumulate(self) -> None:
        """Add the gradients of bf16 and fp16 parameters to their masters' in fp32, and clear them.

        What the loss gave to the master itself is there already.
        """
        sums, more = list[Tensor](), list[Tensor]()
        for weight in self._copies:
            gradient = weight.parameter.grad
            if gradient is None:
                continue
            if weight.master.grad is None:
                weight.master.grad = gradient.to(torch.float32)
            else:
                sums.extend(parts_of(weight.master.grad))
                more.extend(parts_of(gradient))
            weight.parameter.grad = None
        if sums:
            torch._foreach_add_(sums, more)

    def master_of(self, parameter: Tensor) -> Tensor | None:
        """The fp32 values that a trained parameter is rounded from; None for any other tensor.

        None too for one that somebody watches the gradients of: what goes to the master passes it by.
        """
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return None
        return next((w.master for w in self._copies if w.parameter is parameter), None)

    def unscale(self, factor: float) -> None:
        """Multiply all fp32 gradients of this step by `factor`, in place."""
        found = self.gradients()
        if found:
            torch._foreach_mul_(found, factor)

    def gradients(self) -> list[Tensor]:
        """The fp32 gradients of this step, in the order of `weights`; a tensor without one is left out."""
        return [w.master.grad for w in self.weights if w.master.grad is not None]

    @torch.no_grad()
    def step(self) -> None:
        """Move the masters, copy them into the parameters and clear the gradients."""
        for group in self.groups:
            group.optimizer.step()
        if self._companion is not None and self.gradients():
            self._companion.after_move()
        for weight in self.weights:
            weight.master.grad = None
        if self._copies:
            torch._foreach_copy_([w.parameter for w in self._copies], [w.master for w in self._copies])

    def masters(self) -> dict[str, Tensor]:
        """Name -> fp32 weight."""
        return {w.name: w.master.detach() for w in self.weights}

    def state(self) -> dict[str, Tensor]:
        """Optimizer tensors as `name.key`, in their own number format; a count that is no tensor as one of int64."""
        more = {} if self._companion is None else self._companion.state()
        own = {f"{name}.{key}": value for name, key, value in self._entries()}
        return own | {COMPANION + name: value for name, value in more.items()}

    def load(self, masters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Take up weights and optimizer tensors as `masters` and `state` gave them, and forget those that were there.

        Raises:
            MismatchError: Names or shapes differ, or a weight has only a part of its optimizer tensors.
        """
        found: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        more = {key.removeprefix(COMPANION): value for key, value in state.items() if key.startswith(COMPANION)}
        for key, value in state.items():
            if not key.startswith(COMPANION):
                name, _, entry = key.rpartition(".")
                found[name][entry] = value
        self._check(masters, found)
        if self._companion is not None:
            self._companion.load(more)
        with torch.no_grad():
            for weight in self.weights:
                weight.master.copy_(masters[weight.name])
                weight.parameter.copy_(weight.master)
        for group in self.groups:
            group.optimizer.state.clear()
            for weight in group.weights:
                for entry, value in found[weight.name].items():
                    group.optimizer.state[weight.master][entry] = _held(value, weight.master.device)

    def _check(self, masters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for weight in self.weights:
            saved = masters.get(weight.name)
            if saved is None or saved.shape != weight.master.shape:
                held = "no such tensor" if saved is None else tuple(saved.shape)
                raise MismatchError(
                    f"{weight.name}: the checkpoint holds {held}, the model needs {tuple(weight.master.shape)}",
                    "resume with the configuration that the run began with",
                )
        kinds = {w.name: group.kind for group in self.groups for w in group.weights}
        for name, entries in state.items():
            if name not in kinds or frozenset(entries) not in ENTRIES[kinds[name]]:
                held = ", ".join(sorted(entries))
                raise MismatchError(
                    f"{name}: the checkpoint's optimizer tensors are {held}, not those of this run",
                    "resume with the same optimizer and adapter",
                )

    def _entries(self) -> Iterator[tuple[str, str, Tensor]]:
        for group in self.groups:
            for weight in group.weights:
                for key, value in group.optimizer.state.get(weight.master, {}).items():
                    yield weight.name, key, torch.as_tensor(value)


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of about `AT_ONCE` values of a tensor, along its first dimension."""
    if tensor.numel() <= AT_ONCE:
        return (tensor,)
    return tensor.split(max(AT_ONCE * len(tensor) // tensor.numel(), 1))


def _weight(name: str, parameter: nn.Parameter, exact: Tensor | None) -> Weight:
    if parameter.dtype == torch.float32:
        return Weight(name, parameter, parameter)
    source = parameter.detach() if exact is None else exact.detach()
    return Weight(name, parameter, source.to(parameter.device, torch.float32, copy=True).requires_grad_(True))


def _held(value: Tensor, device: torch.device) -> Tensor | int:
    """An optimizer's own form of what `state` gave."""
    return int(value) if value.dtype == torch.int64 else value.to(device, copy=True)
