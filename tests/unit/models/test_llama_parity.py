"""A saved TransformerLM and LlamaForCausalLM are the same function of the same files."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmt.checkpoints.saving import save_weights
from llmt.checkpoints.weights import load_weights
from llmt.errors import ModelFileError
from llmt.models.load import load_model
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]
SHAPES = [
    {"tie_word_embeddings": tied, "num_key_value_heads": heads, "rope_theta": theta}
    for tied, heads, theta in itertools.product((True, False), (None, 2, 1), (10000.0, 500000.0))
]


def _foreign(path: Path, **settings: Any) -> LlamaForCausalLM:
    """A Llama that transformers made and saved."""
    torch.manual_seed(5)
    shape = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**(shape | {"num_attention_heads": 4, "max_position_embeddings": 64} | settings))
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(path, max_shard_size=settings.pop("max_shard_size", "50GB"))
    return model


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_llamas(make: Make, ids: Tensor, tmp_path: Path, shape: dict[str, Any]) -> None:
    """A saved model gives the same logits in transformers, tied or not, grouped or not, for every rotary base."""
    model = make(**shape)
    model.save_pretrained(tmp_path / "m")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert isinstance(theirs, LlamaForCausalLM)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(make: Make, ids: Tensor, tmp_path: Path, tied: bool) -> None:
    """A model that is saved and loaded has every tensor and every logit bit for bit, and saves to equal files."""
    model = make(tie_word_embeddings=tied, num_key_value_heads=2)
    model.save_pretrained(tmp_path / "a")
    loaded = load_model(tmp_path / "a")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids), model(ids))
    loaded.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_names_are_llamas(make: Make, tied: bool) -> None:
    """The state dictionary has the keys and shapes of LlamaForCausalLM; a tied head is not a tensor of its own."""
    model = make(tie_word_embeddings=tied, num_key_value_heads=2)
    theirs = LlamaForCausalLM(LlamaConfig(**model.model_config())).state_dict()
    if tied:
        theirs.pop("lm_head.weight")
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in theirs.items()}


def test_config_file_is_complete(make: Make, tmp_path: Path) -> None:
    """config.json names what readers would otherwise guess: both spellings of the rotary base, the tie, the eps."""
    model = make(rope_theta=123.0, rms_norm_eps=1e-4, tie_word_embeddings=False, num_key_value_heads=2)
    model.save_pretrained(tmp_path / "m", token_ids={"eos_token_id": 7, "bos_token_id": None})
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    expected = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 101, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 123.0, "rms_norm_eps": 1e-4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0}, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "dtype": "float32", "eos_token_id": 7,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert "bos_token_id" not in values
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"] == 7


@pytest.mark.parametrize("settings", [
    {}, {"tie_word_embeddings": True}, {"num_key_value_heads": 2},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}, {"rms_norm_eps": 1e-2},
], ids=str)  # fmt: skip
def test_foreign_llama_opens(ids: Tensor, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A Llama that transformers saved opens as a TransformerLM with equal logits."""
    theirs = _foreign(tmp_path / "m", **settings)
    model = load_model(tmp_path / "m").eval()
    assert isinstance(model, TransformerLM)
    with torch.no_grad():
        assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [
    {"attention_bias": True}, {"hidden_act": "gelu"}, {"head_dim": 16},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
], ids=str)  # fmt: skip
def test_llamas_of_another_kind_go_through_transformers(ids: Tensor, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A Llama that TransformerLM does not compute is never computed wrongly: its logits are those of transformers."""
    theirs = _foreign(tmp_path / "m", **settings)
    model = load_model(tmp_path / "m").eval()
    assert not isinstance(model, TransformerLM)
    with torch.no_grad():
        assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-5, rtol=0)


def test_sharded_both_ways(make: Make, ids: Tensor, tmp_path: Path) -> None:
    """Shards that llmt writes open in transformers, and shards that transformers writes open here."""
    model = make()
    model.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        expected = model(ids)
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(load_model(tmp_path / "ours")(ids), expected)
        assert torch.equal(load_model(tmp_path / "theirs")(ids), expected)


def _broken(make: Make, directory: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    make(tie_word_embeddings=False).save_pretrained(directory / "whole")
    weights = load_weights(directory / "whole")
    change(weights)
    (directory / "broken").mkdir()
    (directory / "broken" / "config.json").write_bytes((directory / "whole" / "config.json").read_bytes())
    save_weights(directory / "broken", weights)
    return directory / "broken"


@pytest.mark.parametrize(("change", "named"), [
    (lambda w: w.pop("model.norm.weight"), "lacks model.norm.weight"),
    (lambda w: w.pop("lm_head.weight"), "lacks lm_head.weight"),
    (lambda w: w.update(spare=torch.zeros(2)), "holds spare"),
    (lambda w: w.update({"model.norm.weight": torch.ones(31)}), r"model\.norm\.weight has shape \(31,\)"),
])  # fmt: skip
def test_tensors_that_do_not_fit(make: Make, tmp_path: Path, change: Any, named: str) -> None:
    """A missing, a foreign and a misshapen tensor are each refused by name with exit code 4."""
    with pytest.raises(ModelFileError, match=named) as caught:
        load_model(_broken(make, tmp_path, change))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "llama"}', None])
def test_unreadable_config(tmp_path: Path, text: str | None) -> None:
    """A config.json that is absent, no JSON, no mapping or incomplete is refused with exit code 4."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFileError) as caught:
        load_model(tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_code_of_their_own_is_refused(make: Make, gpt2: Path, tmp_path: Path, kind: str) -> None:
    """A config.json with auto_map is refused, whatever it says besides, and its module is not imported."""
    directory = gpt2
    if kind == "llama":
        directory = tmp_path / "llama"
        make().save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "MANIFEST.json").unlink(missing_ok=True)
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelFileError, match="auto_map"):
        load_model(directory)
    assert not (tmp_path / "ran").exists()
