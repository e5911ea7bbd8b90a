"""files that want to run something, in each of four environments -> refused in one line that names them; nothing ran.

Beside it `torch.load` as a program calls it that says nothing of `weights_only`: what runs then depends on the
environment alone. The files are made in `payloads`; tests/faults/test_hostile_pickles.py shows that they are alive.
"""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import payloads
from harness.lab import Lab
from harness.lanes import spread
from harness.verdicts import LLMT, Family, Verdict, families
from payloads import Evil, Job, Place, one_line

PEER = "torch.load"
REFUSED = 4

SETTINGS: dict[str, dict[str, str]] = {
    "plain": {},
    "weights_only switched off": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    "both switches": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"},
    "planted modules": {"PYTHONPATH": "PLANTED:SHADOW", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
}
"""Environments in which nothing may run. The planted modules make the canary when anything imports them, torch and
transformers among them, and give meaning to the extension codes of pickle."""

PEER_FILES = 12
"""So many live files are given to torch."""


def setting(name: str, place: Place) -> dict[str, str]:
    """The variables of one setting, with the folders of this run."""
    filled = {"PLANTED": str(place.planted), "SHADOW": str(place.shadow)}
    return {
        variable: re.sub("PLANTED|SHADOW", lambda match: filled[match[0]], value)
        for variable, value in SETTINGS[name].items()
    }


def problems(case: Evil, result: Mapping[str, Any]) -> dict[str, object]:
    """What is wrong with how llmt took a malicious file; empty where nothing is."""
    found: dict[str, object] = {
        "code": result["code"] != REFUSED and result["code"],
        "ran": result["happened"],
        "events": result["events"],
        "not one line": not (one_line(result["message"]) and one_line(result["hint"])),
        "file not named": str(case.path) not in result["message"],
    }
    wrong = {key: value for key, value in found.items() if value}
    return wrong and wrong | {"said": result["message"][:200]}


def strike(lab: Lab, name: str) -> list[Verdict]:
    """All files in one environment; a share of them in a quick run."""
    root = lab.fresh(f"pickles-{list(SETTINGS).index(name)}")
    folder, output = root / "evil", root / "out"
    for made in (root / "place", folder):
        made.mkdir()
    place = payloads.plant(root / "place")
    every = max(round(1 / min(lab.scale, 1)), 1)
    evil = payloads.malicious(folder, place)[::every]
    variables = payloads.without_forbidding({**os.environ, "HOME": str(root)}) | setting(name, place)

    jobs = [Job(case.name, "convert", [str(case.path), str(output)], root=str(place.root)) for case in evil]
    results = payloads.run_jobs(jobs, root / "scratch", variables)
    verdicts = []
    for case in evil:
        wrong = problems(case, results[case.name]) or ({"left": "the target"} if output.exists() else {})
        why = ", ".join(f"{key}: {value}" for key, value in wrong.items())
        outcome = "broken" if wrong else "refused"
        verdicts.append(Verdict(f"{case.name}, {name}", why, LLMT, (name, len(verdicts)), outcome))
    return verdicts + _peer(evil, place, root / "peer", name, variables)


def _peer(evil: list[Evil], place: Place, scratch: Path, name: str, variables: dict[str, str]) -> list[Verdict]:
    """What `torch.load` runs of some live files."""
    live = [case for case in evil if case.live]
    live = live[:: max(len(live) // PEER_FILES, 1)][:PEER_FILES]
    if "PYTHONPATH" in variables:  # without the planted torch, which would be loaded instead of torch
        variables = variables | {"PYTHONPATH": str(place.planted)}
    jobs = [
        Job(case.name, "torch_load_default", [str(case.path / case.torch_file), str(place.root)], fork=True,
            root=str(place.root))
        for case in live
    ]  # fmt: skip
    results = payloads.run_jobs(jobs, scratch, variables, preload=("torch",))
    return [
        Verdict(f"{case.name}, {name}", "ran" if results[case.name]["happened"] else "", PEER, (name, number),
                "broken" if results[case.name]["happened"] else "refused")
        for number, case in enumerate(live)
    ]  # fmt: skip


def run(lab: Lab) -> list[Family]:
    """Every malicious file in every environment."""
    started = time.monotonic()
    found = spread(list(SETTINGS), lambda name: strike(lab, name), lab.lanes)
    return families("pickles", [verdict for verdicts in found for verdict in verdicts], started)
