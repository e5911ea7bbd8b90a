"""`llmt tokenizer train` on one megabyte, start-up, check and publishing included."""

import statistics
import sys
import tempfile
from pathlib import Path

from measure import report, run_process
from texts import gather

RUNS = 5
ASKED_SECONDS = 3.0

text = gather(2)[0].read_bytes()[:1_000_000].decode("utf-8", "ignore")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "text.txt"
    path.write_text(text, encoding="utf-8")
    for kind in (["wordpiece"], ["wordpiece", "--style", "bert"], ["bpe"], ["unigram"], ["byte"]):
        seconds, peaks = [], []
        for _ in range(RUNS):
            command = [sys.executable, "-m", "llmt", "tokenizer", "train", str(path), "--algo", *kind]
            taken, peak, _ = run_process([*command, "-o", f"{folder}/made", "--overwrite", "--quiet"], timeout=60)
            seconds.append(taken)
            peaks.append(peak)
        report(
            "tokenizer_train",
            algo=" ".join(kind),
            megabytes=1.0,
            seconds=round(statistics.median(seconds), 2),
            asked_seconds=ASKED_SECONDS,
            peak_megabytes=round(max(peaks) / 1e6),
        )
