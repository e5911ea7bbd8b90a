"""Directories of llmt in other people's programs, and back."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from llmt import ModelConfig, TransformerLM, load_model, load_tokenizer
from llmt.tokenizers.train import train_tokenizer

TEXTS = ["the ship came back to the sea", "the captain wrote a letter to the king", "nobody read it for a year"] * 8


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model with its tokenizer."""
    tokenizer = train_tokenizer("bpe", TEXTS, vocab_size=280)
    shape = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = TransformerLM(shape, tokenizer.vocab_size, 64)
    model.initialize(0)
    return model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)


@pytest.mark.parametrize("safe", [True, False])
def test_a_step_of_trl(directory: Path, tmp_path: Path, safe: bool) -> None:
    """`SFTTrainer` takes the directory by its name, makes a step, and what it saves opens here with what it learnt."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if not safe:
        load_model(directory).save_pretrained(directory, safe_serialization=False)
    before = load_model(directory)
    settings = SFTConfig(
        output_dir=str(tmp_path / "sft"),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        warmup_steps=0,
        max_length=32,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=str(directory), args=settings, train_dataset=Dataset.from_dict({"text": TEXTS}))
    trainer.train()
    trainer.save_model(str(tmp_path / "after"))
    after = load_model(tmp_path / "after")
    assert isinstance(after, TransformerLM)
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert any(changed)
    ids = torch.tensor([load_tokenizer(tmp_path / "after").encode(TEXTS[0])])
    with torch.no_grad():
        assert torch.allclose(after.eval()(ids), trainer.model.eval()(ids).logits.float(), atol=1e-5)


def test_a_pipeline_writes_what_generate_writes(directory: Path) -> None:
    """transformers' pipeline on the directory gives the text of its own greedy generation, ids equal to ours."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer("the captain").input_ids == load_tokenizer(directory).encode("the captain")
    model = AutoModelForCausalLM.from_pretrained(directory)
    made = model.generate(**tokenizer("the captain", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    write = pipeline("text-generation", model=str(directory), device="cpu")
    said = write("the captain", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert said == tokenizer.decode(made[0], skip_special_tokens=True)
