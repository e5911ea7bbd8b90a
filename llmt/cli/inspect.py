"""`llmt tokenizer inspect`: what a tokenizer makes of text."""

from dataclasses import asdict
from typing import Annotated

import typer

from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.config.data import BUILTIN
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.tasks import TokenizerInspectSettings

SAMPLE_DOCUMENTS = 50


@with_settings(TokenizerInspectSettings)
def inspect(
    out: Output,
    given: list[Given],
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help="Directory of a tokenizer or model.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Text to cut; without it, a sample.")] = None,
) -> None:
    """Show how a tokenizer cuts text, and how well."""
    settings = load_task("tokenizer_inspect", TokenizerInspectSettings, flags=given).config
    from llmt.tokenizers.inspect import inspect_tokenizer
    from llmt.tokenizers.load import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    report = inspect_tokenizer(loaded, text if text is not None else _sample(settings.data or (BUILTIN,)))
    values = asdict(report)
    segmentation = values.pop("segmentation")
    if out.as_json:
        out.json({**values, "segmentation": segmentation[: settings.limit]})
        return
    rows = [(name.replace("_", " "), _shown(value)) for name, value in values.items()]
    out.table(rows, to_result=True)
    out.table(segmentation[: settings.limit], header=("token", "id"), to_result=True)


def _sample(sources: tuple[str, ...]) -> str:
    """The first documents of a corpus, as a text to measure on."""
    from llmt.text.sources import open_documents

    texts = [document.text for document, _ in zip(open_documents(sources), range(SAMPLE_DOCUMENTS), strict=False)]
    return "\n".join(texts)[:1_000_000]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
