"""`llmt convert`: weights from one form to another."""

import difflib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmt.cli.context import CONTEXT
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.cli.progress import progress_bar
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.tasks import ConvertSettings, MergeSettings
from llmt.errors import ModelFileError
from llmt.units import format_count, format_duration, format_size


class DefaultCommandGroup(TyperGroup):
    """A group whose first command need not be named: `llmt convert ./ckpt` is `llmt convert pt-to-safetensors ./ckpt`.

    The bare name of a command is that command; `./name` is a path.
    """

    default_command = "pt-to-safetensors"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front of anything that is neither a command nor a request for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            first = args[0]
            if not first.startswith("-") and not os.path.exists(first) and os.sep not in first:
                close = difflib.get_close_matches(first, self.commands)
                if close:
                    ctx.fail(f"no such command or path {first!r}, did you mean {close[0]}?")
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """How the usage line shows both forms."""
        return ["[OPTIONS] PATH | COMMAND [ARGS]..."]


app = typer.Typer(
    cls=DefaultCommandGroup,
    help="Convert weights; without a command, PyTorch files to safetensors.",
    context_settings=CONTEXT,
)


@app.command("pt-to-safetensors", context_settings=CONTEXT)
@with_settings(ConvertSettings)
def pt_to_safetensors(
    out: Output,
    given: list[Given],
    path: Annotated[str, typer.Argument(help="A .pt, .pth or .bin file, or a directory with one.")],
) -> None:
    """Convert PyTorch weights to safetensors without running anything that the file holds."""
    from llmt.checkpoints.convert import ConvertProgress, ConvertReport, convert_to_safetensors

    settings = load_task("convert", ConvertSettings, flags=given).config
    source = Path(path)
    if not source.exists():
        raise _missing(source)
    events = convert_to_safetensors(
        source,
        None if settings.output_dir is None else Path(settings.output_dir),
        max_shard_size=settings.max_shard_size,
        overwrite=settings.overwrite,
    )
    with progress_bar(out, "converting") as bar:
        for event in events:
            if isinstance(event, ConvertProgress):
                bar.update(event.done, event.total)
    assert isinstance(event, ConvertReport)
    if out.as_json:
        out.json({**asdict(event), "output": str(event.output)})
        return
    out.result(
        f"{event.output}: {event.tensors} tensors, {format_count(event.parameters)} parameters, "
        f"{format_size(event.size)} in {len(event.files)} files, {format_duration(event.seconds)}"
    )
    for name in event.files:
        out.result(f"  {name}")
    for left_out, kept in event.tied.items():
        out.say(f"note: {left_out} is tied to {kept} and stored once")


def _missing(path: Path) -> ModelFileError:
    """A path that is not there; the hint names the runs that are."""
    from llmt.checkpoints.runs import find_runs

    runs = [str(run.path) for run in find_runs()]
    hint = f"runs found here: {', '.join(runs)}" if runs else "no runs under ./runs; llmt train makes one"
    return ModelFileError(f"{path}: does not exist", f"name a .pt, .pth or .bin file, or a directory with one; {hint}")


@app.command("merge-lora", context_settings=CONTEXT)
@with_settings(MergeSettings)
def merge_lora(
    out: Output,
    given: list[Given],
    adapter: Annotated[str, typer.Argument(help="Directory of the adapter.")],
) -> None:
    """Add an adapter to its base and write one full model."""
    from llmt.export.merge import merge_adapter

    settings = load_task("merge_lora", MergeSettings, flags=given).config
    target = Path(settings.output_dir or f"{Path(adapter)}-merged")
    merge_adapter(
        Path(adapter),
        base=None if settings.base is None else Path(settings.base),
        output=target,
        max_shard_size=settings.max_shard_size,
        overwrite=settings.overwrite,
    )
    if out.as_json:
        out.json({"directory": str(target)})
    else:
        out.result(f"{target}: a full model")
        out.say(f"next:  llmt generate {target}")
