"""an adapter of AdaLoRA -> the ranks that it keeps: importance of each, and a budget that falls over the run.

Zhang et al., "Adaptive budget allocation for parameter-efficient fine-tuning", ICLR 2023
(https://arxiv.org/abs/2303.10512). peft does the work; here is what a run asks of it beside gradients.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmt.errors import MismatchError

_STEP = "step"
_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankBudget:
    """What takes the ranks away that matter least.

    Args:
        tuner: peft's model of AdaLoRA.
        core: The module that it was put on.
    """

    def __init__(self, tuner: Any, core: nn.Module) -> None:
        self._allocator = tuner.rankallocator
        self._core = core
        self._step = 0
        self._weight = tuner.peft_config[tuner.trainable_adapter_name].orth_reg_weight

    def after_move(self) -> None:
        """Take in the gradients of a step that is done, and put what is over the budget to zero."""
        self._step += 1
        self._allocator.update_and_allocate(self._core, self._step)

    def state(self) -> dict[str, Tensor]:
        """The steps so far, and how much each number has mattered, by name."""
        found = {f"{kept}.{name}": value for kept in _KEPT for name, value in getattr(self._allocator, kept).items()}
        return found | {_STEP: torch.tensor(self._step)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises:
            MismatchError: It is that of another adapter.
        """
        if _STEP not in state:
            raise MismatchError(
                "the checkpoint has no budget of ranks", "resume with the adapter that the run began with"
            )
        self._step = int(state[_STEP])
        places = dict(self._core.named_parameters())
        for kept in _KEPT:
            found = {name.removeprefix(f"{kept}."): t for name, t in state.items() if name.startswith(f"{kept}.")}
            moved = {name: t.to(places[name].device, copy=True) for name, t in found.items()}
            setattr(self._allocator, kept, moved)

    def penalty(self) -> Tensor:
        """What the two sides of the update lack to be orthogonal, a scalar that is added to the mean loss."""
        each = []
        for name, side in self._core.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                product = side @ side.T if ".lora_A." in name else side.T @ side
                each.append(torch.linalg.norm(product - torch.eye(len(product), device=side.device)))
        return self._weight * torch.stack(each).mean()
