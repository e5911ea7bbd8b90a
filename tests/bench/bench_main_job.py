"""`llmt train` with nothing else: wall time, bits per byte, and a byte 5-gram model on the same split."""

import json
import sys
import tempfile
from pathlib import Path

from measure import report, run_process
from ngram import WittenBell

from llmt.data.split import hold_out
from llmt.text.builtin import builtin_documents

with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "llmt", "train", "--json", "--set", f"data.cache_dir={folder}/cache"]
    seconds, peak, shown = run_process(command, timeout=900, cwd=Path(folder))
found = json.loads(shown)
bits = found["validation"]["bits_per_byte"]

parts = list(hold_out(iter(builtin_documents()), 0.05))
train = [document.text for document, held_out in parts if not held_out]
test = [document.text for document, held_out in parts if held_out]
for order in (3, 5):
    model = WittenBell(order)
    model.train(train)
    yardstick = model.bits_per_byte(test)
    report("ngram", order=order, bits_per_byte=yardstick, held_out_documents=len(test))
report(
    "main_job", seconds=seconds, asked_seconds=300, bits_per_byte=bits, asked_bits_per_byte=1.80,
    peak_bytes=peak, ratio_to_5_gram=bits / yardstick,
)  # fmt: skip
