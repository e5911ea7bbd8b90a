"""Room for added tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmt.config.lora import LoraConfig
from llmt.errors import UsageError
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.load import load_model
from llmt.models.lora import add_lora
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]


@pytest.mark.parametrize("tied", [True, False])
def test_old_tokens_keep_their_logits(make: Make, ids: torch.Tensor, tied: bool) -> None:
    """Logits of the old tokens stay as they were to the bit; those of a new one are the mean of the old ones."""
    model = make(tie_word_embeddings=tied)
    before, old = model(ids), model.vocab_size
    rows = model.model.embed_tokens.weight.detach().clone()
    returned = model.resize_token_embeddings(old + 7)
    after = model(ids)
    assert returned is model.model.embed_tokens
    assert after.shape[-1] == old + 7
    assert torch.equal(after[..., :old], before)
    torch.testing.assert_close(after[..., old:], before.mean(-1, keepdim=True).expand(-1, -1, 7))
    assert torch.equal(model.model.embed_tokens.weight[:old], rows)
    torch.testing.assert_close(model.model.embed_tokens.weight[old:], rows.mean(0).expand(7, -1))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded(make: Make, ids: torch.Tensor, tied: bool, tmp_path: Path) -> None:
    """The new size stands in config.json; llmt and transformers open the model and compute the same."""
    from transformers import AutoModelForCausalLM

    model = make(tie_word_embeddings=tied)
    model.resize_token_embeddings(model.vocab_size + 3)
    assert model.model_config()["vocab_size"] == model.vocab_size == 104
    model.save_pretrained(tmp_path / "grown")
    assert torch.equal(load_model(tmp_path / "grown")(ids), model(ids))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float32)
    torch.testing.assert_close(theirs(ids).logits, model(ids))


def test_new_tokens_learn(make: Make) -> None:
    """An optimizer that is made after resizing trains the new rows."""
    model = make(tie_word_embeddings=False)
    model.resize_token_embeddings(102)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model.model.embed_tokens.weight[101].detach().clone(), model.lm_head.weight[101].detach().clone()
    batch = torch.tensor([[101, 3, 101, 4]])
    model.loss(batch, torch.tensor([[3, 101, 4, 101]])).nats.backward()
    optimizer.step()
    assert not torch.equal(model.model.embed_tokens.weight[101], before[0])
    assert not torch.equal(model.lm_head.weight[101], before[1])


def test_rounded_up(make: Make) -> None:
    """`pad_to_multiple_of` rounds the size up, and the same size again changes nothing."""
    model = make()
    model.resize_token_embeddings(102, pad_to_multiple_of=64)
    assert model.vocab_size == 128
    weight = model.output_weight().detach().clone()
    model.resize_token_embeddings(128)
    assert torch.equal(model.output_weight(), weight)
    with pytest.raises(UsageError, match="pad_to_multiple_of 0"):
        model.resize_token_embeddings(128, pad_to_multiple_of=0)


def test_number_format_is_kept(make: Make) -> None:
    """A bf16 model stays one, and a new row is the mean computed in fp32."""
    model = make().to(torch.bfloat16)
    expected = model.output_weight().float().mean(0).to(torch.bfloat16)
    model.resize_token_embeddings(102)
    assert model.output_weight().dtype == torch.bfloat16
    assert torch.equal(model.output_weight()[101], expected)


def test_fewer_tokens_only_when_asked(make: Make, ids: torch.Tensor) -> None:
    """Shrinking names the ids that would be lost; with `shrink=True` the rest stays as it was."""
    model = make()
    with pytest.raises(UsageError, match="ids 90 to 100"):
        model.resize_token_embeddings(90)
    with pytest.raises(UsageError, match="0 is no number"):
        model.resize_token_embeddings(0, shrink=True)
    few = ids % 90
    before = model(few)[..., :90]
    model.resize_token_embeddings(90, shrink=True)
    assert torch.equal(model(few), before)


def test_models_of_transformers(gpt2: Path, ids: torch.Tensor) -> None:
    """Another architecture is resized by transformers, with the mean in its new rows, and its config follows."""
    model = HuggingFaceModelWrapper.from_pretrained(gpt2)
    before = model(ids)
    embedding = model.resize_token_embeddings(105)
    after = model(ids)
    assert model.vocab_size == model.inner.config.vocab_size == model.model_config()["vocab_size"] == 105
    assert embedding.weight.shape[0] == 105
    torch.testing.assert_close(after[..., :101], before)
    torch.testing.assert_close(after[..., 101:], before.mean(-1, keepdim=True).expand(-1, -1, 4))


def test_not_under_an_adapter(make: Make) -> None:
    """A frozen base is refused: its new rows would never be learnt."""
    with pytest.raises(UsageError, match="frozen"):
        add_lora(make(), LoraConfig()).resize_token_embeddings(110)
