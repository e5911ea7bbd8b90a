"""`llmt checkpoints`: what a run has kept, and whether every byte of it is as it was written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmt.cli.context import CONTEXT
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.config.base import Section
from llmt.config.layers import Given
from llmt.errors import ModelFileError
from llmt.units import format_size

if TYPE_CHECKING:
    from llmt.checkpoints.survey import Surveyed

app = typer.Typer(help="Look at the checkpoints of a run.", context_settings=CONTEXT, no_args_is_help=True)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or one checkpoint of it.")]


@app.command("list", context_settings=CONTEXT)
@with_settings(Section)
def list_checkpoints(out: Output, given: list[Given], run: Run) -> None:
    """List the checkpoints of a run: step, tokens, size, and which is the best. Compares sizes, not contents."""
    from llmt.checkpoints.survey import set_aside_names, survey

    found = list(survey(run, contents=False))
    aside = set_aside_names(run if len(found) > 1 or run == found[0].path.parent else run.parent)
    if out.as_json:
        out.json({"checkpoints": [_values(one) for one in found], "set_aside": aside})
        return
    rows = [(one.path.name, f"{_tokens(one)} tokens", format_size(one.size), _mark(one)) for one in found]
    out.table(rows, to_result=True)
    for name in aside:
        out.say(f"set aside: {name}")


@app.command("verify", context_settings=CONTEXT)
@with_settings(Section)
def verify(out: Output, given: list[Given], run: Run) -> None:
    """Read every byte of the checkpoints of a run and compare it with what was written (exit code 4 where it differs).

    Nothing is changed. A resume passes damaged checkpoints over.
    """
    from llmt.checkpoints.survey import survey

    found = []
    for one in survey(run, contents=True):
        found.append(one)
        if not out.as_json:
            out.result(f"{one.path}: {_verdict(one)}, {one.files} files, {format_size(one.size)}")
    if out.as_json:
        out.json({"checkpoints": [_values(one) for one in found]})
    damaged = [one for one in found if one.problems]
    if damaged:
        whole = [one.path for one in found if not one.problems]
        hint = f"llmt train {run} --resume goes on from {whole[-1]}" if whole else "copy it again, or start anew"
        raise ModelFileError(f"{damaged[0].path}: damaged: {'; '.join(damaged[0].problems)}", hint)


def _tokens(one: "Surveyed") -> str:
    return "?" if one.tokens is None else f"{one.tokens:,}"


def _mark(one: "Surveyed") -> str:
    if one.problems:
        return f"damaged: {'; '.join(one.problems)}"
    return "the best" if one.is_best else ""


def _verdict(one: "Surveyed") -> str:
    return _mark(one) if one.problems else "whole"


def _values(one: "Surveyed") -> dict[str, object]:
    return {
        "path": str(one.path), "step": one.step, "tokens": one.tokens, "best": one.is_best, "bytes": one.size,
        "files": one.files, "problems": list(one.problems),
    }  # fmt: skip
