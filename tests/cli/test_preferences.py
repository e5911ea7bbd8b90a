"""Preferences through the commands: train, eval, data."""

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = ("--precision", "fp32", "--compile", "never", "--device", "cpu", "--sample-tokens", "0")


@pytest.fixture
def place(workplace: Path) -> Path:
    """A finished run to be the base, and pairs that are told apart by one word."""
    rows = [{"prompt": f"the sea {n % 9}", "chosen": " bright", "rejected": f" dark {n % 4}"} for n in range(60)]
    (workplace / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return workplace


def _values(result: Any) -> dict[str, Any]:
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def _refused(result: Any, code: int, *words: str) -> None:
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    error, hint = result.lines[-2:]
    assert (error[:7], hint[:6]) == ("error: ", "hint: ")
    for word in words:
        assert word in result.err, f"{word!r} is not in {result.err!r}"


def test_train_and_eval(inside: Any, place: Path) -> None:
    """The template trains on pairs; validation, the end and `llmt eval` say loss, accuracy and margin, all the same."""
    flags = ("--data", "pairs.jsonl", "--max-steps", "30", "--learning-rate", "1e-2", "--eval-steps", "10", *SMALL)
    said = inside("train", "dpo", *flags, cwd=place)
    assert said.code == 0, said.err
    assert "preference (prompt, chosen, rejected)" in said.err
    assert "documents kept apart and pairs together" in said.err
    assert "validation loss 0." in said.err
    assert "chosen preferred in 100.0 %" in said.err
    assert "chosen preferred in 100.0 %, reward margin" in said.out
    run = place / "runs" / "dpo-lora"
    assert (run / "adapter_model.safetensors").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    measured = [line for line in lines if "eval_loss" in line]
    assert measured[-1]["eval_reward_accuracy"] == 1.0
    record = json.loads((run / "result.json").read_text())
    values = _values(inside("eval", "runs/dpo-lora", "--json", cwd=place))
    assert values["loss"] == pytest.approx(record["validation_loss"], rel=1e-6)
    assert values["reward_margin"] == pytest.approx(record["validation_reward_margin"], rel=1e-6)
    assert (values["reward_accuracy"], values["data"]) == (1.0, "held-out part of pairs.jsonl")
    assert "perplexity" not in values
    table = inside("eval", "runs/dpo-lora", cwd=place)
    assert "chosen preferred" in table.out
    assert "per pair" in table.out
    swapped = [{"prompt": "the sea 3", "chosen": " dark 1", "rejected": " bright"}] * 3
    (place / "swapped.jsonl").write_text("\n".join(map(json.dumps, swapped)), encoding="utf-8")
    other = _values(inside("eval", "runs/dpo-lora", "--data", "swapped.jsonl", "--json", cwd=place))
    assert (other["reward_accuracy"], other["pairs"]) == (0.0, 3)
    assert other["reward_margin"] < 0 < other["loss"]
    text = _values(inside("eval", "runs/dpo-lora", "--data", "text.txt", "--text-column", "text", "--json", cwd=place))
    assert text["perplexity"] > 1
    _refused(
        inside("eval", "runs/quickstart", "--data", "pairs.jsonl", cwd=place), 2, "whole model", "--text-column chosen"
    )


def test_an_adapter_is_measured_as_its_own_run_did(inside: Any, place: Path) -> None:
    """Whether it is named itself or put on its base: its columns, its loss and its block size, not the base's."""
    rows = [{"q": f"the sea {n % 9}", "chosen": " bright", "rejected": f" dark {n % 4}"} for n in range(60)]
    (place / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = ("--data", "asked.jsonl", "--columns", "prompt=q", "--dpo-loss", "hinge", "--dpo-beta", "0.3",
             "--block-size", "30", "--learning-rate", "1e-2", "--max-steps", "5", *SMALL)  # fmt: skip
    said = inside("train", "dpo", *flags, cwd=place)
    assert said.code == 0, said.err
    for data in ((), ("--data", "asked.jsonl")):
        own = _values(inside("eval", "runs/dpo-lora", *data, "--json", cwd=place))
        put_on = _values(inside("eval", "runs/quickstart", "--adapter", "runs/dpo-lora", *data, "--json", cwd=place))
        assert put_on == own
        assert (own["block_size"], own["reward_accuracy"] > 0) == (30, True)
        assert own["loss"] == pytest.approx(1 - own["reward_margin"], rel=1e-4)


def test_pairs_that_are_too_long_are_measured_as_asked(inside: Any, place: Path) -> None:
    """`--truncation` leaves them out or cuts them, and says how many; without it what to type is in the hint."""
    rows = [{"prompt": "the sea", "chosen": " bright", "rejected": f" dark {n}"} for n in range(4)]
    (place / "more.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    rows[1]["chosen"] = " bright" * 400
    (place / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sft = ("--lora", "--data", "ask.jsonl", "--train-on-prompt", "--packing", "blocks", "--no-document-mask")
    asked = [{"question": f"Is it {n}?", "answer": f"It is {n}."} for n in range(200)]
    (place / "ask.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    said = inside("train", *sft, "--max-steps", "2", "--block-size", "32", *SMALL, cwd=place)
    assert said.code == 0, said.err
    measure = ("eval", "runs/lora", "--data")
    assert _values(inside(*measure, "more.jsonl", "--json", cwd=place))["pairs"] == 4
    _refused(inside(*measure, "long.jsonl", cwd=place), 3, "long.jsonl:2: a pair of", "--truncation truncate or drop")
    left = _values(inside(*measure, "long.jsonl", "--truncation", "drop", "--json", cwd=place))
    assert (left["pairs"], left["left_out"]) == (3, 1)
    cut = _values(inside(*measure, "long.jsonl", "--truncation", "truncate", "--json", cwd=place))
    assert (cut["pairs"], cut["cut_off"]) == (4, 1)
    assert "left out" in inside(*measure, "long.jsonl", "--truncation", "drop", cwd=place).out
    _refused(inside(*measure, "text.txt", "--truncation", "drop", cwd=place), 2, "cut into blocks", "leave it out")


def test_train_says_its_result_as_json(inside: Any, place: Path) -> None:
    """`--objective dpo` alone takes the template; `--json` holds the same numbers."""
    flags = ("--objective", "dpo", "--beta", "0.3", "--loss-type", "hinge", "--data", "pairs.jsonl", "--max-steps", "3")
    values = _values(inside("train", *flags, *SMALL, "--json", cwd=place))
    assert values["directory"] == str(Path("runs") / "dpo-lora")
    assert set(values["validation"]) == {"loss", "reward_accuracy", "reward_margin", "pairs", "tokens"}
    config = (place / "runs" / "dpo-lora" / "config.yaml").read_text()
    for line in ("objective: dpo", "dpo_beta: 0.3", "dpo_loss: hinge"):
        assert line in config


def test_what_cannot_be_compared(inside: Any, place: Path) -> None:
    """No pairs, other data, a whole model, pairs for another objective, and bad rows: each with its code and a hint."""
    before = sorted(path.name for path in (place / "runs").iterdir())
    _refused(inside("train", "dpo", *SMALL, cwd=place), 3, "none are built in", "--data PAIRS.jsonl")
    _refused(inside("train", "dpo", "--data", "text.txt", *SMALL, cwd=place), 3, "holds no pairs", "chosen")
    _refused(inside("train", "dpo", "--no-lora", "--data", "pairs.jsonl", *SMALL, cwd=place), 2, "--lora")
    _refused(inside("train", "--lora", "--data", "pairs.jsonl", *SMALL, cwd=place), 3, "--objective dpo")
    _refused(inside("train", "dpo", "--lora-bias", "all", "--data", "pairs.jsonl", cwd=place), 2, "lora.bias")
    _refused(inside("train", "dpo", "--data", "pairs.jsonl", "--packing", "blocks", *SMALL, cwd=place), 3, "best_fit")
    _refused(
        inside("train", "dpo", "--data", "pairs.jsonl", "--block-size", "8", *SMALL, cwd=place), 3, "a pair of",
        "--truncation truncate or drop",
    )  # fmt: skip
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}, {"prompt": "a", "chosen": " b", "rejected": " b"}]
    (place / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    _refused(inside("train", "dpo", "--data", "bad.jsonl", *SMALL, cwd=place), 3, "bad.jsonl:2", "'rejected'")
    assert sorted(path.name for path in (place / "runs").iterdir()) == before


def test_data_commands_know_pairs(inside: Any, place: Path) -> None:
    """The audit counts rows, and a sequence is shown as the chosen and the rejected text one after the other."""
    flags = ("--data", "pairs.jsonl", "--base", "runs/quickstart")
    audit = _values(inside("data", "audit", *flags, "--json", cwd=place))
    assert (audit["documents"], audit["pairs"]) == (60, 60)
    total = audit["trained"] + audit["masked"] + audit["dropped"] + audit["truncated"]
    assert total == audit["tokens"]
    shown = _values(inside("data", "inspect", *flags, "--rows", "1", "--packing", "none", "--json", cwd=place))
    (row,) = shown["rows"]
    said = [
        (stretch["kind"], stretch["text"]) for stretch in row["stretches"] if stretch["kind"] in ("masked", "trained")
    ]
    assert said[0] == said[2]
    assert said[1][1].startswith(" bright")
    assert said[3][1].startswith(" dark")
