"""From raw text to a language model you can share.

The tree is the path of the data:

    text ──► tokens ──► batches ──► loss ──► checkpoint ──► text
    str      list[int]  Batch       TokenLoss  directory      str

    config       flags, environment, files -> one frozen tree of settings
    system       machine -> what it can do -> what will be done on it, and why
    checkpoints  weights and run state <-> directory
    text         files, patterns, data sets -> documents
    tokenizers   text -> token ids
    data         documents -> token ids -> batches
    models       batches -> logits -> loss
    evaluation   weights -> numbers
    generation   weights -> text
    training     batches -> weights
    reports      numbers -> tables and pages
    cli          the terminal

Importing this package imports nothing heavy: a public name is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "BPETokenizer": "llmt.tokenizers.bpe",
    "BaseLanguageModel": "llmt.models.base",
    "BaseTokenizer": "llmt.tokenizers.base",
    "ByteTokenizer": "llmt.tokenizers.bpe",
    "EvalReport": "llmt.evaluation.perplexity",
    "HFTokenizerWrapper": "llmt.tokenizers.huggingface",
    "HuggingFaceModelWrapper": "llmt.models.huggingface",
    "LanguageModelingDataset": "llmt.data.texts",
    "LlmtError": "llmt.errors",
    "ModelConfig": "llmt.config.model",
    "Sampling": "llmt.generation.sampling",
    "StepReport": "llmt.training.report",
    "Tokenizer": "llmt.tokenizers.base",
    "TrainConfig": "llmt.config.run",
    "Trainer": "llmt.training.trainer",
    "TransformerLM": "llmt.models.transformer",
    "UnigramTokenizer": "llmt.tokenizers.bpe",
    "WordPieceTokenizer": "llmt.tokenizers.wordpiece",
    "evaluate": "llmt.evaluation.perplexity",
    "get_memory_usage": "llmt.system.memory",
    "load_model": "llmt.models.load",
    "load_tokenizer": "llmt.tokenizers.load",
    "register_model": "llmt.models.registry",
    "stream_text": "llmt.generation.text",
    "train_tokenizer": "llmt.tokenizers.train",
}

__all__ = ["__author__", "__email__", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in ("__version__", "__author__", "__email__"):
        return _metadata()[name]
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmt' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def _metadata() -> dict[str, str]:
    """What the installed package says of itself."""
    from importlib import metadata

    found = metadata.metadata("llmt")
    author, _, address = found["Author-email"].partition(" <")
    return {"__version__": found["Version"], "__author__": author, "__email__": address.rstrip(">")}


def __dir__() -> list[str]:
    return sorted(__all__)
