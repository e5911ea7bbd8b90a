"""How every command reads its words: `-h` for help, and `_` for `-` in the names of options."""

CONTEXT = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}
