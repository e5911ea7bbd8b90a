"""A frozen base and a small trainable update."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmt.checkpoints.atomic import staged_directory
from llmt.config.training import LoraConfig
from llmt.errors import ConfigError, MismatchError, ModelFileError
from llmt.models.base import BaseLanguageModel
from llmt.models.load import load_model
from llmt.models.lora import LoraModel, add_lora, load_adapter, write_adapter
from llmt.models.open import open_model
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]
METHODS = ("lora", "rslora", "dora")
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def base(make: Make, tmp_path: Path) -> Path:
    """A saved base."""
    make(num_key_value_heads=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def _adapted(base: Path, **settings: Any) -> LoraModel:
    torch.manual_seed(2)
    return add_lora(load_model(base), LoraConfig(enabled=True, **({"r": 4} | settings))).eval()


def _train(model: LoraModel, ids: Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        model.loss(ids, ids.roll(-1, 1)).nats.backward()
        optimizer.step()
        optimizer.zero_grad()


def _save(model: LoraModel, base: Path, directory: Path) -> Path:
    with staged_directory(directory, extra={}) as staged:
        write_adapter(staged, model, base)
    return directory


def _hash(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


@pytest.mark.parametrize("method", METHODS)
def test_fresh_adapter_changes_nothing(base: Path, ids: Tensor, method: str) -> None:
    """A fresh adapter leaves the logits as they are, and only its own tensors are trainable."""
    model = _adapted(base, method=method)
    with torch.no_grad():
        assert torch.allclose(model(ids), load_model(base)(ids), atol=1e-6)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable} == set(LINEAR)


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_change_exactly_what_is_trainable(base: Path, ids: Tensor, method: str) -> None:
    """After two steps every trainable tensor has changed and no other; the files of the base are untouched."""
    files = _hash(base)
    model = _adapted(base, method=method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _train(model, ids)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert _hash(base) == files


@pytest.mark.parametrize("method", METHODS)
def test_adapter_opens_in_peft(base: Path, ids: Tensor, tmp_path: Path, method: str) -> None:
    """A saved adapter opens in PeftModel, in AutoPeftModelForCausalLM and here, each with equal logits."""
    model = _adapted(base, method=method)
    _train(model, ids)
    adapter = _save(model, base, tmp_path / "adapter")
    with torch.no_grad():
        expected = model(ids)
        assert not torch.allclose(expected, load_model(base)(ids), atol=1e-3)
        named = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
        auto = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
        assert torch.allclose(named(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.allclose(auto(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.equal(load_adapter(load_model(base), adapter).eval()(ids), expected)
        alone, directory = open_model(adapter, None, "cpu")
        together, _ = open_model(base, adapter, "cpu")
        assert directory == base  # this adapter has no tokenizer of its own
        (adapter / "tokenizer.json").write_text("{}")
        assert open_model(adapter, None, "cpu")[1] == adapter
        assert torch.equal(alone.eval()(ids), expected)
        assert torch.equal(together.eval()(ids), expected)


@pytest.mark.parametrize("method", METHODS)
def test_merged_is_base_plus_adapter(base: Path, ids: Tensor, tmp_path: Path, method: str) -> None:
    """Merging gives base plus adapter to 1e-5 under the base's names; save_pretrained writes that."""
    model = _adapted(base, method=method)
    _train(model, ids)
    with torch.no_grad():
        expected = model(ids)
        model.save_pretrained(tmp_path / "whole")
        assert torch.equal(model(ids), expected)
        assert torch.allclose(load_model(tmp_path / "whole")(ids), expected, atol=1e-5)
        merged = model.merge()
        assert set(merged.state_dict()) == set(load_model(base).state_dict())
        assert torch.allclose(merged(ids), expected, atol=1e-5)


def test_named_layers_only(base: Path) -> None:
    """The layers that were named get an adapter and no others; rank and scale are those that were asked."""
    model = _adapted(base, target_modules=("q_proj", "v_proj"), r=3, alpha=12)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    layer = model.base.model.layers[0].self_attn.q_proj
    assert (layer.r["default"], layer.scaling["default"]) == (3, 4.0)
    assert layer.lora_A["default"].weight.shape == (3, 32)


def test_unknown_layer_lists_those_there_are(base: Path) -> None:
    """A layer that does not exist is refused with exit code 2 and the names that do."""
    with pytest.raises(ConfigError) as caught:
        _adapted(base, target_modules=("q_proj", "query", "nonsense"))
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 2
    for problem, name in zip(caught.value.problems, ("query", "nonsense"), strict=True):
        assert f"called {name};" in problem
        assert ", ".join(LINEAR) in problem


def test_bf16_base_has_an_fp32_adapter(base: Path, ids: Tensor) -> None:
    """On a bf16 base the adapter is fp32, and the logits are bf16."""
    model = add_lora(load_model(base, dtype=torch.bfloat16), LoraConfig(enabled=True))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert model(ids).dtype == torch.bfloat16


def test_adapter_of_another_base(base: Path, make: Make, ids: Tensor, tmp_path: Path) -> None:
    """An adapter on a base of another shape is refused with exit code 5."""
    adapter = _save(_adapted(base), base, tmp_path / "adapter")
    with pytest.raises(MismatchError) as caught:
        load_adapter(make(hidden_size=64), adapter)
    assert caught.value.exit_code == 5


def test_adapters_that_cannot_be_read(base: Path, tmp_path: Path) -> None:
    """An absent base, another kind of adapter and a directory without one are refused with exit code 4."""
    adapter = _save(_adapted(base), base, tmp_path / "adapter")
    with pytest.raises(ModelFileError, match="adapter_config"):
        load_adapter(load_model(base), tmp_path)
    for changes in ({"base_model_name_or_path": str(tmp_path / "gone")}, {"peft_type": "IA3"}):
        values = json.loads((adapter / "adapter_config.json").read_text()) | changes
        (adapter / "MANIFEST.json").unlink(missing_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps(values))
        with pytest.raises(ModelFileError):
            open_model(adapter, None, "cpu")


def test_adapter_on_another_architecture(ids: Tensor, tmp_path: Path) -> None:
    """An adapter on a model that transformers computes has peft's names, and opens there and here with equal logits."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(7)
    config = Qwen2Config(vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    model = _adapted(tmp_path / "qwen")
    _train(model, ids)
    adapter = _save(model, tmp_path / "qwen", tmp_path / "adapter")
    with torch.no_grad():
        expected = model.eval()(ids)
        theirs = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
        assert torch.allclose(theirs(input_ids=ids).logits, expected, atol=1e-5)
        ours: BaseLanguageModel = load_adapter(load_model(tmp_path / "qwen"), adapter).eval()
        assert torch.equal(ours(ids), expected)


@pytest.mark.parametrize("change", [
    {"target_modules": None}, {"target_modules": [1.5]}, {"r": "x"}, {"bias": "v_proj"},
    {"lora_dropout": "much"},
], ids=str)  # fmt: skip
def test_a_configuration_that_describes_no_adapter(base: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """Values that peft fails over in its own ways are a damaged file."""
    model = add_lora(load_model(base), LoraConfig(r=2))
    with staged_directory(tmp_path / "adapter", extra=None) as staged:
        write_adapter(staged, model, base)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFileError, match="describes no adapter"):
        load_adapter(load_model(base), tmp_path / "adapter")
