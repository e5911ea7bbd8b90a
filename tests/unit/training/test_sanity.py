"""A run that diverges or would learn nothing stops, and no NaN reaches the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.checkpoints.weights import load_tensors
from llmt.config.training import TrainingConfig
from llmt.errors import DivergedError
from llmt.training.optim import Optimizer
from llmt.training.sanity import ChangeWatch, check_coverage


def _assert_finite(directory: Path) -> None:
    for path in directory.rglob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_tensors(path).values()), path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weight_stops_the_run(lab: Any, precision: str, value: float) -> None:
    """A weight that turns to NaN or infinity stops the run with exit code 8 and the step, before it is saved."""
    run = lab.build(lab.config(training__max_steps=9, training__save_steps=1, training__precision=precision))
    steps = run.trainer.run()
    while next(steps).step < 3:
        pass
    with torch.no_grad():
        run.trainer.optimizer.weights[3].parameter.view(-1)[5] = value
    with pytest.raises(DivergedError, match="step 4") as caught:
        next(steps)
    assert caught.value.exit_code == 8
    assert run.keeper.store.steps()[-1] == 3
    _assert_finite(lab.root / "run")


def test_last_step_that_overflows(lab: Any) -> None:
    """A step that makes the weights overflow is not saved, even where nothing is measured after it."""
    config = lab.config(
        training__max_steps=1, training__optimizer="adamw", training__learning_rate=3e38,
        training__weight_decay=1e30, training__warmup_steps=0, data__validation_split=0,
    )  # fmt: skip
    with pytest.raises(DivergedError, match="not finite after step 1"):
        lab.run(config)
    assert not list((lab.root / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.0, 0.01), (0.01, 0.0)])
def test_rates_of_zero_are_refused(lab: Any, rates: tuple[float, float]) -> None:
    """A learning rate of zero for any tensor is refused before the first step."""
    config = lab.config(training__max_steps=2, training__learning_rate=rates[0], training__muon_learning_rate=rates[1])
    with pytest.raises(DivergedError, match="learning rate"):
        lab.run(config)
    assert not list((lab.root / "run").glob("checkpoint-*"))


def test_muon_rate_counts_only_for_muon(lab: Any) -> None:
    """With AdamW alone a Muon rate of zero stops nothing."""
    config = lab.config(training__max_steps=2, training__optimizer="adamw", training__muon_learning_rate=0.0)
    assert lab.run(config).trainer.state.step == 2


def _pair() -> tuple[torch.nn.Module, Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    return model, Optimizer(model, TrainingConfig(optimizer="adamw"))


def _give_gradients(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def test_unchanged_tensor_is_found() -> None:
    """A trainable tensor that two steps do not change is named; before the second step nothing is said."""
    model, optimizer = _pair()
    watch = ChangeWatch(model, optimizer)
    _give_gradients(model)
    watch.gradients()
    for name, parameter in model.named_parameters():
        if name != "1.weight":
            parameter.data += 1
    assert watch.after_step()
    with pytest.raises(DivergedError, match=r"1\.weight: unchanged") as caught:
        watch.after_step()
    assert caught.value.exit_code == 8


def test_moved_frozen_tensor_is_found() -> None:
    """A frozen tensor that changes is named."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[0].requires_grad_(False)
    watch = ChangeWatch(model, Optimizer(model, TrainingConfig(optimizer="adamw")))
    for parameter in model.parameters():
        parameter.data += 1
    watch.after_step()
    with pytest.raises(DivergedError, match=r"0\.weight: is frozen"):
        watch.after_step()


def test_change_of_every_tensor_ends_the_watch() -> None:
    """Where all trainable tensors changed, two steps are enough."""
    model, optimizer = _pair()
    watch = ChangeWatch(model, optimizer)
    _give_gradients(model)
    watch.gradients()
    for parameter in model.parameters():
        parameter.data += 1
    assert watch.after_step()
    assert not watch.after_step()


def test_a_tensor_without_gradient_is_found() -> None:
    """One that decay moves and no gradient is named; a gradient in one of the two steps is enough."""
    model, optimizer = _pair()
    for late in (False, True):
        watch = ChangeWatch(model, optimizer)
        _give_gradients(model)
        model[1].weight.grad = torch.zeros(3, 3)
        watch.gradients()
        for parameter in model.parameters():
            parameter.data *= 0.99
        assert watch.after_step()
        if late:
            model[1].weight.grad = torch.ones(3, 3)
            watch.gradients()
            assert not watch.after_step()
        else:
            with pytest.raises(DivergedError, match=r"1\.weight: moved by decay alone.* no gradient"):
                watch.after_step()


def test_tensor_outside_the_optimizer_is_found() -> None:
    """A trainable tensor that no group holds, or that appeared after the optimizer was built, is named."""
    model, optimizer = _pair()
    check_coverage(model, optimizer)
    model.append(torch.nn.Linear(2, 2))
    with pytest.raises(DivergedError, match=r"2\.weight: in 0 optimizer groups"):
        check_coverage(model, optimizer)


def test_nothing_trainable() -> None:
    """A model without a trainable tensor is refused."""
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(DivergedError, match="no tensor is trainable"):
        check_coverage(model, Optimizer(model, TrainingConfig(optimizer="adamw")))


def test_a_layer_without_gradient_stops_a_real_run(lab: Any) -> None:
    """A layer that is cut off from the loss stops the run after two steps, naming a tensor of it."""
    run = lab.build(lab.config(training__max_steps=9, training__optimizer="adamw", training__weight_decay=0.0))
    block = run.trainer.model.model.layers[1]
    block.register_forward_hook(lambda module, inputs, output: inputs[0])
    with pytest.raises(DivergedError, match=r"layers\.1\..* unchanged after 2 steps"):
        list(run.trainer.run())
