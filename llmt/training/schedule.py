"""step -> learning rate, in closed form: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine", "polynomial", "warmup_stable_decay"]


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a decay from the peak to a floor.

    Source of `cosine`: Loshchilov and Hutter, "SGDR", 2017 (https://arxiv.org/abs/1608.03983); of
    `warmup_stable_decay`: Hu et al., "MiniCPM", 2024 (https://arxiv.org/abs/2404.06395).

    Attributes:
        shape: How the rate falls after warm-up.
        total_steps: Step at which the floor is reached.
        warmup_steps: Steps until the peak.
        floor: Rate at the end, as a share of the peak.
        power: Exponent of the polynomial.
        decay_ratio: Share of all steps, the last ones, over which `warmup_stable_decay` falls in a line; what warm-up
            leaves where that is less.
    """

    shape: Shape
    total_steps: int
    warmup_steps: int
    floor: float = 0.0
    power: float = 1.0
    decay_ratio: float = 0.2

    def factor(self, step: float) -> float:
        """The share of the peak rate that the optimizer step after `step` finished ones uses.

        The first step of a warm-up is above zero, and the last step of a run is the last above the floor.

        Args:
            step: Finished steps, 0 or more; a fraction where progress is measured by the clock.
        """
        if step < self.warmup_steps:
            return min((step + 1) / self.warmup_steps, 1.0)
        if self.shape == "constant":
            return 1.0
        rest = max(self.total_steps - self.warmup_steps, 1)
        if self.shape == "warmup_stable_decay":
            decay = min(self.decay_ratio * self.total_steps, rest)
            share = min(max(self.total_steps - step, 0) / decay, 1.0)
            return self.floor + (1.0 - self.floor) * share
        left = 1.0 - min((step - self.warmup_steps) / rest, 1.0)
        if self.shape == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * left))
        else:
            share = left**self.power if self.shape == "polynomial" else left
        return self.floor + (1.0 - self.floor) * share


def warmup_steps(total_steps: int, steps: int | None, ratio: float) -> int:
    """Steps of warm-up: as given, else the ratio of all steps, and never all of them."""
    asked = steps if steps is not None else round(ratio * total_steps)
    return min(asked, max(total_steps - 1, 0))
