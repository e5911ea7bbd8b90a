"""`llmt doctor`: what this machine can do."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from llmt.cli.options import with_settings
from llmt.cli.output import Output, safe
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.tasks import DoctorSettings
from llmt.errors import DeviceError, StorageError

if TYPE_CHECKING:
    from llmt.checkpoints.selftest import Finding
    from llmt.system.doctor import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@with_settings(DoctorSettings)
def doctor(
    out: Output,
    given: list[Given],
    selftest: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Try instead, for up to 20 seconds, whether the file system of this folder keeps checkpoints whole.",
        ),
    ] = None,
) -> None:
    """Check packages, devices, memory and disk; every device computes something."""
    settings = load_task("doctor", DoctorSettings, flags=given).config
    if selftest is not None:
        _try_folder(out, selftest)
        return
    from llmt.system.doctor import diagnose

    failed = _show(out, diagnose(settings.device))
    if failed:
        raise DeviceError(f"{len(failed)} checks failed: {', '.join(failed)}", "the lines above say what to do")


def _try_folder(out: Output, directory: Path) -> None:
    from llmt.checkpoints.selftest import try_folder
    from llmt.system.children import start_child

    failed = _show(out, try_folder(directory, start_child))
    if failed:
        raise StorageError(
            f"{directory}: its file system does not keep checkpoints safe: {', '.join(failed)}",
            "keep runs on another one: llmt train -o DIRECTORY",
        )


def _show(out: Output, found: "Iterable[Check | Finding]") -> list[str]:
    """Print one line for each thing that was tried as soon as it was; the names of those that failed."""
    checks = []
    for check in found:
        checks.append(check)
        if not out.as_json:
            line = Text.assemble((f"{check.status:5}", _STYLES[check.status]), f"{check.name:13}", safe(check.detail))
            out.out.print(line)
    if out.as_json:
        out.json({"checks": [asdict(check) for check in checks]})
    return [check.name for check in checks if check.status == "fail"]
