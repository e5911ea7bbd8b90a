"""`--document-mask`: from the flag to the numbers."""

import json
from pathlib import Path
from typing import Any


def test_a_run_keeps_documents_apart_and_is_measured_so(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The mask changes what is learnt, survives a resume, and `llmt eval` finds the number that the run printed."""
    words = "the sea ship captain island storm wind night morning bird sailed over under through quiet dark"
    listed = words.split()
    rows = [json.dumps({"text": " ".join(listed[n % 7 : n % 7 + 9])}) for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    losses = {}
    for name, flag in (("apart", "--document-mask"), ("joined", "--no-document-mask")):
        arguments = ("quickstart", "--data", "rows.jsonl", *tiny, "--name", name, flag)
        result = inside("train", *arguments, "--max-steps", "4", "--save-steps", "2", "--json")
        assert result.code == 0, result.err
        losses[name] = json.loads(result.out)["validation"]["loss"]
        measured = inside("eval", f"runs/{name}", "--json")
        assert abs(json.loads(measured.out)["loss"] - losses[name]) < 1e-6
    assert losses["apart"] != losses["joined"]
    result = inside("train", "runs/apart", "--resume", "--max-steps", "6")
    assert result.code == 0, result.err
    assert inside("train", "runs/apart", "--resume", "--no-document-mask", "--max-steps", "8").code == 5
