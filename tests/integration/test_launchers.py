"""The commands of docs/distributed.md that start several processes: each trains the same run."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="gloo listens on the loopback interface by its Linux name"),
    pytest.mark.slow,  # each starts two processes that import torch, or three: 10 s and more
]

LIMIT = 240.0
MINE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def train(
    environment: dict[str, str], finished: Any, tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Train:
    """Run `LAUNCHER train ...` for two steps, and tell what came of it."""
    inherited = {name: value for name, value in environment.items() if name not in MINE}

    def run(*launcher: str, more: tuple[str, ...] = (), env: dict[str, str] | None = None) -> dict[str, Any]:
        where = tmp_path_factory.mktemp("launched")
        (where / "text.txt").write_bytes((finished[0] / "text.txt").read_bytes())
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "train", "quickstart", "--data", "text.txt", *tiny, *more,
             "--max-steps", "2", "--save-steps", "2", "--eval-steps", "1", "--distributed-timeout", "60"],
            cwd=where, env={**inherited, "GLOO_SOCKET_IFNAME": "lo", **(env or {})}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert os.listdir(where / "runs") == ["quickstart"]
        directory = where / "runs" / "quickstart"
        state = json.loads((directory / "checkpoint-2" / "state.json").read_text())
        validations = [line for line in done.stderr.splitlines() if "validation loss" in line]
        return {
            "weights": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
            "processes": state["fingerprint"]["processes"],
            "tokens": state["tokens"],
            "validations": validations,
            "models": done.stdout.count("model: "),
        }

    return run


@pytest.fixture(scope="module")
def own(train: Train) -> dict[str, Any]:
    """What `llmt train --num-processes 2` gives."""
    found = train("llmt", more=("--num-processes", "2"))
    assert found["processes"] == 2
    assert found["models"] == 1
    assert len(found["validations"]) == 2
    return found


def test_torchrun(train: Train, own: dict[str, Any]) -> None:
    """`torchrun -m llmt train`: the same weights, bit for bit; one process prints."""
    assert train("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llmt") == own


def test_accelerate_launch(train: Train, own: dict[str, Any]) -> None:
    """`accelerate launch -m llmt train`, on a CPU: the same weights, bit for bit; one process prints."""
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    assert train(*launcher, "-m", "llmt", env={"ACCELERATE_USE_CPU": "true"}) == own


def test_one_process_gives_other_weights(train: Train, own: dict[str, Any]) -> None:
    """What the comparison rests on: half the sequences of a step are another run."""
    alone = train("llmt")
    assert alone["processes"] == 1
    assert alone["weights"] != own["weights"]
    assert 2 * alone["tokens"] == own["tokens"]
