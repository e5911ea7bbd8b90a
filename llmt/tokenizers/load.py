"""directory, or name on the hub -> tokenizer."""

from os.path import isdir, isfile
from pathlib import Path

from llmt.errors import ModelFileError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import BPETokenizer, ByteTokenizer, UnigramTokenizer
from llmt.tokenizers.fast import PretrainedTokenizer, TrainableTokenizer
from llmt.tokenizers.files import CONFIG_FILE, TOKENIZER_FILE, TokenizerParts, read_parts
from llmt.tokenizers.huggingface import HFTokenizerWrapper
from llmt.tokenizers.wordpiece import WordPieceTokenizer

KINDS: dict[str, type[TrainableTokenizer]] = {
    kind.algo: kind for kind in (BPETokenizer, WordPieceTokenizer, UnigramTokenizer, ByteTokenizer)
}
"""The tokenizers that llmt trains, by the name of the algorithm."""

_OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", CONFIG_FILE)


def load_tokenizer(name_or_path: str | Path, local_files_only: bool = False) -> Tokenizer:
    """Load a tokenizer; nothing that comes with it is executed.

    A directory on this machine comes first. Its `tokenizer.json`, from llmt or from elsewhere, is checked and
    given to the Rust library alone. Only without one are the older files (vocab.json, tokenizer.model, ...)
    handed to transformers; so is a name that is no directory, which transformers looks up on the hub.

    Args:
        name_or_path: A directory, a file `tokenizer.json` or `*.model`, or a name on the hub.
        local_files_only: Never ask the hub; take what its cache holds.

    Raises:
        ModelFileError: The tokenizer is missing, damaged or unsafe.
        HubError: The hub cannot resolve the name now.
    """
    path = Path(name_or_path)
    if path.name == TOKENIZER_FILE and isfile(path):
        path = path.parent
    if isfile(path / TOKENIZER_FILE):  # not Path's own, which fails over a name that is too long
        return _of_kind(read_parts(path))
    if isdir(path) and not any(isfile(path / name) for name in _OTHER_FILES) and not any(path.glob("*.model")):
        raise ModelFileError(f"{path}: it holds no {TOKENIZER_FILE}", "train one: llmt tokenizer train FILES")
    return HFTokenizerWrapper(name_or_path, local_files_only=local_files_only)


def _of_kind(parts: TokenizerParts) -> Tokenizer:
    made_by = (parts.training or {}).get("algo")
    kind = KINDS.get(made_by) if isinstance(made_by, str) else None
    return PretrainedTokenizer.from_parts(parts) if kind is None else kind.from_parts(parts)
