"""torch.compile, as a run uses it: exact resumes, and what happens where the compiler does not work."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from llmt.config.run import TrainConfig
from llmt.system.machine import find_compiler

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here: nothing can be compiled")


def compiled(lab: Any, **settings: Any) -> TrainConfig:
    """A run of four steps of a compiled model that is small enough to be compiled in seconds."""
    config: TrainConfig = lab.config(
        training__compile="always", training__max_steps=4, training__save_steps=2, training__eval_steps=2,
        model={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1,
               "hidden_dropout": 0.1},
        **settings,
    )  # fmt: skip
    return config


@pytest.fixture
def frames() -> Any:
    """How many pieces of code torch has compiled since this test began."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["frames"]["ok"]
    torch._dynamo.reset()


@pytest.mark.slow  # half a minute of compiling; that blocks compile at all is seen by tests/unit/models/test_apart.py
@needs_compiler
def test_a_compiled_run_resumes_exactly(lab: Any, frames: Any) -> None:
    """Four steps, and two with two more after a resume: the same bits. The losses are those of the eager run, which
    drops the same values.
    """
    whole = lab.run(compiled(lab), "whole")
    assert whole.prepared.plan.compile
    assert frames() >= 2  # the function that was tried, and a block; equal blocks share one
    before = frames()
    part = lab.run(compiled(lab), "parts", stop_after=2)
    assert len(part.reports) == 2
    torch._dynamo.reset()  # a resume is another process
    rest = lab.run(compiled(lab), "parts", resume=True)
    assert frames() > before
    assert [report.step for report in rest.reports] == [3, 4]
    assert rest.weights == whole.weights
    eager = lab.run(compiled(lab).model_copy(update={"training": compiled(lab).training.model_copy(
        update={"compile": "never"})}), "eager")  # fmt: skip
    for one, other in zip(eager.reports, whole.reports, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose C++ compiler does nothing but fail, and that has compiled nothing before."""
    false = shutil.which("false")
    if false is None:
        pytest.skip("there is no program that only fails")
    return {"CXX": false, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}


@pytest.mark.slow  # 15 s, of which most is torch.compile trying; `always` below tries the same in less
def test_a_broken_compiler_is_said_and_done_without(
    llmt: Any, broken: dict[str, str], text_file: Path, tiny: tuple[str, ...]
) -> None:
    """`auto`, of a run so long that compiling would pay: it is tried, the plan says why not, and the run trains."""
    long = ("--max-steps", "100000000", "--max-time", "1s", "--eval-strategy", "no", "--save-steps", "100000000")
    result = llmt(
        "train", "quickstart", "--data", "text.txt", *tiny, *long, "--compile", "auto", cwd=text_file.parent, env=broken
    )
    assert result.code == 0, result.err
    said = next(line.split() for line in result.lines if line.split()[:1] == ["compile"])
    assert said[1] == "false"
    assert " ".join(said[2:]).startswith("torch.compile failed: ")
    assert (text_file.parent / "runs" / "quickstart" / "model.safetensors").is_file()


def test_a_broken_compiler_that_was_asked_for_is_an_error(
    llmt: Any, broken: dict[str, str], text_file: Path, tiny: tuple[str, ...]
) -> None:
    """`always`: exit code 9 and two lines, before anything is trained."""
    flags = (*tiny, "--compile", "always", "--max-steps", "2")
    result = llmt("train", "quickstart", "--data", "text.txt", *flags, cwd=text_file.parent, env=broken)
    assert result.code == 9, result.err
    assert "Traceback" not in result.err
    error, hint = result.lines[-2:]
    assert error.startswith("error: training.compile always: torch.compile failed: ")
    assert hint == "hint: llmt train --compile auto"
    assert not list((text_file.parent / "runs" / "quickstart").glob("checkpoint-*"))
