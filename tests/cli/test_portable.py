"""`portable_numerics`: what a processor could do better does not change the bits."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmt.system.machine import PORTABLE


def _cpu(run: Path) -> str:
    """The instructions that the last checkpoint was computed with."""
    found: str = json.loads((run / "checkpoint-4" / "state.json").read_text())["fingerprint"]["cpu"]
    return found


def test_the_processor_does_not_count(llmt: Any, text_file: Path, tiny: tuple[str, ...]) -> None:
    """Whatever instructions are chosen from outside, a run computes with plain ones, and says what that costs."""
    where, weights = text_file.parent, []
    command = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "4", "--compile", "auto")
    for name, capability in (("one", "avx2"), ("other", "")):
        outside = {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        result = llmt(*command, "--portable-numerics", "-o", name, cwd=where, env=outside)
        assert result.code == 0, result.err
        assert "compiled code is made for this processor" in result.err
        assert _cpu(where / name) == "DEFAULT"
        weights.append((where / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    refused = llmt("train", "one", "--resume", "--no-portable-numerics", cwd=where)
    assert refused.code == 5, refused.err
    assert "portable_numerics: True -> False" in refused.err


def test_it_comes_before_torch(inside: Any, tiny: tuple[str, ...], text_file: Path) -> None:
    """In a process that has loaded torch it is refused, with what to set before."""
    result = inside("train", "quickstart", "--data", "text.txt", *tiny, "--portable-numerics", cwd=text_file.parent)
    assert result.code == 2
    for name, value in PORTABLE.items():
        assert f"{name}={value}" in result.err


@pytest.mark.parametrize("more", [("--compile", "always"), ("--device", "cuda")])
def test_what_it_excludes(inside: Any, more: tuple[str, ...]) -> None:
    """Compiled code and other devices are refused where they are named beside it."""
    result = inside("train", "--portable-numerics", *more)
    assert result.code == 2
    assert "portable_numerics" in result.err
