"""How people used the program that this one follows: its examples, with today's names.

Its changelog's examples by release, each with the test that runs it:

- 0.1.2 Basic Training, Analysis and Inspection: `test_a_wordpiece_tokenizer`
- 0.1.2 Dataset Training: `test_a_tokenizer_from_a_data_set`
- 0.2.1 Quick Start, Training Integration: `test_our_trainer`, `test_the_trainer_of_trl`
- 0.2.1 Advanced Features: `test_batches_and_special_tokens`
- 0.2.2 Accelerate and PEFT in a configuration: `test_accelerate_and_adapters_in_a_configuration`
- 0.2.3 SafeTensors Model Saving, Automatic Format Detection: `test_models_are_saved_and_opened`
- 0.2.3 Fallback Behavior: `test_without_safetensors`
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmt import (
    HFTokenizerWrapper,
    HuggingFaceModelWrapper,
    LanguageModelingDataset,
    ModelConfig,
    Trainer,
    TransformerLM,
    WordPieceTokenizer,
)

TEXTS = [f"hello world, tokenization of text number {n} about the {w}" for n in range(40) for w in ("sea", "wind")]


@pytest.fixture
def model() -> TransformerLM:
    shape = ModelConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    made = TransformerLM(shape, 600, 64)
    made.initialize(0)
    return made


@pytest.fixture
def hf_tokenizer(tmp_path: Path) -> HFTokenizerWrapper:
    """What stands in for a tokenizer of the hub."""
    from llmt.tokenizers.bpe import train_bpe

    train_bpe(TEXTS, 300).save_pretrained(tmp_path / "theirs")
    return HFTokenizerWrapper(tmp_path / "theirs")


def test_a_wordpiece_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, saved, opened, and looked into."""
    monkeypatch.chdir(tmp_path)
    tokenizer = WordPieceTokenizer()
    tokenizer.train(TEXTS, vocab_size=700, min_frequency=2)
    tokenizer.save_pretrained("./wordpiece_tokenizer")
    again = WordPieceTokenizer.from_pretrained("./wordpiece_tokenizer")
    assert again.encode("hello world") == tokenizer.encode("hello world")
    assert tokenizer.get_tokenization_stats()["vocab_size"] == tokenizer.vocab_size <= 700
    words = tokenizer.analyze_word_segmentation(["hello", "world", "tokenization"])
    assert len(words) == 3
    assert tokenizer.calculate_compression_ratio(TEXTS) > 1


def test_a_tokenizer_from_a_data_set(tmp_path: Path) -> None:
    """A data set by its name, or its folder, and a number of samples."""
    from datasets import Dataset

    Dataset.from_dict({"text": TEXTS}).to_parquet(str(tmp_path / "data" / "train.parquet"))
    tokenizer = WordPieceTokenizer()
    tokenizer.train_from_dataset(str(tmp_path / "data"), vocab_size=700, max_samples=20)
    assert 256 < tokenizer.vocab_size <= 700


def test_models_are_saved_and_opened(model: TransformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, in shards, and found again whatever the format."""
    monkeypatch.chdir(tmp_path)
    ids = torch.arange(10)[None]
    for number, arguments in enumerate(
        ({"safe_serialization": True}, {"safe_serialization": True, "max_shard_size": "100kB"},
         {"safe_serialization": True, "max_shard_size": "2GB"}, {"safe_serialization": False}, {})
    ):  # fmt: skip
        model.save_pretrained(f"./my_model{number}", **arguments)
        again = TransformerLM.from_pretrained(f"./my_model{number}")
        assert torch.equal(again(ids), model(ids))
    assert len(list(Path("my_model1").glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(TransformerLM.from_pretrained("./my_model0", safe_serialization=True)(ids), model(ids))


def test_without_safetensors(model: TransformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is saved all the same, in PyTorch's format, with a word about it; and opened without being told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmt.models.base.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="safetensors cannot be imported"):
        model.save_pretrained("./my_model")
    assert Path("my_model/pytorch_model.bin").is_file()
    ids = torch.arange(10)[None]
    assert torch.equal(TransformerLM.from_pretrained("./my_model")(ids), model(ids))


def test_our_trainer(model: TransformerLM, hf_tokenizer: HFTokenizerWrapper, tmp_path: Path) -> None:
    """Takes the wrapped tokenizer and a data set of texts."""
    hf_tokenizer.tokenizer.pad_token = hf_tokenizer.tokenizer.eos_token
    train_dataset = LanguageModelingDataset(TEXTS, hf_tokenizer.tokenizer, block_size=32)
    trainer = Trainer(
        model=model, tokenizer=hf_tokenizer.tokenizer, train_dataset=train_dataset, output_dir=tmp_path / "run",
        max_steps=4, compile="never", threads=1, batch_size=4,
    )  # fmt: skip
    reports = list(trainer.run())
    assert len(reports) == 4
    assert reports[-1].loss < reports[0].loss


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_trl(hf_tokenizer: HFTokenizerWrapper, tmp_path: Path) -> None:
    """Takes a model that we saved and the wrapped tokenizer, under its own names of today."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    ours = TransformerLM(shape, hf_tokenizer.vocab_size, 64)
    ours.initialize(0)
    ours.save_pretrained(tmp_path / "ours", tokenizer=hf_tokenizer)
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "ours"),
        processing_class=hf_tokenizer.tokenizer,
        train_dataset=Dataset.from_dict({"text": TEXTS[:8]}),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"), max_length=32, max_steps=1, per_device_train_batch_size=2,
            report_to="none", use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        ),
    )  # fmt: skip
    assert trainer.train().global_step == 1


def test_batches_and_special_tokens(hf_tokenizer: HFTokenizerWrapper) -> None:
    """Texts of several lengths in one tensor; a token more, and a model with a row more."""
    hf_tokenizer.tokenizer.pad_token = hf_tokenizer.tokenizer.eos_token
    batch = hf_tokenizer.tokenizer([*TEXTS[:3], "hi"], padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert int(batch["attention_mask"][-1].sum()) < batch["input_ids"].shape[1]
    before = len(hf_tokenizer.tokenizer)
    hf_tokenizer.tokenizer.add_special_tokens({"additional_special_tokens": ["<custom>"]})
    assert len(hf_tokenizer.tokenizer) == before + 1
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    ours = TransformerLM(shape, before, 64)
    ours.initialize(0)
    settings = {"model_type": "gpt2", "vocab_size": before, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    theirs = HuggingFaceModelWrapper.from_config(settings)
    for resized in (ours, theirs):
        resized.resize_token_embeddings(len(hf_tokenizer.tokenizer))
        assert resized(batch["input_ids"]).shape[-1] == before + 1


def test_accelerate_and_adapters_in_a_configuration(inside: Any, workplace: Path) -> None:
    """The old names of a file switch both on."""
    (workplace / "old.yaml").write_text(
        "template: lora\nuse_accelerate: true\naccelerate_mixed_precision: 'no'\nuse_peft: true\npeft_type: LORA\n"
        "peft_r: 4\npeft_alpha: 8\npeft_dropout: 0.1\nmax_steps: 3\ndata: {sources: [text.txt], block_size: 32}\n",
        encoding="utf-8",
    )
    result = inside("train", "old.yaml", "--base", "runs/quickstart", "--compile", "never", cwd=workplace)
    assert result.code == 0, result.err
    assert (workplace / "runs" / "old-lora" / "adapter_model.safetensors").is_file()
