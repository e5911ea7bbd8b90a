"""How every command reads its words: `-h` for help, `_` for `-` in the names of options, `--resume` by itself."""

from typing import Any

from typer.core import TyperCommand

from llmt.config.names import NEWEST

CONTEXT = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}

_RESUME = "--resume"


class Command(TyperCommand):
    """A command whose `--resume` may stand without a value, which the parser wants of every option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell out what is left away, then parse."""
        following = [*args[1:], "-"]
        pairs = zip(args, following, strict=True) if args else ()
        spelled = [f"{word}={NEWEST}" if word == _RESUME and after[:1] == "-" else word for word, after in pairs]
        return super().parse_args(ctx, spelled)
