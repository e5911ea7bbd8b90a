"""Five layers, one configuration, every problem at once."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from llmt.config.layers import Given, Loaded
from llmt.config.load import ConfigSource, dump_config, load_run, load_task, read_environment
from llmt.config.run import TrainConfig
from llmt.config.tasks import TASKS, EvalSettings, GenerateSettings, TokenizerTrainSettings
from llmt.errors import ConfigError


def load(
    tmp_path: Path, text: str = "", environ: Mapping[str, str] | None = None, flags: Any = (), sets: Any = ()
) -> Loaded[TrainConfig]:
    """A run from a file of this text."""
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_run(ConfigSource("run", path=path), environ=environ or {}, flags=flags, sets=sets)


def problems(tmp_path: Path, text: str = "", **layers: Any) -> list[str]:
    """What is wrong with a run from a file of this text; the folder is left out."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **layers)
    return [problem.replace(f"{tmp_path}/", "").replace(f"{tmp_path}\\", "") for problem in caught.value.problems]


LAYERS = ("default", "template", "file", "environment", "flag", "set")


PAIRS = [pair for pair in combinations(LAYERS, 2) if pair != ("flag", "set")]


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_the_upper_layer_wins(tmp_path: Path, lower: str, upper: str) -> None:
    """Of every pair of layers the later one decides, and the origin is its place; a flag and `--set` are one."""
    present = {lower, upper}
    text = ("template: quickstart\n" if "template" in present else "") + ("seed: 3\n" if "file" in present else "")
    if "template" in present:  # the template says 42, which is the default: ask for a setting where they differ
        text = text.replace("seed: 3", "training: {learning_rate: 3}")
    name = "training.learning_rate" if "template" in present else "seed"
    loaded = load(
        tmp_path,
        text,
        environ={f"LLMT_{name.upper().replace('.', '__')}": "4"} if "environment" in present else {},
        flags=[Given(name, "5", "--flag")] if "flag" in present else (),
        sets=[f"{name}=6"] if "set" in present else (),
    )
    values = {"template": 6e-3, "file": 3, "environment": 4, "flag": 5, "set": 6}
    found = loaded.config.training.learning_rate if "template" in present else loaded.config.seed
    assert found == values[upper]
    place = loaded.origins[name]
    starts = {"template": "template quickstart:", "file": str(tmp_path), "environment": "LLMT_", "flag": "--flag"}
    assert place.startswith(starts.get(upper, f"--set {name}"))


def test_a_file_names_the_template_below_it(tmp_path: Path) -> None:
    """`template: cpu-small` in a file is that template with the file's settings on top."""
    loaded = load(tmp_path, "template: cpu-small\nseed: 7\n")
    assert loaded.config.model.hidden_size != TrainConfig().model.hidden_size
    assert loaded.config.seed == 7


def test_a_template_may_stand_on_another(tmp_path: Path) -> None:
    """The tokenizer templates take everything else from quickstart."""
    loaded = load(tmp_path, "template: tokenizer/wordpiece")
    assert loaded.config.tokenizer.algo == "wordpiece"
    assert loaded.origins["tokenizer.algo"].startswith("template tokenizer/wordpiece:")
    assert loaded.origins["training.max_steps"].startswith("template quickstart:")


def test_an_unknown_template_is_one_of_the_problems(tmp_path: Path) -> None:
    """A file with a wrong template is told so by line, together with everything else."""
    assert problems(tmp_path, "seed: x\ntemplate: quickstrat\n") == [
        "run.yaml:2:1: template: quickstrat: no such template or file, did you mean quickstart?",
        "run.yaml:1:1: seed: 'x' is not a count; write 5000, 5k or 10M",
    ]


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    """One run of the command shows all that is wrong, each with its place."""
    found = problems(
        tmp_path,
        "training:\n  learning_rat: 1\n  max_steps: -5\nmodel:\n  hidden_size: many\n",
        environ={"LLMT_SEED": "1.5", "LLMT_NOTHING": "1", "LLMT_NAME": "[a"},
        flags=[Given("device", "tpu", "--device")],
        sets=["nonsense", "data.block_size=1"],
    )
    starts = {
        "run.yaml:2:3: training.learning_rat: unknown key, did you mean learning_rate?",
        "run.yaml:3:3: training.max_steps: should be greater than 0, not -5",
        "run.yaml:5:3: model.hidden_size: 'many' is not a count",
        "LLMT_SEED: seed: must be a whole number, not 1.5",
        "LLMT_NOTHING: nothing: unknown key",
        "LLMT_NAME: value:1:3: ",
        "--device: device: should be 'auto', 'cpu', 'cuda' or 'mps', not 'tpu'",
        "--set nonsense: write key=value",
        "--set data.block_size: data.block_size: should be greater than 1, not 1",
    }
    assert len(found) == len(starts)
    assert all(any(problem.startswith(start) for problem in found) for start in starts), found


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.learning_rat", "learning_rate"),
        ("training.max_stpes", "max_steps"),
        ("max_stpes", "training.max_steps"),
        ("learning_rat", "training.learning_rate"),
        ("modle.hidden_size", "model.hidden_size"),
        ("model.hiden_size", "hidden_size"),
        ("modle", "model"),
        ("trainig", "training"),
        ("devcie", "device"),
        ("ouput_dir", "output_dir"),
        ("training.hidden_size", "model.hidden_size"),
        ("batchsize", "batch_size"),
        ("lora.rnk", "rank"),
        ("data.block_sizes", "block_size"),
    ],
)
def test_a_mistyped_key_gets_a_suggestion(tmp_path: Path, key: str, meant: str) -> None:
    """The nearest name is suggested, in a file, in the environment and in `--set`."""
    wanted = f"{key}: unknown key, did you mean {meant}?"
    assert problems(tmp_path, f"{key}: 1") == [f"run.yaml:1:1: {wanted}"]
    assert problems(tmp_path, sets=[f"{key}=1"]) == [f"--set {key}: {wanted}"]
    variable = "LLMT_" + key.upper().replace(".", "__")
    assert problems(tmp_path, environ={variable: "1"}) == [f"{variable}: {wanted}"]


def test_a_key_that_is_like_nothing_gets_no_suggestion(tmp_path: Path) -> None:
    """Where no name is near, none is guessed."""
    assert problems(tmp_path, "zzzzqqqq: 1") == ["run.yaml:1:1: zzzzqqqq: unknown key"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: true", "seed: must be a whole number, not True"),
        ("seed: 1.0", "seed: must be a whole number, not 1.0"),
        ("seed: null", "seed: must be a whole number, not null"),
        ("seed: -1", "seed: should be greater than or equal to 0, not -1"),
        ("seed: [1]", "seed: must be a whole number, not [1]"),
        ("seed: " + "9" * 5000, "seed: a number of 5000 digits is too long"),
        ("seed: 9223372036854775808", "seed: should be less than or equal to 9223372036854775807"),
        ("seed: 1k5", "seed: '1k5' is not a count"),
        ("training: {learning_rate: NaN}", "training.learning_rate: should be greater than or equal to 0, not 'NaN'"),
        ("training: {learning_rate: .nan}", "training.learning_rate: '.nan' is not a number"),
        ("training: {learning_rate: inf}", "training.learning_rate: should be a finite number"),
        ("training: {learning_rate: 1e999}", "training.learning_rate: should be a finite number"),
        ("training: {learning_rate: true}", "training.learning_rate: must be a number, not True"),
        ("training: {learning_rate: '1e-4x'}", "training.learning_rate: '1e-4x' is not a number"),
        ("training: {adam_beta1: 1}", "training.adam_beta1: should be less than 1"),
        ("training: {max_time: 0}", "training.max_time: should be greater than 0"),
        ("training: {max_time: soon}", "training.max_time: 'soon' is not a duration"),
        (
            "training: {gradient_checkpointing: yes}",
            "training.gradient_checkpointing: must be true or false, not 'yes'",
        ),
        ("training: {gradient_checkpointing: 1}", "training.gradient_checkpointing: must be true or false, not 1"),
        (
            "training: {gradient_checkpointing: off}",
            "training.gradient_checkpointing: must be true or false, not 'off'",
        ),
        ("training: {precision: fp8}", "training.precision: should be 'auto', 'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ("name: [a]", "name: must be text"),
        ("name: true", "name: must be text, not True"),
        ("data: {sources: [[a]]}", "data.sources: must be text"),
        ("data: {sources: {a: b}}", "data.sources: must be a list"),
        ("data: {sources: true}", "data.sources: must be a list"),
        ("training: 5", "training: is a group of settings, not one value"),
        ("training: [max_steps]", "training: is a group of settings, not one value"),
        ("device: {name: cpu}", "device.name: unknown key"),
        ("training: {max_steps: {a: 1}}", "training.max_steps: must be a whole number"),
    ],
)
def test_wrong_values_are_refused_in_plain_words(tmp_path: Path, text: str, problem: str) -> None:
    """No silent rounding, no yes and no, no NaN, no numbers out of range; one line each, never a long one."""
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith("run.yaml:1:")
    assert problem in found[0]
    assert len(found[0]) < 200


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training: {max_steps: 10_000}", "training.max_steps", 10_000),
        ("training: {max_steps: 5k}", "training.max_steps", 5000),
        ("training: {max_tokens: 10M}", "training.max_tokens", 10_000_000),
        ("training: {max_steps: '12'}", "training.max_steps", 12),
        ("training: {max_steps: 010}", "training.max_steps", 10),
        ("training: {learning_rate: 1e-4}", "training.learning_rate", 1e-4),
        ("training: {learning_rate: '3e-4'}", "training.learning_rate", 3e-4),
        ("training: {learning_rate: 1}", "training.learning_rate", 1.0),
        ("training: {max_time: 1h30m}", "training.max_time", 5400.0),
        ("training: {max_time: 90}", "training.max_time", 90.0),
        ("training: {gradient_checkpointing: TRUE}", "training.gradient_checkpointing", True),
        ("training: {precision: fp16}", "training.precision", "fp16"),
        ("training: {max_steps: null}", "training.max_steps", None),
        ("name: 007", "name", "007"),
        ("name: 2024", "name", "2024"),
        ("name: yes", "name", "yes"),
        ("data: {sources: a.txt}", "data.sources", ("a.txt",)),
        ("data: {sources: 'a.txt, b.txt'}", "data.sources", ("a.txt", "b.txt")),
        ("data: {sources: [a.txt, 'b,c.txt', 5]}", "data.sources", ("a.txt", "b,c.txt", "5")),
        ("training.max_steps: 5", "training.max_steps", 5),
        ("max_steps: 5", "training.max_steps", 5),
        ("training:\n", "training.max_steps", None),
    ],
)
def test_right_values_are_read(tmp_path: Path, text: str, path: str, value: Any) -> None:
    """Every spelling of a quantity that people type is that quantity."""
    found: Any = load(tmp_path, text).config
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_problems_between_settings_name_their_places(tmp_path: Path) -> None:
    """Two settings that do not fit are one problem, with the places of both."""
    text = "model:\n  hidden_size: 250\n  num_attention_heads: 4\n"
    assert problems(tmp_path, text) == [
        "run.yaml:2:3, run.yaml:3:3: model: hidden_size 250 is not a multiple of num_attention_heads 4"
    ]


@pytest.mark.parametrize(
    ("text", "sets", "where"),
    [
        ("training:\n  max_steps: 5\nmax_steps: 6\n", [], "run.yaml:3:1: max_steps: contradicts run.yaml:2:3"),
        ("lr: 1\ntraining: {learning_rate: 2}", [], "run.yaml:2:12: training.learning_rate: contradicts run.yaml:1:1"),
        ("", ["seed=1", "seed=2"], "--set seed: seed: contradicts --set seed"),
        ("force_cpu: true\ndevice: cuda", [], "run.yaml:2:1: device: contradicts run.yaml:1:1"),
        ("bf16: true\nuse_amp: false", [], "run.yaml:2:1: use_amp: contradicts run.yaml:1:1"),
        ("bf16: true\nfp16: true", [], "run.yaml:2:1: fp16: contradicts run.yaml:1:1"),
    ],
)
def test_two_spellings_that_disagree_are_a_problem(tmp_path: Path, text: str, sets: list[str], where: str) -> None:
    """Within one layer a setting has one value, whatever it is called."""
    assert problems(tmp_path, text, sets=sets) == [where]


def test_two_spellings_that_agree_are_none(tmp_path: Path) -> None:
    """The same value twice is no contradiction."""
    assert load(tmp_path, "lr: 0.5\nlearning_rate: 0.5").config.training.learning_rate == 0.5


def test_the_environment_of_the_process_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stand-in, the variables of the process are the layer; others are not looked at."""
    monkeypatch.setenv("LLMT_TRAINING__MAX_STEPS", "12")
    monkeypatch.setenv("TRAINING__MAX_STEPS", "13")
    assert load_run(ConfigSource("q", template="quickstart")).config.training.max_steps == 12


def test_variables_reach_every_field() -> None:
    """`LLMT_<SECTION>__<FIELD>` is the dotted name, and lists are separated by commas."""
    environ = {"LLMT_LORA__TARGET_MODULES": "q_proj,v_proj", "LLMT_OUTPUT_DIR": "out", "LLMT_LORA__R": "4"}
    config = load_run(ConfigSource("q", template="quickstart"), environ=environ).config
    assert (config.lora.target_modules, config.output_dir, config.lora.r) == (("q_proj", "v_proj"), "out", 4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["LLMT_NOTHING", "LLMT_TRAINING__MAX_STPES", "LLMT_EVAL__NOTHING", "LLMT_DOCTOR"])
def test_an_unknown_variable_stops_every_command(task: str, name: str) -> None:
    """No command runs beside a variable that it would not have read."""
    with pytest.raises(ConfigError) as caught:
        load_task(task, TASKS[task], environ={name: "1"})
    assert [problem for problem in caught.value.problems if problem.startswith(f"{name}: ")]


def test_variables_of_other_commands_do_not_stop_a_run() -> None:
    """`LLMT_EVAL__*` is known to `train`, which has no use for it."""
    environ = {"LLMT_EVAL__BATCH_SIZE": "4", "LLMT_GENERATE__TOP_K": "3"}
    assert load_run(ConfigSource("q", template="quickstart"), environ=environ).config.seed == 42


def test_variables_reach_the_settings_of_a_command() -> None:
    """`LLMT_<COMMAND>__<FIELD>` is a setting of that command, and a flag stands above it."""
    environ = {"LLMT_EVAL__BATCH_SIZE": "4", "LLMT_EVAL__MAX_BATCHES": "2", "LLMT_GENERATE__TOP_K": "9"}
    loaded = load_task("eval", EvalSettings, environ=environ, flags=[Given("max_batches", "3", "--max-batches")])
    assert (loaded.config.batch_size, loaded.config.max_batches) == (4, 3)
    assert loaded.origins == {"batch_size": "LLMT_EVAL__BATCH_SIZE", "max_batches": "--max-batches"}


@pytest.mark.parametrize("variable", [{"LLMT_DEVICE": "cpu"}, {"LLMT_FORCE_CPU": "true"}, {"LLMT_EVAL__DEVICE": "cpu"}])
def test_the_device_of_every_command_is_one_variable(variable: dict[str, str]) -> None:
    """`LLMT_DEVICE`, by any of its names, holds for every command that has a device."""
    assert load_task("eval", EvalSettings, environ=variable).config.device == "cpu"


def test_shared_variables_reach_only_commands_that_have_them() -> None:
    """A command without a device or seed goes on with `LLMT_DEVICE` and `LLMT_SEED` set."""
    environ = {"LLMT_DEVICE": "cpu", "LLMT_SEED": "7"}
    assert load_task("generate", GenerateSettings, environ=environ).config.seed == 7
    assert load_task("tokenizer_train", TokenizerTrainSettings, environ=environ).origins == {}


def test_a_command_reports_every_problem_at_once() -> None:
    """Its own settings, its flags and the variables of training are checked together, each once."""
    environ = {"LLMT_DEVICE": "tpu", "LLMT_TRAINING__MAX_STEPS": "0", "LLMT_EVAL__BATCH_SIZE": "x"}
    with pytest.raises(ConfigError) as caught:
        load_task("eval", EvalSettings, environ=environ, flags=[Given("block_size", "1", "--block-size")])
    starts = ["LLMT_DEVICE: ", "LLMT_TRAINING__MAX_STEPS: ", "LLMT_EVAL__BATCH_SIZE: ", "--block-size: "]
    assert sorted(problem.partition(" ")[0] + " " for problem in caught.value.problems) == sorted(starts)


def test_variables_that_only_fit_a_file_do_not_stop_a_command() -> None:
    """How training's settings fit each other is not judged where the file is not known."""
    assert load_task("doctor", TASKS["doctor"], environ={"LLMT_MODEL__NUM_ATTENTION_HEADS": "6"}).origins == {}


def test_prompts_keep_their_commas() -> None:
    """A prompt is one text, from a variable as from a flag."""
    assert load_task("generate", GenerateSettings, environ={"LLMT_GENERATE__PROMPT": "Once, twice"}).config.prompt == (
        "Once, twice",
    )
    flags = [Given("prompt", ["a, b", "c"], "--prompt")]
    assert load_task("generate", GenerateSettings, environ={}, flags=flags).config.prompt == ("a, b", "c")


def test_variables_are_read_in_order() -> None:
    """The order of problems does not depend on the order of the environment."""
    found: list[str] = []
    given = read_environment({"LLMT_B": "1", "LLMT_A": "2", "PATH": "x"}, found)
    assert ([g.key for g in given], found) == (["a", "b"], [])


def test_a_dumped_configuration_is_read_back(tmp_path: Path) -> None:
    """`config.yaml` is a valid input that gives the same configuration."""
    sets = ["training.learning_rate=1e-5", "name=null and void", "data.sources=[a b.txt, '#1', 'x,y']", "max_time=5m"]
    config = load(tmp_path, "template: quickstart\nlogging: {sample_prompt: 'yes: no\n\n # x'}", sets=sets).config
    assert load(tmp_path, dump_config(config)).config == config


def test_a_chosen_stop_replaces_the_templates() -> None:
    """Epochs that were asked for are not cut short by a template's steps; the user is told."""
    loaded = load_run(ConfigSource("q", template="quickstart"), environ={}, sets=["training.num_train_epochs=5"])
    assert loaded.config.training.max_steps is None
    assert loaded.config.training.num_train_epochs == 5
    assert any("gives way to --set" in note for note in loaded.notes)
    kept = load_run(ConfigSource("q", template="quickstart"), environ={}, sets=["training.max_time=5m"])
    assert kept.config.training.max_steps == 320
