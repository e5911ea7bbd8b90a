"""The table of contents of the command line, and the one place where errors end."""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Collection
from importlib import import_module
from types import TracebackType
from typing import Annotated, Any

import typer

from llmt.cli.context import CONTEXT, Command
from llmt.cli.output import Output, give_up_broken_streams
from llmt.cli.signals import INTERRUPTION, Stopped, ignore_signals, raise_on_signals
from llmt.errors import (
    Interrupted,
    LlmtError,
    MissingPackageError,
    OutOfMemoryError,
    StorageError,
    UsageError,
    says_out_of_memory,
)

COMMANDS = {
    "tokenizer": ("llmt.cli.tokenizer", "Train tokenizers and look into them."),
    "data": ("llmt.cli.data", "Make token ids of text, look at them as they are trained, and audit them."),
    "train": ("llmt.cli.train", "Train a model: from scratch, from a base, or an adapter."),
    "eval": ("llmt.cli.evaluate", "Measure a model on text: loss, perplexity and bits per byte."),
    "generate": (
        "llmt.cli.generate",
        "Write text with a model, or talk with it: from prompts, a file of prompts, a conversation, or nothing.",
    ),
    "convert": ("llmt.cli.convert", "Convert weights; without a command, PyTorch files to safetensors."),
    "checkpoints": ("llmt.cli.checkpoints", "Look at the checkpoints of a run."),
    "doctor": ("llmt.cli.doctor", "Check packages, devices, memory and disk; every device computes something."),
    "config": ("llmt.cli.config", "Settings: what they are and where they come from."),
}
"""Command -> its module, and its line in the help. A module that holds a Typer called `app` is a group."""

NAMES = {"eval": "evaluate"}
"""Commands whose function is called otherwise."""


def command_line(chosen: Collection[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line.

    Args:
        chosen: The commands to load; of the others only name and help are there, which is all that
            `llmt --help` shows.
    """
    app = typer.Typer(
        name="llmt",
        help="From raw text to a language model you can share.",
        context_settings=CONTEXT,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None if os.name == "nt" and not sys.stdout.isatty() else "rich",
    )
    app.callback(invoke_without_command=True)(root)
    for name, (module, line) in COMMANDS.items():
        if name not in chosen:
            app.command(name, help=line)(_not_loaded)
            continue
        loaded = import_module(module)
        if hasattr(loaded, "app"):
            app.add_typer(loaded.app, name=name)
        else:
            app.command(name, cls=Command, context_settings=CONTEXT)(getattr(loaded, NAMES.get(name, name)))
    return app


def _not_loaded() -> None:
    """Stands for a command that this invocation does not name."""


def _version(asked: bool) -> None:
    if asked:
        from llmt import __version__

        typer.echo(f"llmt {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """From raw text to a language model you can share.

    Begin with `llmt train`: with nothing else it trains a small model on the documentation inside Python.
    """
    out = context.find_object(Output)
    if out is not None:
        out.debug = debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.excepthook = _report_bug
    raise_on_signals()
    code: int | None = None
    with INTERRUPTION:
        code = run(sys.argv[1:])
        ignore_signals()
    if code is None:
        code = 128 + (INTERRUPTION.signum or 0)
        Output().error(_stopped(code - 128))
    give_up_broken_streams()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns:
        The exit code: 0 when done, else that of the error, which was printed.
    """
    out = Output(arguments=tuple(arguments))
    try:
        app = command_line(tuple(COMMANDS) if "_LLMT_COMPLETE" in os.environ else arguments)
        code = typer.main.get_command(app).main(arguments, prog_name="llmt", standalone_mode=False, obj=out)
        out.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return 141
    except _EXPECTED as error:
        known = _as_llmt_error(error)
        if INTERRUPTION.signum is not None and not isinstance(known, Interrupted):
            known = _stopped(INTERRUPTION.signum)  # a library was interrupted, and failed in its own way
        if known is None:
            raise
        if out.debug:
            traceback.print_exc()
        if "LOCAL_RANK" not in os.environ or _is_reported(known):
            out.error(known)
        elif not isinstance(known, Interrupted):
            _leave_last()
        return known.exit_code


_EXPECTED = (
    LlmtError, typer.TyperException, typer.Abort, Stopped, MemoryError, ImportError, OSError, RuntimeError,
)  # fmt: skip


def _as_llmt_error(error: BaseException) -> LlmtError | None:
    """What an error means to the one who typed; None for a bug."""
    if isinstance(error, LlmtError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage_error(error)
    if isinstance(error, Stopped | typer.Abort):
        signum = error.signum if isinstance(error, Stopped) else signal.SIGINT
        return _stopped(signum)
    if isinstance(error, ImportError):
        return MissingPackageError((error.name or "").partition(".")[0], str(error))
    if isinstance(error, OSError):
        return StorageError(f"{error.filename or 'file system'}: {error.strerror or error}", "check the path")
    if says_out_of_memory(error):
        return OutOfMemoryError("memory ran out", "a smaller --batch-size or --block-size")
    return None


def _is_reported(error: LlmtError) -> bool:
    """Of several processes, whether it is this one that says what happened."""
    from llmt.training.worker import should_report

    return should_report(error)


def _leave_last() -> None:
    """Let the first process speak: what started them ends all as soon as one is gone."""
    from llmt.training.worker import wait_for_first

    wait_for_first()


def _stopped(signum: int) -> Interrupted:
    return Interrupted("stopped, and nothing new was saved", "the same command starts again", signum)


def _usage_error(error: Any) -> UsageError:
    """A mistake on the command line, in our two lines."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "llmt"
    return UsageError(error.format_message().rstrip("."), f"{path} --help")


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Two lines for an error that nobody foresaw; its traceback goes to a file, with --debug to the terminal too."""
    lines = traceback.format_exception(kind, error, trace)
    with tempfile.NamedTemporaryFile("w", prefix="llmt-crash-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.writelines(lines)
    out = Output(debug="--debug" in sys.argv)
    if out.debug:
        sys.stderr.writelines(lines)
    out.error(LlmtError(f"a bug in llmt: {kind.__name__}: {error}", f"report it with {file.name}"))
