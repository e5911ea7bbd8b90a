"""What the commands say and write when all goes well."""

import json
from pathlib import Path
from typing import Any

import pytest


def one_document(text: str) -> Any:
    """The JSON document that stdout holds, and nothing else."""
    return json.loads(text)


def test_training_says_what_it_does(finished: Any) -> None:
    """The plan with reasons, the steps and what comes next go to stderr; the result to stdout."""
    _, result = finished
    for word in ("plan", "device", "asked for", "loss", "validation loss", "best so far", "next"):
        assert word in result.err
    for line in ("llmt generate runs/quickstart", "llmt eval runs/quickstart", "llmt train runs/quickstart --resume"):
        assert line in result.err.replace("\\", "/")
    assert result.out.startswith("model: runs")
    assert "bits per byte" in result.out


def test_eval_finds_the_number_that_the_run_printed(inside: Any, finished: Any) -> None:
    """`llmt eval RUN` on the run's own held-out text gives the run's bits per byte."""
    directory, _ = finished
    record = json.loads((directory / "runs" / "quickstart" / "result.json").read_text())
    values = one_document(inside("eval", "runs/quickstart", "--json", cwd=directory).out)
    assert values["bits_per_byte"] == pytest.approx(record["validation_bits_per_byte"], abs=1e-6)
    checkpoint = f"runs/quickstart/checkpoint-{record['step']}"
    of_checkpoint = one_document(inside("eval", checkpoint, "--json", cwd=directory).out)
    assert of_checkpoint["bits_per_byte"] == values["bits_per_byte"]


def test_eval_writes_its_result(inside: Any, finished: Any, tmp_path: Path) -> None:
    """`--output` gets the values, the table goes to stdout, and a part of the text has no bits per byte."""
    target = tmp_path / "deep" / "eval.json"
    arguments = ("eval", "runs/quickstart", "--data", "text.txt", "--max-batches", "1", "--output", str(target))
    result = inside(*arguments, cwd=finished[0])
    assert result.code == 0, result.err
    assert "perplexity" in result.out
    values = json.loads(target.read_text())
    assert values["bits_per_byte"] is None
    assert values["data"] == "text.txt"


def test_every_command_has_one_json_document(inside: Any, workplace: Path, tiny: tuple[str, ...]) -> None:
    """With `--json`, stdout holds one document and nothing else, for every command."""
    import torch

    torch.save({"w": torch.ones(3)}, workplace / "w.pt")
    commands = (
        "config show", "config schema", "config template", "config template quickstart", "doctor",
        "tokenizer train text.txt --vocab-size 290 -o tok", "tokenizer inspect tok word", "convert w.pt",
        "eval runs/quickstart", "generate runs/quickstart -p a -n 3", "train quickstart --data text.txt --plan",
    )  # fmt: skip
    for command in commands:
        result = inside(*command.split(), "--json", cwd=workplace)
        assert result.code == 0, (command, result.err)
        assert one_document(result.out), command
    trained = inside(
        "train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "1", "-o", "o", "--json", cwd=workplace
    )
    values = one_document(trained.out)
    assert (values["directory"], values["step"]) == ("o", 1)
    assert values["validation"]["bits_per_byte"] > 0


def test_quiet_says_nothing_on_stderr(inside: Any, workplace: Path, tiny: tuple[str, ...]) -> None:
    """`--quiet` leaves the result alone on stdout."""
    for command in (
        ["train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "1", "-o", "o"],
        ["generate", "runs/quickstart", "-p", "a", "-n", "3"],
        ["eval", "runs/quickstart"],
        ["tokenizer", "train", "text.txt", "--vocab-size", "290", "-o", "t"],
        ["config", "show", "--batch-size", "2"],
    ):
        result = inside(*command, "--quiet", cwd=workplace)
        assert (result.code, result.err) == (0, ""), command
        assert result.out.strip(), command


def test_the_plan_writes_nothing(inside: Any, text_file: Path, tiny: tuple[str, ...], listing_of: Any) -> None:
    """`--plan` shows every decision with its reason and stops."""
    before = listing_of(text_file.parent)
    result = inside("train", "quickstart", "--data", "text.txt", *tiny, "--plan", cwd=text_file.parent)
    assert result.code == 0
    for word in ("micro_batch", "accumulation", "threads", "num_workers", "gloo", "steps"):
        assert word in result.err
    assert listing_of(text_file.parent) == before


def test_config_show_names_the_origin_of_every_value(inside: Any, tmp_path: Path) -> None:
    """The later layer wins, and `--origin` says which it was."""
    (tmp_path / "mine.yaml").write_text("template: quickstart\nseed: 1\ntraining:\n  max_steps: 5\n", encoding="utf-8")
    env = {"LLMT_TRAINING__MAX_STEPS": "6", "LLMT_DATA__BLOCK_SIZE": "64"}
    result = inside("config", "show", "mine.yaml", "--origin", "--set", "training.max_steps=7", "--lr", "1e-3", env=env)
    assert result.code == 0, result.err
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()[1:]}
    assert rows["training.max_steps"] == ["7", "--set", "training.max_steps"]
    assert rows["data.block_size"] == ["64", "LLMT_DATA__BLOCK_SIZE"]
    assert rows["seed"][0] == "1"
    assert rows["seed"][1].startswith("mine.yaml:2")
    assert rows["training.learning_rate"][0] == "0.001"
    assert "quickstart" in " ".join(rows["model.hidden_size"])
    assert "learning_rate" in result.err  # the alias is told once


def test_config_show_is_a_configuration(inside: Any, tmp_path: Path) -> None:
    """What `config show` prints can be trained with: it reads back as itself."""
    shown = inside("config", "show", "cpu-small", "--max-steps", "3")
    (tmp_path / "again.yaml").write_text(shown.out, encoding="utf-8")
    again = inside("config", "show", "again.yaml")
    assert again.out == shown.out


def test_templates_are_listed_and_printed(inside: Any, tmp_path: Path) -> None:
    """Every template that is listed can be printed, and every one of a run can be shown."""
    names = inside("config", "template").out.split()
    assert {"quickstart", "lora", "cpu-small", "cpu-medium", "gpu-small", "gpu-medium"} <= set(names)
    for name in names:
        assert inside("config", "template", name).out.startswith("#")
        if not name.startswith("tokenizer/"):
            assert inside("config", "show", name).code == 0


def test_config_schema_is_a_json_schema(inside: Any) -> None:
    """The schema describes every section."""
    schema = one_document(inside("config", "schema").out)
    assert {"model", "tokenizer", "data", "training", "lora", "logging"} <= set(schema["properties"])


def test_tokenizer_inspect_shows_the_pieces(inside: Any, finished: Any) -> None:
    """The pieces of a text are shown in order, as a table and as JSON."""
    table = inside("tokenizer", "inspect", "runs/quickstart", "the captain sailed", cwd=finished[0])
    assert table.code == 0, table.err
    assert "characters per token" in table.out
    values = one_document(
        inside("tokenizer", "inspect", "runs/quickstart", "the captain sailed", "--json", cwd=finished[0]).out
    )
    pieces = [piece for piece, _ in values["segmentation"]]
    assert all(piece in table.out for piece in pieces)
    limited = inside("tokenizer", "inspect", "runs/quickstart", "the sea", "--limit", "1", "--json", cwd=finished[0])
    assert len(one_document(limited.out)["segmentation"]) == 1


def test_tokenizer_train_does_not_replace_unasked(inside: Any, text_file: Path) -> None:
    """A tokenizer that stands there is exit 10; `--overwrite` replaces it."""
    arguments = ("tokenizer", "train", "text.txt", "--vocab-size", "290", "-o", "t")
    assert inside(*arguments, cwd=text_file.parent).code == 0
    assert inside(*arguments, cwd=text_file.parent).code == 10
    assert inside(*arguments, "--overwrite", cwd=text_file.parent).code == 0
    assert {path.name for path in text_file.parent.iterdir()} == {"t", "text.txt"}


def test_generate_from_every_kind_of_prompt(inside: Any, finished: Any, tmp_path: Path) -> None:
    """Prompts come from flags, from a file and from standard input; the same seed writes the same text."""
    where = finished[0]
    (tmp_path / "prompts.txt").write_text("the sea\n\nthe ship\n", encoding="utf-8")
    file = str(tmp_path / "prompts.txt")
    base = ("generate", "runs/quickstart", "-n", "4", "--json")
    both = one_document(inside(*base, "-p", "a, b", "-p", "c", "--prompts-file", file, cwd=where).out)["results"]
    assert [item["prompt"] for item in both] == ["a, b", "c", "the sea", "the ship"]
    piped = one_document(inside(*base, cwd=where, stdin="the sea\n").out)["results"]
    assert piped == [item for item in both if item["prompt"] == "the sea"]
    alone = one_document(inside(*base, cwd=where).out)["results"]
    assert [item["prompt"] for item in alone] == [""]
    several = one_document(inside(*base, "-p", "a", "--num-return-sequences", "3", cwd=where).out)["results"]
    assert len({item["text"] for item in several}) == 3
    greedy = [inside(*base, "-p", "a", "--temperature", "0", "--seed", seed, cwd=where).out for seed in "12"]
    assert greedy[0] == greedy[1]


def test_generate_from_stray_bytes(inside: Any, finished: Any, tmp_path: Path) -> None:
    """Those of a pipe are refused as in any file; those of the command line come back as they were."""
    target = tmp_path / "out.jsonl"
    base = ("generate", "runs/quickstart", "-n", "4", "--output", str(target))
    refused = inside(*base, cwd=finished[0], stdin="a\udcff")
    assert (refused.code, refused.lines[0]) == (3, "error: standard input: not UTF-8")
    assert inside(*base, "-p", "a\udcff", cwd=finished[0]).code == 0
    assert json.loads(target.read_text(encoding="utf-8"))["prompt"] == "a\udcff"


def test_generate_writes_a_file(inside: Any, finished: Any, tmp_path: Path) -> None:
    """`--output` gets one object a line; stdout shows the prompt and what follows it."""
    target = tmp_path / "out.jsonl"
    result = inside("generate", "runs/quickstart", "-p", "the", "-n", "4", "--output", str(target), cwd=finished[0])
    item = json.loads(target.read_text(encoding="utf-8"))
    assert item["prompt"] == "the"
    assert result.out == item["prompt"] + item["text"] + "\n"
    refused = inside("generate", "runs/quickstart", "--output", str(tmp_path / "no" / "x"), cwd=finished[0])
    assert refused.code == 2
    assert len(refused.lines) == 2


def test_a_finished_run_goes_on(inside: Any, workplace: Path) -> None:
    """The last line that a run prints works: more steps from where it ended."""
    result = inside("train", "runs/quickstart", "--resume", "--max-steps", "16", cwd=workplace)
    assert result.code == 0, result.err
    assert "resuming at step 12 of 16" in result.err
    assert json.loads((workplace / "runs" / "quickstart" / "result.json").read_text())["steps"] == 16


def test_debug_shows_the_traceback(inside: Any, tmp_path: Path) -> None:
    """`--debug`, before or after the command, adds the traceback to the two lines."""
    for arguments in (("--debug", "generate", "none"), ("generate", "none", "--debug")):
        result = inside(*arguments)
        assert result.code == 4
        assert "Traceback" in result.err
        assert result.lines[-1].startswith("hint: ")
