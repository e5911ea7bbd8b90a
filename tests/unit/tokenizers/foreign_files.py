"""tokenizer.json files as other programs write them, small, and ways to damage them."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizer_texts import TEXTS
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmt.tokenizers.pretokenize import GPT4_SPLIT

Spec = dict[str, Any]


def gpt2_like() -> tokenizers.Tokenizer:
    """Byte-level BPE, with offsets trimmed after it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    return backend


def roberta_like() -> tokenizers.Tokenizer:
    """The same with the tokens of BERT around a text."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=150, special_tokens=special))
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    backend.add_tokens([tokenizers.AddedToken("<extra>", lstrip=True)])
    return backend


def llama2_like() -> tokenizers.Tokenizer:
    """SentencePiece's BPE with bytes for what it cannot spell, as converted for Llama 2."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # bytes are ordinary pieces
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return backend


def llama3_like() -> tokenizers.Tokenizer:
    """Byte-level BPE with the pattern of GPT-4, and a template."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))],
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend


def bert_like() -> tokenizers.Tokenizer:
    """WordPiece over lower-cased words."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_padding(pad_id=0, pad_token="[PAD]", length=16)
    backend.enable_truncation(max_length=16)
    return backend


def t5_like() -> tokenizers.Tokenizer:
    """A unigram model behind SentencePiece's way with spaces."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return backend


def clip_like() -> tokenizers.Tokenizer:
    """BPE that marks the end of words."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)]
    )
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=200, end_of_word_suffix="</w>", special_tokens=["<|startoftext|>", "<|endoftext|>"]
        ),
    )
    return backend


def word_level() -> tokenizers.Tokenizer:
    """Whole words."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Strip(), normalizers.StripAccents()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    backend.train_from_iterator(TEXTS, trainers.WordLevelTrainer(vocab_size=100, special_tokens=["[UNK]"]))
    return backend


def without_model_type() -> tokenizers.Tokenizer:
    """Marks a file that is to lose its model's type, as the oldest ones have none."""
    return bert_like()


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    make.__name__: make
    for make in (
        *(gpt2_like, roberta_like, llama2_like, llama3_like, bert_like, t5_like, clip_like, word_level),
        without_model_type,
    )
}


def make_spec(kind: str) -> Spec:
    """The parsed tokenizer.json of a kind."""
    spec: Spec = json.loads(KINDS[kind]().to_str())
    if kind == "without_model_type":
        del spec["model"]["type"]
    return spec


def write_tokenizer(folder: Path, spec: Spec, **config: Any) -> Path:
    """A directory with this tokenizer.json, and a tokenizer_config.json where settings are given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


NUMBERS = [0, 1, -1, 2, 7, 255, 10**6, 2**31, 4_000_000_000, 2**63, 2**64, -(2**63), 0.5, -0.5, 1e308, 1e-320, 3.0]
VALUES: list[Any] = [None, True, False, "", "a", "\ud800", "x" * 5000, [], {}, [[]], {"type": "NFC"}, *NUMBERS]
PATTERNS = [
    "(a+)+$", "(a|a)*b", "(?:a?){30}a{30}", "(", "[", "", "(?=", r"\p{Nothing}", ".{0,60000}",
    "(?:(?:a{1,200}){1,200}){1,200}",
    r"(\w+\s?)*\z", "(.*)*", "(x+x+)+y", "(?<=a+)b", r"\s+(?!\S)|\s+", "a" * 4000, "(a" * 300 + ")" * 300,
]  # fmt: skip
STEPS: list[Spec] = [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100},
    {"type": "Replace", "pattern": {"String": ""}, "content": "ab"},
    {"type": "Replace", "pattern": {"Regex": "(?:)"}, "content": "abc" * 1000},
    {"type": "Prepend", "prepend": "x" * 10_000},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 1},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "//////////////////////////8="},
    {"type": "Strip", "content": "a", "start": 4_000_000_000, "stop": 4_000_000_000},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Exec", "command": "true"},
]
PADDING: Spec = {
    "strategy": {"Fixed": 2_000_000_000}, "direction": "Right", "pad_to_multiple_of": None,
    "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
}  # fmt: skip
TRUNCATION: Spec = {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5}
SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def damaged(spec: Spec, rng: random.Random) -> bytes:
    """The bytes of a tokenizer.json with one to three things wrong."""
    mutant = copy.deepcopy(spec)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(DAMAGES)(mutant, rng)
    data = json.dumps(mutant).encode()
    if rng.random() < 0.05:
        place = rng.randrange(len(data))
        data = data[:place] if rng.random() < 0.5 else data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    return data


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys, a few of each long list or table."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in dict.fromkeys([*keys[:12], *keys[-3:]]):
        yield node, key
        yield from _places(node[key])


def _set_anything(spec: Spec, rng: random.Random) -> None:
    node, key = rng.choice(list(_places(spec)))
    node[key] = copy.deepcopy(rng.choice(VALUES))


def _set_number(spec: Spec, rng: random.Random) -> None:
    numbers = [(node, key) for node, key in _places(spec) if type(node[key]) in (int, float)]
    if numbers:
        node, key = rng.choice(numbers)
        node[key] = rng.choice(NUMBERS)


def _remove(spec: Spec, rng: random.Random) -> None:
    node, key = rng.choice(list(_places(spec)))
    if (isinstance(node, dict) and key in node) or (isinstance(node, list) and key < len(node)):
        del node[key]


def _twice(spec: Spec, rng: random.Random) -> None:
    lists = [node for node, _ in _places(spec) if isinstance(node, list)]
    if lists:
        node = rng.choice(lists)
        node.append(copy.deepcopy(rng.choice(node)))


def _swap_ids(spec: Spec, rng: random.Random) -> None:
    vocab = spec["model"].get("vocab") if isinstance(spec.get("model"), dict) else None
    if isinstance(vocab, dict) and len(vocab) > 2:
        a, b = rng.sample(sorted(vocab), 2)
        vocab[a], vocab[b] = (vocab[b], vocab[a]) if rng.random() < 0.5 else (vocab[b], vocab[b])
    elif isinstance(vocab, list):
        rng.shuffle(vocab)


def _set_pattern(spec: Spec, rng: random.Random) -> None:
    patterns = [(node, key) for node, key in _places(spec) if key in ("Regex", "String")]
    if patterns:
        node, key = rng.choice(patterns)
        del node[key]
        node[rng.choice(("Regex", "Regex", "String"))] = rng.choice(PATTERNS)


def _set_step(spec: Spec, rng: random.Random) -> None:
    part = rng.choice([*SEQUENCES, "post_processor"])
    spec[part] = copy.deepcopy(rng.choice(STEPS))


def _nest(spec: Spec, rng: random.Random) -> None:
    part = rng.choice(list(SEQUENCES))
    node = spec.get(part) or copy.deepcopy(rng.choice(STEPS))
    for level in range(rng.choice((1, 3, 10, 60, 200))):
        node = {"type": "Sequence", SEQUENCES[part]: [node] * (rng.choice((1, 1, 2)) if level < 3 else 1)}
    spec[part] = node


def _bomb(spec: Spec, rng: random.Random) -> None:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * rng.choice((2, 10, 100))}
    part = rng.choice(("normalizer", "decoder"))
    spec[part] = {"type": "Sequence", SEQUENCES[part]: [step] * rng.choice((2, 6, 12, 30))}


def _block(spec: Spec, rng: random.Random) -> None:
    name = rng.choice(("padding", "truncation"))
    spec[name] = rng.choice((copy.deepcopy(PADDING if name == "padding" else TRUNCATION), 1, [], {"strategy": "x"}))


def _merge(spec: Spec, rng: random.Random) -> None:
    merges = spec["model"].get("merges") if isinstance(spec.get("model"), dict) else None
    if isinstance(merges, list) and merges:
        merges[rng.randrange(len(merges))] = rng.choice(
            (["q", "zz"], ["a"], ["a", "b", "c"], "a b", "", 7, [1, 2], None)
        )


def _change_model(spec: Spec, rng: random.Random) -> None:
    if isinstance(spec.get("model"), dict):
        spec["model"]["type"] = rng.choice(("BPE", "WordPiece", "Unigram", "WordLevel", "Magic", "", None))


def _unigram(spec: Spec, rng: random.Random) -> None:
    scores = [rng.choice((-1.0, 0.0, 1e308, -1e308, 5)) for _ in range(6)]
    vocab = [[piece, score] for piece, score in zip(["a", "b", "ab", " ", "", "▁"], scores, strict=True)]
    spec["model"] = {
        "type": "Unigram",
        "unk_id": rng.choice((None, 0, 5, 6, -1)),
        "vocab": vocab,
        "byte_fallback": True,
    }


DAMAGES: list[Callable[[Spec, random.Random], None]] = [
    *(_set_anything, _set_number, _set_number, _remove, _twice, _swap_ids, _set_pattern, _set_step),
    *(_nest, _bomb, _block, _merge, _change_model, _unigram),
]
