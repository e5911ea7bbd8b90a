"""two processes over gloo, one process alone -> the same gradients, and the same samples in the same order.

Run as a program, it is one of these processes: it prints what it found as JSON.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.lab import TEXT

LARGEST = 1e-6
"""Difference of a gradient to that of one process on the whole batch, as a share of the norm of all of them."""

WORLD, ROWS, STEPS, LIMIT = 2, 4, 4, 120
VOCABULARY, LENGTH = 50, 12


def window(step: int, rows: int) -> list[Any]:
    """The batches of a step, of some rows each; lengths are uneven, and of one step half has nothing to learn."""
    import torch

    from llmt.data.batch import IGNORED, Batch

    choose = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=choose)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=choose)
    labels[0, 3:] = labels[1, 1:] = IGNORED
    if step == 1:
        labels[1::2] = IGNORED
    parts = [slice(first, first + rows) for first in range(0, ROWS, rows)]
    return [Batch(ids[part], labels[part], int((labels[part] != IGNORED).sum())) for part in parts]


def gradients(runtime: Any, rows: int) -> list[dict[str, Any]]:
    """The gradients of some steps, each followed by a move of the weights."""
    import torch

    from llmt.config.model import ModelConfig
    from llmt.config.training import TrainingConfig
    from llmt.models.transformer import TransformerLM
    from llmt.training.optim import Optimizer
    from llmt.training.step import Stepper

    torch.manual_seed(0)
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    model = TransformerLM(shape, VOCABULARY, LENGTH)
    optimizer = Optimizer(model, TrainingConfig(optimizer="sgd"))
    runtime.prepare(model, optimizer)
    stepper, kept = Stepper(model, optimizer, 0, runtime), []
    for step in range(STEPS):
        own = window(step, rows)[runtime.rank :: runtime.world_size]
        tokens = round(runtime.total(sum(batch.tokens for batch in own))[0])
        stepper.gradients(own, step, tokens, None)
        kept.append({weight.name: weight.master.grad.clone() for weight in optimizer.weights})
        optimizer.set_rate(1.0)
        optimizer.step()
    return kept


def difference(found: list[dict[str, Any]], whole: list[dict[str, Any]]) -> float:
    """The largest difference of a gradient, as a share of the norm of all gradients of its step."""
    import torch

    shares = []
    for some, expected in zip(found, whole, strict=True):
        norm = float(torch.nn.utils.get_total_norm(expected.values()))
        shares += [float((some[name] - expected[name]).abs().max()) / norm for name in expected]
    return max(shares)


def stream(rank: int, world: int, rows: int) -> list[str]:
    """The hash of each sample that a process trains on, in order, over more than one epoch of the text."""
    from llmt.data.loader import BatchLoader
    from llmt.data.mixture import TrainingSet
    from llmt.data.texts import LanguageModelingDataset
    from llmt.tokenizers.bpe import ByteTokenizer

    blocks = LanguageModelingDataset([TEXT], ByteTokenizer(), LENGTH)
    loader = BatchLoader(TrainingSet((blocks.sequences,)), rows, 42, rank=rank, world_size=world)
    batches, found = loader.batches(), list[str]()
    while len(found) * world < 2 * len(blocks):
        batch = next(batches)
        rowed = zip(batch.input_ids, batch.labels, strict=True)
        found += [hashlib.sha256(i.numpy().tobytes() + t.numpy().tobytes()).hexdigest() for i, t in rowed]
    return found


def main() -> None:
    """Be one of the processes, and then one alone."""
    import torch

    from llmt.training.runtime import AcceleratedRuntime, Runtime

    torch.set_num_threads(1)
    runtime = AcceleratedRuntime("cpu", "gloo", WORLD, timeout=LIMIT, hint="again")
    found = difference(gradients(runtime, ROWS // WORLD), gradients(Runtime(), ROWS))
    own = stream(runtime.rank, WORLD, 1)
    runtime.close()
    print(json.dumps({"difference": found, "samples": own, "whole": stream(0, 1, ROWS)}))


def compare(root: Path) -> tuple[float, str, str]:
    """The largest difference of a gradient; the hashes of the samples of two processes in turn, and of one alone.

    Raises:
        RuntimeError: A process failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
                "PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(root)}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "harness.together"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root,
            env={**os.environ, **settings, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=2 * LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError(f"two processes: {said}")
    values = [json.loads(out.splitlines()[-1]) for out, _ in said]
    turns = [sample for turn in zip(*(value["samples"] for value in values), strict=True) for sample in turn]
    whole = values[0]["whole"][: len(turns)]
    return max(value["difference"] for value in values), _hash(turns), _hash(whole)


def _hash(samples: list[str]) -> str:
    return hashlib.sha256("".join(samples).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
