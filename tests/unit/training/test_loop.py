"""What a run does on the way: validation, samples, averages, precision, and what it says of its loss."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from llmt.checkpoints.weights import load_tensors, load_weights
from llmt.data.batch import IGNORED, Batch
from llmt.errors import DivergedError, Interrupted, OutOfMemoryError
from llmt.models.base import BaseLanguageModel
from llmt.training.build import build_trainer
from llmt.training.divergence import FEWEST, PATIENCE, watch_loss
from llmt.training.finish import finish
from llmt.training.limits import Cadence
from llmt.training.micro_batch import is_out_of_memory, largest_micro_batch, memory_errors
from llmt.training.sanity import EMPTY_STEPS, Guard, check_causal, check_first_loss, check_moved, check_objective
from llmt.training.state import RunState
from llmt.training.step import GROWTH_STEPS, next_scale


def test_cadence_by_steps_and_by_passes() -> None:
    """By steps every so many; by passes whenever a whole number is reached or passed."""
    assert [step for step in range(1, 10) if Cadence(3).due(step, (0.0, 0.0))] == [3, 6, 9]
    passes = [0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 4.4]
    due = [now for before, now in pairwise(passes) if Cadence(epochs=True).due(1, (before, now))]
    assert due == [1.2, 2.0, 4.4]
    assert not Cadence().due(1, (0.9, 1.1))


def test_validation_and_checkpoints_after_each_pass(lab: Any) -> None:
    """With the strategy `epoch` a run validates and saves when a pass is over, and at the end."""
    config = lab.config(
        training__num_train_epochs=2.5, training__eval_strategy="epoch", training__save_strategy="epoch",
        training__save_total_limit=9, data__block_size=64,
    )  # fmt: skip
    run = lab.run(config)
    per_epoch = run.trainer.loader.count / 4
    expected = [math.ceil(per_epoch), math.ceil(2 * per_epoch), run.trainer.state.step]
    assert [r.step for r in run.reports if r.evaluation is not None] == expected
    assert set(expected) <= set(run.keeper.store.steps())


def test_a_run_without_validation(lab: Any) -> None:
    """With the strategy `no` nothing is measured, the last step is published, and the weights are the same."""
    silent = lab.run(lab.config(training__max_steps=6, training__eval_strategy="no"), "silent", publish=True)
    loud = lab.run(lab.config(training__max_steps=6, training__eval_steps=1), "loud")
    assert all(report.evaluation is None for report in silent.reports)
    assert silent.trainer.state.best_step is None
    assert json.loads((lab.root / "silent" / "result.json").read_text())["step"] == 6
    assert silent.weights == loud.weights


@pytest.mark.parametrize(
    ("strategy", "steps", "expected"), [("steps", 2, [2, 4, 6]), ("end", 2, []), ("steps", 3, [3, 6])]
)
def test_samples_on_the_way(lab: Any, strategy: str, steps: int, expected: list[int]) -> None:
    """Samples come when they are due, begin with what the model writes, and do not change the weights."""
    plain = lab.run(lab.config(training__max_steps=6), "plain")
    config = lab.config(
        training__max_steps=6, logging__sample_strategy=strategy, logging__sample_steps=steps,
        logging__sample_tokens=5, logging__sample_prompt="Line",
    )  # fmt: skip
    run = lab.run(config, "sampled")
    assert [r.step for r in run.reports if r.sample is not None] == expected
    assert all(r.sample for r in run.reports if r.step in expected)
    assert run.weights == plain.weights


def test_early_stopping(lab: Any) -> None:
    """A run that no longer gets better ends after so many validations; a resume of it takes no further step."""
    config = lab.config(
        training__max_steps=60, training__eval_steps=1, training__early_stopping_patience=3,
        training__early_stopping_threshold=100.0,
    )  # fmt: skip
    run = lab.run(config, publish=True)
    assert run.trainer.stopped_early
    assert run.trainer.state.step == 4
    assert run.keeper.store.steps()[-1] == 4
    assert lab.run(config, resume=True, publish=True).reports == []


def test_patience_counts_from_the_last_gain(lab: Any) -> None:
    """Without a threshold every better validation starts the count anew; resumed or not, it ends at the same step."""
    config = lab.config(
        training__max_steps=200, training__eval_steps=2, training__early_stopping_patience=2,
        training__learning_rate=0.05, training__lr_scheduler_type="constant", training__save_total_limit=2,
    )  # fmt: skip
    run = lab.run(config, "whole")
    losses = [r.evaluation.loss for r in run.reports if r.evaluation is not None]
    stale, best, stopped = 0, math.inf, None
    for number, loss in enumerate(losses, 1):
        stale = 0 if loss < best else stale + 1
        best = min(best, loss)
        if stale == 2:
            stopped = 2 * number
            break
    assert stopped == run.trainer.state.step < 200
    lab.run(config, "parts", stop_after=stopped - 1)
    resumed = lab.run(config, "parts", resume=True)
    assert resumed.trainer.state.step == stopped
    assert resumed.weights == run.weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("save_format", ["safetensors", "pytorch"])
def test_the_average_is_kept_and_published(lab: Any, precision: str, save_format: str) -> None:
    """The published weights are the moving average by its formula; a resume goes on bit for bit."""
    settings = {
        "training__max_steps": 8, "training__ema_decay": 0.6, "training__precision": precision,
        "training__eval_strategy": "no", "training__save_format": save_format,
    }  # fmt: skip
    run = lab.build(lab.config(**settings), "whole")
    expected = {name: value.double().clone() for name, value in run.trainer.optimizer.masters().items()}
    for report in run.trainer.run():
        decay = min(0.6, (1 + report.step) / (10 + report.step))
        for name, value in run.trainer.optimizer.masters().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    saved = load_weights(run.keeper.store.path(8))
    masters = load_tensors(run.keeper.store.path(8) / "masters.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(saved[name].double(), value, atol=1e-6, rtol=1e-5)
        assert torch.equal(masters[name], run.trainer.optimizer.masters()[name])
        assert not torch.equal(masters[name], saved[name])
    lab.run(lab.config(**settings), "parts", stop_after=5)
    resumed = lab.run(lab.config(**settings), "parts", resume=True, publish=True)
    assert resumed.weights == run.weights
    again = load_weights(lab.root / "parts")
    assert all(torch.equal(again[name], saved[name]) for name in saved)
    assert not (lab.root / "parts" / "masters.safetensors").exists()


def test_the_average_is_validated_and_leaves_the_weights_alone(lab: Any) -> None:
    """Validation measures the average; how often it is measured does not change what is trained."""
    often = lab.run(lab.config(training__max_steps=6, training__ema_decay=0.9, training__eval_steps=1), "often")
    never = lab.run(lab.config(training__max_steps=6, training__ema_decay=0.9, training__eval_strategy="no"), "never")
    plain = lab.run(lab.config(training__max_steps=6, training__eval_steps=1), "plain")
    assert often.weights == never.weights == plain.weights
    assert often.reports[-1].evaluation.loss != plain.reports[-1].evaluation.loss


def test_an_average_of_an_adapter(lab: Any) -> None:
    """An adapter keeps an average too, and goes on bit for bit."""
    lab.run(lab.config(training__max_steps=2), "base", publish=True)
    config = lab.config(training__max_steps=6, training__ema_decay=0.5, lora__enabled=True, training__eval_steps=2)
    whole = lab.run(config, "whole", base=lab.root / "base", publish=True)
    lab.run(config, "parts", base=lab.root / "base", stop_after=3)
    parts = lab.run(config, "parts", base=lab.root / "base", resume=True, publish=True)
    assert parts.weights == whole.weights
    files = [(lab.root / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_an_average_cannot_begin_in_the_middle(lab: Any) -> None:
    """A resume with another setting of the average is refused."""
    from llmt.errors import MismatchError

    lab.run(lab.config(training__max_steps=4), stop_after=2)
    with pytest.raises(MismatchError, match="ema_decay"):
        lab.run(lab.config(training__max_steps=4, training__ema_decay=0.5), resume=True)


def test_fp16(lab: Any) -> None:
    """In fp16 a run learns about what it learns in fp32, keeps fp32 weights, and goes on bit for bit."""
    settings = {"training__max_steps": 12, "training__optimizer": "adamw"}
    exact = lab.run(lab.config(**settings), "exact")
    config = lab.config(**settings, training__precision="fp16")
    half = lab.run(config, "half")
    assert half.trainer.model.output_weight().dtype == torch.float16
    assert all(value.dtype == torch.float32 for value in half.trainer.optimizer.masters().values())
    assert half.reports[-1].loss == pytest.approx(exact.reports[-1].loss, rel=0.02)
    assert half.reports[-1].grad_norm == pytest.approx(exact.reports[-1].grad_norm, rel=0.1)
    lab.run(config, "parts", stop_after=5)
    assert lab.run(config, "parts", resume=True).weights == half.weights


def test_an_overflow_in_fp16_is_computed_again(lab: Any) -> None:
    """A scale that overflows is halved within the step: no step is left out, and no sample."""
    config = lab.config(training__max_steps=5, training__precision="fp16", training__eval_strategy="no")
    run = lab.build(config)
    run.trainer.state = run.trainer.state.advance(loss_scale=2.0**60)
    reports = list(run.trainer.run())
    assert [r.step for r in reports] == [1, 2, 3, 4, 5]
    assert 1.0 < run.trainer.state.loss_scale < 2.0**40
    plain = lab.run(config, "plain")
    assert [r.loss for r in reports] == pytest.approx([r.loss for r in plain.reports], rel=1e-2)


def test_the_scale_grows_after_many_good_steps() -> None:
    """2,000 steps without an overflow double the scale; a change starts the count anew."""
    assert next_scale(1024.0, 1024.0, GROWTH_STEPS - 1) == (2048.0, 0)
    assert next_scale(1024.0, 1024.0, 5) == (1024.0, 6)
    assert next_scale(512.0, 1024.0, 5) == (512.0, 0)
    assert next_scale(None, None, 5) == (None, 0)


def test_time_moves_the_rate(lab: Any) -> None:
    """Under a limit of time the rate falls with the clock where that is ahead of the steps."""
    config = lab.config(
        training__max_steps=1000, training__max_time=1e6, training__warmup_steps=0, training__lr_scheduler_type="linear"
    )
    run = lab.build(config)
    steps = run.trainer.run()
    next(steps)
    run.trainer.state = run.trainer.state.advance(seconds=5e5)
    factor = run.trainer.schedule.factor(500.0)
    assert next(steps).learning_rate == pytest.approx(0.01 * factor, rel=1e-3)
    steps.close()


def test_a_loss_that_explodes_is_said(lab: Any) -> None:
    """Weights that are thrown far off end in a warning after some steps, and in exit code 8 where that was asked."""
    for stop in (False, True):
        config = lab.config(
            training__max_steps=30, training__stop_on_divergence=stop, training__eval_strategy="no",
            training__learning_rate=1e-5, training__muon_learning_rate=1e-5,
        )  # fmt: skip
        run = lab.build(config, f"stop-{stop}")
        warnings: list[str] = []

        def train(run: Any = run, warnings: list[str] = warnings) -> None:
            for report in run.trainer.run():
                warnings.extend(report.warnings)
                if report.step == FEWEST + 2:
                    with torch.no_grad():
                        for weight in run.trainer.optimizer.weights:
                            weight.parameter.mul_(30)

        if stop:
            with pytest.raises(DivergedError, match=r"the gradient norm is .* at step"):
                train()
            assert any((lab.root / "stop-True").glob("diverged-*"))
        else:
            train()
            assert any("times the usual" in sentence for sentence in warnings)
            assert run.trainer.state.step == 30


def test_what_counts_as_an_explosion() -> None:
    """A high loss by itself, or a lower one after small ones, is none; several in a row are."""
    state = RunState()
    for _ in range(FEWEST):
        state, said = watch_loss(state, 2.0, 1.0)
        assert not said
    state, said = watch_loss(state, 100.0, 1.0)
    assert not said
    state, said = watch_loss(state, 2.1, 1.0)
    assert state.high == 0
    for number in range(PATIENCE):
        state, said = watch_loss(state, 100.0, 1.0)
        assert bool(said) == (number == PATIENCE - 1)
    assert watch_loss(state, 2.0, 1e6)[1]
    small = RunState(losses=(0.01,) * 20)
    assert watch_loss(small, 0.9, 1.0)[0].high == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_batch_of_a_bad_step_is_kept(lab: Any, precision: str) -> None:
    """The batches of a step whose loss is no number stand in the run's directory, with their samples."""
    config = lab.config(
        training__max_steps=9, training__gradient_accumulation_steps=2, training__precision=precision,
        training__save_steps=1,
    )  # fmt: skip
    run = lab.build(config)
    steps = run.trainer.run()
    next(steps)
    with torch.no_grad():
        run.trainer.optimizer.weights[0].parameter.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"step 2.*samples 8 to 15 are kept in .*diverged-2"):
        next(steps)
    folder = lab.root / "run" / "diverged-2"
    facts = json.loads((folder / "step.json").read_text())
    assert (facts["step"], facts["samples"]) == (2, [8, 15])
    tensors = load_tensors(folder / "batches.safetensors")
    for number in range(2):
        batch = run.trainer.loader.batch_at(8 + 4 * number)
        assert torch.equal(tensors[f"{number}.input_ids"], batch.input_ids)
        assert torch.equal(tensors[f"{number}.labels"], batch.labels)
    assert run.keeper.store.steps() == [1]


class _Leaky(BaseLanguageModel):
    """Sees the whole row at every position."""

    def __init__(self, *, sees: bool) -> None:
        super().__init__()
        self.vocab_size, self.context_length = 11, 64
        self.table = torch.nn.Embedding(11, 4)
        self.sees = sees

    def hidden_states(self, input_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        found = self.table(input_ids)
        return found + found.mean(1, keepdim=True) if self.sees else found

    def output_weight(self) -> torch.Tensor:
        return self.table.weight


def _batch(ids: list[int], labels: list[int], positions: list[int] | None = None) -> Batch:
    places = None if positions is None else torch.tensor([positions])
    return Batch(torch.tensor([ids]), torch.tensor([labels]), sum(label != IGNORED for label in labels), places)


def test_a_model_that_sees_what_comes_is_refused() -> None:
    """A model whose earlier positions change with the last id would learn to copy."""
    batch = _batch([1, 2, 3, 4], [2, 3, 4, 5])
    check_causal(_Leaky(sees=False), batch)
    with pytest.raises(DivergedError, match="sees the ids"):
        check_causal(_Leaky(sees=True), batch)


@pytest.mark.parametrize("batch", [
    _batch([1, 2, 3, 4], [2, 3, 4, 5]), _batch([1, 2, 9, 9], [2, 3, IGNORED, IGNORED]),
    _batch([7, 7, 7, 7], [7, 7, 7, 7]), _batch([1, 2, 3, 4], [IGNORED] * 4),
    _batch([1, 2, 5, 6], [2, 3, 6, 7], [0, 1, 0, 1]),
], ids=["plain", "padded", "constant", "masked", "documents"])  # fmt: skip
def test_next_ids_are_taken(batch: Batch) -> None:
    """Labels that are the next ids, with padding, masks and documents."""
    check_objective(batch)


@pytest.mark.parametrize("batch", [
    _batch([1, 2, 3, 4], [1, 2, 3, 4]), _batch([1, 2, 3, 4], [3, 4, 5, 6]), _batch([1, 2, 3, 4], [2, 3, 9, 5]),
], ids=["same", "twice shifted", "one wrong"])  # fmt: skip
def test_other_labels_are_refused(batch: Batch) -> None:
    """Labels that are the ids themselves, or shifted twice, or wrong in one place."""
    with pytest.raises(DivergedError, match="is not the next id"):
        check_objective(batch)


def test_unshifted_labels_stop_a_real_run(lab: Any) -> None:
    """A loader that does not shift is caught before the first step."""
    run = lab.build(lab.config(training__max_steps=3))
    loader = run.trainer.loader
    own = loader.batch_at
    loader.batch_at = lambda start: Batch(own(start).input_ids, own(start).input_ids, 64)
    with pytest.raises(DivergedError, match="is not the next id"):
        next(run.trainer.run())


def test_the_first_loss_is_that_of_a_guess(lab: Any) -> None:
    """Random weights lose about ln V; wide ones do not, and are refused; a base is not held to it."""
    check_first_loss(math.log(260), 260)
    for loss in (1.0, 30.0):
        with pytest.raises(DivergedError, match="a guess among"):
            check_first_loss(loss, 260)
    run = lab.build(lab.config(training__max_steps=3))
    with torch.no_grad():
        run.trainer.model.model.embed_tokens.weight.mul_(60)
    with pytest.raises(DivergedError, match="the loss of random weights"):
        next(run.trainer.run())


def test_steps_without_targets_are_refused(lab: Any) -> None:
    """Many windows in a row in which nothing is predicted stop the run."""
    run = lab.build(lab.config(training__max_steps=50))
    guard = Guard(run.trainer.model, run.trainer.optimizer)
    empty = _batch([1, 2, 3], [IGNORED] * 3)
    for _ in range(EMPTY_STEPS - 1):
        guard.before([empty], 0)
    with pytest.raises(DivergedError, match="no token to predict"):
        guard.before([empty], 0)


def test_largest_micro_batch_is_found_by_trial() -> None:
    """The largest divisor that fits is taken; none at all is an error with a way out."""
    tried: list[int] = []

    def attempt(micro: int) -> None:
        tried.append(micro)
        if micro > 6:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    assert largest_micro_batch(24, attempt, "cuda")[0] == 6
    assert tried == [1, 2, 3, 4, 6, 8]
    assert largest_micro_batch(24, attempt, "cpu")[0] == 3
    assert largest_micro_batch(5, attempt, "cpu")[0] == 5
    with pytest.raises(OutOfMemoryError, match="not even one"):
        largest_micro_batch(4, lambda micro: attempt(100), "cpu")
    with pytest.raises(RuntimeError, match="something else"):
        largest_micro_batch(4, lambda micro: (_ for _ in ()).throw(RuntimeError("something else")), "cpu")


def test_auto_micro_batch_keeps_the_step(lab: Any) -> None:
    """With the trial all sequences of a step are taken at once where they fit; a resume keeps what was found."""
    settings = {
        "training__max_steps": 4,
        "training__gradient_accumulation_steps": 4,
        "training__auto_micro_batch": True,
    }
    run = lab.run(lab.config(**settings), stop_after=2)
    assert (run.keeper.plan.micro_batch, run.keeper.plan.accumulation) == (16, 1)
    plan = json.loads((lab.root / "run" / "plan.json").read_text())
    assert plan["micro_batch"] == 16
    assert "found by trial" in next(line["reason"] for line in plan["lines"] if line["name"] == "micro_batch")
    resumed = lab.run(lab.config(**settings), resume=True)
    assert resumed.keeper.plan.micro_batch == 16
    whole = lab.run(lab.config(**settings), "whole")
    assert resumed.weights == whole.weights


def test_memory_that_runs_out_says_what_would_fit(lab: Any) -> None:
    """Settings for the same sequences of a step are named; other errors pass through."""
    limits = lab.build(lab.config(training__max_steps=1)).trainer.limits
    with pytest.raises(OutOfMemoryError) as caught, memory_errors(7, limits):
        torch.empty(2**46, dtype=torch.uint8).fill_(1)
    assert caught.value.exit_code == 7
    assert "step 7: 4 sequences at once" in caught.value.message
    assert "--per-device-train-batch-size 2 --gradient-accumulation-steps 2" in caught.value.hint
    with pytest.raises(RuntimeError, match="size"), memory_errors(7, limits):
        torch.ones(2) @ torch.ones(3)
    assert is_out_of_memory(MemoryError())


def test_accelerate_on_one_process_changes_no_bit(lab: Any) -> None:
    """Going through Accelerator.prepare gives the weights of the plain path."""
    plain = lab.run(lab.config(training__max_steps=5), "plain")
    from llmt.training.build import build_trainer, prepare
    from llmt.training.runtime import open_runtime

    config = lab.config(training__max_steps=5, training__accelerate=True)
    runtime = open_runtime(config, "cpu", "gloo")
    try:
        prepared = prepare(
            config, lab.root / "through", base=None, resume=False, runtime=runtime, progress=lambda *done: None
        )
        loop, _ = build_trainer(prepared, base=None, runtime=runtime)
        list(loop.run())
        assert type(loop.optimizer.groups[0].optimizer).__name__ == "AcceleratedOptimizer"
        assert all(
            torch.equal(tensor, plain.trainer.optimizer.masters()[name])
            for name, tensor in loop.optimizer.masters().items()
        )
    finally:
        runtime.close()


def test_a_stop_in_the_middle_of_a_validation(lab: Any) -> None:
    """The validation is given up, the step is saved, and a resume measures first: the same best, the same end."""
    config = lab.config(training__max_steps=8, training__eval_steps=2, training__eval_batches=3)
    whole = lab.run(config, "whole", publish=True)
    run = lab.build(config, "parts")
    batches = run.trainer.validation.batches

    def interrupted() -> Any:
        for number, batch in enumerate(batches()):
            if run.trainer.state.step == 4 and number == 1:
                run.trainer.request_stop(15)
            yield batch

    run.trainer.validation = replace(run.trainer.validation, batches=interrupted)
    with pytest.raises(Interrupted, match="step 4"):
        list(run.trainer.run())
    assert run.trainer.state.owes_validation
    assert run.keeper.store.steps()[-1] == 4
    resumed = lab.run(config, "parts", resume=True, publish=True)
    assert resumed.trainer.state.best_step == whole.trainer.state.best_step
    assert resumed.trainer.state.best_loss == whole.trainer.state.best_loss
    assert resumed.weights == whole.weights
    assert (lab.root / "parts" / "model.safetensors").read_bytes() == (
        lab.root / "whole" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd", 3e-3), ("sgd", 0.1), ("adafactor", 3e-3), ("adamw", 3e-3), ("muon", 3e-3)]
)
def test_every_optimizer_goes_on_bit_for_bit(lab: Any, optimizer: str, rate: float, precision: str) -> None:
    """No check of the first steps is in its way, and stopped and resumed it ends as if it had not been."""
    config = lab.config(
        training__max_steps=7, training__optimizer=optimizer, training__learning_rate=rate,
        training__precision=precision, training__lr_scheduler_type="warmup_stable_decay",
        training__gradient_accumulation_steps=2, training__eval_strategy="no",
    )  # fmt: skip
    whole = lab.run(config, "whole")
    lab.run(config, "parts", stop_after=4)
    assert lab.run(config, "parts", resume=True).weights == whole.weights


def test_eight_bits_are_refused_before_the_text_is_read(lab: Any) -> None:
    """AdamW in 8 bits needs CUDA; nothing is left behind."""
    from llmt.errors import DeviceError

    with pytest.raises(DeviceError, match="adamw_8bit"):
        lab.build(lab.config(training__optimizer="adamw_8bit"))
    assert not (lab.root / "cache").exists()


@pytest.mark.parametrize("beside", [False, True])
def test_a_stop_in_the_last_validation(lab: Any, beside: bool) -> None:
    """What is published after it has the bytes of a run that nothing stopped, record of the best step and all."""
    config = lab.config(training__max_steps=6, training__eval_steps=3, training__async_save=beside)
    whole = lab.run(config, "whole", publish=True)
    assert whole.trainer.state.best_step == 6
    run = lab.build(config, "parts")
    batches = run.trainer.validation.batches

    def interrupted() -> Any:
        for batch in batches():
            if run.trainer.state.step == 6:
                run.trainer.request_stop(15)
            yield batch

    run.trainer.validation = replace(run.trainer.validation, batches=interrupted)
    with pytest.raises(Interrupted, match="SIGTERM at step 6"):
        list(run.trainer.run())
    resumed = lab.run(config, "parts", resume=True, publish=True)
    assert resumed.reports == []
    for name in ("model.safetensors", "training.json"):
        assert (lab.root / "parts" / name).read_bytes() == (lab.root / "whole" / name).read_bytes()
    assert resumed.keeper.store.steps() == whole.keeper.store.steps()


def test_two_stops_in_one_validation(lab: Any) -> None:
    """Made up for by a resume that is stopped as well, it is still that of its step, and is said when it is done."""
    config = lab.config(training__max_steps=8, training__eval_steps=3, training__eval_batches=3)
    whole = lab.run(config, "whole", publish=True)
    for attempt in range(2):
        run = lab.build(config, "parts", resume=attempt > 0)
        batches = run.trainer.validation.batches

        def interrupted(run: Any = run, batches: Any = batches) -> Any:
            for number, batch in enumerate(batches()):
                if run.trainer.state.step == 3 and number == 1:
                    run.trainer.request_stop(15)
                yield batch

        run.trainer.validation = replace(run.trainer.validation, batches=interrupted)
        with pytest.raises(Interrupted, match="step 3"):
            list(run.trainer.run())
        assert run.trainer.state.owes_validation
    resumed = lab.run(config, "parts", resume=True, publish=True)
    assert resumed.trainer.state.best_loss == whole.trainer.state.best_loss
    assert resumed.weights == whole.weights
    assert "validation of step 3 was made up for" in resumed.reports[0].warnings[0]
    logged = [
        {
            line["step"]: line["eval_loss"]
            for line in map(json.loads, path.read_text().splitlines())
            if "eval_loss" in line
        }
        for path in (lab.root / "parts" / "metrics.jsonl", lab.root / "whole" / "metrics.jsonl")
    ]
    assert logged[0] == logged[1]
    assert 3 in logged[0]


def _stream(lab: Any, **settings: Any) -> Any:
    """Prompts of many ids and completions of few, read as they are trained on."""
    rows = [{"prompt": "a long question " * 20 + str(n), "completion": f"answer {n}"} for n in range(40)]
    (lab.root / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return lab.config(
        data={"sources": [str(lab.root / "rows.jsonl")], "block_size": 64, "streaming": True, "validation_split": 0,
              "cache_dir": str(lab.root / "cache")},
        **settings,
    )  # fmt: skip


def test_a_stream_ends_by_tokens_that_are_learnt(lab: Any) -> None:
    """However few of its ids are learnt, and the rate comes down to its floor there; resumed or not."""
    config = _stream(lab, training__max_tokens=400, training__lr_scheduler_type="linear", training__warmup_steps=1)
    run = lab.run(config, "whole")
    tokens = [report.tokens for report in run.reports]
    assert tokens[-1] >= 400 > tokens[-2]
    rates = [report.learning_rate for report in run.reports]
    assert rates[-1] < 0.2 * max(rates)
    lab.run(config, "parts", stop_after=5)
    assert lab.run(config, "parts", resume=True).weights == run.weights


def test_passes_over_a_stream_are_noticed(lab: Any) -> None:
    """Checkpoints after each pass over a stream come when the pass is over."""
    rows = _stream(lab, training__max_steps=130, training__save_strategy="epoch", training__save_total_limit=99)
    run = lab.run(rows)
    passes = [int(report.epoch) for report in run.reports]
    due = [r.step for r, before in zip(run.reports, [0, *passes], strict=False) if int(r.epoch) > before]
    assert len(due) >= 2
    assert set(due) <= set(run.keeper.store.steps())


def test_rotary_frequencies_are_not_rounded(lab: Any) -> None:
    """A model of transformers computes in bf16 with the frequencies that it is published with."""
    config = lab.config(
        training__max_steps=2, training__precision="bf16",
        model={"huggingface": {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48,
               "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}},
    )  # fmt: skip
    run = lab.build(config)
    buffers = dict(run.trainer.model.named_buffers())
    frequencies = next(tensor for name, tensor in buffers.items() if name.endswith("inv_freq"))
    assert frequencies.dtype == torch.float32
    expected = 10000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    torch.testing.assert_close(frequencies.double(), expected, rtol=1e-6, atol=0)
    assert all(math.isfinite(report.loss) for report in run.trainer.run())


def test_other_architectures_may_begin_far_above_a_guess(lab: Any) -> None:
    """Gemma multiplies its tied embeddings: its first loss is high and no mistake; one that is too low still is."""
    shape = {"model_type": "gemma", "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.1}  # fmt: skip
    run = lab.run(lab.config(training__max_steps=3, model={"huggingface": shape}))
    assert run.reports[0].loss > 2 * math.log(258) + 1
    with pytest.raises(DivergedError, match="a guess among"):
        check_first_loss(0.1, 258, own=False)


def test_a_tensor_that_is_not_reached_is_said_of_other_architectures(lab: Any) -> None:
    """Of ours it stops the run; of a class of somebody else's it is a warning that names it."""
    shape = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}
    run = lab.build(lab.config(training__max_steps=4, model={"huggingface": shape}))
    run.trainer.model.inner.transformer.h[1].mlp.c_fc.bias.register_hook(torch.zeros_like)
    warnings = [sentence for report in run.trainer.run() for sentence in report.warnings]
    assert len(warnings) == 1
    assert "h.1.mlp.c_fc.bias" in warnings[0]
    assert "no gradient" in warnings[0]


def test_cadence_by_the_clock() -> None:
    """By seconds each time that so many have passed, however many steps that took."""
    clock = [0.0, 4.0, 9.9, 10.0, 12.0, 31.0, 32.0]
    due = [after for before, after in pairwise(clock) if Cadence(seconds=10).due(1, (0.0, 0.0), (before, after))]
    assert due == [10.0, 31.0]
    assert Cadence(seconds=10).ever
    assert not Cadence().ever


def test_a_run_that_the_clock_ends_saves_by_the_clock(lab: Any) -> None:
    """With no other stop its steps are unknown: a fifth of the time may pass without a checkpoint, no more."""
    run = lab.build(lab.config(training__max_time=600))
    limits = run.trainer.limits
    assert (limits.save.seconds, limits.evaluate.seconds) == (120, 60)
    assert lab.build(lab.config(training__max_time=600, training__max_steps=50), "two").trainer.limits.save.steps == 10
    assert lab.build(lab.config(training__max_time=600, training__save_steps=7), "own").trainer.limits.save == Cadence(
        7
    )


def test_the_clock_counts_where_a_stream_ends_by_tokens(lab: Any) -> None:
    """The rate reaches its floor at whichever end comes first."""
    loop = lab.build(lab.config(training__max_steps=100)).trainer
    loop.limits = replace(loop.limits, by_tokens=True, max_tokens=1000, max_seconds=60.0)
    loop.state = loop.state.advance(tokens=200, seconds=45.0)
    assert loop._progress() == 75.0
    loop.state = loop.state.advance(seconds=6.0)
    assert loop._progress() == 20.0


def test_weights_that_overflow_are_found_in_their_step(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of that step is kept, and the step does not count as done."""
    loop = lab.build(lab.config(training__max_steps=9, training__save_steps=1)).trainer
    move, last = loop.optimizer.step, loop.optimizer.weights[-1]

    def overflow() -> None:
        move()
        if loop.state.step == 3:
            with torch.no_grad():
                last.master.view(-1)[0] = math.inf

    monkeypatch.setattr(loop.optimizer, "step", overflow)
    with pytest.raises(DivergedError, match=f"{last.name} is not finite after step 4; samples 12 to 15 are kept in"):
        list(loop.run())
    assert loop.state.step == 3
    kept = json.loads((lab.root / "run" / "diverged-4" / "step.json").read_text())
    assert (kept["step"], kept["samples"]) == (4, [12, 15])


def test_large_weights_are_no_overflow(lab: Any) -> None:
    """A norm overflows before the weights do."""
    optimizer = lab.build(lab.config()).trainer.optimizer
    with torch.no_grad():
        optimizer.weights[0].master.fill_(1e30)
    check_moved(1, optimizer)
    with torch.no_grad():
        optimizer.weights[0].master.view(-1)[1] = math.nan
    with pytest.raises(DivergedError, match=re.escape(optimizer.weights[0].name)):
        check_moved(1, optimizer)


def test_validation_measures_the_same_however_it_is_batched(lab: Any) -> None:
    """`eval_batches` of so many sequences as were asked, also where memory allows fewer at once."""
    config = lab.config(training__eval_batches=2, data__block_size=8)
    measured = []
    for micro in (4, 2, 1):
        run = lab.build(config, f"by-{micro}")
        prepared = replace(run.prepared, plan=run.prepared.plan.with_micro_batch(micro, 4 // micro, "asked for"))
        loop, _ = build_trainer(prepared, base=None)
        report = loop.evaluate()
        assert report is not None
        measured.append((report.tokens, report.nats))
    assert measured[0][0] == measured[1][0] == measured[2][0]
    assert measured[0][1] == pytest.approx(measured[2][1], rel=1e-6)


def test_frequencies_under_an_adapter_are_not_rounded(lab: Any) -> None:
    """As of a whole model: the adapter learns on the frequencies that it is used with."""
    shape = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    lab.run(lab.config(training__max_steps=2, model={"huggingface": shape}), "base", publish=True)
    config = lab.config(training__max_steps=2, training__precision="bf16", lora__enabled=True)
    run = lab.build(config, base=lab.root / "base")
    buffers = dict(run.trainer.model.named_buffers())
    frequencies = next(tensor for name, tensor in buffers.items() if name.endswith("inv_freq"))
    expected = 10000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    torch.testing.assert_close(frequencies.double(), expected, rtol=1e-6, atol=0)


def test_a_run_that_exploded_can_be_published(lab: Any) -> None:
    """A perplexity beyond all numbers is left out of the record."""
    run = lab.run(lab.config(training__max_steps=2))
    with torch.no_grad():
        for weight in run.trainer.optimizer.weights:
            weight.master.mul_(1e4)
            weight.parameter.copy_(weight.master)
    run.trainer.state = run.trainer.state.advance(best_step=None)
    run.keeper.save(run.trainer.state.advance(fingerprint={}), run.trainer.optimizer)
    run.keeper.settle()
    assert math.isinf(finish(run.trainer, run.keeper, run.prepared, None).evaluation.perplexity)
    record = json.loads((lab.root / "run" / "result.json").read_text())
    assert record["validation_perplexity"] is None
    assert record["validation_loss"] > 700


def test_steps_without_a_target_are_counted_to_the_end(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten in a row end a run also when its first steps had some."""
    loop = lab.build(lab.config(training__max_steps=40)).trainer
    batches = loop.loader.batches

    def masked_later(start: int) -> Any:
        for number, batch in enumerate(batches(start)):
            hidden = replace(batch, labels=torch.full_like(batch.labels, IGNORED), tokens=0)
            yield batch if number < 5 else hidden

    monkeypatch.setattr(loop.loader, "batches", masked_later)
    with pytest.raises(DivergedError, match=f"{EMPTY_STEPS} steps in a row held no token"):
        list(loop.run())
    assert loop.state.step == 5 + EMPTY_STEPS - 1
