"""`llmt data`: token ids of text, what is learnt of them, and what was met on the way."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmt.cli.context import CONTEXT
from llmt.cli.options import load_asked, with_settings
from llmt.cli.output import Output
from llmt.cli.progress import progress_bar
from llmt.config.layers import Given
from llmt.config.load import cache_directory
from llmt.config.run import TrainConfig
from llmt.errors import UsageError
from llmt.units import format_size

if TYPE_CHECKING:
    from llmt.data.inspection import ShownRow, Stretch
    from llmt.data.ready import ReadyData
    from llmt.training.corpus import Corpus

app = typer.Typer(
    help="Make token ids of text, look at them as they are trained, and audit them.", context_settings=CONTEXT
)

_READ = ("data.", "tokenizer.", "base", "seed")
_STYLES = {"start": "dim", "trained": "green", "masked": "yellow", "padding": "dim"}

Config = Annotated[str | None, typer.Argument(metavar="CONFIG", help="A template, a YAML file, or a run's directory.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any setting by its dotted name.")
]


@app.command("prepare", context_settings=CONTEXT)
@with_settings(TrainConfig, only=_READ)
def prepare(out: Output, given: list[Given], config: Config = None, sets: Sets = None) -> None:
    """Make token ids of text and keep them, as `llmt train` would; a run with the same text then starts at once."""
    asked, corpus, data = _corpus(out, config, given, sets)
    data.audit.check_budgets(asked.data)
    values = {
        "directory": str(data.prepared.directory),
        "fingerprint": data.fingerprint,
        "reused": data.prepared.reused,
        "documents": data.audit.text.documents,
        "text_bytes": data.audit.text.text_bytes,
        "tokens": data.audit.text.tokens,
        "packing": data.packing,
        "sequences": data.audit.packing.sequences,
        "notes": [*corpus.notes, *data.notes],
    }
    if out.as_json:
        out.json(values)
        return
    for note in (*corpus.notes, *data.notes):
        out.say(note)
    done = "there already" if data.prepared.reused else "made"
    out.result(
        f"{done}: {data.audit.text.documents:,} documents, {format_size(data.audit.text.text_bytes)}, "
        f"{data.audit.text.tokens:,} tokens in {data.prepared.directory}"
    )


@app.command("inspect", context_settings=CONTEXT)
@with_settings(TrainConfig, only=_READ)
def inspect(
    out: Output,
    given: list[Given],
    config: Config = None,
    sets: Sets = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="How many sequences.")] = 3,
    start: Annotated[int, typer.Option("--start", min=0, help="The first of them, in the order of training.")] = 0,
    validation: Annotated[bool, typer.Option("--validation", help="Show what is held out instead.")] = False,
) -> None:
    """Show sequences as they are trained: what is learnt, what is only read, and what is padding."""
    from llmt.data.inspection import show_held_out, show_samples

    asked, corpus, data = _corpus(out, config, given, sets)
    if not validation:
        shown = list(show_samples(data.train, corpus.tokenizer, asked.seed, start, rows))
    elif data.validation is None:
        raise UsageError("--validation: nothing is held out", "leave it out, or hold a part out")
    elif start >= data.validation.count:
        raise UsageError(
            f"--start {start}: {data.validation.count:,} sequences are held out, numbered from 0", "name a lower one"
        )
    else:
        shown = list(show_held_out(data.validation, corpus.tokenizer, start, rows))
    if out.as_json:
        out.json({"packing": data.packing, "rows": [asdict(row) for row in shown]})
        return
    for note in data.notes:
        out.say(note)
    for row in shown:
        _show_row(out, row, mixed=len(data.train.parts) > 1)


@app.command("audit", context_settings=CONTEXT)
@with_settings(TrainConfig, only=_READ)
def audit(
    out: Output,
    given: list[Given],
    config: Config = None,
    sets: Sets = None,
    output: Annotated[str | None, typer.Option("--output", help="File that gets the audit as JSON.")] = None,
) -> None:
    """Say what a text holds and what would become of each token; with budgets, fail where one is passed."""
    asked, corpus, data = _corpus(out, config, given, sets)
    values = {**data.audit.values(), "notes": [*corpus.notes, *data.notes]}
    if output is not None:
        _write(Path(output), values)
    if out.as_json:
        out.json(values)
    else:
        out.table(_figures(data), to_result=True)
        for note in (*corpus.notes, *data.notes):
            out.result(note)
    data.audit.check_budgets(asked.data)


def _corpus(
    out: Output, config: str | None, given: list[Given], sets: list[str] | None
) -> tuple[TrainConfig, "Corpus", "ReadyData"]:
    """The configuration and the text as `llmt train` would have them."""
    _, loaded = load_asked(config, given, sets or ())
    for note in loaded.notes:
        out.say(f"note: {note}")
    from llmt.data.ready import ReadyData
    from llmt.training.build import with_sources, within_context
    from llmt.training.corpus import prepare_corpus

    asked = with_sources(loaded.config)
    if asked.data.streaming:
        raise UsageError(
            "data.streaming: what is streamed is not prepared, so there is nothing to show", "--no-streaming"
        )
    base = None if asked.base is None else Path(asked.base)
    asked, lines = within_context(asked, base)
    for line in lines:
        out.say(f"note: block_size {line.value}: {line.reason}")
    with progress_bar(out, "preparing") as bar:
        corpus = prepare_corpus(
            asked,
            cache_directory(asked.data.cache_dir),
            tokenizer_directory=base,
            progress=lambda what, done, total: bar.update(done, total, what),
        )
    assert isinstance(corpus.data, ReadyData)
    return asked, corpus, corpus.data


def _figures(data: "ReadyData") -> list[tuple[str, Any]]:
    text, packing = data.audit.text, data.audit.packing
    total = max(packing.total, 1)

    def share(count: int) -> str:
        return f"{count:,} ({100 * count / total:.2f} %)"

    return [
        ("documents", f"{text.documents:,}"),
        ("held out", f"{text.held_out_documents:,}"),
        ("bytes", f"{text.text_bytes:,}"),
        ("characters", f"{text.characters:,}"),
        ("tokens", f"{text.tokens:,}"),
        ("  learnt", share(packing.trained)),
        ("  only read", share(packing.masked)),
        ("  left out", share(packing.dropped)),
        ("  cut off", share(packing.truncated)),
        ("sequences", f"{packing.sequences:,} of {data.train.block_size:,} tokens"),
        ("filled", f"{100 * packing.filled / max(packing.capacity, 1):.2f} %"),
        ("bytes per token", f"{text.bytes_per_token:.3f}"),
        ("end-of-text tokens", f"{text.end_of_text:,}"),
        ("largest id", f"{text.largest_id:,}"),
    ]


def _show_row(out: Output, row: "ShownRow", *, mixed: bool) -> None:
    places = list(dict.fromkeys(stretch.source for stretch in row.stretches if stretch.source))
    source = f" of source {row.part + 1}" if mixed else ""
    head = f"sample {row.sample:,}: sequence {row.sequence:,}{source}, {', '.join(places)}"
    out.styled([(head, "bold")])
    if out.colours:
        out.styled([(_text(stretch), _STYLES[stretch.kind]) for stretch in row.stretches])
        return
    for stretch in row.stretches:
        count = len(stretch.ids)
        out.result(f"  {stretch.kind:8}{count:6,}  {json.dumps(_text(stretch), ensure_ascii=False)}")


def _text(stretch: "Stretch") -> str:
    return f" [{len(stretch.ids):,} of padding]" if stretch.kind == "padding" else stretch.text


def _write(path: Path, values: dict[str, Any]) -> None:
    from llmt.checkpoints.files import write_text_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(values, indent=2) + "\n")
