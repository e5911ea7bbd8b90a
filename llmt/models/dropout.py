"""Dropout from few random bits: on a CPU, drawing a number for every value is what takes the time.

torch draws 32 bits or more for each value. Here one draw of 64 bits serves four values: each is dropped where its 16
bits, read as a number, lie below the share. A share is met to 1 / 65,536, and what is kept is scaled by just that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 4
"""Values that one draw of 64 bits serves."""

STEPS = 1 << 16
"""Numbers that 16 bits can be."""


def dropout(x: Tensor, share: float) -> Tensor:
    """Set a share of the values to 0 and scale the others, so that the mean stays what it was.

    Args:
        x: Of any shape.
        share: 0 to 1, below 1.
    """
    if x.device.type != "cpu":
        return F.dropout(x, share)
    kept, scale = draw_kept(x, share)
    return x * kept * scale


def draw_kept(like: Tensor, share: float) -> tuple[Tensor, float]:
    """Which values of a tensor on the CPU are not dropped, and what these are multiplied by."""
    below = min(round(share * STEPS), STEPS - 1)
    return draw_bits(like) >= below - STEPS // 2, STEPS / (STEPS - below)


# Not recomputed in a backward pass, where it would be other bits; and the same bits compiled or not.
@torch.library.custom_op("llmt::draw_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw_bits(like: Tensor) -> Tensor:
    """16 random bits for each value of a tensor, as numbers from -32,768 to 32,767, in its shape."""
    number = like.numel()
    drawn = torch.empty(-(-number // LANES), dtype=torch.int64)
    drawn.random_(-(1 << 63), None)  # all 64 bits
    return drawn.view(torch.int16)[:number].view(like.shape)


@draw_bits.register_fake
def _(like: Tensor) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.int16)
