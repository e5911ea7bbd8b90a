"""Models on disk: conversion against `cp` and torch, loading against the library of safetensors.

convert         seconds of `llmt convert` of 1.2 GB in 101 tensors to 4 files, with and without verification, against
                `cp` of the file, and against `torch.load` and `save_file` of four files; `start` converts one number
convert_memory  peak memory of the converting process, and whether torch was loaded
load            seconds to open a model of 1.3 GB with every page touched, against `load_file` and touching every page;
                the same with SHA-256; from files of PyTorch
load_memory     growth of the process over what it was before
save            what saving adds to the peak, in shares of the model

Each number is the median of processes that take turns with their peers; files are in the cache of the disk.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import report, run_process

from llmt.config.model import ModelConfig
from llmt.models.transformer import TransformerLM

ROUNDS = 5
TENSORS, ELEMENTS = 101, 3_000_000
SHAPE = ModelConfig(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=20,
    num_attention_heads=16,
    tie_word_embeddings=True,
)

_MEMORY = """
import re
from pathlib import Path
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""
_CONVERT = f"""{_MEMORY}
import sys
from llmt.cli.app import run
assert run(["convert", *sys.argv[1:], "--quiet", "--json"]) == 0
print(memory("VmHWM"), *sorted({{"torch", "numpy", "transformers"}} & set(sys.modules)))
"""
_TORCH = """
import sys, time
import torch
from safetensors.torch import save_file
began = time.perf_counter()
tensors = torch.load(sys.argv[1], weights_only=True)
names = list(tensors)
for shard in range(4):
    part = names[shard * 26 : (shard + 1) * 26]
    save_file({name: tensors[name] for name in part}, f"{sys.argv[2]}/model-{shard}.safetensors")
print(time.perf_counter() - began)
"""
_LOAD = f"""{_MEMORY}
import hashlib, json, sys, time
import torch
torch.set_num_threads(1)
kind, path = sys.argv[1:]
if kind == "ours":
    from llmt.models.load import load_model
    load_model(sys.argv[2] + "-tiny")
elif kind.startswith("file"):
    from safetensors.torch import load_file
before = memory("VmRSS")
began = time.perf_counter()
if kind == "ours":
    kept = load_model(path)
    tensors = list(kept.parameters())
elif kind == "torch":
    tensors = list(torch.load(path + "/pytorch_model.bin", weights_only=True).values())
else:
    kept = load_file(path + "/model.safetensors")
    tensors = list(kept.values())
touched = sum(float(t.detach().reshape(-1)[::1024].sum()) for t in tensors)
if kind == "file+sha":
    with open(path + "/model.safetensors", "rb") as file:
        hashlib.file_digest(file, "sha256")
seconds = time.perf_counter() - began
print(json.dumps([seconds, memory("VmHWM") - before]))
"""
_SAVE = f"""{_MEMORY}
import sys
from llmt.models.load import load_model
model = load_model(sys.argv[1])
for parameter in model.parameters():
    parameter.data = parameter.data.clone()
size = sum(p.nbytes for p in model.parameters())
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmHWM")
model.save_pretrained(sys.argv[2], sys.argv[3] == "safetensors", "500MB")
print((memory("VmHWM") - before) / size)
"""


def python(program: str, *arguments: object) -> str:
    """What a program prints, in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def bench_convert(folder: Path) -> None:
    """`llmt convert` against `cp` and torch."""
    torch.manual_seed(0)
    source = folder / "big.pt"
    torch.save({f"layers.{i}.weight": torch.randn(ELEMENTS) for i in range(TENSORS)}, source)
    tiny = folder / "tiny.pt"
    torch.save({"a": torch.ones(1)}, tiny)
    llmt = [sys.executable, "-m", "llmt", "convert", str(source), "-o", str(folder / "out"), "--quiet"]
    llmt += ["--max-shard-size", "312MB"]
    (folder / "peer").mkdir()
    commands = {
        "cp": ["cp", str(source), str(folder / "copy.pt")],
        "verified": llmt,
        "unverified": [*llmt, "--no-verify"],
        "torch": [sys.executable, "-c", _TORCH, str(source), str(folder / "peer")],
        "start": [*llmt[:4], str(tiny), *llmt[5:]],
    }
    times: dict[str, list[float]] = {name: [] for name in commands} | {"torch_inside": []}
    for number in range(ROUNDS + 1):
        for name, command in commands.items():
            seconds, _, shown = run_process(command, timeout=300)
            shutil.rmtree(folder / "out", ignore_errors=True)
            (folder / "copy.pt").unlink(missing_ok=True)
            if number:
                times[name].append(seconds)
                times["torch_inside"] += [float(shown)] if name == "torch" else []
    median = {name: statistics.median(found) for name, found in times.items()}
    report(
        "convert",
        bytes=source.stat().st_size,
        seconds={name: round(value, 3) for name, value in median.items()},
        verified_over_cp=round(median["verified"] / median["cp"], 2),
        unverified_over_cp=round(median["unverified"] / median["cp"], 2),
        verified_less_start_over_cp=round((median["verified"] - median["start"]) / median["cp"], 2),
        unverified_less_start_over_cp=round((median["unverified"] - median["start"]) / median["cp"], 2),
        torch_over_verified=round(median["torch"] / median["verified"], 2),
        torch_inside_over_verified=round(median["torch_inside"] / median["verified"], 2),
    )
    peak, *loaded = python(_CONVERT, source, "-o", folder / "out", "--max-shard-size", "312MB").split("\n")[-2].split()
    report("convert_memory", peak_bytes=int(peak), loaded=loaded)
    for path in (source, folder / "out", folder / "peer"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_models(folder: Path) -> int:
    """The same model in three forms, each with a tiny one beside it; returns its bytes."""
    for suffix, shape in (("", SHAPE), ("-tiny", SHAPE.model_copy(update={"num_hidden_layers": 1}))):
        torch.manual_seed(0)
        model = TransformerLM(shape, 32_000, 1024)
        for name, safe in (("own", True), ("foreign", True), ("own_pt", False), ("pt", False)):
            model.save_pretrained(folder / f"{name}{suffix}", safe, "10GB")
            if not name.startswith("own"):
                (folder / f"{name}{suffix}" / "MANIFEST.json").unlink()
    return (folder / "own" / "model.safetensors").stat().st_size


def bench_load(folder: Path, size: int) -> None:
    """`load_model` against `load_file`, and what either adds to the process."""
    kinds = {
        "file": ("file", "foreign"), "ours": ("ours", "foreign"), "file_sha": ("file+sha", "own"),
        "ours_verified": ("ours", "own"), "ours_pt": ("ours", "pt"), "torch_pt": ("torch", "pt"),
        "ours_pt_verified": ("ours", "own_pt"),
    }  # fmt: skip
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in kinds}
    for number in range(ROUNDS + 1):
        for name, (kind, directory) in kinds.items():
            seconds, grown = eval(python(_LOAD, kind, folder / directory))
            if number:
                found[name].append((seconds, grown))
    seconds = {name: statistics.median(each[0] for each in values) for name, values in found.items()}
    grown = {name: round(statistics.median(each[1] for each in values) / size, 3) for name, values in found.items()}
    report(
        "load",
        bytes=size,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        unverified_over_load_file=round(seconds["ours"] / seconds["file"], 2),
        verified_over_load_file_and_sha256=round(seconds["ours_verified"] / seconds["file_sha"], 2),
        foreign_over_foreign_pt=round(seconds["ours"] / seconds["ours_pt"], 2),
        verified_over_verified_pt=round(seconds["ours_verified"] / seconds["ours_pt_verified"], 2),
    )
    report("load_memory", growth_over_size=grown)


def bench_save(folder: Path) -> None:
    """What saving adds to the peak."""
    for kind in ("safetensors", "pytorch"):
        added = [float(python(_SAVE, folder / "own", folder / f"saved-{kind}-{n}", kind)) for n in range(3)]
        report("save", save_format=kind, added_over_size=round(statistics.median(added), 4))


def main() -> None:
    """Run all in a folder of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llmt-bench-") as name:
        folder = Path(name)
        bench_convert(folder)
        size = make_models(folder)
        bench_load(folder, size)
        bench_save(folder)
    report("models", seconds=round(time.monotonic() - began))


if __name__ == "__main__":
    main()
