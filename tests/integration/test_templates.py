"""Every template starts, and what looks for runs that would learn nothing raises no false alarm."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.config.layers import Given
from llmt.config.load import find_source, load_run, template_names
from llmt.config.run import TrainConfig
from llmt.training.sanity import WATCHED_RATE

SMALLER = (
    "model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=2", "model.num_attention_heads=8",
    "tokenizer.vocab_size=320",
)  # fmt: skip
"""What is shrunk of a template that makes a model."""

SHORTER = (
    "data.block_size=16", "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=2",
    "logging.sample_tokens=5", "training.compile=never", "threads=1",
)  # fmt: skip
"""What is shrunk of every template."""


def sets_of(name: str) -> list[str]:
    """The `--set` values that make a template small; nothing that moves a weight is among them."""
    makes_model = not load_run(find_source(name), environ={}).config.takes_newest
    return [*(SMALLER if makes_model else ()), *SHORTER]


@pytest.fixture
def place(finished: Any, tmp_path: Path) -> Path:
    """A directory with `text.txt`, a finished run for adapters, and what they learn."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished[0] / "runs" / "quickstart", tmp_path / "runs" / "quickstart")
    shutil.copy(finished[0] / "text.txt", tmp_path / "text.txt")
    pairs = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}, the ship said."} for n in range(400)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    compared = [{"prompt": f"{n}?", "chosen": f" {n % 7}.", "rejected": " no"} for n in range(400)]
    (tmp_path / "compared.jsonl").write_text("\n".join(map(json.dumps, compared)), encoding="utf-8")
    return tmp_path


def data_of(name: str) -> str:
    return {"lora": "pairs.jsonl", "sft": "pairs.jsonl", "dpo": "compared.jsonl"}.get(name, "text.txt")


@pytest.mark.parametrize("name", template_names())
def test_a_template_trains(inside: Any, place: Path, name: str) -> None:
    """Three steps, from the command line to a finished model: exit code 0, and no warning."""
    sets = [word for value in sets_of(name) for word in ("--set", value)]
    result = inside("train", name, "--data", data_of(name), *sets, "--max-steps", "3", "-o", "short", cwd=place)
    assert result.code == 0, result.err
    assert "warning" not in result.err, result.err
    assert "warning" not in result.out
    assert json.loads((place / "short" / "checkpoint-3" / "state.json").read_text())["step"] == 3


@pytest.fixture
def begun(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """The loop of a run, up to its first step."""
    from llmt.training.base import choose_base, with_base
    from llmt.training.build import build_trainer, prepare

    monkeypatch.chdir(place)
    threads = torch.get_num_threads()

    def begin(config: TrainConfig) -> Any:
        base = choose_base(config, None)
        prepared = prepare(
            with_base(config, base), place / "runs" / "long", base=base, resume=False, progress=lambda *_: None
        )
        return build_trainer(prepared, base=base)[0]

    yield begin
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", template_names())
def test_the_first_steps_of_a_long_run(begun: Callable[..., Any], name: str, precision: str) -> None:
    """Of a warm-up as long as that of a real run, whose first rates are the lowest; in both formats of a CPU."""
    flags = [Given("data.sources", [data_of(name)], "--data"), Given("training.max_steps", 20_000, "--max-steps"),
             Given("training.precision", precision, "--precision"), Given("device", "cpu", "--device")]  # fmt: skip
    loop = begun(load_run(find_source(name), flags=flags, sets=sets_of(name), environ={}).config)
    assert loop.guard is not None
    reports = list(islice(loop.run(), 3))
    assert [report.step for report in reports] == [1, 2, 3]
    assert [report.warnings for report in reports] == [()] * 3
    assert all(report.learning_rate >= WATCHED_RATE for report in reports), "lower ones are not watched"
