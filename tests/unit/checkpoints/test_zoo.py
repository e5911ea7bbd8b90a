"""Files as training programs leave them, converted by `llmt convert` and compared byte by byte with torch.load."""

import argparse
import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmt.cli.app import run

Kind = Callable[[Path], dict[str, Tensor]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 4), nn.BatchNorm1d(4))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model[2](torch.ones(2, 6)).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(directory: Path, value: Any, tensors: dict[str, Tensor], name: str = "model.pt", **options: Any) -> Any:
    torch.save(value, directory / name, **options)
    return tensors


def plain(value: Callable[[dict[str, Tensor]], Any], name: str = "model.pt", **options: Any) -> Kind:
    def make(directory: Path) -> dict[str, Tensor]:
        tensors = dict(network().state_dict())
        return saved(directory, value(tensors), tensors, name, **options)

    return make


def of(tensors: Callable[[], dict[str, Tensor]], name: str = "model.pt") -> Kind:
    return lambda directory: saved(directory, found := tensors(), found, name)


def prefixed(prefix: str) -> Kind:
    return plain(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def nanogpt(directory: Path) -> dict[str, Tensor]:
    model, optimizer = trained()
    checkpoint = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 1, "bias": False, "dropout": 0.0},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "betas": (0.9, 0.95), "compile": True},
    }
    return saved(directory, checkpoint, dict(model.state_dict()), "ckpt.pt")


def original(directory: Path) -> dict[str, Tensor]:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    checkpoint = {
        "config": {"d_model": 6, "layers": [1, 2]},
        "epoch": 1,
        "loss": 2.5,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "step": 100,
        "timestamp": "2025-01-01T00:00:00",
    }
    return saved(directory, checkpoint, dict(model.state_dict()), "checkpoint-100.pt")


def lightning(directory: Path) -> dict[str, Tensor]:
    model, optimizer = trained()
    checkpoint = {
        "epoch": 1,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": argparse.Namespace(lr=1e-3, path=directory),
        "callbacks": {("a", 1): {"best": torch.tensor(0.5)}},
    }
    return saved(directory, checkpoint, dict(model.state_dict()), "last.pth")


def sharded(directory: Path) -> dict[str, Tensor]:
    tensors = dict(network().state_dict())
    names = [f"pytorch_model-{i:05d}-of-00003.bin" for i in (1, 2, 3)]
    weight_map = {name: names[number % 3] for number, name in enumerate(tensors)}
    for shard in names:
        torch.save({name: tensors[name] for name, file in weight_map.items() if file == shard}, directory / shard)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def trainer(directory: Path) -> dict[str, Tensor]:
    model, optimizer = trained()
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    torch.save({"python": (3, (1, 2), None)}, directory / "rng_state.pth")
    torch.save(argparse.Namespace(a=1), directory / "training_args.bin")
    return saved(directory, model.state_dict(), dict(model.state_dict()), "pytorch_model.bin")


def transformer(kind: str) -> Kind:
    def make(directory: Path) -> dict[str, Tensor]:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        sizes |= {"gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}}.get(
            kind, {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        )
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        return saved(directory, model.state_dict(), dict(model.state_dict()), "pytorch_model.bin")

    return make


def strided() -> dict[str, Tensor]:
    cube = torch.arange(120.0).reshape(4, 5, 6)
    return {
        "turned": cube.permute(2, 0, 1),
        "part": cube[1:3],
        "column": cube[:, 2],
        "steps": torch.arange(40, dtype=torch.int16)[1:39:3],
        "one row": torch.arange(3.0).unsqueeze(0),
        "spread": torch.arange(3.0).unsqueeze(1).expand(3, 2),
    }


def tied() -> dict[str, Tensor]:
    shared = torch.randn(9, 4)
    return {"lm_head.weight": shared, "model.embed_tokens.weight": shared, "view": shared.view(36), "other": shared + 1}


ZOO: dict[str, Kind] = {
    "state dict": plain(lambda tensors: tensors),
    "ordered dict": plain(OrderedDict),
    ".pth": plain(lambda tensors: tensors, "net.pth"),
    ".bin": plain(lambda tensors: tensors, "pytorch_model.bin"),
    "model": plain(lambda tensors: {"model": tensors, "step": 1}),
    "state_dict": plain(lambda tensors: {"state_dict": tensors}),
    "model_state_dict": plain(lambda tensors: {"model_state_dict": tensors, "epoch": 3}),
    "module": plain(lambda tensors: {"module": tensors, "global_steps": 7}),
    "model.state_dict": plain(lambda tensors: {"model": {"state_dict": tensors}}),
    "parameters": plain(lambda tensors: {name: nn.Parameter(t, t.is_floating_point()) for name, t in tensors.items()}),
    "module. prefix": prefixed("module."),
    "_orig_mod. prefix": prefixed("_orig_mod."),
    "fsdp prefix": prefixed("_fsdp_wrapped_module."),
    "two prefixes": prefixed("module._orig_mod."),
    "before 1.6": plain(lambda tensors: {"model": tensors}, _use_new_zipfile_serialization=False),
    "pickle protocol 4": plain(lambda tensors: tensors, pickle_protocol=4),
    "nanoGPT": nanogpt,
    "the original's": original,
    "lightning": lightning,
    "trainer directory": trainer,
    "sharded": sharded,
    "llama": transformer("llama"),
    "gpt2": transformer("gpt2"),
    "gpt_neox": transformer("gpt_neox"),
    "tied": of(tied),
    "strided": of(strided),
    "bfloat16": of(lambda: {"a": torch.randn(5, 3).bfloat16(), "b": torch.randn(3).bfloat16()}),
    "float16": of(lambda: {"a": torch.randn(5, 3).half()}),
    "int8": of(lambda: {"a": torch.randint(-128, 127, (7, 3), dtype=torch.int8), "scale": torch.randn(7)}),
    "bool": of(lambda: {"mask": torch.rand(4, 4) > 0.5, "w": torch.ones(1)}),
    "empty": of(lambda: {"none": torch.zeros(0, 3), "no columns": torch.zeros(3, 0), "w": torch.ones(1)}),
    "scalar": of(lambda: {"a": torch.tensor(2.5), "b": torch.tensor(7), "c": torch.tensor(True)}),
    "double and complex": of(lambda: {"a": torch.randn(3).double(), "b": torch.randn(3, dtype=torch.complex64)}),
    "float8": of(lambda: {"a": torch.randn(8).to(torch.float8_e4m3fn), "b": torch.randn(8).to(torch.float8_e5m2)}),
    "many": of(lambda: {f"layers.{i}.weight": torch.full((i % 7, 2), float(i)) for i in range(2000)}),
    "odd names": of(lambda: {"a b": torch.ones(1), "größe": torch.ones(2), "x" * 300: torch.ones(3)}),
}


def same(left: Tensor, right: Tensor) -> bool:
    raw = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return (left.dtype, left.shape) == (right.dtype, right.shape) and torch.equal(*raw)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ZOO)
def test_it_converts_byte_by_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """`llmt convert ./ckpt --max-shard-size 2GB` gives every tensor its bytes; names left out are tied ones."""
    (tmp_path / "ckpt").mkdir()
    expected = ZOO[kind](tmp_path / "ckpt")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ckpt").iterdir()}
    monkeypatch.chdir(tmp_path)
    assert run(["convert", "./ckpt", "--max-shard-size", "2GB", "--json"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    found = load_file(tmp_path / "ckpt-safetensors" / "model.safetensors")
    assert found.keys() | report["tied"].keys() == expected.keys()
    assert not found.keys() & report["tied"].keys()
    assert [name for name, tensor in found.items() if not same(tensor, expected[name])] == []
    assert [name for name, kept in report["tied"].items() if not same(expected[name], expected[kept])] == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "ckpt").iterdir()} == before


def test_the_command_loads_no_torch(tmp_path: Path) -> None:
    """The whole command, with verification and shards, runs without torch, numpy and transformers."""
    torch.save({f"t{i}": torch.ones(1000) for i in range(10)}, tmp_path / "m.pt")
    program = (
        "import sys; from llmt.cli.app import run\n"
        "assert run(['convert', sys.argv[1], '--max-shard-size', '9kB']) == 0\n"
        "assert not {'torch', 'numpy', 'transformers', 'safetensors'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "m.pt")], check=True, capture_output=True)
    assert len(list((tmp_path / "m-safetensors").glob("*.safetensors"))) == 5
