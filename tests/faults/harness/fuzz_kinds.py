"""nine kinds of files -> a right one of each, how llmt reads it, and what a second reader finds in it.

A reader returns what it read, in a form that can be compared. The second one is that of the format's own library;
where it returns None, there is nothing to compare.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.lab import TEXT

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: Of the kind.
        count: How many to try.
        target: The file that is mutated; the others stay.
        seed: Makes the right files: name -> bytes.
        read: What llmt makes of the folder.
        reference: What the format's own library makes of it; None compares nothing.
    """

    name: str
    count: int
    target: str
    seed: Callable[[], dict[str, bytes]]
    read: Callable[[Path], Any]
    reference: Callable[[Path], Any] | None = None


def _tensors(scale: float = 1.0) -> dict[str, Any]:
    import torch

    return {
        "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) * scale,
        "b.bias": torch.ones(5, dtype=torch.bfloat16) * scale,
        "c": torch.arange(6, dtype=torch.int64),
    }


def plain(tensors: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors in a form that can be compared."""
    import torch

    return {
        name: (str(t.dtype), tuple(t.shape), t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def seed_safetensors() -> dict[str, bytes]:
    """One file of three tensors."""
    from safetensors.torch import save

    return {"model.safetensors": save(_tensors(), {"format": "pt"})}


def seed_index() -> dict[str, bytes]:
    """Two shards and their index."""
    from safetensors.torch import save

    first, second = {"x": _tensors()["a.weight"]}, {"y": _tensors(2.0)["a.weight"]}
    index = {"metadata": {"total_size": 96}, "weight_map": {"x": SHARDS[0], "y": SHARDS[1]}}
    return {
        "model.safetensors.index.json": json.dumps(index, indent=1).encode(), SHARDS[0]: save(first),
        SHARDS[1]: save(second),
    }  # fmt: skip


def seed_pt() -> dict[str, bytes]:
    """A state dictionary of PyTorch."""
    import torch

    out = io.BytesIO()
    torch.save(_tensors(), out)
    return {"pytorch_model.bin": out.getvalue()}


def seed_tokenizer() -> dict[str, bytes]:
    """A trained tokenizer, small."""
    from tempfile import TemporaryDirectory

    from llmt.tokenizers.train import train_tokenizer

    with TemporaryDirectory() as folder:
        train_tokenizer("bpe", [TEXT], vocab_size=290).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def seed_yaml() -> dict[str, bytes]:
    """A configuration that names some of everything."""
    text = (
        "name: tiny\nseed: 7\ndevice: cpu\nmodel: {hidden_size: 32, num_hidden_layers: 2}\n"
        "data:\n  sources: [a.txt, b.txt]\n  block_size: 64\ntraining:\n  learning_rate: 1e-3\n  max_steps: 10\n"
        "  precision: fp32\nlora:\n  enabled: false\n  r: 8\ntokenizer:\n  algo: byte\n"
    )
    return {"config.yaml": text.encode()}


def seed_jsonl() -> dict[str, bytes]:
    """Rows of text."""
    return {"rows.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()[:8]).encode()}


def seed_txt() -> dict[str, bytes]:
    """A text with letters of several bytes."""
    return {"text.txt": ("Grüße, 世界 🌍\n" + TEXT[:400]).encode()}


def seed_parquet() -> dict[str, bytes]:
    """A table with one column of text."""
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": TEXT.splitlines()[:20], "n": list(range(20))}), out)
    return {"rows.parquet": out.getvalue()}


def seed_adapter() -> dict[str, bytes]:
    """An adapter of a small model."""
    from safetensors.torch import save

    from llmt.config.lora import LoraConfig
    from llmt.models.lora import add_lora

    model = add_lora(base_model(), LoraConfig(enabled=True, r=2, target_modules=("q_proj", "v_proj")))

    values = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "base", "auto_mapping": None,
    }  # fmt: skip
    weights = save(model.adapter_weights())
    return {"adapter_config.json": json.dumps(values, indent=1).encode(), "adapter_model.safetensors": weights}


def base_model() -> Any:
    """The model under the adapter."""
    import torch

    from llmt.config.model import ModelConfig
    from llmt.models.transformer import TransformerLM

    torch.manual_seed(0)
    shape = ModelConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return TransformerLM(shape, 20, 8)


def read_weights(folder: Path) -> Any:
    """Weights in whatever format is there."""
    from llmt.checkpoints.weights import load_weights

    return plain(load_weights(folder))


def read_tokenizer(folder: Path) -> None:
    """A tokenizer, and a text through it: no id may lie outside the vocabulary."""
    from llmt.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("Line 1: the fox é 世")
    if any(not 0 <= number < tokenizer.vocab_size for number in ids):
        raise AssertionError(f"an id outside of the vocabulary of {tokenizer.vocab_size}: {ids}")
    tokenizer.decode(ids)


def read_yaml(folder: Path) -> None:
    """A configuration."""
    from llmt.config.load import ConfigSource, load_run

    load_run(ConfigSource("fuzzed", path=folder / "config.yaml"), environ={})


def read_text(folder: Path) -> list[str]:
    """The documents of the one file that is there."""
    from llmt.text.sources import open_documents

    return [document.text for document in open_documents([str(next(folder.iterdir()))])]


def reference_safetensors(folder: Path) -> Any:
    """What the library of the format reads."""
    from safetensors.torch import load

    found = {}
    for path in folder.glob("*.safetensors"):
        found.update(load(path.read_bytes()))
    return plain(found)


def reference_pt(folder: Path) -> Any:
    """What PyTorch reads; None where it refuses, since llmt reads more versions of the format."""
    import pickle

    import torch

    try:
        found = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
        return plain({name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)})
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError):
        return None


def reference_txt(folder: Path) -> list[str]:
    """The text itself, without its mark; parts of a long one are joined by the reader."""
    return [(folder / "text.txt").read_bytes().decode("utf-8-sig")]


def reference_parquet(folder: Path) -> Any:
    """What pyarrow reads, where it reads anything: rows without text are passed over."""
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO((folder / "rows.parquet").read_bytes()), columns=["text"])
        return [text for text in rows.column("text").to_pylist() if text.strip()]
    except (pyarrow.ArrowException, OSError, KeyError, UnicodeDecodeError, AttributeError):
        return None


def read_adapter(folder: Path) -> Any:
    """An adapter on its base."""
    from llmt.models.lora import load_adapter

    load_adapter(base_model(), folder)


KINDS = (
    Kind("safetensors", 12000, "model.safetensors", seed_safetensors, read_weights, reference_safetensors),
    Kind("index", 7000, "model.safetensors.index.json", seed_index, read_weights, reference_safetensors),
    Kind("pt", 7000, "pytorch_model.bin", seed_pt, read_weights, reference_pt),
    Kind("tokenizer.json", 4000, "tokenizer.json", seed_tokenizer, read_tokenizer),
    Kind("yaml", 2500, "config.yaml", seed_yaml, read_yaml),
    Kind("jsonl", 6000, "rows.jsonl", seed_jsonl, read_text),
    Kind("txt", 6000, "text.txt", seed_txt, read_text, reference_txt),
    Kind("parquet", 3500, "rows.parquet", seed_parquet, read_text, reference_parquet),
    Kind("adapter", 2000, "", seed_adapter, read_adapter),
)
