"""A frozen base and a small trainable update."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from architectures import KINDS, fresh
from peft import AutoPeftModelForCausalLM, PeftModel
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmt.checkpoints.atomic import staged_directory
from llmt.config.lora import HONOURED, LoraConfig
from llmt.errors import ConfigError, DeviceError, MismatchError, ModelFileError
from llmt.models.base import BaseLanguageModel
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.identity import weights_hash
from llmt.models.load import load_model
from llmt.models.lora import LoraModel, add_lora, load_adapter, write_adapter
from llmt.models.open import open_model
from llmt.models.peft_methods import METHODS as PEFT_METHODS
from llmt.models.peft_methods import block_linears, class_of
from llmt.models.quantized import quantize_linears
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]
METHODS = tuple(HONOURED)
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def base(make: Make, tmp_path: Path) -> Path:
    """A saved base."""
    make(num_key_value_heads=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def _adapted(base: Path, **settings: Any) -> LoraModel:
    torch.manual_seed(2)
    rank = {"r": 4} if "r" in HONOURED[settings.get("method", "lora")] else {}
    return add_lora(load_model(base), LoraConfig(enabled=True, **(rank | settings)), total_steps=10).eval()


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
        assert torch.allclose(model(ids), load_model(base)(ids), atol=1e-5)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    plain = {f"base.{name}" for name, _ in load_model(base).named_parameters()}
    assert plain.isdisjoint(trainable)
    assert all(any(f".{layer}." in name for name in trainable) for layer in LINEAR)
    assert {layer for layer in LINEAR for name in trainable if f".{layer}." in name} == set(LINEAR)
    assert {model.adapter_name(name) for name in trainable} <= set(model.adapter_weights())


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


@pytest.mark.parametrize(("asked", "reached"), [
    (("model.layers.0.*",), "0"),
    (("layers.[1-9].self_attn.?_proj",), "1"),
    (("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.*"), "01"),
], ids=str)  # fmt: skip
def test_layers_by_pattern(base: Path, ids: Tensor, tmp_path: Path, asked: tuple[str, ...], reached: str) -> None:
    """A pattern reaches the layers whose whole names it fits and no others, and peft opens what comes of it."""
    model = _adapted(base, target_modules=asked)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split("layers.")[1].partition(".")[0] for name in names} == set(reached)
    _train(model, ids)
    adapter = _save(model, base, tmp_path / "adapter")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
        assert torch.allclose(theirs(input_ids=ids).logits, model(ids), atol=1e-5)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "olora", "mica"])
def test_every_first_number_leaves_the_logits(base: Path, ids: Tensor, tmp_path: Path, init: str) -> None:
    """However an adapter begins, the model says what its base says; trained, it opens here as it was."""
    model = _adapted(base, init=init)
    with torch.no_grad():
        assert torch.allclose(model(ids), load_model(base)(ids), atol=2e-5)
    _train(model, ids)
    adapter = _save(model, base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(load_adapter(load_model(base), adapter).eval()(ids), model(ids), atol=2e-5)
        assert not torch.allclose(model(ids), load_model(base)(ids), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_any_architecture(ids: Tensor, tmp_path: Path, kind: str, tied: bool) -> None:
    """All linear layers of its blocks get one, a new token is learnt, and it opens in peft with equal logits."""
    base = fresh(kind, tie_word_embeddings=tied)
    base.save_pretrained(tmp_path / "base")
    before = load_model(tmp_path / "base", wanted=HuggingFaceModelWrapper).eval()
    known, ids = ids % 61, ids % 63
    with torch.no_grad():
        said = before(known)
    grown = load_model(tmp_path / "base", wanted=HuggingFaceModelWrapper)
    grown.resize_token_embeddings(63)
    model = add_lora(grown, LoraConfig(enabled=True, r=2), token_ids=(61, 62)).eval()
    with torch.no_grad():
        assert torch.allclose(model(known)[..., :61], said, atol=1e-5)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.count(".0.") + name.count(".1.") for name in names if "lora_" in name)
    assert any("trainable_tokens_delta" in name for name in names)
    _train(model, ids)
    adapter = _save(model, tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        here = load_adapter(load_model(tmp_path / "base", wanted=HuggingFaceModelWrapper), adapter).eval()
        assert here.vocab_size == 63
        assert torch.allclose(here(ids), model(ids), atol=1e-5)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs.resize_token_embeddings(63, mean_resizing=False)
        assert torch.allclose(
            PeftModel.from_pretrained(theirs, adapter).eval()(input_ids=ids).logits, model(ids), atol=1e-5
        )
        assert torch.allclose(model.merge()(ids), here(ids), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_new_tokens_are_learnt_beside_an_adapter(
    make: Make, ids: Tensor, tmp_path: Path, tied: bool, method: str
) -> None:
    """Their rows alone are trained, at both ends; the adapter opens here and in peft, and merges."""
    make(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    grown = load_model(tmp_path / "base")
    grown.resize_token_embeddings(103)
    whole = {name: p.detach().clone() for name, p in grown.named_parameters()}
    model = add_lora(grown, LoraConfig(enabled=True, r=4, method=method), token_ids=(101, 102), total_steps=10).eval()
    ids[:, ::5], ids[:, 1::5] = 101, 102
    _train(model, ids)
    adapter = _save(model, tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        expected = model(ids)
        here = load_adapter(load_model(tmp_path / "base"), adapter).eval()
        assert torch.equal(here(ids), expected)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs.resize_token_embeddings(103, mean_resizing=False)
        opened = PeftModel.from_pretrained(theirs, adapter).eval()
        assert torch.allclose(opened(input_ids=ids).logits, expected, atol=1e-5)
        merged = here.merge()
        assert torch.allclose(merged(ids), expected, atol=1e-5)
    embedding = dict(merged.named_parameters())["model.embed_tokens.weight"]
    moved = (embedding != whole["model.embed_tokens.weight"]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [101, 102]


@pytest.mark.parametrize("tied", [True, False])
def test_modules_that_are_trained_whole(make: Make, ids: Tensor, tmp_path: Path, tied: bool) -> None:
    """They move with the adapter and are kept with it, at both ends where these are one; peft opens them."""
    make(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    asked = ("embed_tokens",) if tied else ("embed_tokens", "lm_head")
    model = _adapted(tmp_path / "base", modules_to_save=asked)
    with torch.no_grad():
        assert torch.equal(model(ids), load_model(tmp_path / "base")(ids))
    _train(model, ids)
    adapter = _save(model, tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        expected = model(ids)
        assert torch.equal(load_adapter(load_model(tmp_path / "base"), adapter).eval()(ids), expected)
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter).eval()
        assert torch.allclose(theirs(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.allclose(model.merge()(ids), expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_modules_of_another_architecture_that_are_trained_whole(ids: Tensor, tmp_path: Path, tied: bool) -> None:
    """Of a model that transformers computes too, where both ends are one as where they are two."""
    base, ids = fresh("qwen2", tie_word_embeddings=tied), ids % 61
    base.save_pretrained(tmp_path / "base")
    model = _adapted(tmp_path / "base", modules_to_save=("embed_tokens",), r=2)
    _train(model, ids)
    adapter = _save(model, tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        expected = model(ids)
        assert torch.allclose(load_adapter(load_model(tmp_path / "base"), adapter).eval()(ids), expected, atol=1e-5)
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter).eval()
        assert torch.allclose(theirs(input_ids=ids).logits, expected, atol=1e-5)
        merged = model.merge()
        assert torch.allclose(merged(ids), expected, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        assert torch.allclose(load_model(tmp_path / "merged").eval()(ids), expected, atol=1e-5)


@pytest.mark.parametrize(("settings", "said"), [
    ({"r": 33}, ("lora.r: 33", "k_proj (16 x 32)", "--lora-r 16")),
    ({"modules_to_save": ("lm_head",)}, ("no other module is called lm_head", "embed_tokens")),
    ({"modules_to_save": ("q_proj",)}, ("no other module is called q_proj", "embed_tokens")),
    ({"target_modules": ("model.layers.7.*",)}, ("called model.layers.7.*", "down_proj")),
    ({"target_modules": ()}, ("is empty", "auto")),
    ({"method": "miss", "r": 40}, ("lora.method miss", "--lora-method lora")),
], ids=str)  # fmt: skip
def test_what_a_base_cannot_have(base: Path, settings: dict[str, Any], said: tuple[str, ...]) -> None:
    """A rank above a layer's, and modules that are not there, are refused with exit code 2 and what there is."""
    with pytest.raises(ConfigError) as caught:
        _adapted(base, **settings)
    assert caught.value.exit_code == 2
    assert all(part in f"{caught.value} {caught.value.hint}" for part in said)


@pytest.mark.parametrize("settings", [
    {"method": "ia3", "r": 4}, {"method": "vera", "alpha": 32}, {"method": "miss", "init": "pissa"},
    {"init": "orthogonal", "r": 3}, {"init": "pissa", "quantize": "4bit"}, {"r": 0}, {"method": "hra", "r": 3},
    {"method": "hra", "r": 4, "quantize": "4bit"}, {"method": "ia3", "quantize": "4bit"},
    {"method": "adalora", "quantize": "4bit"},
], ids=str)  # fmt: skip
def test_settings_that_a_method_has_not(settings: dict[str, Any]) -> None:
    """A setting that a method would not read, or that cannot be, is refused, and the method's own are not."""
    with pytest.raises(ValidationError):
        LoraConfig(enabled=True, **settings)


@pytest.mark.parametrize("method", ["loha", "lokr", "hra", "miss"])
def test_layers_that_a_method_cannot_adapt(ids: Tensor, tmp_path: Path, method: str) -> None:
    """GPT-2 has none of the layers that these know, which is said with exit code 2."""
    fresh("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="cannot adapt the layers") as caught:
        _adapted(tmp_path / "gpt2", method=method, r=2)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "vera"])
def test_new_tokens_with_the_whole_embedding(make: Make, ids: Tensor, tmp_path: Path, tied: bool, method: str) -> None:
    """Where the embedding is trained whole, new tokens are part of it, and an opened adapter has room for them."""
    make(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    grown = load_model(tmp_path / "base")
    grown.resize_token_embeddings(103)
    asked = ("embed_tokens",) if tied else ("embed_tokens", "lm_head")
    config = LoraConfig(enabled=True, method=method, modules_to_save=asked)
    model = add_lora(grown, config, token_ids=(101, 102)).eval()
    ids[:, ::5], ids[:, 1::5] = 101, 102
    _train(model, ids)
    adapter = _save(model, tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(load_adapter(load_model(tmp_path / "base"), adapter).eval()(ids), model(ids))


def test_other_modules_of_a_tied_base(base: Path, ids: Tensor, tmp_path: Path) -> None:
    """A norm that is trained whole is kept, though the base has one matrix for both ends."""
    model = _adapted(base, modules_to_save=("norm",))
    _train(model, ids)
    adapter = _save(model, base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(load_adapter(load_model(base), adapter).eval()(ids), model(ids))
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
        assert torch.allclose(theirs(input_ids=ids).logits, model(ids), atol=1e-5)


def test_four_bits_are_for_cuda(base: Path) -> None:
    """Elsewhere they are refused with exit code 9."""
    with pytest.raises(DeviceError, match="needs CUDA") as caught:
        _adapted(base, quantize="4bit")
    assert caught.value.exit_code == 9


def test_a_base_in_four_bits(base: Path, ids: Tensor, tmp_path: Path) -> None:
    """Its blocks compute with the rounded numbers, the adapter around them learns, and goes with the base as it was."""
    layers = pytest.importorskip("bitsandbytes.nn", reason="the package bitsandbytes is not installed")
    functional = pytest.importorskip("bitsandbytes.functional")
    model, rounded = load_model(base), load_model(base)
    quantize_linears(model, block_linears(model), layers, torch.float32)
    with torch.no_grad():
        for name in block_linears(rounded):
            packed = model.get_submodule(name).weight
            rounded.get_submodule(name).weight.copy_(functional.dequantize_4bit(packed.data, packed.quant_state))
        assert torch.allclose(model(ids), rounded(ids), atol=1e-4)
    tuned = add_lora(model, LoraConfig(enabled=True, r=4))
    before = float(tuned.loss(ids, ids.roll(-1, 1)).nats.detach())
    _train(tuned, ids)
    assert float(tuned.loss(ids, ids.roll(-1, 1)).nats.detach()) < before
    adapter = _save(tuned, base, tmp_path / "adapter")
    assert load_adapter(load_model(base), adapter).adapter_weights().keys() == tuned.adapter_weights().keys()


def test_every_method_reads_what_it_says() -> None:
    """The settings that a method is said to have are those that are handed to peft."""
    assert PEFT_METHODS.keys() == HONOURED.keys() == set(get_args(LoraConfig.model_fields["method"].annotation))
    for name, method in PEFT_METHODS.items():
        assert set(method.names) == set(HONOURED[name])
        assert set(method.names.values()) <= set(class_of(method.peft_type).__dataclass_fields__)


def test_the_base_is_known_by_its_numbers(base: Path, make: Make, ids: Tensor, tmp_path: Path) -> None:
    """The same weights in other files are the same base; others of the same shape are refused with exit code 5."""
    model = _adapted(base)
    _train(model, ids)
    model.trained_on = weights_hash(base)
    adapter = _save(model, base, tmp_path / "adapter")
    load_model(base).save_pretrained(tmp_path / "shards", max_shard_size=10_000)
    load_model(base).save_pretrained(tmp_path / "bin", safe_serialization=False)
    for same in ("shards", "bin"):
        opened, _ = open_model(tmp_path / same, adapter, "cpu")
        assert torch.equal(opened.eval()(ids), model(ids))
        assert opened.trained_on == model.trained_on
    make(seed=5, num_key_value_heads=2).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="another base") as caught:
        open_model(tmp_path / "other", adapter, "cpu")
    assert caught.value.exit_code == 5
    assert caught.value.hint.startswith(f"llmt generate BASE --adapter {adapter} ")  # true where its own base changed


@pytest.mark.parametrize(
    "indices", [{"embed_tokens": [10**12]}, {"embed_tokens": ["x"]}, [-1], {"a": [1], "b": [1], "c": [1]}], ids=str
)
def test_tokens_that_no_base_can_have(base: Path, tmp_path: Path, indices: Any) -> None:
    """Ids from a stranger's file neither take memory nor go unsaid."""
    adapter = _save(_adapted(base), base, tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trainable_token_indices": indices}))
    with pytest.raises((MismatchError, ModelFileError)):
        load_adapter(load_model(base), adapter)


def test_unknown_layer_lists_those_there_are(base: Path) -> None:
    """A layer that does not exist is refused with exit code 2 and the names that do."""
    with pytest.raises(ConfigError) as caught:
        _adapted(base, target_modules=("q_proj", "query", "nonsense"))
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 2
    for problem, name in zip(caught.value.problems, ("query", "nonsense"), strict=True):
        assert f"called {name};" in problem
        assert ", ".join(LINEAR) in problem


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
    for changes in ({"base_model_name_or_path": str(tmp_path / "gone")}, {"peft_type": "PREFIX_TUNING"}):
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


NEVER_ENDS = "(([a-z_.0-9]+)*)+X"


@pytest.mark.parametrize("change", [
    {"r": "x"}, {"r": 3_000_000}, {"r": 0}, {"r": True}, {"bias": "v_proj"}, {"bias": ["none"]},
    {"lora_dropout": "much"}, {"lora_alpha": float("nan")}, {"rank_pattern": {"q_proj": 3_000_000}},
    {"rank_pattern": {NEVER_ENDS: 2}}, {"modules_to_save": [NEVER_ENDS]}, {"modules_to_save": "embed_tokens"},
    {"layer_replication": [[0, 2]] * 2000}, {"init_lora_weights": "pissa_niter_1000000"},
    {"megatron_config": {"a": 1}}, {"alora_invocation_tokens": [1]}, {"use_qalora": True}, {"loftq_config": {"b": 1}},
    {"peft_type": ["LORA"]}, {"peft_type": {}}, {"peft_type": "XLORA"}, {"use_dora": "yes"},
], ids=str)  # fmt: skip
def test_a_configuration_that_describes_no_adapter(base: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """What peft would fail over, hang on, import or fill the memory with is a damaged file."""
    model = add_lora(load_model(base), LoraConfig(r=2))
    with staged_directory(tmp_path / "adapter", extra=None) as staged:
        write_adapter(staged, model, base)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFileError) as caught:
        load_adapter(load_model(base), tmp_path / "adapter")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("change", [
    {"target_modules": NEVER_ENDS}, {"target_modules": None}, {"exclude_modules": NEVER_ENDS}, {"layers_pattern": "("},
    {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, {"megatron_core": "evil.module"},
    {"base_model_name_or_path": "owner/elsewhere"}, {"init_lora_weights": "gaussian"},
], ids=str)  # fmt: skip
def test_what_a_configuration_says_is_not_followed(
    base: Path, ids: Tensor, tmp_path: Path, change: dict[str, object]
) -> None:
    """Layers are known by their tensors, nothing is imported, and the base is the one that was opened."""
    model = _adapted(base)
    _train(model, ids)
    adapter = _save(model, base, tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with torch.no_grad():
        assert torch.equal(load_adapter(load_model(base), adapter).eval()(ids), model(ids))


def test_a_configuration_without_end(base: Path, tmp_path: Path) -> None:
    """Brackets in brackets, deeper than a parser goes, are a damaged file."""
    adapter = _save(_adapted(base), base, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("[" * 200_000)
    with pytest.raises(ModelFileError):
        load_adapter(load_model(base), adapter)
