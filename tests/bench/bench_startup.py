"""How long `llmt --help` takes, beside importing the libraries that draw it."""

import sys

from measure import paired_medians, report

ours = [sys.executable, "-m", "llmt", "--help"]
peer = [sys.executable, "-c", "import typer, rich, pydantic"]
seconds, floor = paired_medians(ours, peer, runs=15, timeout=30)
report("startup", llmt_help_seconds=seconds, imports_seconds=floor, ratio=seconds / floor, asked_ratio=2.0)
