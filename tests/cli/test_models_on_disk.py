"""Weights through the commands: formats of a run, other architectures, conversion with good and bad input."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.checkpoints.weights import load_weights

SMALL = ("--block-size", "16", "--batch-size", "4", "--max-steps", "6", "--save-steps", "3", "--precision", "fp32")


def tensors_equal(left: Path, right: Path) -> bool:
    one, other = load_weights(left), load_weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_in_pytorch_format(inside: Any, workplace: Path) -> None:
    """`save_format: pytorch` changes the files and nothing else: equal weights; eval, generate and resume read them."""
    shape = (
        "--hidden-size",
        "16",
        "--intermediate-size",
        "24",
        "--num-hidden-layers",
        "1",
        "--num-attention-heads",
        "2",
    )
    base = ("train", "--data", "text.txt", "--vocab-size", "300", *shape, *SMALL)
    for name, flags in (("plain", ()), ("torch", ("--save-format", "pytorch")), ("alias", ("--no-save-safetensors",))):
        done = inside(*base, "--name", name, *flags, cwd=workplace)
        assert done.code == 0, done.err
    runs = workplace / "runs"
    for name in ("torch", "alias"):
        for place in (runs / name, runs / name / "checkpoint-6"):
            assert (place / "pytorch_model.bin").is_file()
            assert not (place / "model.safetensors").exists()
            assert tensors_equal(place, runs / "plain" / place.relative_to(runs / name))
    measured = [
        inside("eval", f"runs/{name}", "--data", "text.txt", "--json", cwd=workplace) for name in ("plain", "torch")
    ]
    losses = [json.loads(result.out)["loss"] for result in measured]
    assert losses[0] == losses[1]
    assert inside("generate", "runs/torch", "--prompt", "a", "--max-new-tokens", "3", cwd=workplace).code == 0
    for name in ("plain", "torch"):
        resumed = inside("train", f"runs/{name}", "--resume", "--max-steps", "8", cwd=workplace)
        assert resumed.code == 0, resumed.err
    assert tensors_equal(runs / "plain" / "checkpoint-8", runs / "torch" / "checkpoint-8")
    back = inside("train", "runs/torch", "--resume", "--max-steps", "9", "--save-format", "safetensors", cwd=workplace)
    assert back.code == 0, back.err
    assert (runs / "torch" / "model.safetensors").is_file()
    assert not list((runs / "torch").glob("pytorch_model*"))


def test_another_architecture_resumes_bit_by_bit(inside: Any, workplace: Path) -> None:
    """A GPT-2 from its bare configuration, stopped and resumed, ends with the weights of one that was not stopped."""
    shape = "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}"
    base = ("train", "--data", "text.txt", "--vocab-size", "300", "--huggingface", shape, *SMALL)
    done = inside(*base, "--name", "whole", cwd=workplace)
    assert done.code == 0, done.err
    runs = workplace / "runs"
    shutil.copytree(runs / "whole", runs / "parts")
    shutil.rmtree(runs / "parts" / "checkpoint-6")
    again = inside("train", "runs/parts", "--resume", cwd=workplace)
    assert again.code == 0, again.err
    assert "resuming at step 3 of 6" in again.err
    assert tensors_equal(runs / "parts" / "checkpoint-6", runs / "whole" / "checkpoint-6")
    config = json.loads((runs / "whole" / "config.json").read_text())
    assert (config["model_type"], config["n_positions"], config["vocab_size"]) == ("gpt2", 16, 300)


COUNTING = """
import torch
from torch import nn
from llmt import BaseLanguageModel, register_model

@register_model("counting_of_test")
class Counting(BaseLanguageModel):
    def __init__(self, vocab_size, context_length):
        super().__init__()
        self.vocab_size, self.context_length = vocab_size, context_length
        self.embed = nn.Embedding(vocab_size, 8)
        self.fixed = nn.Parameter(torch.randn(8), requires_grad=False)
        self.register_buffer("passes", torch.zeros(1))

    def hidden_states(self, input_ids, cache=None, position_ids=None):
        if self.training:
            self.passes += 1
        return self.embed(input_ids) * self.fixed + self.passes / 1000

    def output_weight(self):
        return self.embed.weight
"""


def test_a_class_of_ones_own_resumes_bit_by_bit(inside: Any, workplace: Path) -> None:
    """What is not trained, a buffer that counts and a frozen parameter, is resumed too; its context bounds blocks."""
    (workplace / "counting.py").write_text(COUNTING)
    try:
        plugin = {"LLMT_PLUGINS": "counting.py"}
        shape = ("--custom", "model_type=counting_of_test,context_length=12")
        base = ("train", "--data", "text.txt", "--vocab-size", "300", *shape, *SMALL, "--name", "whole")
        done = inside(*base, cwd=workplace, env=plugin)
        assert done.code == 0, done.err
        assert "the context of the model, 16 was asked" in done.err
        same = inside(*base, cwd=workplace, env=plugin)
        assert same.code == 10
        assert "a run of these settings" in same.err
        runs = workplace / "runs"
        shutil.copytree(runs / "whole", runs / "parts")
        shutil.rmtree(runs / "parts" / "checkpoint-6")
        again = inside("train", "runs/parts", "--resume", cwd=workplace, env=plugin)
        assert again.code == 0, again.err
        assert tensors_equal(runs / "parts" / "checkpoint-6", runs / "whole" / "checkpoint-6")
        assert float(load_weights(runs / "parts" / "checkpoint-6")["passes"]) >= 6
    finally:
        sys.modules.pop("counting", None)


@pytest.mark.parametrize(("flags", "code", "named"), [
    (("--huggingface", "model_type=gpt2", "--hidden-size", "8"), 2, "--hidden-size"),
    (("--huggingface", "n_layer=2"), 2, "model_type"),
    (("--huggingface", "model_type=gpt22"), 2, "did you mean gpt2"),
    (("--huggingface", "model_type=gpt2", "--custom", "model_type=x"), 2, "give one"),
    (("--huggingface", "gpt2"), 2, "--huggingface"),
    (("--custom", "model_type=nothing_here"), 2, "LLMT_PLUGINS"),
    (("--base", "runs/quickstart", "--huggingface", "model_type=gpt2"), 2, "base"),
    (("--base", "hf:owner/never-fetched"), 6, "hf:owner/never-fetched"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_made(
    inside: Any, workplace: Path, flags: tuple[str, ...], code: int, named: str
) -> None:
    """Two shapes at once, no type, an unknown type, and a name that the hub does not give are refused at the start."""
    result = inside("train", "--data", "text.txt", "--name", "x", *flags, cwd=workplace, env={"HF_HUB_OFFLINE": "1"})
    assert (result.code, named in result.err) == (code, True), result.err
    assert not (workplace / "runs" / "x").exists()


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """A folder `ckpt` with a training checkpoint of 40 tensors beside a configuration."""
    (tmp_path / "ckpt").mkdir()
    weights = {f"layers.{i}.weight": torch.full((50, 50), float(i)) for i in range(40)}
    weights["tied"] = weights["layers.0.weight"]
    torch.save({"model": weights, "optimizer": {"lr": 1}, "step": 5}, tmp_path / "ckpt" / "last.pt")
    (tmp_path / "ckpt" / "config.json").write_text('{"model_type": "mine"}')
    return tmp_path / "ckpt"


def test_what_convert_says(inside: Any, ckpt: Path) -> None:
    """Files with their sizes, what was copied, left out, tied and larger than the limit, each once."""
    dry = inside("convert", "./ckpt", "--max-shard-size", "9kB", "--dry-run")
    assert dry.code == 0
    assert "a dry run, nothing was written" in dry.out
    assert [path.name for path in ckpt.parent.iterdir()] == ["ckpt"]
    done = inside("convert", "./ckpt", "--max-shard-size", "9kB")
    assert done.code == 0, done.err
    assert "ckpt-safetensors: 40 tensors, 100k parameters, 400 kB in 41 files" in done.out
    assert "verified" in done.out
    assert "model-00001-of-00040.safetensors  10 kB" in done.out
    assert "config.json  copied" in done.out
    assert done.err.count("larger than 9 kB") == 1
    assert "left out, since it is not part of the model: optimizer, step" in done.err
    assert "tied is tied to layers.0.weight" in done.err
    assert not (ckpt / "model.safetensors").exists()
    report = json.loads(inside("convert", "./ckpt", "-o", "two", "--no-verify", "--dtype", "bfloat16", "--json").out)
    assert (report["output"], report["verified"], report["size"]) == ("two", False, 200_000)
    assert json.loads((ckpt.parent / "two" / "config.json").read_text())["dtype"] == "bfloat16"


def test_there_and_back(inside: Any, workplace: Path) -> None:
    """A finished run as PyTorch files and as safetensors again: equal tensors, and all of it opens."""
    there = inside(
        "convert", "safetensors-to-pt", "runs/quickstart", "-o", "pt", "--max-shard-size", "30kB", cwd=workplace
    )
    assert there.code == 0, there.err
    assert "verified" in there.out
    assert len(list((workplace / "pt").glob("pytorch_model-*.bin"))) > 1
    back = inside("convert", "pt", cwd=workplace)
    assert back.code == 0, back.err
    assert tensors_equal(workplace / "pt-safetensors", workplace / "runs" / "quickstart")
    sample = ("--prompt", "a", "--max-new-tokens", "4", "--temperature", "0")
    said = {
        inside("generate", name, *sample, cwd=workplace).out for name in ("runs/quickstart", "pt", "pt-safetensors")
    }
    assert len(said) == 1


@pytest.mark.parametrize(("arguments", "code", "named"), [
    (("./ckpt", "-o", "./ckpt"), 10, "is the source itself"),
    (("./ckpt", "-o", "."), 10, "holds the source"),
    (("./ckpt", "-o", "full"), 10, "full: is not empty"),
    (("./ckpt", "-o", "full", "--overwrite"), 10, "is no model"),
    (("./ckpt", "-o", "full/notes.txt"), 10, "is a file"),
    (("./ckpt", "--max-shard-size", "0"), 2, "--max-shard-size"),
    (("./ckpt", "--max-shard-size", "-5"), 2, "--max-shard-size"),
    (("./ckpt", "--max-shard-size", "2 dogs"), 2, "--max-shard-size"),
    (("./ckpt", "--dtype", "int8"), 2, "--dtype"),
    (("pt-to-safetensor", "./ckpt"), 2, "pt-to-safetensors, safetensors-to-pt, merge-lora"),
    (("ckpd",), 4, "commands of convert: pt-to-safetensors"),
    (("empty",), 4, "it holds nothing"),
    (("pointer.pt",), 4, "git lfs pull"),
    (("safe.pt",), 4, "safe.safetensors"),
    (("nothing.bin",), 4, "is empty"),
    (("full",), 4, "holds no PyTorch file"),
    (("safetensors-to-pt", "torch.safetensors"), 4, "torch.pt"),
    (("safetensors-to-pt", "./ckpt"), 4, "model.safetensors"),
    (("safetensors-to-pt", "nowhere"), 4, "does not exist"),
])  # fmt: skip
def test_bad_input(inside: Any, ckpt: Path, arguments: tuple[str, ...], code: int, named: str) -> None:
    """Each mistake has its exit code and two lines that name it; nothing is written, the source stays."""
    place = ckpt.parent
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full" / "notes.txt").write_text("")
    (place / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (place / "safe.pt").write_bytes((2).to_bytes(8, "little") + b"{}")
    (place / "nothing.bin").write_bytes(b"")
    (place / "torch.safetensors").write_bytes((ckpt / "last.pt").read_bytes())
    before = sorted(str(path) for path in place.rglob("*"))
    result = inside("convert", *arguments)
    assert (result.code, named in result.err) == (code, True), result.err
    assert result.err.startswith("error")
    assert "Traceback" not in result.err
    assert sorted(str(path) for path in place.rglob("*")) == before


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("command", [("convert", "./ckpt"), ("convert", "./ckpt", "--dtype", "float16")])
def test_a_disk_that_fills_up_leaves_nothing(
    environment: Mapping[str, str], ckpt: Path, command: tuple[str, ...]
) -> None:
    """A file that may not grow ends in exit code 6 with the reason, and no folder is left, a temporary one neither."""
    done = subprocess.run(
        [sys.executable, "-m", "llmt", *command], cwd=ckpt.parent, env=dict(environment), capture_output=True,
        text=True, preexec_fn=lambda: limited(100_000), check=False,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert "larger than the file system or the process limit allows" in done.stderr
    assert sorted(path.name for path in ckpt.parent.iterdir()) == ["ckpt"]


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")
def test_killed_at_any_moment_nothing_half_written_is_there(environment: Mapping[str, str], tmp_path: Path) -> None:
    """A conversion that is killed leaves its output whole or absent, and can be run again."""
    (tmp_path / "ckpt").mkdir()
    torch.save({f"t{i}": torch.ones(500_000) for i in range(40)}, tmp_path / "ckpt" / "m.pt")
    command = [sys.executable, "-m", "llmt", "convert", "./ckpt", "--max-shard-size", "9MB"]
    for moment in range(6):
        child = subprocess.Popen(command, cwd=tmp_path, env=dict(environment), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(f".tmp-*/*0{moment + 1}-of-*")) and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if (tmp_path / "ckpt-safetensors").exists():
            assert len(load_weights(tmp_path / "ckpt-safetensors")) == 40
            break
    done = subprocess.run(
        [*command, "--overwrite"], cwd=tmp_path, env=dict(environment), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(load_weights(tmp_path / "ckpt-safetensors")) == 40


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(inside: Any, ckpt: Path, mask: int) -> None:
    """Every file and folder that conversion writes, in either direction, has the mode that the umask leaves."""
    before = os.umask(mask)
    try:
        assert inside("convert", "./ckpt", "--max-shard-size", "100kB").code == 0
        assert inside("convert", "safetensors-to-pt", "ckpt-safetensors", "-o", "pt").code == 0
    finally:
        os.umask(before)
    for folder in (ckpt.parent / "ckpt-safetensors", ckpt.parent / "pt"):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~mask}
