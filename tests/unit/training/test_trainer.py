"""The trainer for those who call llmt from Python."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from llmt import LanguageModelingDataset, ModelConfig, Trainer, TransformerLM, load_model
from llmt.config.run import TrainConfig
from llmt.data.batch import IGNORED
from llmt.errors import BusyOutputError, ConfigError, DataError, MismatchError, UsageError
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.train import train_tokenizer

TEXTS = [f"The {animal} number {n} sleeps in the barn." for n in range(20) for animal in ("cat", "dog", "owl")]
SETTINGS: dict[str, Any] = {
    "max_steps": 6, "batch_size": 4, "block_size": 16, "lr": 5e-3, "compile": "never", "threads": 1, "device": "cpu",
    "precision": "fp32",
}  # fmt: skip


def _model(vocab_size: int, seed: int = 1) -> TransformerLM:
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    model = TransformerLM(shape, vocab_size, 32)
    model.initialize(seed)
    return model


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer("byte", ())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_from_python(tokenizer: Any, tmp_path: Path, precision: str) -> None:
    """It yields a report a step, publishes a model that opens, and leaves the model trained and in fp32."""
    model = _model(tokenizer.vocab_size)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(
        model=model, tokenizer=tokenizer, train_dataset=TEXTS, eval_dataset=TEXTS[:3], output_dir=tmp_path / "run",
        **{**SETTINGS, "precision": precision}, save_steps=2, save_total_limit=9, eval_steps=6,
    )  # fmt: skip
    reports = list(trainer.run())
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    published = load_model(tmp_path / "run")
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in published.named_parameters())
    assert trainer.evaluate().loss == pytest.approx(reports[-1].evaluation.loss, rel=1e-2)
    trainer.save_model(tmp_path / "saved")
    assert load_model(tmp_path / "saved").num_parameters() == model.num_parameters()


def test_stopped_and_resumed(tokenizer: Any, tmp_path: Path) -> None:
    """A run that is left in the middle goes on from its checkpoint to the same weights, where it is told to."""

    def trainer(name: str) -> Trainer:
        return Trainer(
            _model(tokenizer.vocab_size), tokenizer, TEXTS, output_dir=tmp_path / name, **SETTINGS, save_steps=2
        )

    whole = trainer("whole")
    whole.train()
    parts = trainer("parts")
    for report in parts.run():
        if report.step == 4:
            break
    with pytest.raises(BusyOutputError):
        trainer("parts").train()
    again = trainer("parts")
    last = again.train(resume=True)
    assert last is not None
    assert last.step == 6
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name])
    assert trainer("parts").train(resume=True) is None
    assert trainer("new").train(resume=True).step == 6
    other = Trainer(
        _model(tokenizer.vocab_size), tokenizer, TEXTS[1:], output_dir=tmp_path / "parts", **SETTINGS, save_steps=2
    )
    with pytest.raises(MismatchError, match="training text changed"):
        other.train(resume=True)


def test_models_and_tokenizers_of_transformers(tmp_path: Path) -> None:
    """Both are taken as they are; the model that was given is the one that is trained."""
    own = train_bpe(TEXTS, 300)
    own.save_pretrained(tmp_path / "tokenizer")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(theirs), n_positions=32, n_embd=32, n_layer=2, n_head=2))
    before = model.transformer.wte.weight.detach().clone()
    trainer = Trainer(model=model, tokenizer=theirs, train_dataset=TEXTS, output_dir=tmp_path / "run", **SETTINGS)
    assert trainer.train().step == 6
    assert not torch.equal(model.transformer.wte.weight, before)
    assert load_model(tmp_path / "run").vocab_size == len(theirs)


def test_rows_and_a_whole_configuration(tokenizer: Any, tmp_path: Path) -> None:
    """Rows with a column `text`, such as those of a data set, and a TrainConfig in the place of single settings."""
    from datasets import Dataset

    config = TrainConfig.model_validate(
        {"data": {"block_size": 16}, "training": {"max_steps": 2, "compile": "never", "precision": "fp32"},
         "threads": 1, "device": "cpu", "name": "given"}
    )  # fmt: skip
    rows = Dataset.from_dict({"text": TEXTS})
    trainer = Trainer(_model(tokenizer.vocab_size), tokenizer, rows, config=config, output_dir=tmp_path / "run")
    assert trainer.train().step == 2
    with pytest.raises(UsageError, match="max_steps beside config"):
        Trainer(_model(tokenizer.vocab_size), tokenizer, TEXTS, config=config, max_steps=3)


def test_arguments_that_cannot_be(tokenizer: Any, tmp_path: Path) -> None:
    """Each is refused at once, with what to do."""
    model = _model(tokenizer.vocab_size)
    for arguments, error, says in (
        ({"learning_rat": 1.0}, ConfigError, "learning_rat"), ({"max_steps": -1}, ConfigError, "max_steps"),
        ({"use_lora": True}, UsageError, "whole model"), ({"num_processes": 2}, UsageError, "one process"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            Trainer(model, tokenizer, TEXTS, output_dir=tmp_path / "run", **arguments)
    with pytest.raises(UsageError, match="no language model"):
        Trainer("gpt2", tokenizer, TEXTS)
    with pytest.raises(UsageError, match="no tokenizer"):
        Trainer(model, "gpt2", TEXTS)
    with pytest.raises(UsageError, match="one text"):
        Trainer(model, tokenizer, "a text")
    with pytest.raises(DataError, match="no text"):
        Trainer(model, tokenizer, [])
    with pytest.raises(DataError, match="number 1 is of type int"):
        Trainer(model, tokenizer, ["a", 1])
    with pytest.raises(MismatchError, match="the tokenizer has"):
        Trainer(_model(99), tokenizer, TEXTS)
    other = LanguageModelingDataset(TEXTS, train_bpe(TEXTS, 280), 16)
    with pytest.raises(MismatchError, match="another tokenizer's"):
        Trainer(_model(400), tokenizer, other)
    with pytest.raises(UsageError, match="no eval_dataset"):
        Trainer(model, tokenizer, TEXTS).evaluate()
    assert not (tmp_path / "run").exists()


def test_blocks_hold_every_id_once(tokenizer: Any) -> None:
    """The labels of all blocks in a row are the ids of all texts, each followed by the end."""
    blocks = LanguageModelingDataset(TEXTS, tokenizer, 16)
    labels = torch.cat([blocks[number]["labels"] for number in range(len(blocks))])
    expected = [token for text in TEXTS for token in (*tokenizer.encode(text), tokenizer.eos_token_id)]
    assert labels[labels != IGNORED].tolist() == expected
    for number in range(len(blocks)):
        block = blocks[number]
        counted = block["labels"][:-1] != IGNORED
        after = block["labels"][1:] != IGNORED
        assert torch.equal(block["labels"][:-1][after], block["input_ids"][1:][after])
        assert counted.any()
    assert torch.equal(blocks[-1]["input_ids"], blocks[len(blocks) - 1]["input_ids"])
    with pytest.raises(IndexError):
        blocks[len(blocks)]
    same, other = LanguageModelingDataset(TEXTS, tokenizer, 16), LanguageModelingDataset(TEXTS[::-1], tokenizer, 16)
    assert same.fingerprint == blocks.fingerprint != other.fingerprint
