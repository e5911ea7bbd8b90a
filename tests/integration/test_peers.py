"""Directories of llmt in other people's programs, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from llmt import ModelConfig, TransformerLM, load_model, load_tokenizer
from llmt.config.data import DataConfig
from llmt.config.lora import LoraConfig
from llmt.config.training import TrainingConfig
from llmt.data.loader import evaluation_batches
from llmt.data.prepare import prepare_shards
from llmt.data.ready import ready_data
from llmt.models.lora import add_lora
from llmt.tokenizers.train import train_tokenizer
from llmt.training.objective import objective_of

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


ASKED = [
    {"prompt": "Where is the ship?", "chosen": " It came back to the sea.", "rejected": " Nobody knows"},
    {"prompt": "Who wrote a letter? The captain:", "chosen": " yes", "rejected": " no, the king did, for a year"},
    {"prompt": "the king", "chosen": " wrote", "rejected": " wrote nothing"},
]


@pytest.mark.parametrize(
    "settings",
    [
        {"dpo_loss": "sigmoid", "dpo_beta": 0.1},
        {"dpo_loss": "sigmoid", "dpo_beta": 0.7, "dpo_label_smoothing": 0.2},
        {"dpo_loss": "hinge", "dpo_beta": 0.3},
        {"dpo_loss": "ipo", "dpo_beta": 0.2},
    ],
    ids=str,
)
def test_the_loss_of_preferences_is_that_of_trl(directory: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """From the same three rows, `DPOTrainer` comes to the same loss and to the same gradients of the same adapter.

    Its loss `sigmoid` reads no label smoothing; of a pair by itself, its loss `aot` is the smoothed sigmoid.
    """
    from datasets import Dataset
    from peft import set_peft_model_state_dict
    from trl import DPOConfig, DPOTrainer

    tokenizer = load_tokenizer(directory)
    base = load_model(directory)
    with torch.no_grad():
        for parameter in base.parameters():  # some matrices begin as zero
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    base.save_pretrained(directory, tokenizer=tokenizer)
    model = add_lora(base, LoraConfig(r=4, alpha=8))
    with torch.no_grad():
        for weight in model.adapter_weights().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.2)

    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ASKED)), encoding="utf-8")
    data = DataConfig(sources=(str(tmp_path / "rows.jsonl"),), validation_split=0, block_size=200)
    ready = ready_data(data, prepare_shards(data, tokenizer, tmp_path / "cache"), tmp_path / "cache")
    (batch,) = evaluation_batches(ready.train.parts[0], 8)
    objective = objective_of(TrainingConfig(objective="dpo", **settings))
    assert objective.count(batch) == len(ASKED)
    loss = objective.summed(model, batch) / len(ASKED)
    loss.backward()
    report = objective.measure(model, [batch], 0)

    smoothing = settings.get("dpo_label_smoothing", 0.0)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "dpo"), beta=settings["dpo_beta"],
        loss_type=["aot" if smoothing else settings["dpo_loss"]], label_smoothing=smoothing,
        use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False,
    )  # fmt: skip
    # A document of ours begins with the end-of-text token.
    rows = [{**row, "prompt": tokenizer.special_tokens["eos_token"] + row["prompt"]} for row in ASKED]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), args=arguments,
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(directory),
        peft_config=PeftLoraConfig(r=4, lora_alpha=8, target_modules=model.peft.peft_config["default"].target_modules),
    )  # fmt: skip
    set_peft_model_state_dict(trainer.model, {name: w.detach().clone() for name, w in model.adapter_weights().items()})
    examples = [trainer.train_dataset[number] for number in range(len(ASKED))]
    batches = [trainer.data_collator(part) for part in ([[each] for each in examples] if smoothing else [examples])]
    assert sum(int(inputs["completion_mask"].sum()) for inputs in batches) == batch.tokens
    losses = [trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs)) for inputs in batches]
    expected = torch.stack(losses).mean()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    indifferent = float(objective.loss.of(torch.zeros(1, 2), torch.ones(1, 2)))
    assert abs(loss.item() - indifferent) > 1e-3  # the adapter does something
    theirs = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
    ours = {f"base_model.model.{name.removeprefix('base.')}": p for name, p in model.named_parameters()}
    assert len(theirs) == sum(p.requires_grad for p in ours.values()) > 0
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name].grad, gradient, atol=1e-5, rtol=1e-4), name
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 1e-3
    logged = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}
    assert report.loss == pytest.approx(expected.item(), abs=1e-5)
    assert report.reward_accuracy == pytest.approx(logged["rewards/accuracies"])
    assert report.reward_margin == pytest.approx(logged["rewards/margins"], abs=1e-5)
