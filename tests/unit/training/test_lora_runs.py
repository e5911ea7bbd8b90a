"""Runs that train an adapter."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmt.checkpoints.runs import read_finished
from llmt.errors import MismatchError
from llmt.models.open import open_model


@pytest.fixture
def base(lab: Any) -> Path:
    """A finished run."""
    lab.run(lab.config(training__max_steps=2), "base", publish=True)
    return lab.root / "base"


def _hashes(directory: Path) -> dict[str, str]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _config(lab: Any, **settings: Any) -> Any:
    return lab.config(
        **({"training__max_steps": 5, "lora__enabled": True, "lora__r": 4, "lora__dropout": 0.1} | settings)
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "vera", "loha", "miss"])
def test_resume_of_an_adapter_is_exact(lab: Any, base: Path, precision: str, method: str) -> None:
    """With dropout in the adapter, stopped and resumed, its weights are bit for bit the same; the base is untouched."""
    files = _hashes(base)
    config = _config(lab, training__precision=precision, lora__method=method)
    whole = lab.run(config, "whole", base=base)
    lab.run(config, "parts", base=base, stop_after=2)
    parts = lab.run(config, "parts", base=base, resume=True)
    assert parts.trainer.notes == ()
    assert parts.weights == whole.weights
    assert _hashes(base) == files


@pytest.mark.parametrize("more", [{}, {"training__ema_decay": 0.5}], ids=str)
def test_resume_with_a_module_trained_whole(lab: Any, base: Path, more: dict[str, Any]) -> None:
    """The embedding, which the base's output head is too, goes on bit for bit."""
    config = _config(lab, lora__modules_to_save=["embed_tokens"], training__precision="bf16", **more)
    whole = lab.run(config, "whole", base=base)
    lab.run(config, "parts", base=base, stop_after=2)
    assert lab.run(config, "parts", base=base, resume=True).weights == whole.weights


def test_a_shared_projection_on_another_architecture(lab: Any) -> None:
    """VeRA's random matrices have the precision of the run, and a resume goes on bit for bit."""
    shape = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    lab.run(lab.config(training__max_steps=2, model={"huggingface": shape}), "base", publish=True)
    config = _config(lab, lora__method="vera", training__precision="bf16")
    whole = lab.run(config, "whole", base=lab.root / "base")
    lab.run(config, "parts", base=lab.root / "base", stop_after=2)
    assert lab.run(config, "parts", base=lab.root / "base", resume=True).weights == whole.weights


def test_adalora_spends_its_ranks(lab: Any, base: Path) -> None:
    """A third of the ranks that it begins with are gone at the end, and not equally many in each layer; the sides of
    its updates have become nearly orthogonal, as its penalty asks.
    """
    config = _config(lab, lora__method="adalora", lora__dropout=0.0, training__max_steps=60)
    run = lab.run(config, "adapter", base=base, publish=True)
    values = {n: p for n, p in run.trainer.model.named_parameters() if ".lora_E." in n}
    kept = [int((value != 0).sum()) for value in values.values()]
    assert {len(value) for value in values.values()} == {6}
    assert sum(kept) <= 4 * len(kept) < 6 * len(kept)
    assert len(set(kept)) > 1
    opened, _ = open_model(lab.root / "adapter", None, "cpu")
    ids = torch.arange(16)[None]
    with torch.no_grad():
        theirs = AutoPeftModelForCausalLM.from_pretrained(lab.root / "adapter").eval()
        assert torch.allclose(theirs(input_ids=ids).logits, opened.eval()(ids), atol=1e-5)
    assert run.trainer.model.budget is not None
    fresh = lab.build(config, "fresh", base=base).trainer.model.budget
    assert float(run.trainer.model.budget.penalty()) < float(fresh.penalty())


@pytest.mark.parametrize("lora", [{}, {"lora__method": "adalora"}, {"training__precision": "bf16"}], ids=str)
def test_new_tokens_beside_an_adapter(lab: Any, base: Path, lora: dict[str, Any]) -> None:
    """The vocabulary grows by them, their rows are trained and kept, and a resume goes on bit for bit."""
    lab.text.write_text("<|user|> go <|end|> " * 500, encoding="utf-8")
    config = _config(lab, tokenizer__added_tokens=["<|user|>", "<|end|>"], lora__dropout=0.0, **lora)
    whole = lab.run(config, "whole", base=base, publish=True)
    size = whole.prepared.corpus.tokenizer.vocab_size
    model, directory = open_model(lab.root / "whole", None, "cpu")
    assert (model.vocab_size, size) == (size, 260)
    assert AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids("<|end|>") == 259
    assert any("trainable_tokens_delta" in weight.name for weight in whole.trainer.optimizer.weights)
    lab.run(config, "parts", base=base, stop_after=2)
    assert lab.run(config, "parts", base=base, resume=True).weights == whole.weights
    theirs = AutoPeftModelForCausalLM.from_pretrained(lab.root / "whole").eval()
    ids = torch.arange(244, 260)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, model.eval()(ids), atol=1e-5)


def test_new_tokens_of_a_whole_model(lab: Any, base: Path) -> None:
    """Without an adapter the model is one with more tokens, which transformers opens; its resume is exact."""
    config = lab.config(training__max_steps=4, tokenizer__added_tokens=["<|user|>"])
    whole = lab.run(config, "whole", base=base, publish=True)
    assert AutoModelForCausalLM.from_pretrained(lab.root / "whole").config.vocab_size == 259
    lab.run(config, "parts", base=base, stop_after=2)
    assert lab.run(config, "parts", base=base, resume=True).weights == whole.weights


def test_another_base_is_refused(lab: Any, base: Path) -> None:
    """A resume on other base weights is refused with exit code 5; the same weights elsewhere are the same base."""
    config = _config(lab)
    lab.run(config, "adapter", base=base, stop_after=2)
    shutil.copytree(base, lab.root / "moved")
    assert lab.run(config, "adapter", base=lab.root / "moved", resume=True, stop_after=3).trainer.state.step == 3
    lab.run(lab.config(training__max_steps=3), "other", publish=True)
    with pytest.raises(MismatchError, match="base model") as caught:
        lab.build(config, "adapter", base=lab.root / "other", resume=True)
    assert caught.value.exit_code == 5


def test_finished_adapter_opens_in_peft(lab: Any, base: Path) -> None:
    """The root of an adapter's run opens in peft, on the base and by itself, with the logits that it has here."""
    run = lab.run(_config(lab), "adapter", base=base, publish=True)
    root = lab.root / "adapter"
    assert read_finished(root).kind == "adapter"
    assert not (root / "model.safetensors").exists()
    assert json.loads((root / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())
    assert "AutoPeftModelForCausalLM" in (root / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(root).encode("fox") == run.prepared.corpus.tokenizer.encode("fox")
    ids = torch.arange(16)[None]
    ours, _ = open_model(root, None, "cpu")
    named = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), root).eval()
    alone = AutoPeftModelForCausalLM.from_pretrained(root).eval()
    with torch.no_grad():
        expected = ours.eval()(ids)
        assert torch.allclose(named(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.allclose(alone(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits, expected, atol=1e-4)


def test_only_the_adapter_is_trained(lab: Any, base: Path) -> None:
    """Five steps change every tensor of the adapter and none of the base."""
    run = lab.build(_config(lab), "adapter", base=base)
    model = run.trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert len(list(run.trainer.run())) == 5
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.parametrize("settings", [{}, {"training__ema_decay": 0.5}], ids=str)
def test_biases_of_the_base_go_on_bit_for_bit(lab: Any, settings: dict[str, Any]) -> None:
    """Trained in bf16 beside an adapter, they are kept as the fp32 that is moved."""
    shape = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    lab.run(lab.config(training__max_steps=2, model={"huggingface": shape}), "base", publish=True)
    config = lab.config(
        training__max_steps=6, training__precision="bf16", lora__enabled=True, lora__bias="all", **settings
    )
    whole = lab.run(config, "whole", base=lab.root / "base")
    assert any(weight.is_copy and "bias" in weight.name for weight in whole.trainer.optimizer.weights)
    lab.run(config, "parts", base=lab.root / "base", stop_after=3)
    assert lab.run(config, "parts", base=lab.root / "base", resume=True).weights == whole.weights
