"""Adapter and base to one full model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmt.checkpoints.atomic import staged_directory
from llmt.config.conversion import MergeSettings
from llmt.config.lora import LoraConfig
from llmt.config.model import ModelConfig
from llmt.errors import BusyOutputError, ModelFileError
from llmt.export.merge import Merged, merge_adapter
from llmt.models.load import load_model
from llmt.models.lora import add_lora, load_adapter, write_adapter
from llmt.models.transformer import TransformerLM
from llmt.tokenizers.train import train_tokenizer

IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter that changes its base, with the tokenizer beside it."""
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    base = TransformerLM(shape, 258, 32)
    base.initialize(0)
    tokenizer = train_tokenizer("byte", iter(["x"]))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = add_lora(load_model(tmp_path / "base"), LoraConfig(enabled=True))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    with staged_directory(tmp_path / "adapter", extra={}) as staged:
        tokenizer.save_pretrained(staged.path)
        write_adapter(staged, model, tmp_path / "base")
    return tmp_path / "adapter"


def _merge(adapter: Path, output: Path, *, base: Path | None = None, **settings: Any) -> Merged:
    return merge_adapter(adapter, MergeSettings(output_dir=str(output), **settings), base=base)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("size", [10**9, 20_000])
def test_merged_model(adapter: Path, tmp_path: Path, named: bool, size: int) -> None:
    """The merged directory opens in transformers with the logits of base plus adapter, and with the tokenizer."""
    base = tmp_path / "base"
    _merge(adapter, tmp_path / "out" / "merged", base=base if named else None, max_shard_size=size)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    with torch.no_grad():
        expected = load_adapter(load_model(base), adapter).eval()(IDS)
        assert torch.allclose(whole(IDS).logits, expected, atol=1e-5)
        assert not torch.allclose(load_model(base)(IDS), expected, atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "merged")
    assert tokenizer.eos_token_id == whole.config.eos_token_id


def test_what_stands_there_is_kept(adapter: Path, tmp_path: Path) -> None:
    """An existing output is refused with exit code 10, and replaced only if it is a model and that was asked."""
    _merge(adapter, tmp_path / "merged")
    with pytest.raises(BusyOutputError) as caught:
        _merge(adapter, tmp_path / "merged")
    assert caught.value.exit_code == 10
    (tmp_path / "merged" / "notes.txt").write_text("mine")
    (tmp_path / "merged" / "model-00001-of-00002.safetensors").write_text("old")
    _merge(adapter, tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged" / "notes.txt").exists()
    assert not (tmp_path / "merged" / "model-00001-of-00002.safetensors").exists()
    for source in (adapter, tmp_path / "base"):
        with pytest.raises(BusyOutputError, match="is the source itself"):
            _merge(adapter, source, overwrite=True)
    (tmp_path / "merged" / "checkpoint-5").mkdir()
    with pytest.raises(BusyOutputError, match="is a run"):
        _merge(adapter, tmp_path / "merged", overwrite=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep")
    with pytest.raises(BusyOutputError, match="no model"):
        _merge(adapter, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "keep"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_rounding_loses(adapter: Path, tmp_path: Path, dtype: str) -> None:
    """The result has the format that was asked, and what is said to be lost is how far its numbers are from exact."""
    merged = _merge(adapter, tmp_path / "merged", dtype=dtype)
    exact = load_adapter(load_model(tmp_path / "base"), adapter).merge().weights()
    found = load_model(tmp_path / "merged", dtype=None).weights()
    before = load_model(tmp_path / "base").weights()
    names = [name for name in exact if not torch.equal(exact[name], before[name])]
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
    rounded = torch.stack([torch.linalg.norm(found[n].float() - exact[n]) for n in names]).norm()
    moved = torch.stack([torch.linalg.norm(exact[n] - before[n]) for n in names]).norm()
    assert merged.lost == pytest.approx(float(rounded / moved), rel=1e-4, abs=1e-12)
    assert (merged.lost > 0) is (dtype != "float32")


def test_no_adapter(adapter: Path, tmp_path: Path) -> None:
    """A directory without an adapter is refused with exit code 4."""
    with pytest.raises(ModelFileError) as caught:
        _merge(tmp_path / "base", tmp_path / "merged")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "merged").exists()
