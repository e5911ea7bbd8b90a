"""The trainer for those who call llmt from Python."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llmt import LanguageModelingDataset, ModelConfig, Trainer, TransformerLM, load_model
from llmt.checkpoints.weights import load_weights
from llmt.config.run import TrainConfig
from llmt.data.batch import IGNORED
from llmt.errors import BusyOutputError, ConfigError, DataError, MismatchError, OutOfMemoryError, UsageError
from llmt.models.fresh import new_model
from llmt.system.products import can_use_onednn
from llmt.tokenizers.base import special_ids
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


def test_portable_numerics_come_before_torch(tokenizer: Any, tmp_path: Path) -> None:
    """Python has loaded torch when `Trainer` is asked: the environment has to say it before."""
    trainer = Trainer(
        model=_model(tokenizer.vocab_size), tokenizer=tokenizer, train_dataset=TEXTS, output_dir=tmp_path / "run",
        **SETTINGS, portable_numerics=True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="portable_numerics"):
        trainer.train()
    assert not (tmp_path / "run").exists()


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


def test_the_same_weights_as_the_command(lab: Any, tmp_path: Path) -> None:
    """The same text, shape and settings give the same weights, bit for bit, whether read from a file or from memory."""
    config = lab.config(data__validation_split=0, training__max_steps=6)
    command = lab.run(config, "command")
    tokenizer = command.prepared.corpus.tokenizer
    model = new_model(config.model, tokenizer.vocab_size, config.data.block_size, config.seed, special_ids(tokenizer))
    Trainer(model, tokenizer, [lab.text.read_text()], config=config, output_dir=tmp_path / "python").train()
    weights = dict(model.named_parameters())
    for name, master in command.trainer.optimizer.masters().items():
        assert torch.equal(weights[name], master)


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
        ({"use_lora": True}, UsageError, "whole model"), ({"objective": "dpo"}, UsageError, "compares answers"),
        ({"num_processes": 2}, UsageError, "one process"),
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


def test_settings_that_would_not_be_read(tokenizer: Any, tmp_path: Path) -> None:
    """A setting about model, tokenizer or text, which are given, is refused; in a whole configuration it may stand."""
    model = _model(tokenizer.vocab_size)
    for setting, says in (
        ({"hidden_size": 64}, "model.hidden_size is not read: the model"), ({"base": "m"}, "base is not read"),
        ({"algo": "bpe"}, "tokenizer.algo is not read"), ({"sources": ["a.txt"]}, "data.sources is not read: the text"),
        ({"packing": "best_fit"}, "data.packing is not read"), ({"peft_r": 4}, "one whole model"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            Trainer(model, tokenizer, TEXTS, **setting)
    config = TrainConfig.model_validate({"model": {"hidden_size": 64}, "data": {"sources": ["a.txt"]}})
    assert Trainer(model, tokenizer, TEXTS, config=config).config.model.hidden_size == 64


def test_the_length_of_blocks(tokenizer: Any, tmp_path: Path) -> None:
    """As long as the model reads; what is written down is what is done."""
    model = _model(tokenizer.vocab_size)
    settings = {**SETTINGS, "block_size": 100}
    trainer = Trainer(model, tokenizer, TEXTS, output_dir=tmp_path / "run", **settings)
    assert trainer.config.data.block_size == model.context_length == 32
    trainer.train()
    assert "block_size: 32" in (tmp_path / "run" / "config.yaml").read_text()
    assert "the context of the model, 100 was asked" in (tmp_path / "run" / "plan.json").read_text()
    blocks = LanguageModelingDataset(TEXTS, tokenizer, 24, document_mask=True)
    taken = Trainer(model, tokenizer, blocks).config.data
    assert (taken.block_size, taken.document_mask) == (24, True)
    with pytest.raises(UsageError, match="block_size 16, and train_dataset has blocks of 24"):
        Trainer(model, tokenizer, blocks, max_length=16)
    for data in ({"train_dataset": LanguageModelingDataset(TEXTS, tokenizer, 33)},
                 {"train_dataset": TEXTS, "eval_dataset": LanguageModelingDataset(TEXTS, tokenizer, 33)}):  # fmt: skip
        with pytest.raises(MismatchError, match="blocks of 33 ids, and the model reads 32"):
            Trainer(model, tokenizer, **data)


def test_what_is_not_trained_comes_back_exact(tokenizer: Any, tmp_path: Path) -> None:
    """After bf16, frozen weights and rotary frequencies have every bit that they had."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    )  # fmt: skip
    model.model.layers[0].mlp.requires_grad_(False)
    before = {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}
    Trainer(model, tokenizer, TEXTS, output_dir=tmp_path / "run", **{**SETTINGS, "precision": "bf16"}).train()
    moved = {name: not torch.equal(t, before[name]) for name, t in (*model.named_parameters(), *model.named_buffers())}
    assert {name for name, value in moved.items() if not value} >= {
        "model.rotary_emb.inv_freq", "model.layers.0.mlp.up_proj.weight"
    }  # fmt: skip
    assert moved["model.layers.1.mlp.up_proj.weight"]
    other = Qwen2ForCausalLM(model.config)
    other.model.layers[0].mlp.requires_grad_(False)
    settings = {**SETTINGS, "precision": "bf16", "max_steps": 7}
    Trainer(other, tokenizer, TEXTS, output_dir=tmp_path / "run", **settings).train(resume=True)
    kept, given = (m.model.layers[0].mlp.up_proj.weight for m in (other, model))
    assert torch.equal(kept, given)  # those of the run
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint-7"):
        assert torch.equal(load_weights(path)["model.layers.0.mlp.up_proj.weight"], given)
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="none of its weights"):
        Trainer(model, tokenizer, TEXTS)


def test_a_run_that_does_not_begin_leaves_the_model_alone(tokenizer: Any, tmp_path: Path) -> None:
    """Whatever fails after the weights were rounded to bf16, they are put back."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(model, tokenizer, TEXTS, output_dir=tmp_path / "run", **{**SETTINGS, "precision": "bf16"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmt.training.build.Guard", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert trainer.train().step == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trial_that_does_not_fit_leaves_no_gradients(tokenizer: Any, tmp_path: Path, precision: str) -> None:
    """What came so far when memory ran out would be added to those of the first step."""
    model = _model(tokenizer.vocab_size)

    def full(gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.model.layers[0].mlp.up_proj.weight.register_hook(full)
    settings = {**SETTINGS, "precision": precision, "auto_micro_batch": True}
    with pytest.raises(OutOfMemoryError, match="not even one"):
        Trainer(model, tokenizer, TEXTS, output_dir=tmp_path / "run", **settings).train()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_resume_is_the_same_run(tokenizer: Any, tmp_path: Path) -> None:
    """Other settings or another shape are refused; more steps are not."""

    def train(seed: int = 1, **settings: Any) -> Any:
        given = {**SETTINGS, "save_steps": 2, **settings}
        return Trainer(_model(tokenizer.vocab_size, seed), tokenizer, TEXTS, output_dir=tmp_path / "run", **given)

    train().train()
    with pytest.raises(MismatchError, match=r"training\.learning_rate: 0\.005 -> 0\.1"):
        train(lr=0.1).train(resume=True)
    with pytest.raises(MismatchError, match=r"data\.block_size: 16 -> 8"):
        train(block_size=8).train(resume=True)
    with pytest.raises(UsageError, match="resume and overwrite"):
        train().train(resume=True, overwrite=True)
    assert train(seed=2, max_steps=8).train(resume=True).step == 8
    assert train(max_steps=3).train(overwrite=True).step == 3


def test_a_resume_with_another_model(tokenizer: Any, tmp_path: Path) -> None:
    """What computes otherwise is refused by name; what drops otherwise is said; what was being replaced is found."""

    def train(config: ModelConfig, **settings: Any) -> Any:
        model = TransformerLM(config, tokenizer.vocab_size, 64)
        model.initialize(1)
        given = {**SETTINGS, "save_steps": 2, **settings}
        return Trainer(model, tokenizer, TEXTS, output_dir=tmp_path / "run", **given)

    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    train(shape).train()
    with pytest.raises(MismatchError, match=r"rope.* has .*10000.*500"):
        train(shape.model_copy(update={"rope_theta": 500.0})).train(resume=True)
    with pytest.warns(UserWarning, match="not bit for bit: dropout"):
        train(shape.model_copy(update={"hidden_dropout": 0.2})).train(resume=True)
    for path in (tmp_path / "run").glob("checkpoint-*"):
        path.rename(path.with_name(f".del-{path.name}-01234567"))
    trainer = train(shape, max_steps=8)
    assert [report.step for report in trainer.run(resume=True)] == [7, 8]


def test_what_a_step_has_to_say_is_said(tokenizer: Any, tmp_path: Path) -> None:
    """`train`, whose reports nobody sees, warns of what they say."""
    trainer = Trainer(_model(tokenizer.vocab_size), tokenizer, TEXTS, output_dir=tmp_path / "run", **SETTINGS)
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient * 1e6)
    with pytest.warns(UserWarning, match="gradient norm"):
        trainer.train()


def test_through_accelerate(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`use_accelerate` does what it says, and the weights are the same bit for bit."""
    import accelerate

    made = []
    prepare = accelerate.Accelerator.prepare_model
    monkeypatch.setattr(
        accelerate.Accelerator, "prepare_model", lambda self, *a, **k: made.append(self) or prepare(self, *a, **k)
    )
    models = []
    for name, through in (("plain", False), ("through", True)):
        models.append(_model(tokenizer.vocab_size))
        settings = {**SETTINGS, "use_accelerate": through, "accelerate_mixed_precision": "no"}
        del settings["precision"]
        Trainer(models[-1], tokenizer, TEXTS, output_dir=tmp_path / name, **settings).train()
        assert len(made) == through
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_one_process_with_its_threads(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads and libraries are as they were afterwards; a launcher of several is refused before it writes anything."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trainer = Trainer(_model(tokenizer.vocab_size), tokenizer, TEXTS, output_dir=tmp_path / "run", **SETTINGS)
        libraries, attention = torch.backends.mkldnn.matmul, trainer.model.model.layers[0].self_attn
        meanwhile = {(torch.get_num_threads(), libraries.fp32_precision, attention.fp32_blocks) for _ in trainer.run()}
        assert meanwhile == {(1, "bf16", True) if can_use_onednn() else (1, "none", False)}
        assert (torch.get_num_threads(), libraries.fp32_precision, attention.fp32_blocks) == (2, "none", False)
    finally:
        torch.set_num_threads(before)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    other = Trainer(_model(tokenizer.vocab_size), tokenizer, TEXTS, output_dir=tmp_path / "other", **SETTINGS)
    with pytest.raises(UsageError, match="a launcher started 2"):
        other.train()
    assert not (tmp_path / "other").exists()


def test_the_log_and_the_best(tokenizer: Any, tmp_path: Path) -> None:
    """A line every `logging_steps` and for each validation; published is the best, in memory the last."""
    model = _model(tokenizer.vocab_size)
    trainer = Trainer(
        model, tokenizer, TEXTS, ["zzz qqq xxx"], output_dir=tmp_path / "run", **{**SETTINGS, "max_steps": 9},
        logging_steps=4, eval_steps=3, save_total_limit=9,
    )  # fmt: skip
    reports = list(trainer.run())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3, 4, 6, 8, 9]
    measured = {report.step: report.evaluation.loss for report in reports if report.evaluation is not None}
    best = min(measured, key=lambda step: measured[step])
    published = dict(load_model(tmp_path / "run").named_parameters())
    kept = dict(load_model(tmp_path / "run" / f"checkpoint-{best}").named_parameters())
    assert all(torch.equal(published[name], kept[name]) for name in kept)
    last = dict(load_model(tmp_path / "run" / "checkpoint-9").named_parameters())
    assert all(torch.equal(p, last[name]) for name, p in model.named_parameters())


def test_models_that_are_none(tokenizer: Any) -> None:
    """A body without a head, and an adapter."""
    peft = pytest.importorskip("peft")
    body = BertModel(BertConfig(vocab_size=258, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UsageError, match="a BertModel is no language model"):
        Trainer(body, tokenizer, TEXTS)
    whole = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=32, n_embd=32, n_layer=1, n_head=2))
    adapter = peft.get_peft_model(whole, peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM"))
    with pytest.raises(UsageError, match="not adapters"):
        Trainer(adapter, tokenizer, TEXTS)


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


def test_what_a_resume_has_to_say_is_said(tokenizer: Any, tmp_path: Path) -> None:
    """Damaged checkpoints and what keeps a resume from being exact are warnings; the model is left as it was."""

    def trainer(**settings: Any) -> Trainer:
        return Trainer(
            model=_model(tokenizer.vocab_size), tokenizer=tokenizer, train_dataset=TEXTS, output_dir=tmp_path / "run",
            **{**SETTINGS, **settings}, save_steps=2, save_total_limit=9, gradient_checkpointing=True,
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = trainer()
        first.train()
    assert not first.model.gradient_checkpointing
    data = bytearray((tmp_path / "run/checkpoint-6/model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "run/checkpoint-6/model.safetensors").write_bytes(data)
    with pytest.warns(UserWarning, match="not bit for bit") as said:
        trainer(max_steps=8).train(resume=True)
    texts = [str(one.message) for one in said]
    assert any("checkpoint-6 is damaged" in text for text in texts)
    assert any("not bit for bit: steps of the schedule 6 -> 8" in text for text in texts)
