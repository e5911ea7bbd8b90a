"""The plan of which file holds which tensor."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.checkpoints.sharding import index_json, is_shard_file_name, plan_shards


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_every_tensor_is_in_one_file_in_order_and_within_the_limit(sizes: list[int], limit: int) -> None:
    """All tensors in order; above the limit only a single tensor; no file could take the next tensor too."""
    named = {f"t{i}": size for i, size in enumerate(sizes)}
    plan = plan_shards(named, limit)
    assert [name for names in plan.files.values() for name in names] == list(named)
    assert plan.total_size == sum(sizes)
    groups = list(plan.files.values())
    weights = [sum(named[name] for name in names) for names in groups]
    assert all(weight <= limit or len(names) == 1 for weight, names in zip(weights, groups, strict=True))
    for i, names in enumerate(groups[1:]):
        assert names
        assert weights[i] + named[names[0]] > limit
    if len(groups) == 1:
        assert list(plan.files) == ["model.safetensors"]
    else:
        count = len(groups)
        assert list(plan.files) == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        assert all(map(is_shard_file_name, plan.files))


def test_a_large_tensor_has_a_file_of_its_own() -> None:
    """A tensor above the limit neither joins others nor is joined by them."""
    assert list(plan_shards({"a": 1, "b": 100, "c": 1}, 10).files.values()) == [("a",), ("b",), ("c",)]


def test_the_index_is_what_transformers_reads() -> None:
    """The index maps each tensor to its file and gives the bytes of all."""
    plan = plan_shards({"a": 6, "b": 6}, 10)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert json.loads(index_json(plan)) == {"metadata": {"total_size": 12}, "weight_map": {"a": first, "b": second}}


def test_a_limit_of_nothing_is_refused() -> None:
    """A shard must be able to hold something."""
    with pytest.raises(ValueError, match="holds nothing"):
        plan_shards({}, 0)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "C:\\x.safetensors", "x.bin", "", "a/b.safetensors", "a.safetensors\n"],
)
def test_an_index_names_only_files_beside_it(name: str) -> None:
    """No separator, no drive, no other ending."""
    assert not is_shard_file_name(name)
