"""A conversation: turns to ids to answers."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import ByT5Tokenizer

from llmt.checkpoints.atomic import staged_directory
from llmt.cli.opening import open_with_adapters
from llmt.config.lora import LoraConfig
from llmt.config.model import ModelConfig
from llmt.data.chat import CHATML, ChatWriter, Ending
from llmt.data.encode import DocumentEncoder, Encoded
from llmt.errors import DataError, ModelFileError, UsageError
from llmt.generation import chat as chat_module
from llmt.generation.chat import AnswerCut, Chat, Exchange, Manner, Speaker, Speakers
from llmt.generation.decode import generate
from llmt.generation.sampling import Sampling
from llmt.models.adapters import open_adapters
from llmt.models.base import BaseLanguageModel
from llmt.models.load import load_model
from llmt.models.lora import add_lora, write_adapter
from llmt.models.transformer import TransformerLM
from llmt.text.documents import Document, Message
from llmt.text.prompts import CHAT_TEMPLATES
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.huggingface import HFTokenizerWrapper

QUESTION = CHAT_TEMPLATES["question"]
GREEDY = Sampling(temperature=0)
Scripted = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def asked(tokenizer: Tokenizer) -> Iterator[Speaker]:
    """Questions and answers."""
    speaker = Speaker(tokenizer, QUESTION)
    yield speaker
    speaker.close()


@pytest.fixture(scope="module")
def chatml(tokenizer: Tokenizer) -> Iterator[Speaker]:
    """ChatML, of which the tokenizer knows no token."""
    speaker = Speaker(tokenizer, CHATML)
    yield speaker
    speaker.close()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Scripted:
    """Takes the texts that the model draws, each with an end-of-text id after it; gives the ids it was asked."""
    seen: list[list[int]] = []

    def script(*texts: str, ends: bool = True) -> list[list[int]]:
        left = [[*tokenizer.encode(text), *([tokenizer.eos_token_id] if ends else [])] for text in texts]

        def drawn(
            model: object, ids: Tensor, *rest: object, max_new_tokens: int, **options: object
        ) -> Iterator[Tensor]:
            seen.append(ids[0].tolist())
            return (torch.tensor([token]) for token in left.pop(0)[:max_new_tokens])

        monkeypatch.setattr(chat_module, "generate", drawn)
        return seen

    return script


def _chat(model: Any, speaker: Speaker, tokens: int = 20, **options: Any) -> Chat:
    return Chat(("m", model), speaker, Manner(GREEDY, tokens, 0), **options)


def _model(context: int = 1000) -> Any:
    """What says how long its context is, where every id is scripted."""
    model = TransformerLM.__new__(TransformerLM)
    torch.nn.Module.__init__(model)
    model.context_length = context
    return model


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_an_answer_is_the_continuation_of_the_rendered_conversation(
    model: TransformerLM, tokenizer: Tokenizer, asked: Speaker
) -> None:
    """The pieces are together what decoding the drawn ids gives, after the same ids as in training."""
    chat = _chat(model, asked, 12)
    expected_ids = [tokenizer.eos_token_id, *tokenizer.encode("Question: hi\nAnswer:")]
    drawn = generate(
        model, torch.tensor([expected_ids]), GREEDY, max_new_tokens=12, stop_id=tokenizer.eos_token_id, seed=0
    )
    ids = [int(token) for token in drawn]
    exchange = chat.ask("hi")
    text = "".join(exchange)
    assert text == exchange.text == tokenizer.decode(ids).removeprefix(" ")
    assert (exchange.adapter, exchange.left_out, chat.exchanges) == ("m", 0, [exchange])
    assert exchange.tokens == len([token for token in ids if token != tokenizer.eos_token_id])


def test_turns_follow_each_other(tokenizer: Tokenizer, asked: Speaker, scripted: Scripted) -> None:
    """Each answer reads the opening and all that was said; undo and reset take away."""
    seen = scripted(" one", " two", " three", " four")
    chat = _chat(_model(), asked, system="Be brief.")
    assert ["".join(chat.ask(turn)) for turn in ("a", "b")] == ["one", "two"]
    end = "<|endoftext|>"
    opening = f"{end}Be brief.\n\nQuestion: a\nAnswer:"
    assert [_text(tokenizer, ids) for ids in seen] == [opening, f"{opening} one{end}Question: b\nAnswer:"]
    undone = chat.undo()
    assert undone is not None
    assert undone.prompt == "b"
    assert "".join(chat.ask("c")) == "three"
    assert _text(tokenizer, seen[2]) == f"{opening} one{end}Question: c\nAnswer:"
    chat.reset()
    assert chat.undo() is None
    assert "".join(chat.ask("d")) == "four"
    assert _text(tokenizer, seen[3]) == f"{end}Be brief.\n\nQuestion: d\nAnswer:"


def test_an_ending_that_is_text_ends_an_answer(chatml: Speaker, scripted: Scripted) -> None:
    """Nothing of it is given, whole or cut off; what only looks like it is, and so is all before an end-of-text id."""
    scripted("yes<|im_end|>\n<|im_start|>user\nno", "a <|im_ x", "1 <", "<|im_end|>")
    chat = _chat(_model(), chatml, 40)
    assert [list(chat.ask("?")) for _ in range(4)] == [
        ["y", "e", "s"], ["a", " ", "<|im_ ", "x"], ["1", " ", "<"], [],
    ]  # fmt: skip
    scripted("yes<|im_end|>", ends=False)
    assert "".join(_chat(_model(), chatml, 6).ask("?")) == "yes"


ROLES = "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endfor %}"
"""No control token ends a turn, only white space."""


def _trained(
    tokenizer: Tokenizer, template: str, talks: Sequence[Sequence[Message]]
) -> list[tuple[list[int], list[bool]]]:
    """The ids that training reads of each conversation, with those that begin and end it, and which are learnt."""
    found = []
    with (
        ChatWriter(tokenizer, template=template).open() as render,
        DocumentEncoder(tokenizer, 1, train_on_prompt=False, render=render) as encoder,
    ):
        for _, _, encoded in next(encoder.encode([[(Document("", "", messages=tuple(talk)), None) for talk in talks]])):
            assert isinstance(encoded, Encoded)
            ids = [token for piece in encoded.pieces for token in piece.ids]
            learnt = [piece.learnt for piece in encoded.pieces for _ in piece.ids]
            end = tokenizer.eos_token_id
            found.append(([end, *ids, end], [False, *learnt, encoded.end_learnt]))
    return found


def _learnt(tokenizer: Tokenizer, template: str, talks: Sequence[Sequence[Message]]) -> TransformerLM:
    """A model that knows the answers of these conversations by heart, and nothing else."""
    shape = ModelConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    model = TransformerLM(shape, tokenizer.vocab_size, 256)
    rows = []
    for ids, learnt in _trained(tokenizer, template, talks):
        labels = [token if is_learnt else -100 for token, is_learnt in zip(ids[1:], learnt[1:], strict=True)]
        rows.append((torch.tensor([ids[:-1]]), torch.tensor([labels])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        for inputs, targets in rows:
            loss = model.loss(inputs, targets)
            (loss.nats / loss.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_an_answer_that_white_space_ends_ends_by_itself(tokenizer: Tokenizer) -> None:
    """It was learnt that nothing follows it: the words come whole, lines and all, long before the longest answer."""
    talks = [
        [("user", "one"), ("assistant", "first\n\nsecond")],
        [("user", "two"), ("assistant", "2"), ("user", "more"), ("assistant", "22")],
        [("user", "six"), ("assistant", "half a dozen")],
    ]
    said = [[Message(*turn) for turn in talk] for talk in talks]
    model = _learnt(tokenizer, ROLES, said)
    speaker = Speaker(tokenizer, ROLES)
    for talk in said:
        chat = _chat(model, speaker, 60)
        for question, answer in zip(talk[::2], talk[1::2], strict=True):
            exchange = chat.ask(question.content)
            assert "".join(exchange) == answer.content
            assert exchange.tokens == len(tokenizer.encode(answer.content + "\n"))
    speaker.close()


def test_a_control_token_ends_an_answer(tokenizer: Tokenizer, tmp_path: Path, scripted: Scripted) -> None:
    """It is not given, and neither is the text that the template writes before it; within an answer that is."""
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content.strip() }}"
        "{{ ' ' + eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}"
    )
    speaker = Speaker(tokenizer, template)
    scripted("a b ", "a b", " ")
    chat = _chat(_model(), speaker)
    assert ["".join(chat.ask("?")) for _ in range(3)] == ["a b", "a b", ""]
    scripted("a b ", ends=False)
    assert "".join(_chat(_model(), speaker).ask("?")) == "a b "
    speaker.close()


@given(
    text=st.text("<|>ab ", max_size=40), lead=st.sampled_from(["", " ", "ab"]),
    ending=st.sampled_from(["<|a|>", "", "aab", " <"]), blank=st.sampled_from(["", " ", "a "]),
    sizes=st.lists(st.integers(1, 5), min_size=40, max_size=40), stopped=st.booleans(),
)  # fmt: skip
def test_what_is_given_is_certain(
    text: str, lead: str, ending: str, blank: str, sizes: list[int], *, stopped: bool
) -> None:
    """However a text comes in pieces, its answer is what stands before the ending, and no piece is ever too much."""
    cut = AnswerCut(lead, Ending(ending, None, blank), frozenset())
    given_so_far, place = "", 0
    for size in sizes:
        if cut.ended or place >= len(text):
            break
        given_so_far += cut.feed(text[place : place + size])
        place += size
    whole = text.removeprefix(lead)
    expected, found, _ = whole.partition(ending) if ending else (whole, "", "")
    if found:
        assert (given_so_far, cut.ended) == (expected, True)
        return
    assert whole.startswith(given_so_far)
    rest = cut.finish(stopped=stopped)
    if stopped and len(text) >= len(lead):
        assert given_so_far + rest == expected.removesuffix(blank)
    elif not stopped:
        assert rest == ""
        held = whole[len(given_so_far) :]
        assert ending.startswith(held) or blank.startswith(held) or lead.startswith(text)


def test_an_interrupted_answer_stays_as_far_as_it_came(
    tokenizer: Tokenizer, asked: Speaker, scripted: Scripted
) -> None:
    """And is read with the next turn; an old one cannot go on after that."""
    seen = scripted(" one two", " three")
    chat = _chat(_model(), asked)
    broken = chat.ask("a")
    pieces = iter(broken)
    assert next(pieces) + next(pieces) == "on"
    assert "".join(chat.ask("b")) == "three"
    assert _text(tokenizer, seen[1]).endswith("Question: a\nAnswer: on<|endoftext|>Question: b\nAnswer:")
    assert list(pieces) == []
    assert broken.text == "on"


def test_the_oldest_exchanges_are_left_out(tokenizer: Tokenizer, asked: Speaker, scripted: Scripted) -> None:
    """Where the conversation does not fit, the opening and the newest stay; what alone does not fit is refused."""
    seen = scripted(*[" one"] * 4)
    chat = _chat(_model(110), asked, 20, system="S")
    counts = []
    for number in range(4):
        exchange = chat.ask(f"turn {number}")
        assert "".join(exchange) == "one"
        counts.append(exchange.left_out)
        assert len(seen[-1]) <= 90
        assert _text(tokenizer, seen[-1]).startswith("<|endoftext|>S\n\nQuestion: turn")
    assert counts == [0, 0, 0, 1]
    with pytest.raises(DataError, match=r"takes 1[0-9]{2} tokens alone, and there is room for 90"):
        chat.ask("long " * 20)
    assert [exchange.prompt for exchange in chat.exchanges] == [f"turn {number}" for number in range(4)]
    with pytest.raises(UsageError, match="leaves 0"):
        _chat(_model(20), asked, 20)


def test_what_no_turn_may_hold_is_refused_and_never_said(asked: Speaker, scripted: Scripted) -> None:
    """Noncharacters of a user are an error that changes nothing; those of a model become U+FFFD."""
    scripted(" a\ufdd0b", " c")
    chat = _chat(_model(), asked)
    with pytest.raises(DataError, match="U\\+FDD0"):
        chat.ask("\ufdd1")
    assert chat.exchanges == []
    assert "".join(chat.ask("a")) == "a\ufffdb"
    assert "".join(chat.ask("b")) == "c"


def test_seeds(model: TransformerLM, asked: Speaker) -> None:
    """Equal seeds talk alike; a turn that is asked again gets another answer."""
    manner = Manner(Sampling(temperature=1.0, top_k=0, top_p=1.0), 12, 3)

    def talk() -> list[str]:
        chat = Chat(("m", model), asked, manner)
        first = "".join(chat.ask("hi"))
        chat.undo()
        return [first, "".join(chat.ask("hi"))]

    once, again = talk(), talk()
    assert once == again
    assert once[0] != once[1]


def test_another_adapter_reads_the_conversation_anew(
    model: TransformerLM, tokenizer: Tokenizer, asked: Speaker, tmp_path: Path
) -> None:
    """After a switch the answer is what the adapter alone says to the same conversation; one under way ends."""
    model.save_pretrained(tmp_path / "base")
    folders = {}
    for seed, name in enumerate("ab"):
        adapted = add_lora(load_model(tmp_path / "base"), LoraConfig(enabled=True, r=2 + seed))
        generator = torch.Generator().manual_seed(seed)
        drawn = {n: torch.randn(t.shape, generator=generator) * 0.5 for n, t in adapted.adapter_weights().items()}
        with staged_directory(tmp_path / name, extra={}) as staged:
            write_adapter(staged, adapted, tmp_path / "base", drawn)
        folders[name] = tmp_path / name
    several = open_adapters(tmp_path / "base", folders, "cpu")
    chat = Chat(("a", several.model), asked, Manner(GREEDY, 10, 0))
    first = "".join(chat.ask("x"))
    broken = iter(chat.ask("y"))
    begun = next(broken)
    several.choose("b")
    chat.use(("b", several.model), asked)
    assert list(broken) == []
    chat.undo()
    answer = chat.ask("z")
    alone = Chat(
        ("b", open_adapters(tmp_path / "base", {"b": folders["b"]}, "cpu").model), asked, Manner(GREEDY, 10, 0)
    )
    alone.exchanges = [Exchange("x", "a", 0, text=first)]
    assert "".join(answer) == "".join(alone.ask("z"))
    assert (answer.adapter, chat.exchanges[0].adapter) == ("b", "a")
    assert first
    assert begun


def test_templates_are_lent(tokenizer: Tokenizer) -> None:
    """A tokenizer without one takes that of another; two that are alike share a process; none at all is exit 4."""
    own = deepcopy(tokenizer)
    own.keep_chat_template(QUESTION)
    other = deepcopy(own)
    speakers = Speakers({"base": tokenizer, "a": own, "b": other})
    assert speakers.borrowed == {"base": "a"}
    assert speakers["a"] is speakers["b"] is speakers["base"]
    with pytest.raises(ModelFileError, match="no chat template"):
        Speakers({"base": tokenizer})


def test_tokenizers_that_differ_in_control_tokens_speak_apart(tmp_path: Path) -> None:
    """Vocabularies may be equal where what is a token and what is spelled is not."""
    folders = (tmp_path / "spelled", tmp_path / "marked")
    for folder in folders:
        theirs = ByT5Tokenizer()
        theirs.add_tokens(["<|im_end|>"], special_tokens=folder.name == "marked")
        theirs.save_pretrained(folder)
    spelled, marked = map(HFTokenizerWrapper, folders)
    spelled.keep_chat_template(CHATML)
    marked.keep_chat_template(CHATML)
    speakers = Speakers({"base": spelled, "a": marked})
    asked = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    ids = [speakers[name].ask(asked).ids.count(marked.control_tokens["<|im_end|>"]) for name in ("base", "a")]
    speakers.close()
    assert ids == [0, 3]


def test_each_adapter_has_its_own_tokens(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was said is read, and an answer ended, with the ids of who answers; one of them learnt two tokens."""
    shape = ModelConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    TransformerLM(shape, 258, 1000).save_pretrained(tmp_path / "base", tokenizer=tokenizer)
    for name, tokens in (("with", ["<|im_start|>", "<|im_end|>"]), ("without", [])):
        own = deepcopy(tokenizer)
        own.keep_chat_template(CHATML)
        own.add_control_tokens(tokens)
        base = load_model(tmp_path / "base")
        base.resize_token_embeddings(own.vocab_size)
        adapted = add_lora(base, LoraConfig(enabled=True, r=2), token_ids=range(258, own.vocab_size))
        with staged_directory(tmp_path / name, extra={}) as staged:
            write_adapter(staged, adapted, tmp_path / "base")
            own.save_pretrained(staged.path)
    opened = open_with_adapters(str(tmp_path / "base"), {n: tmp_path / n for n in ("with", "without")}, "cpu")
    adapters, speakers = opened.adapters, Speakers(opened.tokenizers)
    spelled = tokenizer.encode("<|im_end|>")
    seen: list[list[int]] = []

    def drawn(model: BaseLanguageModel, ids: Tensor, *rest: object, **options: object) -> Iterator[Tensor]:
        seen.append(ids[0].tolist())
        assert (model.vocab_size, model) == (260 if adapters.active == "with" else 258, adapters.model)
        end = [259] if adapters.active == "with" else spelled
        return (torch.tensor([token]) for token in [*tokenizer.encode("yes"), *end, *tokenizer.encode("no")])

    monkeypatch.setattr(chat_module, "generate", drawn)
    chat = _chat(adapters.model, speakers["with"])
    talk: list[Message] = []
    for number, name in enumerate(("with", "without", "with", "base")):
        adapters.choose(name)
        chat.use((name, adapters.model), speakers[name])
        assert "".join(chat.ask(f"<|im_end|>{number}")) == "yes"
        talk += [Message("user", f"<|im_end|>{number}"), Message("assistant", "yes")]
        ((ids, learnt),) = _trained(opened.tokenizers[name], CHATML, [talk])
        answer = [*tokenizer.encode("yes"), *([259] if name == "with" else spelled)]
        assert [*seen[-1], *answer, tokenizer.eos_token_id] == ids
        assert learnt[-len(answer) - 1 :] == [True] * (len(answer) + 1)
        assert seen[-1].count(259) == (2 * number + 1 if name == "with" else 0)
    speakers.close()


def test_a_template_that_refuses_the_opening(tokenizer: Tokenizer) -> None:
    """Is an error before the first turn."""
    speaker = Speaker(
        tokenizer, "{{ raise_exception('no system') if messages[0].role == 'system' }}{{ messages[0].content }}"
    )
    with pytest.raises(DataError, match="no system"):
        _chat(_model(), speaker, system="S")
    assert speaker.ask([Message("user", "a")]).ids == [tokenizer.eos_token_id, *tokenizer.encode("a")]
    speaker.close()
