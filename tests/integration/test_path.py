"""The whole path with the library alone: text -> tokens -> batches -> loss -> checkpoint -> text."""

from pathlib import Path
from typing import Any

import pytest


def test_the_whole_path(text_file: Path, tmp_path: Path) -> None:
    """Thirty lines of a program without the command line end in a model that learnt, and that writes."""
    import torch

    import llmt
    from llmt.config.data import DataConfig
    from llmt.data.loader import evaluation_batches
    from llmt.data.prepare import prepare_shards
    from llmt.data.ready import ready_data
    from llmt.text.sources import open_documents

    texts = (document.text for document in open_documents([str(text_file)]))
    tokenizer = llmt.train_tokenizer("bpe", texts, vocab_size=300)
    config = DataConfig(sources=(str(text_file),), block_size=32, validation_split=0.1)
    data = ready_data(config, prepare_shards(config, tokenizer, tmp_path / "shards"), tmp_path / "packed")
    assert data.validation is not None

    shape = llmt.ModelConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32
    )
    model = llmt.TransformerLM(shape, tokenizer.vocab_size, 32)
    model.initialize(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    before = llmt.evaluate(model, evaluation_batches(data.validation, 8), text_bytes=data.validation.text_bytes)
    for batch in evaluation_batches(data.train.parts[0], 8):
        loss = model.loss(batch.input_ids, batch.labels)
        (loss.nats / loss.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = llmt.evaluate(model, evaluation_batches(data.validation, 8), text_bytes=data.validation.text_bytes)
    assert after.bits_per_byte is not None
    assert before.bits_per_byte is not None
    assert after.bits_per_byte < 0.8 * before.bits_per_byte
    assert before.loss == pytest.approx(torch.log(torch.tensor(float(tokenizer.vocab_size))).item(), abs=0.1)

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    again, reader = llmt.load_model(tmp_path / "model"), llmt.load_tokenizer(tmp_path / "model")
    assert llmt.evaluate(again, evaluation_batches(data.validation, 8), text_bytes=1).loss == after.loss
    greedy = llmt.Sampling(temperature=0.0)
    written = "".join(llmt.stream_text(again, reader, "the sea", greedy, max_new_tokens=20, seed=0))
    assert len(written) > 10
    assert written == "".join(llmt.stream_text(model, tokenizer, "the sea", greedy, max_new_tokens=20, seed=0))


def test_a_finished_run_opens_in_transformers(finished: Any) -> None:
    """`AutoModelForCausalLM` and `AutoTokenizer` read the directory of a run: same ids, same logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import llmt

    directory = finished[0] / "runs" / "quickstart"
    ids = llmt.load_tokenizer(directory).encode("the captain sailed under the storm")
    assert AutoTokenizer.from_pretrained(directory)("the captain sailed under the storm")["input_ids"] == ids
    batch = torch.tensor([ids])
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(batch).logits
    assert torch.allclose(llmt.load_model(directory)(batch), theirs, atol=1e-5)
