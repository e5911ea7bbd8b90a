"""Documents in one row that do not see each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llmt.config.model import ModelConfig
from llmt.errors import UsageError
from llmt.models.apart import keeps_documents_apart
from llmt.models.attention import document_visibility
from llmt.models.base import BaseLanguageModel
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.transformer import TransformerLM

LENGTHS = (5, 1, 150, 12)
VOCABULARY = 50


def _model(**changes: Any) -> TransformerLM:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = TransformerLM(ModelConfig.model_validate({**shape, "num_key_value_heads": 2, **changes}), VOCABULARY, 256)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def _row() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, VOCABULARY, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return ids, torch.cat([torch.arange(length) for length in LENGTHS])[None]


def _foreign(folder: Path, kind: str) -> HuggingFaceModelWrapper:
    names = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4}}.get(
        kind,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=VOCABULARY, **names))
    model.save_pretrained(folder)
    return HuggingFaceModelWrapper(folder)


def test_packed_logits_are_those_of_each_document_alone() -> None:
    """To 1e-5, with grouped key heads, in plain passes and with gradient checkpointing."""
    model = _model()
    ids, positions = _row()
    alone = torch.cat([model(part) for part in ids.split(LENGTHS, dim=1)], dim=1)
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        packed = torch.nn.functional.linear(model.hidden_states(ids, position_ids=positions), model.output_weight())
        assert (packed - alone).abs().max() <= 1e-5
    assert (model(ids) - alone).abs().max() > 1e-2  # without positions they do see each other


def test_no_gradient_crosses_a_border() -> None:
    """The loss of one document leaves the embeddings of every other exactly without gradient."""
    model = _model()
    ids, positions = _row()
    embedded: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.model.embed_tokens.register_forward_hook(keep)
    labels = torch.full_like(ids, -100)
    labels[0, 6:156] = ids[0, 7:157]
    model.loss(ids, labels, positions).nats.backward()
    gradient = embedded[0].grad
    assert gradient is not None
    reached = gradient[0].abs().sum(-1) != 0
    assert reached.nonzero().flatten().tolist() == list(range(6, 156))


def test_the_blocked_path_of_bf16_keeps_documents_apart() -> None:
    """In bf16 with gradients on the CPU: a change in one document leaves the others bit for bit."""
    model = _model().to(torch.bfloat16)
    ids, positions = _row()
    changed = ids.clone()
    changed[0, 6:100] = 3
    before, after = (model.hidden_states(row, position_ids=positions) for row in (ids, changed))
    same = (before == after).all(-1)[0]
    assert same[:6].all()
    assert same[156:].all()
    assert not same[6:156].any()


def test_without_positions_a_document_is_its_own_row() -> None:
    """One document with positions gives the bits that it gives without them, masked or not."""
    model = _model()
    ids = _row()[0][:, :40]
    positions = torch.arange(40)[None]
    assert torch.allclose(model.hidden_states(ids, position_ids=positions), model.hidden_states(ids), atol=1e-6)
    assert document_visibility(positions).equal(torch.ones(1, 1, 40, 40, dtype=torch.bool).tril())


def test_a_cache_goes_on_with_one_document() -> None:
    """Positions beside a cache are refused."""
    model = _model()
    with pytest.raises(UsageError, match="position_ids"):
        model.hidden_states(torch.tensor([[1]]), model.new_cache(1, 4), torch.tensor([[0]]))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2", "gpt_neox"])
def test_models_of_transformers_keep_documents_apart(tmp_path: Path, kind: str) -> None:
    """As tried, and as the logits of a packed row say."""
    model = _foreign(tmp_path, kind)
    assert keeps_documents_apart(model)
    ids, positions = _row()
    model.eval()
    packed = model.hidden_states(ids, position_ids=positions)
    alone = torch.cat([model.hidden_states(part) for part in ids.split(LENGTHS, dim=1)], dim=1)
    assert (packed - alone).abs().max() <= 1e-5


def test_ours_keep_documents_apart() -> None:
    """In fp32 and in bf16, and the mode stays what it was."""
    model = _model()
    model.train()
    assert keeps_documents_apart(model)
    assert model.training
    assert keeps_documents_apart(model.to(torch.bfloat16))


class _Leaking(BaseLanguageModel):
    """The mean of all that came before, whatever the positions say."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.context_length = VOCABULARY, 256
        self.embed = torch.nn.Embedding(VOCABULARY, 4)

    def hidden_states(self, input_ids: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        return self.embed(input_ids).cumsum(1)

    def output_weight(self) -> Tensor:
        return self.embed.weight

    def new_cache(self, batch_size: int, length: int) -> None:
        return None

    def model_config(self) -> dict[str, Any]:
        return {}


class _Deaf(_Leaking):
    """Does not take positions at all."""

    def hidden_states(self, input_ids: Tensor, cache: Any = None) -> Tensor:  # type: ignore[override]
        return self.embed(input_ids)


def test_a_model_that_leaks_is_found() -> None:
    """One that ignores positions, and one that does not take them."""
    assert not keeps_documents_apart(_Leaking())
    assert not keeps_documents_apart(_Deaf())
