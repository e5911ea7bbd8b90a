"""Attention, cache and dropout."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.models.attention import ROWS, blocked_attention, causal_attention, document_visibility
from llmt.models.dropout import dropout as drop
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]


def _inputs(T: int, K: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(T + K)
    shapes = ((2, 4, T, 8), (2, K, T, 8), (2, K, T, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(True) for shape in shapes]


@pytest.mark.parametrize("T", [1, 2, 127, 128, 129, 300])
@pytest.mark.parametrize("K", [4, 2, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_blocked_attention_is_attention(T: int, K: int, dtype: torch.dtype, tolerance: float) -> None:
    """Blocks of rows give what the reference kernel gives, forward and backward, for any length and grouping."""
    ours, exact = _inputs(T, K, dtype), [x.detach().float().requires_grad_(True) for x in _inputs(T, K, dtype)]
    mixed = blocked_attention(*ours)
    expected = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (mixed.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    assert mixed.dtype == dtype
    assert torch.allclose(mixed.float(), expected, atol=tolerance, rtol=tolerance)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        assert float((mine.grad.float() - theirs.grad).abs().max()) <= tolerance * max(scale, 1.0)


@pytest.mark.parametrize("lengths", [(300,), (127, 1, 172), (128, 128, 44), (1, 1, 298), (60, 200, 40)], ids=str)
@pytest.mark.parametrize("K", [4, 2, 1])
@pytest.mark.parametrize("blocked", [False, True])
def test_documents_of_a_row_are_apart(lengths: tuple[int, ...], K: int, blocked: bool) -> None:
    """With the mask of documents both ways give what each document has alone, forward and backward."""
    ours, apart = _inputs(300, K, torch.float32), _inputs(300, K, torch.float32)
    visible = document_visibility(torch.cat([torch.arange(length) for length in lengths]).expand(2, -1))
    mixed = (blocked_attention if blocked else causal_attention)(*ours, visible=visible)
    parts = zip(*(x.split(list(lengths), dim=2) for x in apart), strict=True)
    expected = torch.cat(
        [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts], dim=2
    )
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (mixed * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(mixed, expected, atol=2e-6)
    for mine, theirs in zip(ours, apart, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert float((mine.grad - theirs.grad).abs().max()) <= 2e-6 * max(float(theirs.grad.abs().max()), 1.0)


@pytest.mark.parametrize("T", [1, 128, 300])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_slopes_are_those_of_the_plain_formula(T: int, dropout: float) -> None:
    """With the same weights dropped, forward and backward are what torch derives from softmax(q k / sqrt(E)) v."""
    ours, plain = _inputs(T, 2, torch.float32), _inputs(T, 2, torch.float32)
    torch.manual_seed(3)
    mixed = blocked_attention(*ours, dropout=dropout)
    torch.manual_seed(3)
    query, key, value = plain[0], *(x.repeat_interleave(2, dim=1) for x in plain[1:])
    rows = []
    for start in range(0, T, ROWS):
        end = min(start + ROWS, T)
        scores = query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(torch.ones(end - start, end).triu(start + 1) > 0, float("-inf")).softmax(-1)
        rows.append((drop(weights, dropout) if dropout else weights) @ value[:, :, :end])
    expected = torch.cat(rows, dim=2)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (mixed * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(mixed, expected, atol=2e-6)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert float((mine.grad - theirs.grad).abs().max()) <= 3e-6 * max(float(theirs.grad.abs().max()), 1.0)


@pytest.mark.parametrize(("dtype", "T", "told", "blocks"), [
    (torch.bfloat16, 513, False, True), (torch.float32, 512, True, True), (torch.float32, 513, True, False),
    (torch.float32, 512, False, False),
])  # fmt: skip
def test_the_way_is_chosen_by_format_and_length(dtype: torch.dtype, T: int, told: bool, blocks: bool) -> None:
    """In training bf16 goes by blocks, and fp32 where oneDNN multiplies and sequences are short; else by the kernel."""
    query, key, value = (torch.randn(1, 1, T, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    mixed = causal_attention(query, key, value, fp32_blocks=told)
    assert ("_BlockedAttention" in mixed.grad_fn.name()) is blocks
    with torch.no_grad():
        kernel = causal_attention(query, key, value, fp32_blocks=told)
    assert torch.allclose(mixed, kernel, atol=3e-2 if dtype == torch.bfloat16 else 2e-6)


def test_nothing_of_the_size_of_the_scores_is_kept() -> None:
    """For the backward pass queries, keys and values are kept, and of their product nothing."""
    ours, kept = _inputs(512, 4, torch.bfloat16), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixed = blocked_attention(*ours)
    mixed.sum().backward()
    assert sum(kept.values()) == 3 * ours[0].nbytes  # the scaled queries are no leaf, keys and values are


@pytest.mark.parametrize("T", [1, 3, 5])
def test_queries_stand_at_the_end(T: int) -> None:
    """With fewer queries than keys the result is the last rows of the whole one."""
    query, key, value = _inputs(9, 2, torch.float32)
    whole = causal_attention(query, key, value)
    assert torch.allclose(causal_attention(query[:, :, -T:], key, value), whole[:, :, -T:], atol=1e-6)


def test_a_later_token_changes_nothing_earlier(make: Make, ids: Tensor) -> None:
    """The logits of a position do not depend on any token after it, in fp32 and in bf16 training."""
    other = ids.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 101
    for model in (make(), make().to(torch.bfloat16).train()):
        first, second = model(ids), model(other)
        assert torch.equal(first[:, :9], second[:, :9])
        assert not torch.equal(first[:, 9:], second[:, 9:])


@pytest.mark.parametrize("chunks", [(17,), (1,) * 17, (5, 12), (16, 1), (1, 7, 9), (3, 1, 1, 12)])
@pytest.mark.parametrize("heads", [4, 1])
def test_cache_equals_the_full_pass(make: Make, ids: Tensor, chunks: tuple[int, ...], heads: int) -> None:
    """Reading a text in pieces through the cache gives the logits of reading it whole, however it is cut."""
    model = make(num_key_value_heads=heads)
    cache = model.new_cache(3, 17)
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in ids.split(list(chunks), dim=1)]
        assert torch.allclose(torch.cat(pieces, dim=1), model(ids), atol=1e-5)
    assert cache.length == cache.capacity == 17


@pytest.mark.parametrize("where", ["attention_dropout", "hidden_dropout"])
def test_dropout_only_in_training(make: Make, ids: Tensor, where: str) -> None:
    """Each dropout changes the logits in training, is repeated by the same seed, and is absent in evaluation."""
    model, plain = make(**{where: 0.3}), make()
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
    model.train()
    torch.manual_seed(1)
    first, second = model(ids), model(ids)
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(model(ids), first)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_no_gradient(make: Make, ids: Tensor, dropout: float) -> None:
    """Gradient checkpointing gives the gradients of the plain pass, dropout included."""
    found = []
    for recompute in (False, True):
        model = make(hidden_dropout=dropout).train()
        model.gradient_checkpointing = recompute
        torch.manual_seed(4)
        model.loss(ids, ids.roll(-1, 1)).nats.backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
