"""A subprocess for what needs a real standard input or its own memory."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., str]


@pytest.fixture(scope="session")
def run_python() -> Run:
    """Run a piece of Python with these bytes as its standard input, offline; what it prints."""

    def run(code: str, *arguments: str, stdin: bytes = b"") -> str:
        shown = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            input=stdin,
            capture_output=True,
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
        )
        assert shown.stderr == b""
        return shown.stdout.decode().strip()

    return run
