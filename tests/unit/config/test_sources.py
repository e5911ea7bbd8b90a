"""Templates, files and run directories as the start of a run."""

import re
from pathlib import Path

import pytest
import yaml

from llmt.config.fields import walk_fields
from llmt.config.load import (
    ConfigSource,
    cache_directory,
    dump_config,
    find_source,
    load_run,
    template_names,
    template_text,
)
from llmt.config.run import TrainConfig
from llmt.errors import ConfigError

RUNS = {
    "tiny": 1.08,
    "novel": 3.48,
    "quickstart": 5.87,
    "cpu-small": 25.5,
    "cpu-medium": 117.2,
    "gpu-small": 110.1,
    "gpu-medium": 304.1,
}
ALL = [*RUNS, "lora", "sft", "dpo", "tokenizer/bpe", "tokenizer/wordpiece"]


@pytest.mark.parametrize(("lora", "name"), [(False, "quickstart"), (True, "lora")])
def test_nothing_named_is_a_template(lora: bool, name: str) -> None:
    """`llmt train` is quickstart, and `llmt train --lora` is lora."""
    assert find_source(None, lora=lora) == ConfigSource(name, template=name)


def test_a_template_is_found_by_name() -> None:
    """A name without a file is a template."""
    assert find_source("cpu-small") == ConfigSource("cpu-small", template="cpu-small")
    assert find_source("tokenizer/bpe") == ConfigSource("bpe", template="tokenizer/bpe")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("quickstrat", "quickstrat: no such template or file, did you mean quickstart?"),
        ("cpu_small", "cpu_small: no such template or file, did you mean cpu-small?"),
        ("zzz", "zzz: no such template or file"),
        ("", ": no such template or file"),
        ("missing.yaml", "missing.yaml: no such file"),
        ("missing.json", "missing.json: no such file"),
        ("../quickstart", "../quickstart: no such template or file"),
    ],
)
def test_what_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, said: str
) -> None:
    """An unknown name is a ConfigError that lists the templates."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        find_source(argument)
    assert "quickstart" in caught.value.hint


@pytest.mark.parametrize("argument", ["x" * 5000, "a\0b"])
def test_impossible_names_do_not_exist(argument: str) -> None:
    """A name that no file system takes is unknown, like any other."""
    with pytest.raises(ConfigError, match="no such template or file"):
        find_source(argument)


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine.json", "mine"])
def test_a_file_gives_its_name_to_the_run(tmp_path: Path, name: str) -> None:
    """Any file that exists is a configuration, and the run is called by its stem."""
    path = tmp_path / name
    path.write_text('{"seed": 5}', encoding="utf-8")
    source = find_source(str(path))
    assert source == ConfigSource("mine", path=path)
    assert load_run(source, environ={}).config.seed == 5


def test_a_run_directory_starts_its_run_again(tmp_path: Path) -> None:
    """The directory of a run stands for the configuration that it holds."""
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    config = load_run(find_source("quickstart"), environ={}, sets=["seed=9"]).config
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    source = find_source(str(run))
    assert source == ConfigSource("first", path=run / "config.yaml")
    assert load_run(source, environ={}).config == config


def test_a_directory_without_a_run_is_unknown(tmp_path: Path) -> None:
    """A directory is a source only with a configuration in it."""
    with pytest.raises(ConfigError, match="no such template or file"):
        find_source(str(tmp_path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What the system says about the file is the problem."""
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'gone.yaml'}: No such file")):
        load_run(ConfigSource("gone", path=tmp_path / "gone.yaml"), environ={})


def test_the_templates_are_these() -> None:
    """A new template needs a line in the table above."""
    assert template_names() + [f"tokenizer/{name}" for name in template_names("tokenizer")] == sorted(
        ALL, key=lambda name: ("/" in name, name)
    )


@pytest.mark.parametrize("name", ALL)
def test_every_template_loads_alone(name: str) -> None:
    """A template is valid by itself, in one spelling only, and says where its values stand."""
    loaded = load_run(find_source(name), environ={})
    assert loaded.notes == ()
    assert all(place.startswith("template ") for place in loaded.origins.values())


@pytest.mark.parametrize("name", ALL)
def test_every_template_is_ordinary_yaml(name: str) -> None:
    """Other YAML readers see the same keys: nothing in a template needs this reader."""
    assert set(yaml.safe_load(template_text(name))) <= set(TrainConfig.model_fields) | {"template"}


@pytest.mark.parametrize("name", [*RUNS, "lora", "sft", "dpo"])
def test_every_template_is_complete(name: str) -> None:
    """A template shows every setting; one that goes on from a base leaves shape and tokenizer to that."""
    left_out = {"name", "output_dir", "base"}
    every = {field.path for field in walk_fields(TrainConfig)} - left_out
    if name in ("lora", "sft", "dpo"):
        every = {path for path in every if not path.startswith(("model.", "tokenizer."))} | {"tokenizer.added_tokens"}
    if name == "sft":
        every |= {"base"}
    assert set(load_run(find_source(name), environ={}).origins) == every


@pytest.mark.parametrize("name", ALL)
def test_every_line_of_a_template_is_explained(name: str) -> None:
    """Above every setting stands a comment."""
    lines = template_text(name).splitlines()
    for number, line in enumerate(lines):
        key = line.partition(":")[0].strip()
        if (
            not line.strip()
            or line.lstrip().startswith("#")
            or (key in ("template", *TrainConfig.model_fields) and (line.rstrip().endswith(":") or key == "template"))
        ):
            continue
        assert lines[number - 1].lstrip().startswith("#"), f"{name}:{number + 1}: {line}"


@pytest.mark.parametrize(("name", "millions"), RUNS.items())
def test_a_template_has_the_size_it_says(name: str, millions: float) -> None:
    """The parameter count of each template, tokenizer's vocabulary included."""
    config = load_run(find_source(name), environ={}).config
    assert config.model.num_parameters(config.tokenizer.vocab_size) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", ALL)
def test_a_template_is_read_back_from_its_dump(tmp_path: Path, name: str) -> None:
    """`llmt config show` of a template is a file with the same meaning."""
    config = load_run(find_source(name), environ={}).config
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_run(find_source(str(path)), environ={}).config == config


def test_the_cache_is_where_it_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured folder is taken as it is; else the user's cache folder has one."""
    assert cache_directory(str(tmp_path)) == tmp_path
    assert cache_directory("~/x") == Path.home() / "x"
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert "llmt" in cache_directory(None).parts
