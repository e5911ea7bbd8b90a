"""`llmt convert`: weights from one form to another."""

import difflib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from llmt.checkpoints import layout
from llmt.cli.context import CONTEXT
from llmt.cli.options import with_settings
from llmt.cli.output import Output
from llmt.cli.progress import progress_bar
from llmt.config.conversion import ConvertSettings, GgufSettings, MergeSettings, ToPytorchSettings
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.errors import ModelFileError
from llmt.units import format_count, format_duration, format_number, format_size

if TYPE_CHECKING:
    from llmt.checkpoints.convert import ConvertReport


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
                    known = ", ".join(self.commands)
                    ctx.fail(f"no such command or path {first!r}, did you mean {close[0]}? There are {known}")
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
    if not os.path.lexists(source):
        raise _missing(source)
    events = convert_to_safetensors(
        source,
        None if settings.output_dir is None else Path(settings.output_dir),
        max_shard_size=settings.max_shard_size,
        dtype=settings.dtype,
        verify=settings.verify,
        overwrite=settings.overwrite,
        dry_run=settings.dry_run,
    )
    with progress_bar(out, "converting") as bar:
        for event in events:
            if isinstance(event, ConvertProgress):
                bar.update(event.done, event.total, event.file)
    assert isinstance(event, ConvertReport)
    if out.as_json:
        out.json({**asdict(event), "output": str(event.output)})
    else:
        _show(out, event, settings.max_shard_size)


def _show(out: Output, report: "ConvertReport", limit: int) -> None:
    """What was written, or would be, and what a user may want to know of it."""
    done = ", verified" if report.verified else ", not verified"
    out.result(
        f"{report.output}: {format_number(report.tensors, 'tensor')}, {format_count(report.parameters)} parameters, "
        f"{format_size(report.size)} in {format_number(len(report.files), 'file')}"
        + (f", {format_duration(report.seconds)}{done}" if report.written else "; a dry run, nothing was written")
    )
    for name, size in report.files.items():
        out.result(f"  {name}" + (f"  {format_size(size)}" if size else ""))
    for name in report.copied:
        out.result(f"  {name}  copied")
    for note in _notes(report, limit):
        out.say(f"note: {note}")
    if report.written and {layout.CONFIG_FILE, layout.TOKENIZER_FILE} <= set(report.copied):
        out.say(f"next:  llmt generate {report.output} --prompt Once")


def _notes(report: "ConvertReport", limit: int) -> Iterator[str]:
    if report.left_out:
        yield f"left out, since it is not part of the model: {', '.join(report.left_out)}"
    for left_out, kept in report.tied.items():
        yield f"{left_out} is tied to {kept} and stored once"
    if report.too_large:
        names = ", ".join(report.too_large[:3]) + (" and others" if len(report.too_large) > 3 else "")
        yield f"larger than {format_size(limit)}, so each has a file of its own: {names}"
    if not report.checksums:
        yield "a file of this age keeps no checksums, so damage that it had before cannot be seen"


def _missing(path: Path) -> ModelFileError:
    """A path that is not there; the hint names the runs that are."""
    from llmt.checkpoints.runs import find_runs

    runs = [str(run.path) for run in find_runs()]
    hint = f"runs found here: {', '.join(runs)}" if runs else "no runs under ./runs; llmt train makes one"
    if path.name == str(path):
        hint += f"; commands of convert: {', '.join(command.name or '' for command in app.registered_commands)}"
    return ModelFileError(f"{path}: does not exist", f"name a .pt, .pth or .bin file, or a directory with one; {hint}")


@app.command("safetensors-to-pt", context_settings=CONTEXT)
@with_settings(ToPytorchSettings)
def safetensors_to_pt(
    out: Output,
    given: list[Given],
    path: Annotated[str, typer.Argument(help="A model directory, or a .safetensors file.")],
) -> None:
    """Convert safetensors to PyTorch weights, for programs that read nothing else."""
    from llmt.export.pytorch import convert_to_pytorch

    settings = load_task("safetensors_to_pt", ToPytorchSettings, flags=given).config
    report = convert_to_pytorch(
        Path(path),
        None if settings.output_dir is None else Path(settings.output_dir),
        max_shard_size=settings.max_shard_size,
        overwrite=settings.overwrite,
    )
    if out.as_json:
        out.json({**asdict(report), "output": str(report.output)})
        return
    out.result(
        f"{report.output}: {format_number(report.tensors, 'tensor')}, {format_count(report.parameters)} parameters, "
        f"{format_size(report.size)}, {format_duration(report.seconds)}, verified"
    )
    for name in report.files:
        out.result(f"  {name}")
    for name in report.copied:
        out.result(f"  {name}  copied")


@app.command("merge-lora", context_settings=CONTEXT)
@with_settings(MergeSettings)
def merge_lora(
    out: Output,
    given: list[Given],
    adapter: Annotated[str, typer.Argument(help="Directory of the adapter.")],
) -> None:
    """Add an adapter to its base and write one full model."""
    from llmt.export.merge import merge_adapter
    from llmt.models.hub import local_path

    settings = load_task("merge_lora", MergeSettings, flags=given).config
    merged = merge_adapter(Path(adapter), settings, base=None if settings.base is None else local_path(settings.base))
    if out.as_json:
        out.json({"directory": str(merged.directory), "dtype": merged.dtype, "lost": merged.lost})
        return
    out.result(f"{merged.directory}: a full model in {merged.dtype}")
    if merged.lost:
        out.result(
            f"rounding to {merged.dtype} moved the weights by {100 * merged.lost:.1f} % of what the adapter moved them"
        )
    out.say(f"next:  llmt generate {merged.directory}")


@app.command("gguf", context_settings=CONTEXT)
@with_settings(GgufSettings)
def gguf(
    out: Output,
    given: list[Given],
    path: Annotated[str, typer.Argument(help="A run, a checkpoint or a model directory.")],
) -> None:
    """Write a model as one file that llama.cpp and Ollama run, tokenizer and chat template inside."""
    from llmt.export.gguf import export_gguf

    settings = load_task("gguf", GgufSettings, flags=given).config
    target = None if settings.output_file is None else Path(settings.output_file)
    report = export_gguf(Path(path), target, dtype=settings.dtype, overwrite=settings.overwrite)
    if out.as_json:
        out.json({**asdict(report), "path": str(report.path)})
        return
    out.result(
        f"{report.path}: {format_number(report.tensors, 'tensor')}, {format_count(report.parameters)} parameters, "
        f"{report.dtype}, {format_size(report.size)}, {format_duration(report.seconds)}"
    )
    if report.kept_f16:
        out.say(f"note: {report.kept_f16} matrices stay f16, since their rows are no multiple of 32")
    if not report.chat_template:
        out.say("note: the model has no chat template, so programs complete text with it")
    out.say(f"next:  llama-cli -m {report.path} -p 'Once'")
