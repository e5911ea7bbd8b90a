"""adapter and base -> one full model."""

from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import staged_directory
from llmt.errors import BusyOutputError, ModelFileError
from llmt.models.load import load_model
from llmt.models.lora import load_adapter
from llmt.models.open import base_of, is_adapter
from llmt.tokenizers.load import load_tokenizer


def merge_adapter(adapter: Path, *, base: Path | None, output: Path, max_shard_size: int, overwrite: bool) -> None:
    """Write base plus adapter as a full model in fp32, with the adapter's tokenizer.

    Args:
        adapter: Directory of the adapter.
        base: Its base; None takes the one that it names.
        output: Directory to write.
        max_shard_size: Largest file in bytes.
        overwrite: Replace a directory that stands there.

    Raises:
        BusyOutputError: The output exists, or what would be replaced is no model.
        ModelFileError: The adapter or its base cannot be read.
    """
    if not is_adapter(adapter):
        raise ModelFileError(f"{adapter}: holds no adapter", "name a directory with adapter_config.json")
    if output.exists() and not overwrite:
        raise BusyOutputError(f"{output}: exists already", "add --overwrite, or name another --output-dir")
    if output.exists() and not (output / layout.CONFIG_FILE).is_file():
        raise BusyOutputError(f"{output}: is no model, so --overwrite leaves it alone", "name another --output-dir")
    model = load_adapter(load_model(base or base_of(adapter)), adapter).merge()
    tokenizer = load_tokenizer(adapter)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged_directory(output, extra={}, replace=overwrite) as staged:
        model.write(staged, token_ids=ids, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(staged.path)
