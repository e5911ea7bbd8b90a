"""What a finished run leaves behind."""

import json
import shutil
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmt.checkpoints.manifest import manifest_problems, read_manifest
from llmt.checkpoints.runs import read_finished, resolve_model_directory
from llmt.checkpoints.weights import load_weights
from llmt.config.load import ConfigSource, load_run
from llmt.data.loader import evaluation_batches
from llmt.errors import ModelFileError
from llmt.evaluation.perplexity import evaluate
from llmt.models.load import load_model
from llmt.tokenizers.load import load_tokenizer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False])
def test_root_opens_in_transformers(lab: Any, precision: str, tied: bool) -> None:
    """The root of a run opens in AutoModelForCausalLM and AutoTokenizer with the same logits and ids, in fp32."""
    config = lab.config(training__max_steps=4, training__precision=precision)
    config = config.model_copy(update={"model": config.model.model_copy(update={"tie_word_embeddings": tied})})
    lab.run(config, publish=True)
    root = lab.root / "run"
    theirs, ours = AutoModelForCausalLM.from_pretrained(root).eval(), load_model(root).eval()
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    foreign, own = AutoTokenizer.from_pretrained(root), load_tokenizer(root)
    text = "the fox, naïve 狐\n\n  jumps <|endoftext|>!"
    assert foreign(text.replace("<|endoftext|>", ""))["input_ids"] == own.encode(text.replace("<|endoftext|>", ""))
    assert foreign.eos_token_id == own.eos_token_id == theirs.config.eos_token_id
    ids = torch.tensor([own.encode(text)[:16]])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours(ids), atol=1e-5)


def test_files_of_a_finished_run(lab: Any) -> None:
    """Record, metrics, plan, audit, configuration and card are there, parse, and say what happened."""
    config = lab.config(training__max_steps=6, training__eval_steps=2)
    run = lab.run(config, publish=True)
    root = lab.root / "run"
    finished = read_finished(root)
    assert finished is not None
    assert (finished.name, finished.kind, finished.step) == ("tiny", "full", run.trainer.state.best_step)
    result = json.loads((root / "result.json").read_text())
    assert (result["steps"], result["tokens"]) == (6, run.trainer.state.tokens)
    assert result["parameters"] == run.trainer.model.num_parameters()
    assert load_run(ConfigSource("run", path=root / "config.yaml"), environ={}).config == config
    plan = json.loads((root / "plan.json").read_text())
    assert (plan["total_steps"], plan["micro_batch"], plan["precision"]) == (6, 4, "fp32")
    assert all(line["reason"] for line in plan["lines"])
    audit = json.loads((root / "audit.json").read_text())
    assert audit["documents"] == 1
    assert audit["text_bytes"] == lab.text.stat().st_size
    card = (root / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "training:" in card
    manifest = read_manifest(root)
    assert manifest is not None
    assert not manifest_problems(root, manifest)
    assert resolve_model_directory(root) == root


def test_metrics_are_true(lab: Any) -> None:
    """Each line of metrics.jsonl has the numbers of its step: tokens counted, validation as measured."""
    run = lab.run(lab.config(training__max_steps=6, training__eval_steps=3, training__eval_batches=1000))
    lines = [json.loads(line) for line in (lab.root / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    batches = run.trainer.loader.batches(0)
    counted = 0
    for line in lines:
        counted += next(batches).tokens
        assert line["tokens"] == counted
        assert line["epoch"] == pytest.approx(line["step"] * 4 / run.prepared.corpus.data.samples)
        assert line["loss"] > 0
        assert line["learning_rate"] == pytest.approx(0.01 * run.trainer.schedule.factor(line["step"] - 1))
        assert ("eval_loss" in line) is (line["step"] in (3, 6))
    held_out = run.prepared.corpus.data.validation
    measured = evaluate(run.trainer.model, evaluation_batches(held_out, 4), text_bytes=held_out.text_bytes)
    assert lines[-1]["eval_loss"] == measured.loss
    assert lines[-1]["eval_tokens"] == held_out.trained
    assert lines[-1]["eval_bits_per_byte"] == measured.bits_per_byte


def test_a_part_of_the_validation_has_no_bytes(lab: Any) -> None:
    """Where only some batches are measured, bits per byte are not claimed; the finished model is measured on all."""
    run = lab.run(lab.config(training__max_steps=2, training__eval_batches=1), publish=True)
    assert run.reports[-1].evaluation.bits_per_byte is None
    result = json.loads((lab.root / "run" / "result.json").read_text())
    assert result["validation_tokens"] == run.prepared.corpus.data.validation.trained
    assert result["validation_bits_per_byte"] > 0


def test_best_checkpoint_is_kept_and_published(lab: Any) -> None:
    """A run that gets worse keeps its best checkpoint, whatever its age, and publishes that one."""
    config = lab.config(
        training__max_steps=12, training__eval_steps=2, training__save_steps=1, training__save_total_limit=1,
        training__lr_scheduler_type="constant",
    )  # fmt: skip
    run = lab.build(config)
    for report in run.trainer.run():
        run.reports.append(report)
        if report.step == 4:  # from here on every step harms
            for group in run.trainer.optimizer.groups:
                for options in group.optimizer.param_groups:
                    options["maximize"] = True
    losses = {r.step: r.evaluation.loss for r in run.reports if r.evaluation is not None}
    best = min(losses, key=losses.__getitem__)
    assert best <= 6
    assert run.trainer.state.best_step == best
    assert [r.step for r in run.reports if r.is_best][-1] == best
    assert run.keeper.store.steps() == [best, 12]
    from llmt.training.finish import finish

    finished = finish(run.trainer, run.keeper, run.prepared, None)
    assert finished.step == best
    published, kept = load_weights(lab.root / "run"), load_weights(lab.root / "run" / f"checkpoint-{best}")
    assert published.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in published.items())


def test_last_is_published_without_validation(lab: Any) -> None:
    """Where nothing is held out the last checkpoint is the finished model."""
    run = lab.run(lab.config(training__max_steps=3, data__validation_split=0), publish=True)
    assert read_finished(lab.root / "run").step == 3
    assert all(report.evaluation is None for report in run.reports)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_retention(lab: Any, limit: int) -> None:
    """Without validation the newest checkpoints are left, as many as were asked."""
    settings = {"training__save_steps": 1, "training__save_total_limit": limit, "data__validation_split": 0}
    run = lab.run(lab.config(training__max_steps=6, **settings))
    assert run.keeper.store.steps() == list(range(7 - limit, 7))


def test_checkpoint_is_a_model_directory(lab: Any) -> None:
    """A checkpoint opens in transformers by itself, wherever it is moved; a run without a finished model does not."""
    lab.run(lab.config(training__max_steps=2))
    moved = lab.root / "moved"
    shutil.copytree(lab.root / "run" / "checkpoint-2", moved)
    assert AutoModelForCausalLM.from_pretrained(moved).config.vocab_size == 258
    assert AutoTokenizer.from_pretrained(moved).encode("a") == load_tokenizer(moved).encode("a")
    with pytest.raises(ModelFileError, match="not finished"):
        resolve_model_directory(lab.root / "run")


def test_another_architecture_is_trained_and_resumed(lab: Any) -> None:
    """A GPT-2 is trained on from its files: exactly resumable, and the result opens in transformers under its names."""
    from transformers import GPT2Config, GPT2LMHeadModel

    lab.run(lab.config(training__max_steps=1), "first", publish=True)
    base = lab.root / "gpt2"
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=None)
    GPT2LMHeadModel(shape).save_pretrained(base)
    load_tokenizer(lab.root / "first").save_pretrained(base)
    config = lab.config(training__max_steps=4, base=str(base))
    whole = lab.run(config, "whole", base=base, publish=True)
    lab.run(config, "parts", base=base, stop_after=2)
    parts = lab.run(config, "parts", base=base, resume=True, publish=True)
    assert parts.weights == whole.weights
    theirs, report = AutoModelForCausalLM.from_pretrained(lab.root / "whole", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(theirs.eval()(ids).logits, load_model(lab.root / "whole").eval()(ids))
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        assert not torch.allclose(theirs(ids).logits, before, atol=1e-3)
