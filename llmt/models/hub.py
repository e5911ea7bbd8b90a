"""The name of a model -> a directory with its files: here, in the cache of the hub, or fetched when asked."""

import re
from pathlib import Path

from llmt.errors import HubError, MissingPackageError, ModelFileError

PREFIX = "hf:"
"""What a user puts before a name that only the hub has."""

_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_BESIDES = ("*.json", "*.jinja", "*.model", "*.txt", "merges.txt")
_WEIGHTS = (("*.safetensors",), ("*.bin",))


def find_model(name: str | Path, *, local_files_only: bool) -> Path:
    """The directory or file that a name means: what lies here comes first, then what the hub has.

    Args:
        name: A path, or a name on the hub such as `gpt2`, `owner/name` or `hf:owner/name`.
        local_files_only: Do not ask the hub; take what its cache on this machine has.

    Raises:
        ModelFileError: Nothing is here, and it cannot be a name on the hub.
        HubError: The hub does not have it, or cannot be reached.
    """
    text = str(name)
    if not text.startswith(PREFIX) and Path(text).exists():
        return Path(text)
    repository = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(repository):
        raise ModelFileError(f"{text}: does not exist", "check the path, or write hf:OWNER/NAME")
    return _fetch(repository, local_files_only)


def local_path(name: str) -> Path:
    """The path that a user wrote; `hf:NAME` asks the hub, and means where its files lie then.

    Raises:
        HubError: The hub does not have it, or cannot be reached.
    """
    if name.startswith(PREFIX):
        return find_model(name, local_files_only=False)
    return Path(name).expanduser()


def _fetch(repository: str, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError as error:
        raise MissingPackageError("huggingface_hub", str(error)) from error
    for weights in _WEIGHTS:
        try:
            found = Path(
                snapshot_download(repository, allow_patterns=[*_BESIDES, *weights], local_files_only=local_files_only)
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = "is not in the cache of the hub" if local_files_only else "cannot be fetched"
            raise HubError(
                f"hf:{repository}: {where}: {said}", "use a local directory, or try with a network"
            ) from None
        if any(found.glob(weights[0])):
            return found
    raise ModelFileError(f"hf:{repository}: has no weights that llmt reads", "name another model")
