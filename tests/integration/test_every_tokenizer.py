"""Each type of tokenizer through the whole path: train, eval, generate."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SMALL = (
    "--hidden-size", "32", "--intermediate-size", "64", "--num-hidden-layers", "2", "--num-attention-heads", "2",
    "--block-size", "32", "--per-device-train-batch-size", "4", "--precision", "fp32", "--compile", "never",
    "--device", "cpu", "--sample-tokens", "5", "--max-steps", "3", "--warmup-steps", "1", "--eval-batches", "2",
)  # fmt: skip


def _foreign_bert(folder: Path, text: str) -> None:
    """A directory as BERT's: lower case, words alone, only cls, sep, pad and unk named."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    backend.train_from_iterator([text], trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def _tokenizer(kind: str, where: Path, llmt: Any) -> str:
    """What stands after `--tokenizer`."""
    if kind == "bert style":
        made = llmt(
            *("tokenizer", "train", "text.txt", "--algo", "wordpiece", "--style", "bert", "--vocab-size", "200"),
            *("-o", "made"),
            cwd=where,
        )
        assert made.code == 0, made.err
        return "made"
    if kind == "foreign BERT":
        _foreign_bert(where / "foreign", (where / "text.txt").read_text(encoding="utf-8"))
        return "foreign"
    if kind == "GPT-2's files":
        folder = os.environ.get("TEST_DATA_DIR")
        if folder is None:
            pytest.skip("TEST_DATA_DIR is not set: GPT-2's vocabulary is not here")
        return str(Path(folder) / "gpt2-tokenizer")
    return kind


GPT2 = pytest.param("GPT-2's files", marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "byte", "bert style", "foreign BERT", GPT2])
def test_train_eval_generate(kind: str, inside: Any, text_file: Path) -> None:
    """A model trains on any tokenizer, measures, speaks, and its directory says sizes and special ids."""
    where = text_file.parent
    named = _tokenizer(kind, where, inside)
    size = () if named not in ("bpe", "wordpiece", "unigram") else ("--vocab-size", "600")
    trained = inside(
        *("train", "--data", "text.txt", "--tokenizer", named, *size, *SMALL, "--name", "model"), cwd=where
    )
    assert trained.code == 0, trained.err
    run = where / "runs" / "model"
    config = json.loads((run / "config.json").read_text())

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(run, local_files_only=True)
    assert config["vocab_size"] >= len(theirs)
    begin, end, pad = (2, 3, 0) if "BERT" in kind or kind in ("bert style", "wordpiece") else (None, None, None)
    if end is not None:  # [CLS], [SEP] and [PAD] serve as begin, end and padding
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (begin, end, pad)
    assert config["eos_token_id"] == (theirs.eos_token_id if theirs.eos_token_id is not None else theirs.sep_token_id)
    assert json.loads((run / "generation_config.json").read_text())["eos_token_id"] == config["eos_token_id"]

    measured = inside("eval", "runs/model", "--data", "text.txt", "--json", cwd=where)
    assert measured.code == 0, measured.err
    assert np.isfinite(json.loads(measured.out)["loss"])
    spoken = inside("generate", "runs/model", "--prompt", "the sea", "-n", "6", "--json", cwd=where)
    assert spoken.code == 0, spoken.err
    assert "sea" in spoken.out


def test_documents_are_separated_by_sep(inside: Any, tmp_path: Path) -> None:
    """With BERT's special tokens every document of the shards ends with [SEP]."""
    rows = [{"text": f"the ship number {n} sailed over quiet water"} for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trained = inside(
        *("train", "--data", "rows.jsonl", "--tokenizer", "wordpiece", "--vocab-size", "600", *SMALL),
        *("--name", "model", "--cache-dir", "cache"),
        cwd=tmp_path,
    )
    assert trained.code == 0, trained.err
    files = sorted((tmp_path / "cache" / "shards").rglob("*.tokens.bin"))
    assert len(files) == 2
    ids = np.concatenate([np.fromfile(file, dtype=np.uint16) for file in files])
    assert (ids == 3).sum() == len(rows) + len(files)  # each part begins with one


def test_generation_stops_at_sep() -> None:
    """A model that draws [SEP] and then letters without end says nothing: the text ends at [SEP]."""
    import torch

    from llmt.config.model import ModelConfig
    from llmt.generation.decode import generate
    from llmt.generation.sampling import Sampling
    from llmt.generation.text import prompt_ids, stream_text
    from llmt.models.transformer import TransformerLM
    from llmt.tokenizers.wordpiece import train_wordpiece

    tokenizer = train_wordpiece(["sea " * 50], vocab_size=560)
    last, sep, letter = tokenizer.encode("sea")[-1], tokenizer.eos_token_id, tokenizer.encode("x")[0]
    config = ModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    model = TransformerLM(config, tokenizer.vocab_size, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        # One matrix for input and output and nothing between: the next token is the one most along this one.
        for token, place in ((last, (1.0, 0.0)), (sep, (50.0, 50.0)), (letter, (0.0, 1000.0))):
            model.model.embed_tokens.weight[token, :2] = torch.tensor(place)
    greedy = Sampling(temperature=0)
    start = torch.tensor([prompt_ids(tokenizer, "sea")])
    drawn = [int(ids[0]) for ids in generate(model, start, greedy, max_new_tokens=3, stop_id=None, seed=0)]
    assert drawn == [sep, letter, letter]
    assert list(stream_text(model, tokenizer, "sea", greedy, max_new_tokens=3, seed=0)) == []


def test_names_of_no_tokenizer(inside: Any, text_file: Path) -> None:
    """A name that is neither a directory, an algorithm nor reachable on the hub ends with exit code 6."""
    result = inside(
        *("train", "--data", "text.txt", "--tokenizer", "nobody/nothing", *SMALL),
        cwd=text_file.parent,
        env={"HF_HUB_OFFLINE": "1"},
    )
    assert result.code == 6
    assert "nobody/nothing" in result.err
    assert "hint:" in result.err


def test_an_algorithm_is_named_either_way(inside: Any) -> None:
    """`--tokenizer wordpiece` is `--algo wordpiece`; a directory of that name needs a path."""
    shown = json.loads(inside("config", "show", "--tokenizer", "wordpiece", "--json").out)["config"]["tokenizer"]
    assert (shown["algo"], shown["path"]) == ("wordpiece", None)
    shown = json.loads(inside("config", "show", "--tokenizer", "./wordpiece", "--json").out)["config"]["tokenizer"]
    assert shown["path"] == "./wordpiece"
