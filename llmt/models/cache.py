"""Keys and values of the tokens seen so far -> the keys and values that attention reads."""

import torch
from torch import Tensor


class KeyValueCache:
    """Room for the keys and values of one batch of sequences, filled from the left.

    Args:
        num_layers: Number of blocks.
        shape: `(B, K, T_max, E)`: batch, key heads, longest length in tokens, head size.
        dtype: Number format of the keys.
        device: Where they are held.
    """

    def __init__(
        self, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys[0].shape[2]

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append `(B, K, T, E)` keys and values of one layer; return all of that layer's so far.

        The position moves on only when `advance` is called, once every layer has appended.
        """
        end = self.length + key.shape[2]
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions as filled."""
        self.length += tokens
