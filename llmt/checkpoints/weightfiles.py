"""Which files hold the weights of one model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from llmt.checkpoints.layout import Format
from llmt.checkpoints.reading import open_file, open_inside


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one model.

    Attributes:
        format: What they are.
        directory: Where they lie.
        names: Their names.
        listed: Tensor name -> file name, where an index says so.
        metadata: What the index says besides, by key.
        named: Whether the user named the one file itself, which may then be a link.
    """

    format: Format
    directory: Path
    names: tuple[str, ...]
    listed: Mapping[str, str] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    named: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where each file lies."""
        return tuple(self.directory / name for name in self.names)

    def open(self, name: str) -> FileIO:
        """Open one of the files; a name that stood in a directory or an index leads nowhere else.

        Raises:
            ModelFileError: It is a link out of the directory, or not readable.
        """
        return open_file(self.directory / name) if self.named else open_inside(self.directory, name)
