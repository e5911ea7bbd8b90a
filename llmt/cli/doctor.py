"""`llmt doctor`: what this machine can do."""

from dataclasses import asdict

from rich.text import Text

from llmt.cli.options import with_settings
from llmt.cli.output import Output, safe
from llmt.config.layers import Given
from llmt.config.load import load_task
from llmt.config.tasks import DoctorSettings
from llmt.errors import DeviceError

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@with_settings(DoctorSettings)
def doctor(out: Output, given: list[Given]) -> None:
    """Check packages, devices, memory and disk; every device computes something."""
    from llmt.system.doctor import diagnose

    settings = load_task("doctor", DoctorSettings, flags=given).config
    checks = []
    for check in diagnose(settings.device):
        checks.append(check)
        if not out.as_json:
            line = Text.assemble((f"{check.status:5}", _STYLES[check.status]), f"{check.name:13}", safe(check.detail))
            out.out.print(line)
    if out.as_json:
        out.json({"checks": [asdict(check) for check in checks]})
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise DeviceError(f"{len(failed)} checks failed: {', '.join(failed)}", "the lines above say what to do")
