"""Runs that learn preferences."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmt.data.loader import evaluation_batches
from llmt.errors import ConfigError, DataError, DivergedError, MismatchError, UsageError
from llmt.evaluation.preference import PreferenceReport
from llmt.models.open import open_model
from llmt.training.build import with_sources
from llmt.training.resume import check_same_config
from llmt.training.runtime import Runtime
from llmt.training.sanity import check_preferences
from llmt.training.step import Stepper

COLOURS = ("red", "green", "blue", "grey", "black")


@pytest.fixture
def pairs(lab: Any) -> Path:
    """Answers that are told apart by their first letter."""
    rows = [
        {"prompt": f"Say {COLOURS[n % 5]} {n}:", "chosen": f" aye {COLOURS[n % 5]}", "rejected": f" no {n % 3}"}
        for n in range(40)
    ]
    path: Path = lab.root / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def base(lab: Any) -> Path:
    """A finished run."""
    lab.run(lab.config(training__max_steps=4, data__block_size=96), "base", publish=True)
    directory: Path = lab.root / "base"
    return directory


def _config(lab: Any, pairs: Path, **settings: Any) -> Any:
    values = {
        "training__max_steps": 5, "training__objective": "dpo", "training__optimizer": "adamw", "lora__enabled": True,
        "lora__r": 4, "data__sources": [str(pairs)], "data__block_size": 96, "training__eval_batches": None,
        "data__validation_split": 0.25,
    }  # fmt: skip
    return lab.config(**(values | settings))


def _frozen(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}


@pytest.mark.parametrize(("loss", "first"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", 25.0)])
def test_a_run_learns_what_is_preferred(lab: Any, base: Path, pairs: Path, loss: str, first: float) -> None:
    """The first loss is that of indifference; held-out chosen answers come to be preferred, no base weight moves."""
    config = _config(
        lab, pairs, training__max_steps=24, training__eval_steps=8, training__dpo_loss=loss, logging__sample_tokens=0
    )
    run = lab.build(config, "run", base=base)
    before = _frozen(run.trainer.model)
    reports = list(run.trainer.run())
    assert reports[0].loss == pytest.approx(first, rel=1e-4)
    measured = [report.evaluation for report in reports if report.evaluation is not None]
    assert all(isinstance(report, PreferenceReport) for report in measured)
    assert measured[-1].reward_accuracy == 1.0
    assert measured[-1].reward_margin > measured[0].reward_margin > 0
    assert measured[-1].loss <= measured[0].loss < first
    assert run.trainer.state.best_loss == min(report.loss for report in measured)
    after = _frozen(run.trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(before) > 0


def test_what_is_published_measures_what_is_said(lab: Any, base: Path, pairs: Path) -> None:
    """`result.json` has the numbers that the adapter, opened again, comes to; the tokens are those of both answers."""
    run = lab.run(_config(lab, pairs, training__max_steps=12), "run", base=base, publish=True)
    record = json.loads((lab.root / "run" / "result.json").read_text())
    model, _ = open_model(lab.root / "run", None, "cpu")
    held_out = run.prepared.corpus.data.validation
    found = run.trainer.objective.measure(model, evaluation_batches(held_out, 3), 0)
    values = found.values()
    assert {
        name: value for name, value in values.items() if record[f"validation_{name}"] == pytest.approx(value)
    } == values
    assert found.pairs == run.prepared.corpus.data.audit.text.held_out_documents
    assert found.tokens == held_out.trained
    lines = [json.loads(line) for line in (lab.root / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_reward_accuracy" in line for line in lines)
    tokens = [report.tokens for report in run.reports]
    assert tokens == sorted(tokens)
    assert tokens[0] > 0


def test_gradients_do_not_depend_on_how_pairs_are_put_together(lab: Any, base: Path, pairs: Path) -> None:
    """Packed or one pair in each sequence, at once or accumulated: the gradient of the mean over all pairs."""
    found: list[list[Tensor]] = []
    losses = []
    for packing, sizes in (("none", (40,)), ("none", (7,)), ("best_fit", (40,)), ("best_fit", (2,))):
        config = _config(lab, pairs, data__packing=packing, data__validation_split=0)
        run = lab.build(config, f"{packing}{sizes[0]}", base=base)
        model, optimizer = run.trainer.model, run.trainer.optimizer
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in optimizer.weights:
                weight.master.add_(torch.randn(weight.master.shape, generator=generator) * 0.1)
        sequences = run.prepared.corpus.data.train.parts[0]
        assert (sequences.count == 40) == (packing == "none")
        window = list(evaluation_batches(sequences, sizes[0]))
        count = sum(map(run.trainer.objective.count, window))
        assert count == 40
        model.train()
        gradients = Stepper(model, optimizer, 0, Runtime(), run.trainer.objective).gradients(window, 0, count, None)
        losses.append(gradients.summed / count)
        found.append([gradient.clone() for gradient in optimizer.gradients()])
    for gradients_of, loss in zip(found, losses, strict=True):
        assert loss == pytest.approx(losses[0], abs=1e-6)
        assert all(torch.allclose(a, b, atol=1e-6, rtol=0) for a, b in zip(gradients_of, found[0], strict=True))
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [{}, {"training__precision": "bf16", "lora__method": "dora"}, {"training__gradient_accumulation_steps": 2}],
    ids=str,
)
def test_a_resume_is_exact(lab: Any, base: Path, pairs: Path, settings: dict[str, Any]) -> None:
    """With dropout in base and adapter, weights, moments and validation are bit for bit those of a run in one."""
    config = _config(
        lab, pairs, lora__dropout=0.1, training__eval_steps=2, training__per_device_train_batch_size=2,
        **{"model": {"hidden_dropout": 0.1, "attention_dropout": 0.1}, **settings},
    )  # fmt: skip
    whole = lab.run(config, "whole", base=base)
    lab.run(config, "parts", base=base, stop_after=3)
    parts = lab.run(config, "parts", base=base, resume=True)
    assert parts.trainer.notes == ()
    assert parts.weights == whole.weights
    assert [r.evaluation for r in parts.reports] == [r.evaluation for r in whole.reports[3:]]
    assert [r.loss for r in parts.reports] == [r.loss for r in whole.reports[3:]]


@pytest.mark.parametrize("name", ["objective", "dpo_beta", "dpo_loss", "dpo_label_smoothing"])
def test_a_resume_keeps_what_is_learnt(lab: Any, base: Path, pairs: Path, name: str) -> None:
    """Another objective, strength or loss is another run."""
    config = _config(lab, pairs)
    lab.run(config, "run", base=base, stop_after=2)
    other = {"objective": "next_token", "dpo_beta": 0.2, "dpo_loss": "hinge", "dpo_label_smoothing": 0.1}[name]
    changed = _config(lab, pairs, **{f"training__{name}": other})
    with pytest.raises(MismatchError, match=f"training.{name}"):
        check_same_config(lab.root / "run", changed)


def test_the_largest_micro_batch_is_found_with_pairs(lab: Any, base: Path, pairs: Path) -> None:
    """The trial takes pairs, as the steps do."""
    config = _config(lab, pairs, training__auto_micro_batch=True, training__max_steps=1)
    run = lab.run(config, "run", base=base)
    assert len(run.reports) == 1


def test_an_average_is_measured(lab: Any, base: Path, pairs: Path) -> None:
    """With a moving average it is the average that is compared with the base."""
    plain, averaged = (
        lab.run(_config(lab, pairs, **settings), name, base=base).reports[-1].evaluation
        for name, settings in (("plain", {}), ("averaged", {"training__ema_decay": 0.99}))
    )
    assert averaged.loss != plain.loss
    assert averaged.loss < math.log(2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora__enabled": False}, "the base below it is the reference"),
        ({"data__sources": []}, "none are built in"),
    ],
)
def test_what_is_asked_for_without_a_base_or_pairs(lab: Any, pairs: Path, settings: dict[str, Any], words: str) -> None:
    """A whole model has no reference, and nothing built in holds pairs; both are said before anything is read."""
    with pytest.raises((UsageError, DataError), match=words) as caught:
        with_sources(_config(lab, pairs, **settings))
    assert caught.value.exit_code == (2 if "lora__enabled" in settings else 3)
    assert "--data" in caught.value.hint


def test_data_and_objective_have_to_fit(lab: Any, base: Path, pairs: Path) -> None:
    """Text without pairs, and pairs for the next token, are refused with what to type."""
    with pytest.raises(DataError, match="holds no pairs") as caught:
        lab.build(_config(lab, lab.text), base=base)
    assert "--columns chosen=COLUMN" in caught.value.hint
    with pytest.raises(DataError, match="does not compare") as caught:
        lab.build(_config(lab, pairs, training__objective="next_token"), base=base)
    assert "--objective dpo" in caught.value.hint
    assert "completion=chosen" in caught.value.hint
    run = lab.build(
        _config(lab, pairs, training__objective="next_token", data__columns={"completion": "chosen"}), base=base
    )
    assert not run.prepared.corpus.pairs


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora__bias": "all"}, "the base is the reference"),
        ({"lora__init": "pissa"}, "the base is the reference"),
        ({"lora__method": "adalora"}, "lora.method adalora: its penalty"),
        ({"data__streaming": True, "data__validation_split": 0}, "a stream has no pairs"),
        ({"training__dpo_loss": "ipo", "training__dpo_label_smoothing": 0.1}, "dpo_label_smoothing"),
        ({"training__dpo_label_smoothing": 0.5}, "dpo_label_smoothing"),
        ({"training__dpo_beta": 0}, "dpo_beta"),
    ],
)
def test_settings_that_exclude_each_other(lab: Any, pairs: Path, settings: dict[str, Any], words: str) -> None:
    """They are told from the configuration alone."""
    with pytest.raises((ConfigError, ValueError), match=words):
        _config(lab, pairs, **settings)


def test_a_stream_of_pairs_is_refused(lab: Any, base: Path, pairs: Path) -> None:
    """Where only reading tells what the rows are, the first of them is named."""
    config = _config(
        lab, pairs, training__objective="next_token", data__streaming=True, data__validation_split=0,
    )  # fmt: skip
    run = lab.build(config, base=base)
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: a pair of answers"):
        list(run.trainer.run())


def test_an_adapter_that_is_not_its_reference_is_found(lab: Any, base: Path, pairs: Path) -> None:
    """A fresh adapter that changes the base, and labels whose likelihoods are not the loss, stop the first step."""
    run = lab.build(_config(lab, pairs), base=base)
    with torch.no_grad():
        for weight in run.trainer.optimizer.weights:
            weight.master.add_(0.1)
    with pytest.raises(DivergedError, match="a fresh adapter changes"):
        next(run.trainer.run())
    batch = next(iter(evaluation_batches(run.prepared.corpus.data.train.parts[0], 2)))
    assert run.trainer.guard is not None
    known = run.trainer.guard.compares
    assert known is not None
    check_preferences(run.trainer.model, batch, replace(known, fresh=False))
    inner = run.trainer.model.base
    whole = inner.label_nats
    inner.label_nats = lambda *row, **positions: 2 * whole(*row, **positions)
    with pytest.raises(DivergedError, match="one by one"):
        check_preferences(run.trainer.model, batch, known)


@pytest.mark.parametrize(
    "settings", [{"lora__method": "dora"}, {"lora__method": "hra"}, {"lora__init": "orthogonal"}], ids=str
)
def test_rounding_is_no_preference(lab: Any, base: Path, pairs: Path, settings: dict[str, Any]) -> None:
    """A fresh adapter that equals its reference but for rounding to bf16 may begin, however strongly it is asked."""
    config = _config(
        lab, pairs, training__precision="bf16", training__dpo_beta=1e4, training__max_steps=1, lora__r=8, **settings
    )
    assert len(lab.run(config, "run", base=base).reports) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_slight_difference_is_found(lab: Any, base: Path, pairs: Path, precision: str) -> None:
    """Numbers of 0.01 in the second half of a fresh adapter, however weakly it is asked."""
    run = lab.build(_config(lab, pairs, training__precision=precision, training__dpo_beta=1e-3), base=base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in run.trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    with pytest.raises(DivergedError, match="a fresh adapter changes"):
        next(run.trainer.run())


def test_steps_without_a_validation_set(lab: Any, base: Path, pairs: Path) -> None:
    """Nothing is held out: the run goes to its end, and says the mean loss of its pairs."""
    run = lab.build(_config(lab, pairs, data__validation_split=0), base=base)
    reports = list(islice(run.trainer.run(), 2))
    assert [report.evaluation for report in reports] == [None, None]
    assert reports[0].loss == pytest.approx(math.log(2), rel=1e-5)
