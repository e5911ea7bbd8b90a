"""adapter and base -> one full model."""

from pathlib import Path

from llmt.checkpoints.output import folder_beside, output_directory, require_free_output
from llmt.errors import ModelFileError
from llmt.models.identity import check_base
from llmt.models.load import load_model
from llmt.models.lora import load_adapter
from llmt.models.open import base_of, is_adapter, tokenizer_directory
from llmt.tokenizers.base import special_ids
from llmt.tokenizers.load import load_tokenizer


def merge_adapter(
    adapter: Path, *, base: Path | None, output: Path | None, max_shard_size: int, overwrite: bool
) -> Path:
    """Write base plus adapter as a full model in fp32, with the adapter's tokenizer, or the base's where it has none.

    Args:
        adapter: Directory of the adapter.
        base: Its base; None takes the one that it names.
        output: Directory to write; None means the adapter's name with `-merged` appended, beside it.
        max_shard_size: Largest file in bytes.
        overwrite: Replace a model that stands there.

    Returns:
        The directory that was written.

    Raises:
        BusyOutputError: The output is the adapter or its base, or not empty, or what would be replaced is no model.
        ModelFileError: The adapter or its base cannot be read.
    """
    if not is_adapter(adapter):
        raise ModelFileError(f"{adapter}: holds no adapter", "name a directory with adapter_config.json")
    base = base or base_of(adapter)
    output = output or folder_beside(adapter, "merged")
    require_free_output(output, [adapter, base], overwrite)
    check_base(adapter, base)
    model = load_adapter(load_model(base), adapter).merge()
    tokenizer = load_tokenizer(tokenizer_directory(adapter, base))
    with output_directory(output, durable=True, extra={}) as staged:
        model.write(staged, token_ids=special_ids(tokenizer), max_shard_size=max_shard_size)
        tokenizer.save_pretrained(staged.path)
    return output
