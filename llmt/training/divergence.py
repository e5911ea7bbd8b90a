"""losses of the steps so far -> whether the loss explodes."""

import statistics

from llmt.training.state import RunState

WINDOW = 32
"""Losses that are remembered."""

FEWEST = 8
"""No loss is called high before so many are known."""

FACTOR = 3.0
"""A loss above this many times the median is high, if it is also a nat above it."""

PATIENCE = 5
"""High losses in a row that make an explosion."""

NORM = 1e4
"""A gradient norm above this is one by itself."""


def watch_loss(state: RunState, loss: float, grad_norm: float) -> tuple[RunState, str]:
    """The state with the loss of a step taken in, and what is to be said about it; empty for nothing.

    Args:
        state: After the steps before.
        loss: Nats for each token of the step.
        grad_norm: Its gradient norm before clipping.
    """
    usual = statistics.median(state.losses) if len(state.losses) >= FEWEST else None
    steep = f"the gradient norm is {grad_norm:.2g}" if grad_norm > NORM else ""
    if usual is None:
        return state.advance(losses=(*state.losses, loss)), steep
    if loss <= max(FACTOR * usual, usual + 1):
        return state.advance(losses=(*state.losses, loss)[-WINDOW:], high=0), steep
    state = state.advance(high=state.high + 1)
    if state.high % PATIENCE:
        return state, steep
    return state, f"the loss is {loss:.4g}, over {state.high} steps more than {FACTOR:g} times the usual {usual:.4g}"
