"""Sections, their fields and what is said about them."""

from typing import Any

import pytest
from pydantic import ValidationError

from llmt.config.base import Section
from llmt.config.data import DataConfig
from llmt.config.fields import json_schema, subsections, walk_fields
from llmt.config.model import ModelConfig
from llmt.config.run import TrainConfig
from llmt.config.tasks import TASKS

ROOTS: dict[str, type[Section]] = {"train": TrainConfig, **TASKS}
SECTIONS = [*ROOTS.values(), *(section for _, section in subsections(TrainConfig))]


def schema_leaves(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Every leaf of a JSON schema by dotted name."""
    leaves: dict[str, dict[str, Any]] = {}
    for name, child in node["properties"].items():
        target = child.get("$ref") or (child.get("allOf") or [{}])[0].get("$ref")
        if target:
            leaves |= schema_leaves(schema, schema["$defs"][target.rpartition("/")[2]], f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = child
    return leaves


@pytest.mark.parametrize("name", ROOTS)
def test_every_setting_is_explained(name: str) -> None:
    """Every field of every command has a help text of one plain line that ends as a sentence."""
    fields = list(walk_fields(ROOTS[name]))
    assert fields
    for field in fields:
        assert field.help.endswith((".", ").")), field.path
        assert "\n" not in field.help
        assert field.type_name, field.path


@pytest.mark.parametrize("name", ROOTS)
def test_the_schema_carries_the_help(name: str) -> None:
    """The JSON schema has every setting with its help text and default, and allows no other."""
    schema = json_schema(ROOTS[name])
    leaves = schema_leaves(schema, schema)
    assert schema["additionalProperties"] is False
    fields = {field.path: field for field in walk_fields(ROOTS[name])}
    assert set(leaves) == set(fields)
    for path, leaf in leaves.items():
        assert leaf["description"] == fields[path].help != ""
        default = fields[path].default
        assert leaf["default"] == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_valid(section: type[Section]) -> None:
    """The defaults pass their own validation, and a dump of them is the same section."""
    assert section.model_validate(section().model_dump()) == section()


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_frozen_and_closed(section: type[Section]) -> None:
    """No setting changes after loading, and none is added."""
    field = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section(), field, None)
    with pytest.raises(ValidationError, match="Extra inputs"):
        section.model_validate({"surely_unknown": 1})


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("training.max_steps", "count", "null"),
        ("training.learning_rate", "number", "0.003"),
        ("training.precision", "auto|fp32|bf16|fp16", "auto"),
        ("model.tie_word_embeddings", "true|false", "true"),
        ("lora.target_modules", "list", "auto"),
        ("data.sources", "list", "empty"),
        ("data.pin_memory", "true|false", "null"),
        ("output_dir", "text", "null"),
        ("training.max_time", "number", "null"),
    ],
)
def test_types_and_defaults_are_shown_as_typed(path: str, kind: str, default: str) -> None:
    """Help texts name the kind and the default as one would type them."""
    field = next(f for f in walk_fields(TrainConfig) if f.path == path)
    assert (field.type_name, field.default_text) == (kind, default)


def test_dotted_names_follow_the_tree() -> None:
    """Every section of the tree is found, and every name is there once."""
    assert [path for path, _ in subsections(TrainConfig)] == [
        "model", "tokenizer", "data", "training", "lora", "logging",
    ]  # fmt: skip
    paths = [field.path for field in walk_fields(TrainConfig)]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size 100 is not a multiple of num_attention_heads 3"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "an even head size, and 3 is odd"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": 8}, "num_attention_heads 4 is not a multiple of num_key_value_heads 8"),
        ({"num_hidden_layers": 0}, "greater than 0"),
        ({"hidden_dropout": 1.0}, "less than 1"),
        ({"rms_norm_eps": 0.0}, "greater than 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(values: dict[str, Any], problem: str) -> None:
    """Heads divide the width, pair up for rotation, and are divided by their keys."""
    with pytest.raises(ValidationError, match=problem):
        ModelConfig.model_validate(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "num_hidden_layers": 3},
        {"hidden_size": 96, "intermediate_size": 100, "num_attention_heads": 6, "num_key_value_heads": 3},
        {"hidden_size": 2, "num_attention_heads": 1, "intermediate_size": 1, "num_hidden_layers": 1},
    ],
)
@pytest.mark.parametrize("vocab_size", [1, 320])
def test_the_parameter_count_is_the_networks(values: dict[str, Any], vocab_size: int) -> None:
    """The arithmetic gives what the real network has, tied and untied, with and without grouped heads."""
    from llmt.models.transformer import TransformerLM

    config = ModelConfig.model_validate(values)
    model = TransformerLM(config, vocab_size)
    assert config.num_parameters(vocab_size) == sum(parameter.numel() for parameter in model.parameters())


def test_the_held_out_share_leaves_text_to_train_on() -> None:
    """Not everything can be held out."""
    with pytest.raises(ValidationError, match="less than 1"):
        DataConfig(validation_split=1.0)
