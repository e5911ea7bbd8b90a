"""The lines that a new user types first, as they are printed on the card."""

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "LLMT_MODEL__HIDDEN_SIZE": "32", "LLMT_MODEL__INTERMEDIATE_SIZE": "64", "LLMT_MODEL__NUM_HIDDEN_LAYERS": "2",
    "LLMT_MODEL__NUM_ATTENTION_HEADS": "2", "LLMT_TOKENIZER__ALGO": "byte", "LLMT_DATA__BLOCK_SIZE": "32",
    "LLMT_TRAINING__MAX_STEPS": "2", "LLMT_TRAINING__WARMUP_STEPS": "1", "LLMT_TRAINING__COMPILE": "never",
    "LLMT_TRAINING__EVAL_BATCHES": "2", "LLMT_TRAINING__PRECISION": "fp32", "LLMT_LOGGING__SAMPLE_TOKENS": "4",
    "LLMT_DATA__SOURCES": "text.txt",
}  # fmt: skip
"""Makes every run of the card small, without a word more on the command line."""


@pytest.mark.slow
def test_tokenizer_train_wordpiece(llmt: Any, tmp_path: Path) -> None:
    """`llmt tokenizer train --algo wordpiece` learns from the documentation inside Python."""
    result = llmt("tokenizer", "train", "--algo", "wordpiece", cwd=tmp_path, timeout=900)
    assert result.code == 0, result.err
    assert (tmp_path / "tokenizers" / "wordpiece" / "tokenizer.json").is_file()


def test_tokenizer_train_wordpiece_on_a_small_text(inside: Any, text_file: Path) -> None:
    """The same line with a text learns from that text."""
    result = inside(
        "tokenizer", "train", "text.txt", "--algo", "wordpiece", "--vocab-size", "600", cwd=text_file.parent
    )
    assert result.code == 0, result.err
    assert (text_file.parent / "tokenizers" / "wordpiece" / "tokenizer.json").is_file()
    assert "bytes per token" in result.out


def test_train_lora_with_a_finished_run(inside: Any, workplace: Path) -> None:
    """`llmt train --device auto --lora` adapts the newest finished run, says which, and can be resumed and used."""
    result = inside("train", "--device", "auto", "--lora", cwd=workplace, env=SMALL)
    assert result.code == 0, result.err
    assert "no finished run" not in result.err
    adapter = workplace / "runs" / "lora"
    assert json.loads((adapter / "result.json").read_text())["kind"] == "adapter"
    # The lines that it says come next can be typed as they are.
    following = [line.split() for line in result.lines if line.startswith("  llmt ")]
    assert [line[1] for line in following] == ["generate", "eval", "train"]
    assert following[0][2:] == ["runs/lora"]
    for line in following:
        again = inside(*line[1:], cwd=workplace)
        assert again.code == 0, again.err
    # An adapter finds its base by itself, and becomes one model with it.
    assert inside("generate", "runs/lora", "-n", "4", cwd=workplace).code == 0
    merged = inside("convert", "merge-lora", "runs/lora", "--json", cwd=workplace)
    assert json.loads(merged.out) == {"directory": str(Path("runs/lora-merged")), "dtype": "float32", "lost": 0.0}
    alone = inside("eval", "runs/lora-merged", "--data", "text.txt", "--block-size", "32", "--json", cwd=workplace)
    both = inside("eval", "runs/lora", "--data", "text.txt", "--block-size", "32", "--json", cwd=workplace)
    assert json.loads(alone.out)["loss"] == pytest.approx(json.loads(both.out)["loss"], abs=1e-5)


@pytest.mark.parametrize("option", ["--lora", "--use-peft", "--set lora.enabled=true"])
def test_every_way_to_ask_for_an_adapter_takes_the_adapter_template(inside: Any, tmp_path: Path, option: str) -> None:
    """The alias and `--set` mean what `--lora` means."""
    shown = json.loads(inside("config", "show", *option.split(), "--json").out)["config"]
    assert shown["lora"]["enabled"] is True
    assert shown["data"]["sources"] == ["builtin:instructions"]


def test_train_lora_in_an_empty_directory(inside: Any, text_file: Path) -> None:
    """Without any run, the quickstart model is trained first, and that is said."""
    where = text_file.parent
    result = inside("train", "--device", "auto", "--lora", cwd=where, env=SMALL)
    assert result.code == 0, result.err
    assert "training the quickstart model first" in result.err
    assert sorted(path.name for path in (where / "runs").iterdir()) == ["lora", "quickstart"]
    config = json.loads((where / "runs" / "lora" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == (where / "runs" / "quickstart").resolve()


def test_an_interrupted_first_base_is_gone_on_with(inside: Any, workplace: Path) -> None:
    """Where the base was left unfinished, `--lora` finishes it with its own settings before it adapts it."""
    run = workplace / "runs" / "quickstart"
    for name in ("result.json", "MANIFEST.json", "model.safetensors", "checkpoint-12/MANIFEST.json"):
        (run / name).unlink()
    result = inside("train", "--lora", "--max-steps", "2", "--block-size", "32", "--data", "text.txt", cwd=workplace)
    assert result.code == 0, result.err
    assert "resuming at step 8 of 12" in result.err
    assert (run / "result.json").is_file()


def test_a_resumed_adapter_keeps_its_base(inside: Any, workplace: Path) -> None:
    """A newer finished run does not become the base of an adapter that is resumed."""
    assert inside("train", "--lora", cwd=workplace, env=SMALL).code == 0
    newer = {**SMALL, "LLMT_NAME": "newer", "LLMT_SEED": "7", "LLMT_MODEL__HIDDEN_SIZE": "48"}
    assert inside("train", cwd=workplace, env=newer).code == 0
    resumed = inside("train", "runs/lora", "--resume", "--max-steps", "4", cwd=workplace)
    assert resumed.code == 0, resumed.err
    config = json.loads((workplace / "runs" / "lora" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).name == "quickstart"


def test_convert_a_folder(inside: Any, tmp_path: Path) -> None:
    """`llmt convert ./ckpt --max-shard-size 2GB` turns a folder with a PyTorch checkpoint into safetensors."""
    import torch
    from safetensors.torch import load_file

    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4, dtype=torch.bfloat16)}
    (tmp_path / "ckpt").mkdir()
    torch.save(weights, tmp_path / "ckpt" / "pytorch_model.bin")
    result = inside("convert", "./ckpt", "--max-shard-size", "2GB")
    assert result.code == 0, result.err
    written = load_file(tmp_path / "ckpt-safetensors" / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    again = inside("convert", "pt-to-safetensors", "./ckpt", "--overwrite", "--json")
    assert json.loads(again.out)["tensors"] == 2


def test_convert_without_a_folder(inside: Any, finished: Any, tmp_path: Path) -> None:
    """Without `./ckpt` the error names the runs that are there, or says that there is none."""
    found = inside("convert", "./ckpt", "--max-shard-size", "2GB", cwd=finished[0])
    assert (found.code, "runs found here: runs/quickstart" in found.err.replace("\\", "/")) == (4, True)
    none = inside("convert", "./ckpt", "--max-shard-size", "2GB", cwd=tmp_path)
    assert (none.code, "llmt train" in none.err) == (4, True)


def test_doctor(llmt: Any, tmp_path: Path) -> None:
    """`llmt doctor` computes something on every device that is here, and finds this environment sound."""
    result = llmt("doctor", cwd=tmp_path)
    assert result.code == 0, result.out + result.err
    assert "forward and backward came out right" in result.out
    assert result.err == ""
