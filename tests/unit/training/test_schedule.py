"""The learning rate as a function of the step."""

import math

import pytest

from llmt.training.schedule import Schedule, warmup_steps

SHAPES = ("constant", "linear", "cosine", "polynomial")
TABLES = {
    "constant": [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0],
    "cosine": [0.25, 0.5, 0.75, 1.0, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(9))],
    "polynomial": [0.25, 0.5, 0.75, 1.0, *((1 - k / 8) ** 2 for k in range(9))],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_closed_form(shape: str, floor: float) -> None:
    """Twelve steps, four of them warm-up, are the table written out by hand; after them the floor stays."""
    schedule = Schedule(shape, 12, 4, floor, 2.0)
    for step, share in enumerate(TABLES[shape]):
        expected = share if step < 4 or shape == "constant" else floor + (1 - floor) * share
        assert schedule.factor(step) == pytest.approx(expected, abs=1e-12)
    if shape != "constant":
        assert schedule.factor(1000) == pytest.approx(floor)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (5, 5), (5, 9), (7, 0)])
def test_every_step_of_a_run_learns(shape: str, total: int, warmup: int) -> None:
    """No step of a run has a rate of zero, however short it is and even where warm-up takes all of it."""
    schedule = Schedule(shape, total, warmup)
    assert all(0 < schedule.factor(step) <= 1 for step in range(total))


@pytest.mark.parametrize(("arguments", "expected"), [
    ((100, None, 0.05), 5), ((100, 7, 0.05), 7), ((100, 0, 0.5), 0), ((10, 1000, 0.0), 9),
    ((10, None, 1.0), 9), ((1, None, 0.5), 0), ((1, 5, 0.0), 0), ((3, None, 0.05), 0),
])  # fmt: skip
def test_warmup_never_takes_the_whole_run(arguments: tuple[int, int | None, float], expected: int) -> None:
    """Steps before ratio, and always at least one step at the peak."""
    assert warmup_steps(*arguments) == expected
