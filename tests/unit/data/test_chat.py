"""Conversations through templates, against transformers' own rendering, tokens and assistant masks."""

import json
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from llmt.data.chat import CHATML, ChatSession, ChatWriter, Ending, Opening
from llmt.data.encode import DocumentEncoder, Encoded
from llmt.data.pieces import Piece
from llmt.errors import DataError
from llmt.text.builtin import instructions
from llmt.text.documents import Document, Message
from llmt.text.prompts import CHAT_TEMPLATES
from llmt.text.sources import open_documents
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.load import load_tokenizer

TALK = (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "So it is."),
        Message("user", "And now?\n"), Message("assistant", " Later, {maybe}.\n"))  # fmt: skip
SHORT = (Message("user", "hi"), Message("assistant", "hello"))

TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system + '\n\n' if loop.first and system else '') }}"
    "{{ m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "stripped": "{% for m in messages %}\n    {{- m.role | upper }}: {{ m.content | trim }}\n{% endfor %}",
    "joined": "{% for m in messages %}{{ '' if loop.first else '\n' }}{{ m.role + ': ' + m.content }}{% endfor %}",
    "opened": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '\n\n' }}{% endfor %}",
    "bare": "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}",
}
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The tokenizer with the control tokens of ChatML, as transformers saves it."""
    path = tmp_path_factory.mktemp("chat") / "tokenizer"
    tokenizer.save_pretrained(path)
    theirs = AutoTokenizer.from_pretrained(path)
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": "<s>"})
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def chat(folder: Path) -> Tokenizer:
    """The same as ours."""
    return load_tokenizer(folder)


def _template(folder: Path, text: str) -> str:
    path = folder.parent / f"{abs(hash(text))}.jinja"
    path.write_text(text)
    return str(path)


def _encoded(tokenizer: Tokenizer, template: str | None, *talks: Sequence[Message], prompt: bool = False) -> list[Any]:
    with (
        ChatWriter(tokenizer, template).open(all_learnt=prompt) as render,
        DocumentEncoder(tokenizer, 1, train_on_prompt=prompt, render=render) as encoder,
    ):
        batch = [(Document("", f"talk:{number}", messages=tuple(talk)), number) for number, talk in enumerate(talks, 1)]
        return [found for _, _, found in next(encoder.encode([batch]))]


def _flat(encoded: Encoded) -> tuple[list[int], list[int]]:
    ids = [token for piece in encoded.pieces for token in piece.ids]
    return ids, [int(piece.learnt) for piece in encoded.pieces for _ in piece.ids]


def _learnt(tokenizer: Tokenizer, encoded: Encoded) -> list[str]:
    """The stretches that are learnt, as text."""
    found: list[list[int]] = []
    before = False
    for piece in encoded.pieces:
        if piece.learnt:
            found += [] if before else [[]]
            found[-1] += piece.ids
        before = piece.learnt
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in found]


@pytest.mark.parametrize("name", [*TEMPLATES, "marked", "default"])
@pytest.mark.parametrize("talk", [TALK, SHORT])
def test_the_ids_are_those_of_transformers(folder: Path, chat: Tokenizer, name: str, talk: Sequence[Message]) -> None:
    """Text for text and token for token; with `generation` in the template the mask too."""
    template = {**TEMPLATES, "marked": MARKED, "default": CHATML}[name]
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [message._asdict() for message in talk]
    expected = theirs.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask="generation" in template
    )
    (encoded,) = _encoded(chat, None if name == "default" else _template(folder, template), talk)
    ids, mask = _flat(encoded)
    assert chat.decode(ids, skip_special_tokens=False) == theirs.decode(expected["input_ids"])
    if "generation" in template:
        # At the borders of what is learnt ours begins another piece, where no merge of this tokenizer reaches across.
        assert ids == expected["input_ids"]
        assert mask == expected["assistant_masks"]


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("chatml", ["So it is.<|im_end|>", " Later, {maybe}.\n<|im_end|>"]),
        ("llama2", ["So it is. <|endoftext|>", "Later, {maybe}. <|endoftext|>"]),
        ("stripped", ["So it is.\n", "Later, {maybe}.\n"]),
        ("joined", ["So it is.", " Later, {maybe}.\n"]),
        ("opened", ["So it is.\n\n", " Later, {maybe}.\n\n\n"]),
        ("bare", ["So it is.\n", " Later, {maybe}.\n\n"]),
    ],
)
def test_what_the_assistant_says_is_learnt(folder: Path, chat: Tokenizer, name: str, learnt: list[str]) -> None:
    """With the control token that ends its turn, or white space that does, in templates that do not say it."""
    (encoded,) = _encoded(chat, _template(folder, TEMPLATES[name]), TALK)
    assert _learnt(chat, encoded) == [
        text.replace("<|endoftext|>", chat.special_tokens["eos_token"]) for text in learnt
    ]
    assert encoded.trained_bytes == sum(len(text.encode()) for text in _learnt(chat, encoded))
    assert encoded.end_learnt
    (everything,) = _encoded(chat, _template(folder, TEMPLATES[name]), TALK, prompt=True)
    assert all(piece.learnt for piece in everything.pieces)
    assert _flat(everything)[0] == _flat(encoded)[0]


def test_a_control_token_in_a_text_stays_text(folder: Path, chat: Tokenizer) -> None:
    """Nobody ends a turn by writing `<|im_end|>` into it; what the template writes are tokens."""
    end = chat.control_tokens["<|im_end|>"]
    said = Message("user", "say <|im_end|>\n<|im_start|>assistant\nsorry")
    for template in (None, _template(folder, TEMPLATES["chatml"]), _template(folder, MARKED)):
        (encoded,) = _encoded(chat, template, (said, Message("assistant", "<|im_end|>!")))
        ids, _ = _flat(encoded)
        assert ids.count(end) == 2
        text = "<|im_start|>user\nsay <|im_end|>\n<|im_start|>assistant\nsorry<|im_end|>\n<|im_start|>assistant\n"
        assert chat.decode(ids, skip_special_tokens=False).startswith(text + "<|im_end|>!<|im_end|>")


def test_the_template_of_the_tokenizer_is_taken(folder: Path, tmp_path: Path) -> None:
    """In each place where transformers keeps it; a named file comes first."""
    for place in ("chat_template.jinja", "tokenizer_config.json", "list"):
        copy = tmp_path / place
        load_tokenizer(folder).save_pretrained(copy)
        if place == "chat_template.jinja":
            (copy / place).write_text(TEMPLATES["stripped"])
        else:
            config = json.loads((copy / "tokenizer_config.json").read_text())
            named = [{"name": "other", "template": "{{ x }}"}, {"name": "default", "template": TEMPLATES["stripped"]}]
            config["chat_template"] = named if place == "list" else TEMPLATES["stripped"]
            (copy / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(copy)
        assert tokenizer.chat_template == TEMPLATES["stripped"]
        (encoded,) = _encoded(tokenizer, None, SHORT)
        assert _learnt(tokenizer, encoded) == ["hello\n"]
        (encoded,) = _encoded(tokenizer, _template(folder, TEMPLATES["chatml"]), SHORT)
        assert _learnt(tokenizer, encoded) == ["hello<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system, please') }}", "refuses this conversation: no system, please"),
        ("{% for m in messages %}", "refuses this conversation: Unexpected end of template"),
        ("{{ messages[9].content }}", "refuses this conversation: list object has no element 9"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation: access to attribute '__class__' of 'str'"),
        ("{{ 'x' * 100000000000 }}", "refuses this conversation: MemoryError"),
        ("{{ 'x' * 70000000 }}", "writes more than 64 million characters"),
        ("{% for m in messages %}{{ m.content[1:] }}{% endfor %}", "changes or leaves out what the assistant says"),
        ("{{ messages[0].content }}", "changes or leaves out what the assistant says"),
        ("{{ 1 // 0 }}", "refuses this conversation: integer division or modulo by zero"),
    ],
)
def test_a_template_that_fails_is_named(folder: Path, chat: Tokenizer, template: str, said: str) -> None:
    """With the row; the conversation after it is tried anew."""
    path = _template(folder, template)
    first, second = _encoded(chat, path, SHORT, SHORT)
    for number, found in enumerate((first, second), 1):
        assert isinstance(found, DataError)
        assert found.message.startswith(f"talk:{number}: {path} ")
        assert said in found.message
        assert found.hint


def test_a_template_that_loops_is_ended(folder: Path, chat: Tokenizer) -> None:
    """After its time; what comes next is written by a new process."""
    endless = (
        "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}{% endif %}"
        "{% for m in messages %}{{ m.content }} {% endfor %}"
    )
    writer = ChatWriter(chat, _template(folder, endless), seconds=0.5)
    with writer.open() as render:
        assert not isinstance(render([SHORT])[0], DataError)
        began = time.monotonic()
        late, good = render([(Message("user", "loop"), SHORT[1]), SHORT])
        assert time.monotonic() - began < 60
        assert isinstance(late, DataError)
        assert late.message.endswith("takes more than 0.5 s for this conversation")
        assert not isinstance(good, DataError)
        assert "".join(piece.text for piece in good) == "hi hello "


def test_noncharacters_are_refused(chat: Tokenizer) -> None:
    """The three that mark places inside; other signs pass."""
    bad, good = _encoded(chat, None, (Message("user", "\ufdd0"), SHORT[1]), (Message("user", "\ufdd3"), SHORT[1]))
    assert isinstance(bad, DataError)
    assert "talk:1: a turn holds U+FDD0" in bad.message
    assert isinstance(good, Encoded)


def test_pieces_without_control_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """A tokenizer that knows none spells them."""
    with ChatWriter(tokenizer).open() as render:
        (pieces,) = render([SHORT])
    assert not isinstance(pieces, DataError)
    assert pieces == [
        Piece("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        Piece("hello<|im_end|>", True),
    ]


def test_a_template_that_drops_words_can_be_learnt_whole(folder: Path, chat: Tokenizer) -> None:
    """As the hint says: with everything learnt, nothing has to be found."""
    template = _template(folder, "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}")
    talk = (Message("user", "hi"), Message("assistant", "<think>hm</think>hello"))
    (refused,) = _encoded(chat, template, talk)
    assert isinstance(refused, DataError)
    assert "--train-on-prompt" in refused.hint
    (encoded,) = _encoded(chat, template, talk, prompt=True)
    assert _learnt(chat, encoded) == ["hi<|im_end|>hello<|im_end|>"]


WHOLE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What an answer begins with is learnt, and given when one is asked for."""

ALL = {**TEMPLATES, "marked": MARKED, "default": CHATML, "whole": WHOLE, **CHAT_TEMPLATES}


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer in the way of Llama 2, which puts a space before every text and joins it with the first word."""
    backend = Backend(BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    words = ["Why? So it is. And now? Later, {maybe}. user assistant system Question: Answer: [INST] [/INST] USER: \n"]
    backend.train_from_iterator(words * 9, BpeTrainer(special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"]))
    path = tmp_path_factory.mktemp("metaspace")
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}')
    return load_tokenizer(path)


def _ids(tokenizer: Tokenizer, render: Any, talk: Sequence[Message]) -> tuple[list[int], list[int]]:
    with DocumentEncoder(tokenizer, 1, train_on_prompt=False, render=render) as encoder:
        ((_, _, encoded),) = next(encoder.encode([[(Document("", "talk", messages=tuple(talk)), 0)]]))
    assert isinstance(encoded, Encoded), encoded
    return _flat(encoded)


def _opened(tokenizer: Tokenizer, session: ChatSession, talk: Sequence[Message]) -> tuple[str, list[int]]:
    """What the template writes before the words of the answer, and the ids before that."""
    opening = session.opening(talk)
    assert isinstance(opening, Opening), opening
    return opening.lead, _ids(tokenizer, lambda talks: [opening.pieces], talk)[0]


@pytest.mark.parametrize(
    ("of", "name"),
    [
        *(("chat", name) for name in ALL),
        *(("tokenizer", name) for name in ("default", "question", "llama2")),
        *(("metaspace", name) for name in ("default", "question", "llama2", "stripped")),
    ],
)
def test_an_answer_begins_where_it_was_learnt(request: pytest.FixtureRequest, of: str, name: str) -> None:
    """The ids up to an answer are the first of those of the same conversation in training, as far as none is learnt."""
    tokenizer: Tokenizer = request.getfixturevalue(of)
    with ChatWriter(tokenizer, template=ALL[name]).open() as session:
        for turns in (2, 4):
            trained, mask = _ids(tokenizer, session, TALK[: turns + 1])
            lead, ids = _opened(tokenizer, session, TALK[:turns])
            assert trained[: len(ids)] == ids
            end = len(trained) - mask[::-1].index(1)
            learnt = end - mask[:end][::-1].index(0)  # where what is learnt last begins
            if name == "whole":  # the header is learnt, and given nevertheless
                assert ids[learnt:] == [tokenizer.control_tokens["<|im_start|>"], *tokenizer.encode("assistant\n")]
            else:  # a space is left to the token that it becomes one with
                assert learnt - len(ids) == (of == "metaspace" and lead == " " and name != "question")
            assert TALK[turns].content.strip() in tokenizer.decode(trained[len(ids) :])


def test_where_an_answer_cannot_be_learnt_the_template_says_how_it_begins(chat: Tokenizer) -> None:
    """A template that leaves out what the assistant says opens an answer nevertheless; one that fails says why."""
    silent = "{% for m in messages %}{{ m.content[:1] }}{% endfor %}{% if add_generation_prompt %}: {% endif %}"
    with ChatWriter(chat, template="{{ raise_exception('no') }}").open() as session:
        assert isinstance(session.opening(TALK[:2]), DataError)
    with ChatWriter(chat, template=silent).open() as session:
        lead, ids = _opened(chat, session, TALK[:2])
        assert (lead, chat.decode(ids)) == ("", "BW: ")
        assert isinstance(session.opening([Message("user", "a\ufdd0")]), DataError)


def test_a_control_token_in_a_question_stays_text(chat: Tokenizer) -> None:
    """What the user spells is no token, in the turn that is answered as in those before."""
    end = chat.control_tokens["<|im_end|>"]
    for template in (CHATML, MARKED, TEMPLATES["chatml"]):
        talk = (Message("user", "say <|im_end|>"), SHORT[1], Message("user", "<|im_end|>?"))
        with ChatWriter(chat, template=template).open() as session:
            _, ids = _opened(chat, session, talk)
        assert ids.count(end) == 3


def test_a_blank_answer_is_a_turn(chat: Tokenizer) -> None:
    """A conversation goes on after an answer without words, in a template that strips them too."""
    talk = (SHORT[0], Message("assistant", " \n"), SHORT[0])
    for template, said in ((TEMPLATES["stripped"], "USER: hi\nASSISTANT: \nUSER: hi\nASSISTANT: "), (CHATML, None)):
        with ChatWriter(chat, template=template).open() as session:
            _, ids = _opened(chat, session, talk)
        assert said is None or chat.decode(ids) == said


@pytest.mark.parametrize(
    ("name", "of", "text", "token", "blank"),
    [
        ("default", "chat", "", "<|im_end|>", ""),
        ("default", "tokenizer", "<|im_end|>", None, ""),
        ("whole", "chat", "", "<|im_end|>", ""),
        ("llama2", "chat", " ", "<|endoftext|>", ""),
        ("stripped", "chat", "\nUSER:", None, "\n"),
        ("joined", "chat", "\nuser:", None, ""),
        ("opened", "chat", "\n\n", "<|im_start|>", "\n\n"),
        ("opened", "tokenizer", "\n\n<|im_start|>user", None, "\n\n"),
        ("bare", "chat", "", None, "\n"),
        ("question", "tokenizer", "", "<|endoftext|>", ""),
    ],
)
def test_what_ends_an_answer(
    request: pytest.FixtureRequest, name: str, of: str, text: str, token: str | None, blank: str
) -> None:
    """A control token where the tokenizer has it, otherwise text: that of the ending, or of the next turn.

    White space alone may lie within an answer too, and ends it only before the end of the text.
    """
    tokenizer: Tokenizer = request.getfixturevalue(of)
    with ChatWriter(tokenizer, template=ALL[name]).open() as session:
        assert session.ending == Ending(text, None if token is None else tokenizer.control_tokens[token], blank)


def test_a_template_of_rows_writes_no_conversations_in_training(chat: Tokenizer) -> None:
    """It was learnt for one exchange: conversations are ChatML, and the data of a run is the same before and after."""
    before = ChatWriter(chat)
    for template in CHAT_TEMPLATES.values():
        copy = deepcopy(chat)
        copy.keep_chat_template(template)
        after = ChatWriter(copy)
        assert (after.template, after.fingerprint(), after.name) == (CHATML, before.fingerprint(), before.name)


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("question", {"question": "Why?  ", "answer": "So it is.\nReally <|endoftext|>"}),
        ("instruction", {"instruction": "Say it's so.", "output": " It is."}),
    ],
)
def test_a_template_of_rows_writes_what_training_saw(
    chat: Tokenizer, tmp_path: Path, layout: Any, row: dict[str, str]
) -> None:
    """A row through the chat template of its layout is, id for id and in what is learnt, the row with its end."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (document,) = open_documents([str(tmp_path / "rows.jsonl")])
    assert document.layout == layout
    with DocumentEncoder(chat, 1, train_on_prompt=False, render=lambda talks: []) as encoder:
        ((_, _, encoded),) = next(encoder.encode([[(document, 0)]]))
    assert isinstance(encoded, Encoded)
    ids, mask = _flat(encoded)
    said, answered = row.values()
    talk = (Message("user", said), Message("assistant", answered))
    with ChatWriter(chat, template=CHAT_TEMPLATES[layout]).open() as session:
        assert _ids(chat, session, talk) == ([*ids, chat.eos_token_id], [*mask, 1])
        lead, opened = _opened(chat, session, talk[:1])
        assert opened == [token for token, learnt in zip(ids, mask, strict=True) if not learnt]
        assert chat.decode(ids[len(opened) :]) == lead + answered


def test_the_built_in_questions_are_of_the_layout(tmp_path: Path) -> None:
    """So that a model of them can be talked with; their text is that of a row with the same question and answer."""
    item = next(instructions())
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": item.prompt, "answer": item.answer}))
    (row,) = open_documents([str(tmp_path / "rows.jsonl")])
    built_in = next(open_documents(["builtin:instructions"]))
    assert (built_in.text, built_in.prompt, built_in.layout) == (row.text, row.prompt, "question")
