"""Prompts to ids to text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from llmt.generation import text as text_module
from llmt.generation.decode import generate
from llmt.generation.sampling import Sampling
from llmt.generation.text import prompt_ids, stream_text
from llmt.models.load import load_model
from llmt.models.transformer import TransformerLM
from llmt.tokenizers.base import Tokenizer

GREEDY = Sampling(temperature=0)
FREE = Sampling(temperature=1.0, top_k=0, top_p=1.0)


def _continue(model: TransformerLM, ids: Tensor, rule: Sampling, tokens: int, stop: int | None = None, seed: int = 0):
    drawn = list(generate(model, ids, rule, max_new_tokens=tokens, stop_id=stop, seed=seed))
    return torch.stack(drawn, dim=1)


def test_greedy_equals_transformers(model: TransformerLM, tmp_path: Path) -> None:
    """Thirty greedy tokens of two prompts are those of transformers' generate on the same weights."""
    model.save_pretrained(tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    prompts = torch.tensor([[1, 2, 3, 4], [9, 200, 30, 7]])
    expected = theirs.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=30, pad_token_id=0
    )
    assert torch.equal(_continue(model, prompts, GREEDY, 30), expected[:, 4:])


def test_model_without_a_cache(tmp_path: Path) -> None:
    """A GPT-2 generates as transformers does, and goes on past its context without failing."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "g")
    model, prompt = load_model(tmp_path / "g"), torch.tensor([[5, 6, 7]])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "g")
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    assert torch.equal(_continue(model, prompt, GREEDY, 12), expected[:, 3:])
    assert _continue(model, prompt, GREEDY, 40).shape == (1, 40)


def test_seed_decides(model: TransformerLM) -> None:
    """The same seed draws the same ids, another seed others."""
    prompt = torch.tensor([[1, 2, 3]])
    first = _continue(model, prompt, FREE, 20, seed=4)
    assert torch.equal(first, _continue(model, prompt, FREE, 20, seed=4))
    assert not torch.equal(first, _continue(model, prompt, FREE, 20, seed=5))


def test_past_the_context(model: TransformerLM) -> None:
    """Every id past the context length is the greedy one after the text that is still remembered."""
    prompt = torch.tensor([[1, 2, 3]])
    ids = prompt
    expected = []
    for _ in range(150):
        if ids.shape[1] > 64:
            ids = ids[:, -32:]
        with torch.no_grad():
            expected.append(int(model(ids)[0, -1].argmax()))
        ids = torch.cat((ids, torch.tensor([[expected[-1]]])), dim=1)
    assert _continue(model, prompt, GREEDY, 150)[0].tolist() == expected


def test_prompt_longer_than_the_context(model: TransformerLM) -> None:
    """Of a prompt that is too long its end is read."""
    prompt = torch.randint(0, 258, (1, 100), generator=torch.Generator().manual_seed(2))
    assert torch.equal(_continue(model, prompt, GREEDY, 5), _continue(model, prompt[:, -64:], GREEDY, 5))


def test_room_is_made_for_what_is_asked(model: TransformerLM) -> None:
    """The cache holds the prompt and the continuation, not the model's whole context."""
    rooms = []
    make = model.new_cache

    def watch(batch_size: int, length: int):
        rooms.append(length)
        return make(batch_size, length)

    model.new_cache = watch  # type: ignore[method-assign]
    _continue(model, torch.tensor([[1, 2, 3]]), GREEDY, 5)
    _continue(model, torch.tensor([[1, 2, 3]]), GREEDY, 200)
    assert rooms[0] == 8
    assert set(rooms[1:]) == {64}


def test_stops_when_every_row_has_stopped(model: TransformerLM) -> None:
    """A row that draws the stop id repeats it; the continuation ends when all rows have."""
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    free = _continue(model, prompts, GREEDY, 30)
    stop = int(free[0, 6])
    stopped = _continue(model, prompts, GREEDY, 30, stop=stop)
    ends = [row.tolist().index(stop) if stop in row else 30 for row in free]
    assert stopped.shape[1] == min(max(ends) + 1, 30)
    for row, end, whole in zip(stopped, ends, free, strict=True):
        assert torch.equal(row[: end + 1], whole[: end + 1][: len(row)])
        assert set(row[end:].tolist()) <= {stop}


def _stream(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer, ids: Sequence[int]
) -> list[str]:
    """The pieces of text when the model draws exactly these ids."""

    def scripted(*args: object, **options: object) -> Iterator[Tensor]:
        return (torch.tensor([i]) for i in ids)

    monkeypatch.setattr(text_module, "generate", scripted)
    return list(stream_text(model, tokenizer, "", GREEDY, max_new_tokens=len(ids), seed=0))


@pytest.mark.parametrize("text", ["plain", "naïve café", "狐の火🦊!", "a🦊", "é", "日本\n語"])
def test_no_character_is_cut(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer, text: str
) -> None:
    """Each piece is made of whole characters, and together they are the text."""
    pieces = _stream(monkeypatch, model, tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert all(pieces)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("end", [1, 2, 3])
@pytest.mark.parametrize("stopped", [True, False])
def test_what_is_held_at_the_end_is_given(
    monkeypatch: pytest.MonkeyPatch, model: TransformerLM, tokenizer: Tokenizer, end: int, stopped: bool
) -> None:
    """Where the model ends inside a character, the pieces are the decoding of all ids, a U+FFFD for what is cut."""
    ids = tokenizer.encode("ab🦊")[: 2 + end]
    pieces = _stream(monkeypatch, model, tokenizer, [*ids, tokenizer.eos_token_id] if stopped else ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" in pieces[-1]


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_the_decoding_of_all_ids(model: TransformerLM, tokenizer: Tokenizer, seed: int) -> None:
    """The pieces of a random continuation, mostly broken UTF-8, are together what decoding all its ids gives."""
    prompt = torch.tensor([prompt_ids(tokenizer, "go")])
    stop = tokenizer.eos_token_id
    ids = _continue(model, prompt, FREE, 60, stop=stop, seed=seed)[0].tolist()
    text = "".join(stream_text(model, tokenizer, "go", FREE, max_new_tokens=60, seed=seed))
    assert text == tokenizer.decode(ids)


def test_empty_prompt(model: TransformerLM, tokenizer: Tokenizer) -> None:
    """An empty prompt begins a document, as every document began in training; the mark is not part of the text."""
    assert prompt_ids(tokenizer, "") == [tokenizer.eos_token_id]
    assert prompt_ids(tokenizer, "ab") == [tokenizer.eos_token_id, *tokenizer.encode("ab")]
    assert isinstance("".join(stream_text(model, tokenizer, "", FREE, max_new_tokens=10, seed=0)), str)
