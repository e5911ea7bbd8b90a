"""How large and how tangled the code may be. Each exception is a line with its reason, and the list only shrinks."""

import ast
import re
import statistics
from collections.abc import Iterator

import pytest
from source import Module, modules

MODULE_LINES = 400
FUNCTION_LINES = 60
COMPLEXITY = 12
PARAMETERS = 8

MORE_COMPLEX = {
    "llmt.tokenizers.bytelevel._model_is_lossless": "one conjunction: when does every byte come back",
}
"""Function -> why its branches stand together."""


def _complexity(function: ast.FunctionDef) -> int:
    """McCabe's number: one, and one more for each branch, conditions inside expressions included."""
    branches = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.match_case)
    count = 1
    for node in ast.walk(function):
        count += isinstance(node, branches)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        count += len(node.ifs) if isinstance(node, ast.comprehension) else 0
    return count


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_a_module_fits_on_a_few_screens(module: Module) -> None:
    """At most 400 lines of code."""
    assert module.code_lines() <= MODULE_LINES


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_functions_are_small(module: Module) -> None:
    """At most 60 lines of code, 8 parameters (a command has one for each option) and a McCabe number of 12."""
    for function in module.functions():
        where = f"{module.name}:{function.lineno} {function.name}"
        assert module.code_lines(function) <= FUNCTION_LINES, where
        arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        is_command = any("with_settings" in ast.unparse(decorator) for decorator in function.decorator_list)
        assert is_command or len([a for a in arguments if a not in ("self", "cls")]) <= PARAMETERS, where
        if f"{module.name}.{function.name}" not in MORE_COMPLEX:
            assert _complexity(function) <= COMPLEXITY, where


def test_the_median_module_is_short() -> None:
    """Half of the modules have at most 150 lines of code."""
    assert statistics.median(m.code_lines() for m in modules()) <= 150


def test_nothing_forbidden_is_written() -> None:
    """No broad except, no print outside the terminal's room, no code from a file, no doubt about the configuration."""
    forbidden = {
        r"except\s*:|except (Base)?Exception\b": "a broad except",
        r"getattr\(\s*config\b": "doubt about the configuration",
        r"pickle\.load|torch\.load\(|\byaml\.(unsafe_)?load\(|\beval\(|\bexec\(": "code from a file",
        r"trust_remote_code\s*=\s*True": "remote code",
        r"TODO|FIXME|XXX": "work left undone",
    }
    for module in modules():
        text = module.path.read_text(encoding="utf-8")
        for pattern, what in forbidden.items():
            for found in re.finditer(pattern, text):
                line = text[: found.start()].count("\n") + 1
                allowed = "model.eval()" in text.splitlines()[line - 1] or ".eval(" in text.splitlines()[line - 1]
                assert allowed, f"{module.name}:{line}: {what}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                pytest.fail(f"{module.name}:{node.lineno}: print outside cli/output")


def test_everything_public_is_documented_and_typed() -> None:
    """Every module, public class, method and function has a docstring, and every function is annotated."""
    for module in modules():
        assert ast.get_docstring(module.tree), module.name
        for name, node in _public(module.tree.body, module.name):
            assert ast.get_docstring(node), f"{name}, line {node.lineno}"
        for function in module.functions():
            assert function.returns is not None, f"{module.name}:{function.lineno} {function.name}"


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}.{node.name}")


def test_the_terminal_is_a_thin_layer() -> None:
    """`cli` holds no more than a fifth of the code; the median of its functions is at most 18 lines."""
    total = sum(m.code_lines() for m in modules())
    terminal = [m for m in modules() if m.room == "cli"]
    assert sum(m.code_lines() for m in terminal) <= total / 5
    sizes = [m.code_lines(f) for m in terminal for f in m.functions()]
    assert statistics.median(sizes) <= 18
