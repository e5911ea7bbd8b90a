"""A run takes exactly the steps that were asked for."""

import math
from typing import Any

import pytest

from llmt.training.limits import steps_of_epochs, total_steps


@pytest.mark.parametrize("settings", [
    {}, {"training__num_train_epochs": 100.0}, {"training__gradient_accumulation_steps": 3},
    {"training__gradient_accumulation_steps": 2, "training__num_train_epochs": 10.0},
    {"training__max_tokens": 10_000_000}, {"training__max_time": 3600.0},
    {"training__save_steps": 1}, {"training__eval_steps": 1}, {"data__validation_split": 0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("stop_after", [None, 1, 3, 5])
def test_max_steps_is_exact(lab: Any, settings: dict[str, Any], stop_after: int | None) -> None:
    """max_steps 5 takes five steps with every mix of other limits and accumulation, stopped and resumed or not."""
    config = lab.config(training__max_steps=5, **settings)
    run = lab.run(config, stop_after=stop_after)
    steps = [report.step for report in run.reports]
    if stop_after is not None:
        assert run.trainer.state.step == stop_after
        run = lab.run(config, resume=True)
        steps += [report.step for report in run.reports]
    assert steps == [1, 2, 3, 4, 5]
    per_step = 4 * config.training.gradient_accumulation_steps * 16
    assert 0 <= 5 * per_step - run.trainer.state.tokens < 16 * 2
    assert run.keeper.store.steps()[-1] == 5


@pytest.mark.parametrize("epochs", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("stop_after", [None, 2])
def test_epochs(lab: Any, epochs: float, accumulation: int, stop_after: int | None) -> None:
    """A run by epochs takes as many steps as cover them, the last one whole, resumed or not."""
    config = lab.config(training__num_train_epochs=epochs, training__gradient_accumulation_steps=accumulation,
                        data__block_size=64)  # fmt: skip
    run = lab.run(config, stop_after=stop_after)
    if stop_after is not None:
        run = lab.run(config, resume=True)
    blocks = run.prepared.corpus.data.train.count
    assert run.trainer.state.step == math.ceil(epochs * blocks / (4 * accumulation))
    if run.reports:
        assert run.reports[-1].epoch == pytest.approx(run.trainer.state.step * 4 * accumulation / blocks)


@pytest.mark.parametrize(
    ("epochs", "samples", "together", "steps"),
    [(1.1, 100, 11, 10), (2.2, 50, 11, 10), (0.1, 30, 3, 1), (1.0, 10, 4, 3)],
)
def test_passes_that_are_no_binary_fractions(epochs: float, samples: int, together: int, steps: int) -> None:
    """What rounding adds to a product is not a step more."""
    assert steps_of_epochs(epochs, samples, together) == steps
    found = total_steps(
        samples_per_step=together,
        samples=samples,
        max_steps=None,
        epochs=epochs,
        max_tokens=None,
        tokens_per_sample=1.0,
    )
    assert found == steps


def test_one_pass_where_nothing_is_asked(lab: Any) -> None:
    """Without any limit the run is one epoch, and every target of the text was trained on."""
    run = lab.run(lab.config(data__block_size=64))
    train = run.prepared.corpus.data.train
    assert run.trainer.state.step == math.ceil(train.count / 4)
    assert run.trainer.state.tokens >= train.parts[0].trained


@pytest.mark.parametrize("stop_after", [None, 3])
def test_tokens(lab: Any, stop_after: int | None) -> None:
    """A run by tokens ends with the step that reaches them."""
    config = lab.config(training__max_tokens=500)
    run = lab.run(config, stop_after=stop_after)
    if stop_after is not None:
        run = lab.run(config, resume=True)
    tokens = [report.tokens for report in run.reports]
    assert tokens[-1] >= 500
    assert all(count < 500 for count in tokens[:-1])
    assert run.keeper.store.steps()[-1] == run.trainer.state.step


def test_the_first_limit_that_is_reached(lab: Any) -> None:
    """Of several limits the first one ends the run."""
    assert lab.run(lab.config(training__max_steps=50, training__max_tokens=200)).trainer.state.tokens < 300
    config = lab.config(training__max_steps=3, training__max_tokens=10_000)
    assert lab.run(config, "other").trainer.state.step == 3


def test_time(lab: Any) -> None:
    """A run whose time is over at once takes one step, writes a checkpoint and stops; a resume takes none."""
    config = lab.config(training__max_time=1e-6, training__max_steps=50)
    run = lab.run(config)
    assert [report.step for report in run.reports] == [1]
    assert run.keeper.store.steps() == [1]
    assert lab.run(config, resume=True, publish=True).reports == []


def test_a_longer_limit_goes_on(lab: Any) -> None:
    """A finished run that is resumed with more steps takes the further ones."""
    lab.run(lab.config(training__max_steps=3), publish=True)
    run = lab.run(lab.config(training__max_steps=5), resume=True, publish=True)
    assert [report.step for report in run.reports] == [4, 5]


@pytest.mark.parametrize(("asked", "expected"), [
    ({}, 25), ({"max_steps": 7}, 7), ({"epochs": 2.0}, 50), ({"epochs": 0.001}, 1), ({"max_tokens": 641}, 11),
    ({"max_steps": 70, "epochs": 2.0}, 50), ({"max_steps": 70, "max_tokens": 64}, 1),
])  # fmt: skip
def test_total_steps(asked: dict[str, Any], expected: int) -> None:
    """The length of the schedule is the least of what steps, passes and tokens come to."""
    limits = {"max_steps": None, "epochs": None, "max_tokens": None} | asked
    assert total_steps(samples_per_step=4, samples=100, tokens_per_sample=16.0, **limits) == expected
