"""The table of contents of the command line, and the one place where errors end."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from llmt.cli import config, convert, doctor, evaluate, generate, tokenizer, train
from llmt.cli.options import CONTEXT
from llmt.cli.output import Output
from llmt.errors import (
    Interrupted,
    LlmtError,
    MissingPackageError,
    OutOfMemoryError,
    StorageError,
    UsageError,
)

app = typer.Typer(
    name="llmt",
    help="From raw text to a language model you can share.",
    context_settings=CONTEXT,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None if os.name == "nt" and not sys.stdout.isatty() else "rich",
)
app.add_typer(tokenizer.app, name="tokenizer")
app.command("train", context_settings=CONTEXT)(train.train)
app.command("eval", context_settings=CONTEXT)(evaluate.evaluate)
app.command("generate", context_settings=CONTEXT)(generate.generate)
app.add_typer(convert.app, name="convert")
app.command("doctor", context_settings=CONTEXT)(doctor.doctor)
app.add_typer(config.app, name="config")


def _version(asked: bool) -> None:
    if asked:
        from llmt import __version__

        typer.echo(f"llmt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
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
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns:
        The exit code: 0 when done, else that of the error, which was printed.
    """
    out = Output()
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="llmt", standalone_mode=False, obj=out)
        return code if isinstance(code, int) else 0
    except LlmtError as error:
        return _refuse(out, error)
    except typer.TyperException as error:
        return _refuse(out, _usage_error(error))
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return _refuse(out, Interrupted("stopped before anything was saved", "", 2))
    except BrokenPipeError:
        # The reader went away; a second flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _refuse(out, OutOfMemoryError("memory ran out", "a smaller --batch-size or --block-size"))
    except ModuleNotFoundError as error:
        return _refuse(out, MissingPackageError((error.name or "").partition(".")[0], str(error)))
    except OSError as error:
        return _refuse(out, StorageError(f"{error.filename or 'file system'}: {error.strerror}", "check the path"))
    except RuntimeError as error:
        if "not enough memory" in str(error) or "out of memory" in str(error) or "can't allocate" in str(error):
            return _refuse(out, OutOfMemoryError("memory ran out", "a smaller --batch-size or --block-size"))
        raise


def _refuse(out: Output, error: LlmtError) -> int:
    if out.debug:
        traceback.print_exc()
    out.error(error)
    return error.exit_code


def _usage_error(error: Any) -> UsageError:
    """A mistake on the command line, in our two lines."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "llmt"
    return UsageError(error.format_message().rstrip("."), f"{path} --help")
