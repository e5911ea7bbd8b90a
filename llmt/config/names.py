"""Names of what comes with llmt."""

BUILTIN = "builtin"
BUILTIN_INSTRUCTIONS = "builtin:instructions"
