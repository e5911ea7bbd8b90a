"""The source of the package as the architecture tests see it: modules, imports, functions."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llmt"

ORDER = (
    ("errors",),
    ("units",),
    ("config",),
    ("system", "checkpoints"),
    ("text",),
    ("tokenizers",),
    ("data", "models"),
    ("evaluation", "generation", "export"),
    ("training",),
    ("reports",),
    ("cli",),
)
"""The import order: a room imports from its own step and from those before it."""


@dataclass(frozen=True)
class Import:
    """One import statement: the module named, the line, and whether it stands inside a function."""

    module: str
    line: int
    lazy: bool


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """Its first-level package or module: `config`, `cli`, `errors`."""
        return self.name.split(".")[1] if "." in self.name else ""

    def imports(self) -> Iterator[Import]:
        """Every import; those under `if TYPE_CHECKING` count as lazy."""
        yield from _imports(self.tree.body, lazy=False)

    def code_lines(self, node: ast.AST | None = None) -> int:
        """Lines that hold code: no blank line, comment or docstring."""
        return len(_code_lines(self.path, node or self.tree))

    def functions(self) -> Iterator[ast.FunctionDef]:
        """Every function and method."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))


def _imports(body: list[ast.stmt], *, lazy: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield Import(node.module or "", node.lineno, lazy)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        inner = isinstance(node, ast.FunctionDef) or for_types
        for field in ("body", "orelse", "finalbody"):
            yield from _imports(getattr(node, field, []), lazy=lazy or inner)
        for handler in getattr(node, "handlers", []):
            yield from _imports(handler.body, lazy=lazy or inner)
        for case in getattr(node, "cases", []):
            yield from _imports(case.body, lazy=lazy or inner)


def _code_lines(path: Path, root: ast.AST) -> set[int]:
    lines: set[int] = set()
    text = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(root):
        if isinstance(node, ast.stmt) and not _is_docstring(node):
            end = node.body[0].lineno - 1 if hasattr(node, "body") and node.body else node.end_lineno
            lines.update(range(node.lineno, max(end or node.lineno, node.lineno) + 1))
    return {n for n in lines if text[n - 1].strip() and not text[n - 1].strip().startswith("#")}


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("llmt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def step_of(room: str) -> int:
    """The place of a room in the import order."""
    return next(number for number, rooms in enumerate(ORDER) if room in rooms)
