"""Names of files and folders."""

import pytest

from llmt.checkpoints import layout


@pytest.mark.parametrize("step", [0, 1, 1000, 10**12])
def test_checkpoint_names_are_read_back(step: int) -> None:
    """A checkpoint's folder name gives back its step."""
    assert layout.parse_checkpoint_step(layout.checkpoint_name(step)) == step


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-",
        "checkpoint-01",
        "checkpoint--1",
        "checkpoint-1 ",
        "checkpoint-1.tmp",
        ".tmp-checkpoint-1-ab",
        "checkpoint-١",
    ],
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    """Only the exact spelling counts: no sign, no leading zero, no other digits."""
    assert layout.parse_checkpoint_step(name) is None


def test_weight_files_are_recognised() -> None:
    """Weights, shards and indexes are what a loader picks up; optimizer and tokenizer are not."""
    weights = ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    assert all(map(layout.is_weight_file, [*weights, "adapter_model.safetensors", layout.shard_name(3, 12)]))
    assert not any(map(layout.is_weight_file, ["optimizer.safetensors", "tokenizer.json", "my-model.safetensors"]))
