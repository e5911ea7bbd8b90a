"""What is kept beside weights: the text values of a file's metadata <-> configuration, training and the rest.

The format allows text alone, so configuration and training are JSON in it. Keys that llmt does not know are kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmt.checkpoints.manifest import llmt_version

FORMAT = {"format": "pt"}
"""What some readers ask for: the tensors are those of PyTorch."""

_OWN = ("format", "llmt", "config", "training", "total_size")


@dataclass(frozen=True)
class Metadata:
    """What stood beside weights.

    Attributes:
        config: The model's `config.json`; empty where it was not kept.
        training: Numbers of the run that made the weights.
        llmt: Version of llmt that wrote them; empty for others.
        other: Everything else, as text.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    llmt: str = ""
    other: Mapping[str, str] = field(default_factory=dict)


def encode_metadata(metadata: Metadata) -> dict[str, str]:
    """The text values that a weight file or its index keeps.

    Raises:
        ValueError: Configuration or training hold what JSON cannot.
    """
    found = {**metadata.other, **FORMAT, "llmt": llmt_version()}
    for name, value in (("config", metadata.config), ("training", metadata.training)):
        if value:
            found[name] = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return found


def decode_metadata(values: Mapping[str, str]) -> Metadata:
    """What text values mean; what others wrote under our names, and is no JSON mapping, is left out."""
    other = {key: value for key, value in values.items() if key not in _OWN}
    return Metadata(_mapping(values, "config"), _mapping(values, "training"), values.get("llmt", ""), other)


def _mapping(values: Mapping[str, str], name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(values.get(name, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def with_dtype(values: Mapping[str, str], dtype: str | None) -> Mapping[str, str]:
    """Text values whose configuration names the dtype that the weights were converted to; None changes nothing."""
    config = _mapping(values, "config")
    if dtype is None or not config:
        return values
    return {**values, "config": json.dumps({**config, "dtype": dtype}, separators=(",", ":"), sort_keys=True)}
