"""Several adapters on one base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import fresh
from peft import LoraConfig as PeftLoraConfig
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from llmt.checkpoints.atomic import staged_directory
from llmt.config.lora import LoraConfig
from llmt.config.names import BASE
from llmt.errors import MismatchError, ModelFileError, UsageError
from llmt.models.adapters import open_adapters
from llmt.models.identity import weights_hash
from llmt.models.load import load_model
from llmt.models.lora import LoraModel, add_lora, load_adapter, write_adapter
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]


@pytest.fixture
def base(make: Make, tmp_path: Path) -> Path:
    """A saved base."""
    make(num_key_value_heads=2).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def _save(base: Path, directory: Path, seed: int, **settings: Any) -> Path:
    """An adapter whose every tensor is drawn."""
    model = add_lora(load_model(base), LoraConfig(enabled=True, **settings))
    return _write(model, base, directory, seed)


def _write(model: LoraModel, base: Path, directory: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in model.adapter_weights().items()}
    with staged_directory(directory, extra={}) as staged:
        write_adapter(staged, model, base, tensors)
    return directory


@pytest.fixture
def folders(base: Path, tmp_path: Path) -> dict[str, Path]:
    """Adapters of another rank, method and layers each."""
    return {
        "a": _save(base, tmp_path / "a", 1, r=4),
        "b": _save(base, tmp_path / "b", 2, r=2, method="dora", target_modules=("q_proj", "down_proj")),
        "c": _save(base, tmp_path / "c", 3, r=3, method="rslora", target_modules=("up_proj",)),
    }


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(ids)
    return logits


def test_a_choice_is_what_the_adapter_alone_is(base: Path, folders: dict[str, Path], ids: Tensor) -> None:
    """Whatever was chosen before, the logits are bit for bit those of a fresh load of the same alone."""
    alone = {name: _logits(load_adapter(load_model(base), folder), ids) for name, folder in folders.items()}
    alone[BASE] = _logits(load_model(base), ids)
    assert len({tuple(logits.flatten().tolist()) for logits in alone.values()}) == 4
    several = open_adapters(base, folders, "cpu")
    assert several.active == "a"
    for name in ("a", "b", BASE, "a", "c", "b", "c", BASE, "c", "a"):
        several.choose(name)
        assert torch.equal(_logits(several.model, ids), alone[name])
    one = next(iter(folders.values()))
    several.add("again", one)  # while another one is on the base
    assert torch.equal(_logits(several.model, ids), alone["a"])


def test_adapters_of_every_kind_on_one_base(base: Path, ids: Tensor, tmp_path: Path) -> None:
    """Those that take their beginning out of the base, train modules whole or learnt new tokens leave it as it was."""
    kinds: dict[str, dict[str, Any]] = {
        "pissa": {"init": "pissa", "r": 2}, "olora": {"init": "olora", "r": 2}, "ia3": {"method": "ia3"},
        "vera": {"method": "vera"}, "adalora": {"method": "adalora", "r": 2}, "hra": {"method": "hra", "r": 2},
        "whole": {"modules_to_save": ("embed_tokens", "norm")},
    }  # fmt: skip
    folders = {name: _save(base, tmp_path / name, number, **kind) for number, (name, kind) in enumerate(kinds.items())}
    grown = load_model(base)
    grown.resize_token_embeddings(103)
    folders["grown"] = _write(add_lora(grown, LoraConfig(enabled=True), token_ids=(101, 102)), base, tmp_path / "g", 9)
    alone = {name: _logits(load_adapter(load_model(base), folder), ids) for name, folder in folders.items()}
    alone[BASE] = _logits(load_model(base), ids)
    several = open_adapters(base, folders, "cpu")
    for name in (*folders, BASE, *reversed(folders), BASE):
        several.choose(name)
        assert torch.equal(_logits(several.model, ids), alone[name]), name
        assert several.model.vocab_size == (103 if name == "grown" else 101)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_with_unlike_vocabularies(tmp_path: Path, ids: Tensor, tied: bool) -> None:
    """On a model that transformers computes, which grows where it stands, each has its own number of tokens."""
    base, ids = tmp_path / "base", ids % 61
    fresh("qwen2", tie_word_embeddings=tied).save_pretrained(base)
    folders = {}
    for name, more in (("four", 4), ("two", 2), ("none", 0)):
        grown = load_model(base)
        if more:
            grown.resize_token_embeddings(61 + more)
        model = add_lora(grown, LoraConfig(enabled=True, r=2), token_ids=range(61, 61 + more))
        folders[name] = _write(model, base, tmp_path / name, more)
    alone = {name: _logits(load_adapter(load_model(base), folder), ids) for name, folder in folders.items()}
    alone[BASE] = _logits(load_model(base), ids)
    several = open_adapters(base, folders, "cpu")
    for name in (*folders, BASE, "two", "four", "none", BASE):
        several.choose(name)
        assert torch.equal(_logits(several.model, ids), alone[name]), name
        assert several.model.vocab_size == alone[name].shape[-1]


def test_the_base_is_in_memory_once(base: Path, folders: dict[str, Path]) -> None:
    """Every choice computes with the same tensors of the base; none of them is copied or changed."""
    several = open_adapters(base, folders, "cpu")
    several.choose(BASE)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in several.model.state_dict().items()}
    places = {place for place, _ in before.values()}
    for name in folders:
        several.choose(name)
        assert places <= {parameter.data_ptr() for parameter in several.model.parameters()}
    several.choose(BASE)
    now = several.model.state_dict()
    assert set(now) == set(before) == set(load_model(base).state_dict())
    assert all(now[name].data_ptr() == place and torch.equal(now[name], old) for name, (place, old) in before.items())


def test_an_adapter_with_biases_leaves_those_of_the_base(tmp_path: Path) -> None:
    """Biases that an adapter brings are its own: base and other adapters compute with theirs, in a Qwen2."""
    torch.manual_seed(4)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    base, ids = tmp_path / "base", torch.arange(20).reshape(2, 10)
    Qwen2ForCausalLM(config).save_pretrained(base)
    model = LoraModel(load_model(base), PeftLoraConfig(r=2, target_modules=["q_proj"], bias="all"))
    assert any(name.endswith("bias") for name in model.adapter_weights())
    folders = {"biased": _write(model, base, tmp_path / "biased", 5), "plain": _save(base, tmp_path / "plain", 6, r=2)}
    alone = {name: _logits(load_adapter(load_model(base), folder), ids) for name, folder in folders.items()}
    alone[BASE] = _logits(load_model(base), ids)
    several = open_adapters(base, folders, "cpu")
    for name in ("biased", "plain", BASE, "biased", BASE, "plain"):
        several.choose(name)
        assert torch.equal(_logits(several.model, ids), alone[name])


def test_an_adapter_that_is_refused_leaves_nothing(
    base: Path, folders: dict[str, Path], make: Make, ids: Tensor, tmp_path: Path
) -> None:
    """An adapter of another base is exit 5, and what was chosen computes as before."""
    make(hidden_size=64).save_pretrained(tmp_path / "other")
    foreign = _save(tmp_path / "other", tmp_path / "foreign", 1, r=4)
    several = open_adapters(base, folders, "cpu")
    before = _logits(several.model, ids)
    with pytest.raises(MismatchError):
        several.add("foreign", foreign)
    assert torch.equal(_logits(several.model, ids), before)
    assert list(several.folders) == [BASE, "a", "b", "c"]
    several.choose(BASE)
    assert torch.equal(_logits(several.model, ids), _logits(load_model(base), ids))


def test_names(base: Path, folders: dict[str, Path]) -> None:
    """A name stands for one thing; a model that is an adapter is called by its folder, and takes no further one."""
    several = open_adapters(base, folders, "cpu")
    for taken in ("a", BASE):
        with pytest.raises(UsageError, match="taken"):
            several.add(taken, folders["b"])
    with pytest.raises(UsageError, match="none of this name"):
        several.choose("d")
    alone = open_adapters(folders["b"], {}, "cpu")
    assert (list(alone.folders), alone.active) == ([BASE, "b"], "b")
    assert alone.tokenizer_folder("b") == base  # this adapter has no tokenizer of its own
    (folders["b"] / "tokenizer.json").write_text("{}")
    assert alone.tokenizer_folder("b") == folders["b"]
    plain = open_adapters(base, {}, "cpu")
    assert (list(plain.folders), plain.active) == ([BASE], BASE)
    with pytest.raises(ModelFileError, match="is an adapter itself"):
        open_adapters(folders["a"], {"b": folders["b"]}, "cpu")


def test_another_base_is_refused_and_looked_at_once(base: Path, make: Make, tmp_path: Path) -> None:
    """Each adapter is compared with the base, whose numbers are read once; one of another base is refused."""
    folders = {}
    for name in ("a", "b"):
        model = add_lora(load_model(base), LoraConfig(enabled=True, r=2))
        model.trained_on = weights_hash(base)
        folders[name] = _write(model, base, tmp_path / name, 1)
    several = open_adapters(base, folders, "cpu")
    info = several._hash_of.cache_info()
    assert (info.misses, info.hits) == (1, 1)
    make(seed=3, num_key_value_heads=2).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="another base"):
        open_adapters(tmp_path / "other", folders, "cpu")
