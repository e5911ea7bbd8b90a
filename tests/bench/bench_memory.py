"""Peak memory of two steps of each CPU template, beside what the plan said."""

import json
import sys
import tempfile
from pathlib import Path

from measure import report, run_process

LIMIT = 8_000_000_000

for template in ("quickstart", "cpu-small", "cpu-medium"):
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "llmt", "train", template, "--json", "--max-steps", "2",
            "--gradient-accumulation-steps", "1",
            "--set", f"data.cache_dir={folder}/cache", "--set", "training.eval_batches=2",
        ]  # fmt: skip
        _, peak, _ = run_process(command, timeout=900, cwd=Path(folder))
        plan = json.loads((Path(folder) / "runs" / template / "plan.json").read_text())
    report("memory", template=template, peak_bytes=peak, planned_bytes=plan["estimated_bytes"],
           ratio=plan["estimated_bytes"] / peak, limit_bytes=LIMIT)  # fmt: skip
