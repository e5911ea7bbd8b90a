"""What an adapter prefers, against its base."""

import cProfile
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.config.lora import LoraConfig
from llmt.errors import MismatchError, UsageError
from llmt.models import chunked_loss
from llmt.models.base import BaseLanguageModel
from llmt.models.chunked_loss import each_nats
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.lora import LoraModel, add_lora
from llmt.models.loss import IGNORED
from llmt.models.preference import PreferenceLoss, count_pairs, ratios_of

Make = Callable[..., BaseLanguageModel]


def _adapted(base: BaseLanguageModel, **settings: Any) -> LoraModel:
    """An adapter whose update is not zero."""
    model = add_lora(base, LoraConfig(**({"r": 4} | settings)))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.adapter_weights().values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def _documents(count: int, vocab_size: int = 101) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels, of which the first are not learnt."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for number in range(count):
        length = 3 + number * 5 % 7
        ids = torch.randint(vocab_size, (length + 1,), generator=generator)
        labels = ids[1:].clone()
        labels[: 1 + number // 2 % 2] = IGNORED
        found.append((ids[:-1], labels))
    return found


def _packed(documents: list[tuple[Tensor, Tensor]], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A row of them, and padding, which is a document too."""
    ids = torch.zeros(1, size, dtype=torch.long)
    labels = torch.full((1, size), IGNORED)
    positions = torch.arange(size)[None].clone()
    start = 0
    for own, wanted in documents:
        end = start + len(own)
        ids[0, start:end], labels[0, start:end] = own, wanted
        positions[0, start:] = torch.arange(size - start)
        start = end
    positions[0, start:] = torch.arange(size - start)
    return ids, labels, positions


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("rows", [1, 16, 45])
def test_each_likelihood_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, close: float, rows: int
) -> None:
    """In pieces they are those of all logits at once, whatever the labels weigh."""
    monkeypatch.setattr(chunked_loss, "PIECE", 1)
    monkeypatch.setattr(chunked_loss, "FEWEST_ROWS", 16)
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 24, generator=generator).to(dtype).requires_grad_(True)
    head = (torch.randn(97, 24, generator=generator) * 0.4).to(dtype).requires_grad_(True)
    labels = torch.randint(97, (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator)
    logits = F.linear(hidden, head).to(torch.promote_types(dtype, torch.float32))
    plain = F.cross_entropy(logits, labels, reduction="none")
    found = each_nats(hidden, head, labels)
    assert found.dtype == plain.dtype
    assert torch.allclose(found, plain, rtol=close, atol=close)
    gradients = [torch.autograd.grad((weights * nats).sum(), (hidden, head)) for nats in (found, plain)]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).abs().max()) <= close * max(float(other.abs().max()), 1)


HEADS = {
    "plain": {"model_type": "qwen2", "tie_word_embeddings": False},
    "capped": {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 2.0},
}
SHAPE = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("kind", ["ours", *HEADS])
@pytest.mark.parametrize("adapted", [False, True])
def test_labels_one_by_one_are_the_loss(make: Make, kind: str, *, adapted: bool) -> None:
    """Of our models, of those of transformers whatever they do to their logits, and of both under an adapter."""
    base = make() if kind == "ours" else HuggingFaceModelWrapper.from_config(SHAPE | HEADS[kind]).eval()
    model = _adapted(base).eval() if adapted else base
    ids, labels, positions = _packed(_documents(4), 32)
    with torch.no_grad():
        found = model.label_nats(ids, labels, positions)
        logits = model(ids, position_ids=positions)[labels != IGNORED]
        expected = F.cross_entropy(logits, labels[labels != IGNORED], reduction="none")
        assert torch.allclose(found, expected, atol=1e-5)
        assert float(found.sum()) == pytest.approx(float(model.loss(ids, labels, positions).nats), rel=1e-6)
        alone = torch.cat([model.label_nats(own[None], wanted[None]) for own, wanted in _documents(4)])
        assert torch.allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_the_adapter_goes_off_and_comes_back(make: Make, ids: Tensor, method: str) -> None:
    """Without it the model is its base, without dropout; afterwards mode, gradients and logits are as they were."""
    base = make()
    with torch.no_grad():
        expected = base(ids)
    model = _adapted(base, method=method, dropout=0.5).eval()
    with torch.no_grad():
        before = model(ids)
    model.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    modes = {name: module.training for name, module in model.named_modules()}
    with model.adapter_off(), torch.no_grad():
        assert not model.training
        assert torch.equal(model(ids), expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), before)
        assert not torch.allclose(before, expected, atol=1e-3)
    with pytest.raises(RuntimeError, match="inside"), model.train().adapter_off():
        raise RuntimeError("inside")
    assert model.training
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(
    "settings",
    [{}, {"method": "dora"}, {"method": "vera"}, {"method": "hra"}, {"method": "ia3", "r": 8},
     {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}],
    ids=str,
)  # fmt: skip
def test_off_is_what_peft_calls_off(ids: Tensor, settings: dict[str, Any]) -> None:
    """The same logits as in peft's own context, nested too; a tensor that was frozen is frozen afterwards."""
    shape = SHAPE | HEADS["plain"]
    model = _adapted(HuggingFaceModelWrapper.from_config(shape), **settings)
    frozen = next(name for name, p in model.named_parameters() if p.requires_grad)
    model.get_parameter(frozen).requires_grad_(False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    for mode in (False, True):
        model.train(mode)
        with torch.no_grad():
            on = model(ids)
            with model.adapter_off():
                off = model(ids)
                with model.adapter_off():
                    assert torch.equal(model(ids), off)
                assert torch.equal(model(ids), off)
            with model.peft.disable_adapter():
                expected = model(ids)
            model.get_parameter(frozen).requires_grad_(False)
            assert torch.equal(off, expected)
            assert torch.equal(model(ids), on)
            assert not torch.equal(on, off)
        with model.adapter_off():
            assert not model.training
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
        assert all(module.training == mode for module in model.modules())


def test_taking_the_adapter_off_is_cheap() -> None:
    """It calls fewer functions than the context of peft, which takes stock of the model first."""
    model = _adapted(HuggingFaceModelWrapper.from_config(SHAPE | HEADS["plain"] | {"num_hidden_layers": 12})).eval()

    def calls(off: Callable[[], Any]) -> int:
        profile = cProfile.Profile()
        with off():
            pass
        profile.enable()
        with off():
            pass
        profile.disable()
        return int(sum(entry.callcount for entry in profile.getstats()))

    assert calls(model.adapter_off) < calls(model.peft.disable_adapter)


def test_losses_of_known_ratios() -> None:
    """Each kind by its formula."""
    ratios = torch.tensor([[1.0, -2.0], [0.5, 4.0], [0.0, 0.0]], dtype=torch.float64)
    tokens = torch.tensor([[2, 4], [1, 8], [3, 3]])
    beta = 0.5
    margins = [1.5, -1.75, 0.0]
    sigmoid = [math.log1p(math.exp(-m)) for m in margins]
    swapped = [math.log1p(math.exp(m)) for m in margins]
    expected = {
        ("sigmoid", 0.0): sigmoid,
        ("sigmoid", 0.2): [0.8 * a + 0.2 * b for a, b in zip(sigmoid, swapped, strict=True)],
        ("hinge", 0.0): [0.0, 2.75, 1.0],
        ("ipo", 0.0): [(0.5 + 0.5 - 1) ** 2, (0.5 - 0.5 - 1) ** 2, 1.0],
    }
    for (kind, smoothing), values in expected.items():
        loss = PreferenceLoss(kind, beta, smoothing)  # type: ignore[arg-type]
        assert loss.of(ratios, tokens).tolist() == pytest.approx(values, rel=1e-12)
        assert loss.margins(ratios).tolist() == margins


def test_ratios_of_packed_pairs_are_those_of_single_documents(make: Make) -> None:
    """Several in a row, in several rows, or one document a row: the same ratios, and the same gradients."""
    model = _adapted(make())
    documents = _documents(6)
    singles = [_packed([document], len(document[0]) + 2) for document in documents]
    expected = []
    for ids, labels, positions in singles:
        with torch.no_grad(), model.adapter_off():
            reference = model.loss(ids, labels, positions).nats
        expected.append(reference - model.loss(ids, labels, positions).nats)
    rows = [_packed(documents[:4], 40), _packed(documents[4:], 40)]
    batch = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    found, tokens = ratios_of(model, batch[0], batch[1], batch[2])
    assert torch.allclose(found.flatten(), torch.stack(expected), atol=2e-5)
    assert tokens.flatten().tolist() == [int((labels != IGNORED).sum()) for _, labels in documents]
    assert count_pairs(batch[1], batch[2]) == 3
    assert found.abs().min() > 1e-3
    trained = [p for p in model.parameters() if p.requires_grad]
    one, other = (torch.autograd.grad((x * torch.arange(1.0, 7)).sum(), trained) for x in
                  (found.flatten(), torch.stack(expected)))  # fmt: skip
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(one, other, strict=True))


def test_a_fresh_adapter_prefers_nothing(make: Make) -> None:
    """Its ratios are exactly zero, with dropout in the adapter too."""
    model = add_lora(make(), LoraConfig(r=4, dropout=0.5)).train()
    ratios, _ = ratios_of(model, *_packed(_documents(4), 32))
    assert ratios.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_what_is_not_a_batch_of_pairs(make: Make) -> None:
    """A whole model, rows without positions, and an odd number of documents are refused."""
    ids, labels, positions = _packed(_documents(3), 32)
    with pytest.raises(UsageError, match="whole model"):
        ratios_of(make(), *_packed(_documents(4), 32))
    model = _adapted(make())
    with pytest.raises(MismatchError, match="3 documents"):
        ratios_of(model, ids, labels, positions)
    with pytest.raises(MismatchError, match="no positions"):
        ratios_of(model, ids, labels, None)
    assert count_pairs(labels, None) == 0
