"""`training.retry_on_divergence`: what chance does to a run is undone, and what is no chance ends it."""

import json
from typing import Any

import pytest
import torch

from llmt.errors import DivergedError

SAVING = {"training__max_steps": 10, "training__save_steps": 4, "training__eval_steps": 4}


def _strike(run: Any, step: int, times: int, *, weight: bool = False) -> None:
    """Put a NaN into a gradient of a step, or into a weight before it, so many times."""
    left = [times]
    parameter = run.trainer.optimizer.weights[1].parameter

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        if run.trainer.state.step + 1 != step or not left[0]:
            return gradient
        left[0] -= 1
        if weight:
            parameter.data.view(-1)[3] = float("nan")
            return gradient
        return torch.full_like(gradient, float("nan"))

    parameter.register_hook(poison)


def _train(run: Any) -> None:
    for report in run.trainer.run():
        run.reports.append(report)
        run.keeper.log(report)


@pytest.mark.parametrize("weight", [False, True], ids=["gradient", "weight"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"training__ema_decay": 0.9, "training__async_save": True},
        {"data__streaming": True, "data__validation_split": 0.0},
    ],
    ids=["plain", "average, written beside", "stream"],
)
def test_chance_is_undone(lab: Any, more: dict[str, Any], weight: bool) -> None:
    """One NaN after a checkpoint: the run goes back, says so, and ends as one that nothing disturbed."""
    quiet = lab.run(lab.config(**SAVING, **more), "quiet")
    run = lab.build(lab.config(**SAVING, **more, training__retry_on_divergence=True), "struck")
    _strike(run, 7, 1, weight=weight)
    _train(run)
    assert run.weights == quiet.weights
    assert [report.step for report in run.reports] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]
    said = [sentence for report in run.reports for sentence in report.warnings]
    assert len(said) == 1
    assert "step 7" in said[0]
    assert "went back to step 4" in said[0]
    lines = (lab.root / "struck" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
    assert run.trainer.state.best_step == quiet.trainer.state.best_step


def test_what_is_no_chance_ends_the_run(lab: Any) -> None:
    """The same NaN again is exit code 8, and says that it is the second."""
    run = lab.build(lab.config(**SAVING, training__retry_on_divergence=True))
    _strike(run, 7, 9)
    with pytest.raises(DivergedError, match=r"step 7.*; before, .*step 7"):
        _train(run)
    assert run.keeper.store.latest().step == 4


@pytest.mark.parametrize(("retry", "step"), [(False, 7), (True, 3)], ids=["not asked for", "nothing to go back to"])
def test_what_is_not_tried_again(lab: Any, retry: bool, step: int) -> None:
    """Unasked, or before the first checkpoint, the first NaN ends the run."""
    run = lab.build(lab.config(**SAVING, training__retry_on_divergence=retry))
    _strike(run, step, 1)
    with pytest.raises(DivergedError) as caught:
        _train(run)
    assert "before," not in str(caught.value)
    assert [report.step for report in run.reports] == list(range(1, step))
