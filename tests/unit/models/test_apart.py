"""Documents in one row that do not see each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llmt.config.lora import LoraConfig
from llmt.errors import UsageError
from llmt.models.apart import keeps_documents_apart
from llmt.models.attention import document_visibility
from llmt.models.base import BaseLanguageModel
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.lora import add_lora
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]
ROWS = ((5, 1, 150, 12), (168,), (1, 1, 3, 130, 33))
"""Lengths of the documents of each row: longer than a block of query rows, as short as can be, only one."""
V = 101
SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
KINDS = {
    "gpt2": OLD, "llama": SHAPE, "mistral": SHAPE | {"sliding_window": 20}, "qwen2": SHAPE, "gpt_neox": SHAPE,
    "falcon": SHAPE | {"ffn_hidden_size": 48}, "opt": SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}  # fmt: skip


@pytest.fixture
def packed() -> tuple[Tensor, Tensor]:
    """`(3, 168)` ids and the places of each in its document."""
    ids = torch.randint(0, V, (3, 168), generator=torch.Generator().manual_seed(1))
    return ids, torch.stack([torch.cat([torch.arange(length) for length in row]) for row in ROWS])


def _alone(read: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """What the model says of each document when it is given no other, put together in rows."""
    rows = zip(ids, ROWS, strict=True)
    return torch.stack([torch.cat([read(part[None])[0] for part in row.split(lengths)]) for row, lengths in rows])


def _foreign(folder: Path, kind: str, *, wide: bool, **changes: Any) -> HuggingFaceModelWrapper:
    """A model of transformers read from its files: as it begins, or drawn `wide` so that its layers are heard."""
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, vocab_size=V, pad_token_id=None, **(KINDS.get(kind, {}) | changes))
    model = AutoModelForCausalLM.from_config(made)
    for parameter in model.parameters() if wide else ():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return HuggingFaceModelWrapper.from_pretrained(folder).eval()


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("recompute", [False, True])
def test_packed_logits_are_those_of_each_document_alone(
    make: Make, packed: tuple[Tensor, Tensor], heads: int, recompute: bool
) -> None:
    """To 1e-5 in training without dropout, with shared key heads and with gradient checkpointing."""
    model = make(num_key_value_heads=heads).train()
    ids, positions = packed
    alone = _alone(model, ids)
    model.gradient_checkpointing = recompute
    assert (model(ids, position_ids=positions) - alone).abs().max() <= 1e-5
    assert (model(ids) - alone).abs().max() > 1e-2  # without positions they do see each other


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_gradients_are_the_sum_of_each_document_alone(
    make: Make, packed: tuple[Tensor, Tensor], recompute: bool
) -> None:
    """The loss of a packed batch and its gradients are the sums over the documents."""
    whole, parts = make(num_key_value_heads=2).train(), make(num_key_value_heads=2).train()
    whole.gradient_checkpointing = recompute
    ids, positions = packed
    labels = ids.roll(-1, 1)
    loss = whole.loss(ids, labels, positions)
    loss.nats.backward()
    nats = 0.0
    for row, wanted, lengths in zip(ids, labels, ROWS, strict=True):
        for text, target in zip(row.split(lengths), wanted.split(lengths), strict=True):
            part = parts.loss(text[None], target[None])
            part.nats.backward()
            nats += part.nats.item()
    assert loss.tokens == ids.numel()
    assert loss.nats.item() == pytest.approx(nats, rel=1e-5)
    for mine, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert (mine.grad - theirs.grad).abs().max() <= 1e-5 * theirs.grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gradient_crosses_a_border(make: Make, packed: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """The loss of one document reaches its own embeddings and leaves those of every other at exactly zero."""
    model = make(num_key_value_heads=2).to(dtype).train()
    ids, positions = packed
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
    reached = gradient.abs().sum(-1) != 0
    assert reached.nonzero().tolist() == [[0, place] for place in range(6, 156)]


def test_bf16_training_keeps_documents_apart(make: Make, packed: tuple[Tensor, Tensor]) -> None:
    """In bf16 with gradients, where attention works in blocks of rows: near the fp32 logits, and nothing passes."""
    exact, model = make(num_key_value_heads=2), make(num_key_value_heads=2).to(torch.bfloat16).train()
    ids, positions = packed
    expected, logits = _alone(exact, ids), model(ids, position_ids=positions)
    assert (logits.float() - expected).abs().max() <= 0.05 * expected.abs().max()
    changed = ids.clone()
    changed[0, 6:100] = (ids[0, 6:100] + 1) % V
    same = (model(changed, position_ids=positions) == logits).all(-1)
    assert (~same).nonzero().tolist() == [[0, place] for place in range(6, 156)]


@pytest.mark.slow  # compiles for half a minute
def test_compiled_blocks_keep_documents_apart(make: Make, packed: tuple[Tensor, Tensor]) -> None:
    """Blocks compiled one by one for fixed shapes give the eager logits and gradients of a packed batch."""
    plain, model = make(num_key_value_heads=2).train(), make(num_key_value_heads=2).train()
    for block in model.model.layers:
        block.compile(dynamic=False)
    ids, positions = packed
    for one in (plain, model):
        one.loss(ids, ids.roll(-1, 1), positions).nats.backward()
    assert (model(ids, position_ids=positions) - _alone(plain, ids)).abs().max() <= 1e-5
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert (mine.grad - theirs.grad).abs().max() <= 1e-4 * theirs.grad.abs().max()


def test_positions_restart_and_the_mask_is_made_once(make: Make, packed: tuple[Tensor, Tensor]) -> None:
    """The first token of each document is turned by nothing, and every block is given one and the same mask."""
    model = make(num_hidden_layers=3)
    ids, positions = packed
    given: list[Any] = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1:]))
    model(ids, position_ids=positions)
    assert len(given) == 3
    for rotation, _, visible in given:
        assert visible is given[0][2]
        cos, sin = rotation
        assert cos.shape == (3, 1, 168, 8)
        turned = ((cos != 1) | (sin != 0)).any(-1)[:, 0]
        assert turned.equal(positions != 0)


def test_visibility_is_by_document() -> None:
    """A row of documents of 2, 1 and 3 tokens, written out; one document sees all that stands before."""
    expected = ["100000", "110000", "001000", "000100", "000110", "000111"]
    seen = document_visibility(torch.tensor([[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]))
    assert seen.shape == (2, 1, 6, 6)
    assert ["".join(str(int(cell)) for cell in line) for line in seen[0, 0]] == expected
    assert seen[1, 0].equal(torch.ones(6, 6, dtype=torch.bool).tril())


def test_a_cache_goes_on_with_one_document(make: Make) -> None:
    """Positions beside a cache are refused."""
    model = make()
    with pytest.raises(UsageError, match="position_ids"):
        model(torch.tensor([[1]]), model.new_cache(1, 4), torch.tensor([[0]]))


def test_llama_reads_a_packed_row_the_same(make: Make, packed: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """transformers' Llama has our logits for the same packed batch, and our wrapper passes the positions on."""
    model = make(num_key_value_heads=2)
    model.save_pretrained(tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    wrapped = HuggingFaceModelWrapper.from_pretrained(tmp_path / "m").eval()
    ids, positions = packed
    with torch.no_grad():
        ours, labels = model(ids, position_ids=positions), ids.roll(-1, 1)
        assert (ours - theirs(ids, position_ids=positions, use_cache=False).logits).abs().max() <= 1e-5
        assert (ours - wrapped(ids, position_ids=positions)).abs().max() <= 1e-5
        expected = float(model.loss(ids, labels, positions).nats)
        assert float(wrapped.loss(ids, labels, positions).nats) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_keep_documents_apart(tmp_path: Path, packed: tuple[Tensor, Tensor], kind: str) -> None:
    """The trial says so in fp32 and bf16, and logits, hidden states and loss are those of the documents alone."""
    model = _foreign(tmp_path, kind, wide=True)
    assert keeps_documents_apart(model)
    ids, positions = packed
    with torch.no_grad():
        for read in (model, model.hidden_states):
            alone = _alone(read, ids)
            assert (read(ids, position_ids=positions) - alone).abs().max() <= 1e-5 * max(alone.abs().max(), 1)
            assert (read(ids) - alone).abs().max() > 1e-2
        logits, labels = _alone(model, ids), ids.roll(-1, 1)
        expected = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        assert float(model.loss(ids, labels, positions).nats) == pytest.approx(expected, rel=1e-5)
    assert keeps_documents_apart(model.to(torch.bfloat16))


@pytest.mark.parametrize(("kind", "shape"), [
    ("openai-gpt", OLD), ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2}),
    ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}), ("falcon", {"alibi": True}),
])  # fmt: skip
def test_models_of_transformers_that_cannot(tmp_path: Path, kind: str, shape: dict[str, Any]) -> None:
    """One that makes no mask, or takes no positions, is found out in fp32 and bf16; without positions all work."""
    model = _foreign(tmp_path, kind, wide=False, **shape)
    assert not keeps_documents_apart(model)
    assert not keeps_documents_apart(model.to(torch.bfloat16))
    if kind in ("bloom", "mpt", "mamba"):
        for read in (model, model.hidden_states):
            with pytest.raises(UsageError, match="position_ids"):
                read(torch.tensor([[1, 2]]), position_ids=torch.tensor([[0, 0]]))
    assert model.loss(torch.tensor([[1, 2]]), torch.tensor([[2, 3]])).tokens == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_ours_keep_documents_apart(make: Make, dtype: torch.dtype, training: bool) -> None:
    """With dropout set and any small vocabulary; mode, weights and random numbers stay what they were."""
    for size in (2, 7, V):
        model = make(vocab_size=size, attention_dropout=0.5, hidden_dropout=0.5).to(dtype).train(training)
        random, before = torch.get_rng_state(), [p.clone() for p in model.parameters()]
        assert keeps_documents_apart(model)
        assert model.training is training
        assert torch.get_rng_state().equal(random)
        assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_keeps_documents_apart(make: Make, packed: tuple[Tensor, Tensor], dora: bool) -> None:
    """A trained adapter on ours: by the trial, and to 1e-5."""
    model = add_lora(make(), LoraConfig(enabled=True, r=4, method="dora" if dora else "lora")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ids, positions = packed
    assert keeps_documents_apart(model)
    assert (model(ids, position_ids=positions) - _alone(model, ids)).abs().max() <= 1e-5
    hidden = model.hidden_states(ids, position_ids=positions)
    assert (hidden - _alone(model.hidden_states, ids)).abs().max() <= 1e-5
    loss = model.loss(ids, ids.roll(-1, 1), positions)
    assert loss.nats == model.base.loss(ids, ids.roll(-1, 1), positions).nats


class _Leaking(BaseLanguageModel):
    """The sum of all that came before, whatever the positions say."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.context_length = V, 256
        self.embed = torch.nn.Embedding(V, 4)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    def hidden_states(self, input_ids: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        return self.layers[0](self.embed(input_ids)).cumsum(1)

    def output_weight(self) -> Tensor:
        return self.embed.weight

    def new_cache(self, batch_size: int, length: int) -> None:
        return None

    def model_config(self) -> dict[str, Any]:
        return {}


class _LeakingALittle(_Leaking):
    """Each token alone, and a trace of the first of the row."""

    def hidden_states(self, input_ids: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.layers[0](self.embed(input_ids))
        return hidden + (hidden[:, :1] * 1e-4 if input_ids.shape[1] > 4 else 0)


class _CountingOn(_Leaking):
    """Keeps to itself, but its positions do not restart."""

    def hidden_states(self, input_ids: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        return self.embed(input_ids) + torch.arange(input_ids.shape[1])[:, None] / 100


class _LosingThem(_Leaking):
    """Right where it is asked for hidden states, wrong in the loss that is trained."""

    def hidden_states(self, input_ids: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        return self.embed(input_ids)

    def loss(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> Any:
        found = super().loss(input_ids, labels)
        return type(found)(found.nats + self.embed(input_ids).sum(), found.tokens)


class _Deaf(_Leaking):
    """Does not take positions at all."""

    def hidden_states(self, input_ids: Tensor, cache: Any = None) -> Tensor:  # type: ignore[override]
        return self.layers[0](self.embed(input_ids))


@pytest.mark.parametrize("kind", [_Leaking, _LeakingALittle, _CountingOn, _LosingThem, _Deaf])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_that_leaks_is_found(kind: type[_Leaking], adapted: bool) -> None:
    """One that passes over positions, leaks a trace, counts on, leaks in its loss only, or takes none; adapted too."""
    torch.manual_seed(0)
    model: BaseLanguageModel = kind()
    if adapted:
        model = add_lora(model, LoraConfig(enabled=True, r=2))
    assert not keeps_documents_apart(model)
    assert model.training
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, V)
    assert model.loss(torch.tensor([[1, 2]]), torch.tensor([[2, 3]])).tokens == 2
