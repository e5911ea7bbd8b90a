"""torch.compile, as a run uses it: exact resumes, and what happens where the compiler does not work."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from llmt.config.model import ModelConfig
from llmt.config.run import TrainConfig
from llmt.models.transformer import Block, TransformerLM
from llmt.system.machine import find_compiler
from llmt.training.model import FRUGAL

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


def parts_of(block: Block, model: TransformerLM, settings: dict[str, bool]) -> dict[str, Any]:
    """How torch divides a block between its passes: bytes kept, products and draws of either. Nothing is compiled."""
    from functorch.compile import aot_module, make_boxed_func, min_cut_rematerialization_partition
    from torch._functorch import config as functorch
    from torch._inductor.decomposition import select_decomp_table

    found: dict[str, Any] = {}

    def look(name: str) -> Any:
        def seen(graph: torch.fx.GraphModule, _: Any) -> Any:
            called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
            kept = graph.graph.find_nodes(op="output")[0].args[0][1:]
            found[name] = {
                "products": sum("aten.mm" in one or "aten.bmm" in one for one in called),
                "widest": max(node.meta["val"].numel() for node in kept if hasattr(node, "meta") and "val" in node.meta
                              and isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].is_floating_point()),
                "draws": sum("draw_bits" in one for one in called),
                "kept": sum(node.meta["val"].nbytes for node in kept if hasattr(node, "meta") and "val" in node.meta
                            and isinstance(node.meta["val"], torch.Tensor)),
            }  # fmt: skip
            return make_boxed_func(graph.forward)

        return seen

    hidden = torch.randn(4, 128, 64, dtype=torch.bfloat16, requires_grad=True)
    with functorch.patch(settings):
        traced = aot_module(
            block, fw_compiler=look("forward"), bw_compiler=look("backward"),
            partition_fn=min_cut_rematerialization_partition, decompositions=select_decomp_table(),
        )  # fmt: skip
        traced(hidden, model._rotation(torch.arange(128), hidden.dtype)).sum().backward()
    return found


def test_a_compiled_block_keeps_less_and_repeats_neither_products_nor_draws() -> None:
    shape = ModelConfig(hidden_size=64, intermediate_size=176, num_hidden_layers=1, num_attention_heads=2,
                        attention_dropout=0.1, hidden_dropout=0.1)  # fmt: skip
    model = TransformerLM(shape, 64).to(torch.bfloat16)
    block = model.model.layers[0]
    assert isinstance(block, Block)
    plain, frugal = (parts_of(block, model, settings) for settings in ({}, FRUGAL))
    assert frugal["forward"]["kept"] < 0.8 * plain["forward"]["kept"]
    assert frugal["forward"]["widest"] == 4 * 128 * 176  # the gates; the scores would be 4 x 2 x 128 x 128
    assert frugal["forward"]["draws"] == 3  # the attention weights, and two on the way back into the residual stream
    assert frugal["backward"]["draws"] == 0
    for name in ("forward", "backward"):
        assert frugal[name]["products"] == plain[name]["products"]


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
