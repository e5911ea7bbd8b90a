"""The learning rate as a function of the step."""

import math
from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmt.training.schedule import Schedule, warmup_steps

SHAPES = ("constant", "linear", "cosine", "polynomial", "warmup_stable_decay")
TABLES = {
    "constant": [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0],
    "cosine": [0.25, 0.5, 0.75, 1.0, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(9))],
    "polynomial": [0.25, 0.5, 0.75, 1.0, *((1 - k / 8) ** 2 for k in range(9))],
    "warmup_stable_decay": [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2 / 3, 1 / 3, 0.0],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_closed_form(shape: str, floor: float) -> None:
    """Twelve steps, four of them warm-up, are the table written out by hand; after them the floor stays."""
    schedule = Schedule(shape, 12, 4, floor, 2.0, 0.25)
    for step, share in enumerate(TABLES[shape]):
        expected = share if step < 4 or shape == "constant" else floor + (1 - floor) * share
        assert schedule.factor(step) == pytest.approx(expected, abs=1e-12)
    if shape != "constant":
        assert schedule.factor(1000) == floor


def _rates(make: Callable[..., torch.optim.lr_scheduler.LambdaLR], steps: int, **options: float) -> list[float]:
    """The rates of a schedule of transformers, of the peak 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer, **options), []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("warmup", "total"), [(0, 40), (1, 40), (10, 100)])
@pytest.mark.parametrize("shape", SHAPES)
def test_rates_are_those_of_transformers(shape: str, warmup: int, total: int) -> None:
    """Peak and decay are the same step by step; warm-up is one step ahead, since its first step is not zero there."""
    steps, ends = {"num_warmup_steps": warmup}, {"num_warmup_steps": warmup, "num_training_steps": total}
    make, options, floor = {
        "constant": (transformers.get_constant_schedule_with_warmup, steps, 0.0),
        "linear": (transformers.get_linear_schedule_with_warmup, ends, 0.0),
        "cosine": (transformers.get_cosine_schedule_with_warmup, ends, 0.0),
        "polynomial": (
            transformers.get_polynomial_decay_schedule_with_warmup, {**ends, "lr_end": 0.1, "power": 2.5}, 0.1,
        ),
        "warmup_stable_decay": (
            transformers.get_wsd_schedule,
            {**ends, "num_decay_steps": total // 5, "decay_type": "linear"}, 0.0,
        ),
    }[shape]  # fmt: skip
    theirs = _rates(make, total, **options)
    schedule = Schedule(shape, total, warmup, floor, 2.5, 0.2)
    ours = [schedule.factor(step) for step in range(total + 1)]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-12)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], abs=1e-12)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule of a run."""
    total, share = draw(st.integers(1, 500)), st.floats(0, 1)
    warmup = warmup_steps(total, draw(st.none() | st.integers(0, 600)), draw(share))
    power, decay = draw(st.floats(0.05, 8)), draw(st.floats(1e-6, 1))
    return Schedule(draw(st.sampled_from(SHAPES)), total, warmup, draw(share), power, decay)


@given(schedules(), st.lists(st.floats(0, 1.5), min_size=2, max_size=20))
@settings(max_examples=500)
def test_a_rate_rises_to_the_peak_and_falls_to_the_floor(schedule: Schedule, places: list[float]) -> None:
    """At whole steps and between them: within 0 and the peak, up before it, then down and never below the floor."""
    total, warmup = schedule.total_steps, schedule.warmup_steps
    steps = sorted({*range(total + 2), *(place * total for place in places)})
    rates = [schedule.factor(step) for step in steps]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0
    before = [rate for step, rate in zip(steps, rates, strict=True) if step <= warmup]
    after = [rate for step, rate in zip(steps, rates, strict=True) if step >= warmup]
    assert before == sorted(before)
    assert after == sorted(after, reverse=True)
    assert schedule.factor(warmup) == 1
    assert min(after) >= schedule.floor
    assert (
        schedule.factor(total)
        == schedule.factor(1.5 * total)
        == (1 if schedule.shape == "constant" else schedule.floor)
    )


@given(schedules())
@settings(max_examples=200)
def test_a_whole_step_is_one_however_it_is_counted(schedule: Schedule) -> None:
    """Progress by the clock that comes to a whole step has the rate of that step, bit for bit."""
    for step in range(schedule.total_steps + 1):
        assert schedule.factor(float(step)) == schedule.factor(step)


@pytest.mark.parametrize("shape", SHAPES)
def test_there_is_no_jump(shape: str) -> None:
    """Between two whole steps the rate is between theirs, at the end of warm-up too."""
    schedule = Schedule(shape, 20, 5, 0.1, 2.0, 0.33)
    for step in range(20):
        ends = sorted([schedule.factor(step), schedule.factor(step + 1)])
        assert all(ends[0] <= schedule.factor(step + part / 7) <= ends[1] for part in range(8))


@pytest.mark.parametrize("ratio", [0.75, 0.9, 1.0])
def test_a_decay_that_would_begin_in_the_warm_up_begins_after_it(ratio: float) -> None:
    """There the rate falls in a line from the peak on."""
    schedule, linear = Schedule("warmup_stable_decay", 40, 10, 0.1, decay_ratio=ratio), Schedule("linear", 40, 10, 0.1)
    for step in range(42):
        assert schedule.factor(step) == pytest.approx(linear.factor(step), abs=1e-12)


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
