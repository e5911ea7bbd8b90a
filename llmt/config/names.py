"""Names that settings and readers share."""

BUILTIN = "builtin"
BUILTIN_INSTRUCTIONS = "builtin:instructions"

COLUMN_PARTS = (
    "messages", "system", "prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "question",
    "answer",
)  # fmt: skip
"""What `data.columns` may map; the column of plain text is `data.text_column`."""

NEWEST = "newest"
"""What `--resume` means where nothing follows it; as a base, the newest finished run."""

AUTO = "auto"

BASE = "base"
"""Among the names of adapters: none of them, the base alone."""
