"""Models on disk: what is written, what is found, what is refused, and what survives."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmt import BaseLanguageModel, HFTokenizerWrapper, HuggingFaceModelWrapper, TransformerLM, load_model
from llmt.checkpoints.convert import convert_to_safetensors
from llmt.errors import BusyOutputError, LlmtError, ModelFileError
from llmt.export.pytorch import convert_to_pytorch
from llmt.tokenizers.train import train_tokenizer

Make = Callable[..., TransformerLM]


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(ids)
    return getattr(found, "logits", found)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# What is written and what is found


@pytest.mark.parametrize("limit", ["5GB", "20KB"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_in_any_form_it_comes_back(
    make: Make, ids: Tensor, tmp_path: Path, safe: bool, limit: str, tied: bool
) -> None:
    """Either format, one file or shards, tied or not: equal logits here and in transformers, tied weights once."""
    model = make(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "m", safe, limit)
    kind = "safetensors" if safe else "bin"
    shards = [name for name in names(tmp_path / "m") if name.endswith(kind)]
    assert (len(shards) > 1) == (limit != "5GB")
    again = TransformerLM.from_pretrained(tmp_path / "m")
    assert torch.equal(logits(again, ids), logits(model, ids))
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert torch.allclose(logits(theirs, ids), logits(model, ids), atol=1e-5, rtol=0)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert ("lm_head.weight" in again.weights()) != tied


@pytest.mark.parametrize("kind", ["model.safetensors", "sharded", "pytorch_model.bin", "sharded bin", "w.pt", "x.pth"])
def test_what_lies_there_is_found(make: Make, ids: Tensor, tmp_path: Path, kind: str) -> None:
    """Detection takes each kind of file; asking for the other format alone is refused; a file may be named itself."""
    model, directory = make(), tmp_path / "m"
    safe = kind in ("model.safetensors", "sharded")
    model.save_pretrained(directory, safe, "20KB" if kind.startswith("sharded") else "1GB")
    if kind in ("w.pt", "x.pth"):
        (directory / "pytorch_model.bin").rename(directory / kind)
        (directory / "pytorch_model.bin.index.json").unlink()
        (directory / "MANIFEST.json").unlink()
    for wanted in (None, safe):
        assert torch.equal(logits(BaseLanguageModel.from_pretrained(directory, wanted), ids), logits(model, ids))
    with pytest.raises(ModelFileError) as caught:
        load_model(directory, safe_serialization=not safe)
    assert caught.value.exit_code == 4
    file = {"sharded": "model.safetensors.index.json", "sharded bin": "pytorch_model.bin.index.json"}.get(kind, kind)
    assert torch.equal(logits(load_model(directory / file), ids), logits(model, ids))


def test_a_single_file_carries_its_configuration(make: Make, ids: Tensor, tmp_path: Path) -> None:
    """A safetensors file of llmt opens alone, anywhere; a file without configuration says what it lacks."""
    model = make()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "alone.safetensors").write_bytes((tmp_path / "m" / "model.safetensors").read_bytes())
    assert torch.equal(logits(load_model(tmp_path / "alone.safetensors"), ids), logits(model, ids))
    torch.save(model.state_dict(), tmp_path / "alone.pt")
    with pytest.raises(ModelFileError, match=r"no config\.json beside it"):
        load_model(tmp_path / "alone.pt")


PLACES = ["model.safetensors", "pytorch_model.bin", "model.pt", "pytorch_model.pth"]


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in PLACES for b in PLACES if a != b])
def test_two_models_in_one_directory_are_not_guessed(make: Make, tmp_path: Path, first: str, second: str) -> None:
    """Where two sets of weights differ in a number, a name or a shape, nothing is loaded; equal ones are one model."""
    from safetensors.torch import save_file

    model = make()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "MANIFEST.json").unlink()

    def put(name: str, tensors: dict[str, Tensor]) -> None:
        save = save_file if name.endswith("safetensors") else torch.save
        save({key: value.clone() for key, value in tensors.items()}, tmp_path / "m" / name)

    weights = model.weights()
    put(first, weights)
    put(second, weights)
    assert load_model(tmp_path / "m").num_parameters() == model.num_parameters()
    norm = weights["model.norm.weight"]
    for changed in ({"model.norm.weight": norm + 1e-6}, {"spare": norm}, {"model.norm.weight": norm[:-1]}):
        put(second, {**weights, **changed})
        with pytest.raises(ModelFileError, match="and they differ") as caught:
            load_model(tmp_path / "m")
        held = caught.value.message.partition("holds ")[2].partition(", and")[0]
        assert set(held.split(" and ")) == {first, second}


@pytest.mark.parametrize("before", [(True, "20KB"), (False, "20KB"), (True, "1GB"), (False, "1GB")])
@pytest.mark.parametrize("after", [(True, "20KB"), (False, "20KB"), (True, "1GB"), (False, "1GB")])
def test_saving_over_a_model_leaves_nothing_of_it(
    make: Make, ids: Tensor, tmp_path: Path, before: tuple[bool, str], after: tuple[bool, str]
) -> None:
    """Whatever the earlier model was written as, no file of it is left that any loader could prefer; notes stay."""
    old, new = make(seed=1), make(seed=2)
    old.save_pretrained(tmp_path / "m", *before)
    for name in ("model.pt", "adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "m" / name).write_bytes(b"{}")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    new.save_pretrained(tmp_path / "m", *after)
    new.save_pretrained(tmp_path / "fresh", *after)
    assert names(tmp_path / "m") == names(tmp_path / "fresh") | {"notes.txt"}
    assert torch.equal(logits(load_model(tmp_path / "m"), ids), logits(new, ids))
    assert torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), ids), logits(new, ids), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [0, -1, "0GB", "-1GB", "nonsense", "2 dogs", ""])
def test_sizes_that_are_none_are_refused(make: Make, tmp_path: Path, size: object) -> None:
    """Zero, negative and nonsense shard sizes raise before anything is written."""
    with pytest.raises(ValueError, match="size"):
        make().save_pretrained(tmp_path / "m", max_shard_size=size)  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


def test_a_shard_smaller_than_a_tensor_holds_one(make: Make, ids: Tensor, tmp_path: Path) -> None:
    """With one byte for each file, each tensor has a file of its own; a plain number is bytes."""
    model = make()
    model.save_pretrained(tmp_path / "m", max_shard_size=1)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) == len(model.weights())
    assert torch.equal(logits(load_model(tmp_path / "m"), ids), logits(model, ids))


# Metadata


@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_metadata_survives_everything(make: Make, tmp_path: Path, limit: str) -> None:
    """Training numbers, configuration and foreign keys come through load, save, sharding and both conversions."""
    model = make()
    model.metadata = model.metadata.__class__(other={"author": "somebody"})
    training = {"step": 7, "tokens": 1000, "loss": 2.5}
    model.save_pretrained(tmp_path / "a", True, limit, training=training)
    for file in (tmp_path / "a").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["format"] == "pt"
            assert json.loads(opened.metadata()["training"]) == training
    load_model(tmp_path / "a").save_pretrained(tmp_path / "b", False, "30KB")
    load_model(tmp_path / "b").save_pretrained(tmp_path / "c", True, "30KB")
    list(convert_to_safetensors(tmp_path / "b", tmp_path / "d"))
    convert_to_pytorch(tmp_path / "d", tmp_path / "e")
    list(convert_to_safetensors(tmp_path / "e", tmp_path / "f", max_shard_size=20_000))
    for name in "abcdef":
        found = load_model(tmp_path / name).metadata
        assert found.training == training, name
        assert found.config["hidden_size"] == 32, name
        assert found.other == {"author": "somebody"}, name
        assert found.llmt, name


def test_special_ids_and_generation_survive(make: Make, tmp_path: Path) -> None:
    """Ids and generation settings of a directory are those of the next one; lengths are not taken along."""
    make().save_pretrained(tmp_path / "a", token_ids={"eos_token_id": 3, "bos_token_id": None})
    values = {"temperature": 0.7, "top_k": 5, "max_new_tokens": 20, "eos_token_id": 3}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(values))
    (tmp_path / "a" / "MANIFEST.json").unlink()
    load_model(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["eos_token_id"] == 3
    found = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert found == {"temperature": 0.7, "top_k": 5, "eos_token_id": 3}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    load_model(tmp_path / "a").save_pretrained(tmp_path / "c")
    assert json.loads((tmp_path / "c" / "generation_config.json").read_text()) == {"eos_token_id": [3, 5]}


# Traps of transformers 5


def test_the_directory_is_whole_for_transformers(make: Make, ids: Tensor, tmp_path: Path) -> None:
    """Weights, configuration, generation settings and tokenizer beside them: equal logits and equal ids there."""
    tokenizer = train_tokenizer("bpe", ["Once upon a time, in 1999, there was a café. " * 30], vocab_size=300)
    model = make(vocab_size=tokenizer.vocab_size, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "m", tokenizer=tokenizer)
    config, generation, beside = (
        json.loads((tmp_path / "m" / f"{name}.json").read_text())
        for name in ("config", "generation_config", "tokenizer_config")
    )
    assert config["tie_word_embeddings"] is True
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["dtype"] == "float32"
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id
    assert beside["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"max_new_tokens", "max_length"} & generation.keys()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.allclose(logits(theirs, ids), logits(model, ids), atol=1e-5, rtol=0)
    text = "Once upon a café\n\n  in 2026!"
    assert AutoTokenizer.from_pretrained(tmp_path / "m")(text)["input_ids"] == tokenizer.encode(text)
    assert HFTokenizerWrapper(tmp_path / "m").encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("rope", [
    {"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    {"rope_theta": 5e5, "rope_scaling": None},
], ids=str)  # fmt: skip
def test_both_spellings_of_the_rotary_base_are_read(make: Make, ids: Tensor, tmp_path: Path, rope: Any) -> None:
    """A configuration of transformers 4 and one of transformers 5 give the same model."""
    model = make(rope_theta=5e5)
    model.save_pretrained(tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values = {key: value for key, value in values.items() if not key.startswith("rope_")} | rope
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    (tmp_path / "m" / "MANIFEST.json").unlink()
    assert torch.equal(logits(load_model(tmp_path / "m"), ids), logits(model, ids))


@pytest.mark.parametrize("kept", ["lm_head.weight", "both"])
def test_tied_weights_under_the_other_name_are_taken(make: Make, ids: Tensor, tmp_path: Path, kept: str) -> None:
    """Writers that keep the head and drop the embeddings, or keep both, are understood where the two are tied."""
    from safetensors.torch import save_file

    model = make(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "m")
    weights = {name: tensor.clone() for name, tensor in model.weights().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if kept != "both":
        del weights["model.embed_tokens.weight"]
    (tmp_path / "m" / "MANIFEST.json").unlink()
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(load_model(tmp_path / "m"), ids), logits(model, ids))


@pytest.mark.parametrize("safe", [True, False])
def test_the_dtype_is_the_one_asked_for(make: Make, tmp_path: Path, safe: bool) -> None:
    """A bf16 checkpoint opens in fp32 unless the file's own dtype is asked for; integers are never converted."""
    model = make().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "m", safe)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    for dtype, expected in ((torch.float32, torch.float32), (None, torch.bfloat16), (torch.float16, torch.float16)):
        for cls in (TransformerLM, HuggingFaceModelWrapper):
            again = cls.from_pretrained(tmp_path / "m", dtype=dtype)
            assert {parameter.dtype for parameter in again.parameters()} == {expected}
    wide = TransformerLM.from_pretrained(tmp_path / "m")
    assert all(torch.equal(a.float(), b) for a, b in zip(model.parameters(), wide.parameters(), strict=True))


# Loading


def test_foreign_weights_are_mapped_and_training_leaves_the_file(make: Make, ids: Tensor, tmp_path: Path) -> None:
    """Parameters of a foreign file are the mapped file itself, of either class; writing to them changes memory only."""
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "MANIFEST.json").unlink()
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    before = file.read_bytes()
    for cls in (TransformerLM, HuggingFaceModelWrapper):
        model = cls.from_pretrained(tmp_path / "m")
        assert {p.untyped_storage().nbytes() for p in model.parameters()} == {len(before)}
        model.loss(ids[:, :-1], ids[:, 1:]).nats.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        assert not torch.equal(logits(model, ids), logits(load_model(tmp_path / "m"), ids))
        assert file.read_bytes() == before


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_a_flipped_bit_in_our_own_files_is_found(make: Make, tmp_path: Path, safe: bool, limit: str) -> None:
    """Where a manifest lists the weights, one changed bit in any file that is read is refused."""
    make().save_pretrained(tmp_path / "m", safe, limit)
    load_model(tmp_path / "m")
    endings = (".safetensors", ".bin")
    files = [path for path in (tmp_path / "m").iterdir() if path.name.endswith(endings) or path.name == "config.json"]
    for path in files:
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        whole, _ = path.read_bytes(), path.write_bytes(data)
        with pytest.raises(ModelFileError):
            load_model(tmp_path / "m")
        path.write_bytes(whole)
    load_model(tmp_path / "m")


@pytest.mark.parametrize("cls", [TransformerLM, HuggingFaceModelWrapper])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "shape"])
def test_tensors_are_those_of_the_configuration(
    make: Make, tmp_path: Path, cls: type[BaseLanguageModel], safe: bool, change: str
) -> None:
    """A tensor too few, too many, renamed or of another shape is named and refused; none is drawn at random."""
    model = make(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "m", safe)
    weights = {name: tensor.clone() for name, tensor in model.weights().items()}
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "extra":
        weights["model.layers.1.mlp.other.weight"] = weights[name].clone()
    elif change == "shape":
        weights[name] = weights[name][1:].clone()
    else:
        moved = weights.pop(name)
        weights |= {"model.layers.1.mlp.top_proj.weight": moved} if change == "renamed" else {}
    from safetensors.torch import save_file

    for path in (tmp_path / "m").iterdir():
        if path.name != "config.json":
            path.unlink()
    if safe:
        save_file(weights, tmp_path / "m" / "model.safetensors")
    else:
        torch.save(weights, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"mlp\.(up_proj|other|top_proj)\.weight") as caught:
        cls.from_pretrained(tmp_path / "m")
    assert caught.value.exit_code == 4


def test_another_class_is_not_made_of_it(make: Make, gpt2: Path, tmp_path: Path) -> None:
    """`TransformerLM` does not open a GPT-2; the wrapper opens a Llama, with equal logits."""
    with pytest.raises(ModelFileError, match="describes a gpt2"):
        TransformerLM.from_pretrained(gpt2)
    model, ids = make(), torch.arange(20).reshape(2, 10)
    model.save_pretrained(tmp_path / "m")
    wrapped = HuggingFaceModelWrapper.from_pretrained(tmp_path / "m")
    assert torch.allclose(logits(wrapped, ids), logits(model, ids), atol=1e-5, rtol=0)


def test_nothing_else_is_taken_where_listed_weights_are_missing(make: Make, tmp_path: Path) -> None:
    """A manifest whose weights are gone, and a link that leads nowhere, are errors beside older PyTorch files."""
    model = make()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        torch.save(model.weights(), tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "a")
    (tmp_path / "b" / "MANIFEST.json").unlink()
    load_model(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").symlink_to("gone")
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        load_model(tmp_path / "b")


@pytest.mark.parametrize("linked", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.safetensors"])
def test_weights_that_are_links_out_are_refused(make: Make, tmp_path: Path, linked: str) -> None:
    """In a directory or an index, a weight file of either format may not lead elsewhere."""
    make().save_pretrained(tmp_path / "m", linked.endswith("safetensors"), "60KB" if "-of-" in linked else "1GB")
    (tmp_path / "m" / "MANIFEST.json").unlink()
    (tmp_path / "m" / linked).rename(tmp_path / "outside")
    (tmp_path / "m" / linked).symlink_to("../outside")
    with pytest.raises(ModelFileError, match="link out of its directory"):
        load_model(tmp_path / "m")


def test_a_format_that_was_asked_for_holds_for_an_index_too(make: Make, tmp_path: Path) -> None:
    """True refuses an index of PyTorch files, False one of safetensors."""
    make().save_pretrained(tmp_path / "pt", False, "20KB")
    make().save_pretrained(tmp_path / "st", True, "20KB")
    for path, safe in (("pt/pytorch_model.bin.index.json", True), ("st/model.safetensors.index.json", False)):
        with pytest.raises(ModelFileError, match="is not a file of"):
            load_model(tmp_path / path, safe_serialization=safe)
        load_model(tmp_path / path, safe_serialization=not safe)


def test_a_tied_head_that_differs_is_not_dropped(make: Make, tmp_path: Path) -> None:
    """Where the configuration ties two matrices and the file holds two that differ, neither is taken."""
    from safetensors.torch import save_file

    model = make(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "MANIFEST.json").unlink()
    weights = {name: tensor.clone() for name, tensor in model.weights().items()}
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, tmp_path / "m/model.safetensors")
    with pytest.raises(ModelFileError, match="ties it to"):
        load_model(tmp_path / "m")


def test_an_adapter_beside_its_model_is_no_second_model(make: Make, tmp_path: Path) -> None:
    """Weights of an adapter count only where there are none of a model."""
    from safetensors.torch import save_file

    make().save_pretrained(tmp_path / "m")
    save_file({"lora_A": torch.ones(1)}, tmp_path / "m" / "adapter_model.safetensors")
    load_model(tmp_path / "m")


@pytest.mark.parametrize("mark", ["config.yaml", "state.json"])
def test_a_run_is_not_saved_over(make: Make, tmp_path: Path, mark: str) -> None:
    """A model is not saved into a run or a checkpoint, whose record would no longer fit."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mark).write_text("")
    with pytest.raises(BusyOutputError):
        make().save_pretrained(tmp_path / "run")


@pytest.mark.parametrize("value", [None, "many", -1, 10**15, [1]])
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rope_theta"])
def test_values_without_meaning_are_refused(make: Make, tmp_path: Path, key: str, value: object) -> None:
    """A size that is no size ends in exit code 4, whichever class would be made."""
    make().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "MANIFEST.json").unlink()
    values = json.loads((tmp_path / "m" / "config.json").read_text()) | {key: value}
    values.pop("rope_parameters")
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    if (key, value) == ("rope_theta", 10**15):  # a large base is one
        load_model(tmp_path / "m")
        return
    with pytest.raises(ModelFileError) as caught:
        load_model(tmp_path / "m")
    assert caught.value.exit_code == 4


# PyTorch files only for a reason


def test_without_the_package_pytorch_files_are_written_with_a_warning(make: Make, tmp_path: Path) -> None:
    """Where safetensors cannot be imported, and nowhere else, `pytorch_model.bin` is written; the reason is said."""
    program = (
        "import sys, warnings; sys.modules['safetensors'] = None\n"
        "from llmt.models.transformer import TransformerLM; from llmt.config.model import ModelConfig\n"
        "shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)\n"
        "model = TransformerLM(ModelConfig(**shape), 20, 8); model.initialize(0)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always'); model.save_pretrained(sys.argv[1])\n"
        "assert 'safetensors cannot be imported' in str(said[0].message), said\n"
        "assert TransformerLM.from_pretrained(sys.argv[1]).vocab_size == 20\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "m")], check=True)
    assert "pytorch_model.bin" in names(tmp_path / "m")
    assert "model.safetensors" not in names(tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().save_pretrained(tmp_path / "n")
    assert "model.safetensors" in names(tmp_path / "n")


# Configurations that would run code


@pytest.mark.parametrize("cls", [TransformerLM, HuggingFaceModelWrapper])
@pytest.mark.parametrize("key", [
    {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, {"trust_remote_code": True}, {"custom_generate": "x/y"},
    {"_attn_implementation_internal": "x/y"}, {"_attn_implementation": "kernels-community/flash-attn"},
    {"attn_implementation": "x/y"}, {"quantization_config": {"quant_method": "gptq"}},
    {"text_config": {"auto_map": {}}},
], ids=str)  # fmt: skip
def test_a_configuration_that_would_run_code_is_refused(
    make: Make, tmp_path: Path, cls: type[BaseLanguageModel], key: dict[str, Any]
) -> None:
    """Code, kernels from the hub and quantised weights are refused by the name of their key, at any depth."""
    make().save_pretrained(tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "MANIFEST.json").unlink()
    (tmp_path / "m" / "config.json").write_text(json.dumps({**values, **key}))
    with pytest.raises(LlmtError) as caught:
        cls.from_pretrained(tmp_path / "m")
    assert caught.value.exit_code == 4
