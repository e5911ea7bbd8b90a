"""running Python -> documents: the corpus that is on every machine.

The language reference that `help()` shows (`pydoc_data.topics`) and the docstrings of the standard library
are about two megabytes of real English. The library's source is read with `ast`; none of it is imported.
"""

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from llmt.errors import DataError
from llmt.text.documents import Document
from llmt.text.prompts import ANSWER, QUESTION_PROMPT

_TEST_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
# Some distributions leave these out, and the corpus should depend on Python's version alone.
_OPTIONAL_FOLDERS = {"site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Instruction:
    """A question about the standard library and its answer.

    Attributes:
        prompt: The question.
        answer: The first paragraph of the docstring, on one line.
        source: The module that it came from.
    """

    prompt: str
    answer: str
    source: str

    @property
    def text(self) -> str:
        """Question and answer as one document."""
        return self.question + ANSWER.format(answer=self.answer)

    @property
    def question(self) -> str:
        """The prompt as it stands in the document."""
        return QUESTION_PROMPT.format(question=self.prompt)


def stdlib_folder() -> Path:
    """The folder that holds the source of the standard library; it need not exist."""
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def builtin_documents(stdlib: Path | None = None) -> tuple[Document, ...]:
    """The topics of `help()`, one document each, then one document for each module's docstrings.

    The docstrings of a module stand in source order with an empty line between them. A docstring that an
    earlier module had already is left out. Where Python comes without its source the topics stand alone.

    Args:
        stdlib: Another folder with the source of a standard library.

    Raises:
        DataError: There are neither topics nor docstrings.
    """
    documents: dict[str, Document] = {}
    for name, text in sorted(_topics().items()):
        documents.setdefault(text, Document(text, f"builtin:topic/{name}"))
    seen: set[str] = set()
    for module, tree in _modules(stdlib or stdlib_folder()):
        fresh = [text for text in dict.fromkeys(_docstrings(tree)) if text not in seen]
        seen.update(fresh)
        if fresh:
            text = "\n\n".join(fresh)
            documents.setdefault(text, Document(text, f"builtin:module/{module}"))
    if not documents:
        raise DataError(
            "builtin: this Python has neither its help topics nor the source of its standard library",
            "name your own text with --set data.sources=FILE",
        )
    return tuple(documents.values())


def instructions(stdlib: Path | None = None) -> Iterator[Instruction]:
    """What each documented function and method does; repeated pairs are left out.

    Args:
        stdlib: Another folder with the source of a standard library.

    Raises:
        DataError: Python comes without its source.
    """
    seen: set[tuple[str, str]] = set()
    for module, tree in _modules(stdlib or stdlib_folder()):
        for call, docstring in _signatures(tree, module):
            pair = f"What does `{call}` do?", " ".join(docstring.split("\n\n")[0].split())
            if pair not in seen:
                seen.add(pair)
                yield Instruction(*pair, f"builtin:instructions/{module}")
    if not seen:
        raise DataError(
            "builtin:instructions: this Python comes without the source of its standard library",
            "name your own questions and answers with --set data.sources=FILE.jsonl",
        )


def builtin_instructions(stdlib: Path | None = None) -> Iterator[Document]:
    """The instructions as documents.

    Args:
        stdlib: Another folder with the source of a standard library.

    Raises:
        DataError: Python comes without its source.
    """
    return (
        Document(item.text, item.source, prompt=len(item.question), layout="question") for item in instructions(stdlib)
    )


def builtin_fingerprint(stdlib: Path | None = None) -> str:
    """SHA-256 over everything that the built-in corpus is made from; parses nothing."""
    digest = hashlib.sha256()
    folder = stdlib or stdlib_folder()
    files = ((path, (folder / path).read_bytes()) for path in _python_files(folder))
    for name, content in chain(((name, text.encode()) for name, text in sorted(_topics().items())), files):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {name: text.strip() for name, text in topics.items()}


def _python_files(folder: Path) -> list[str]:
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _TEST_FOLDERS | _OPTIONAL_FOLDERS]
        files += [(Path(root) / name).relative_to(folder).as_posix() for name in names if name.endswith(".py")]
    return sorted(set(files) - {"pydoc_data/topics.py"})


def _modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in _python_files(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            try:
                tree = ast.parse((folder / path).read_bytes())
            except (SyntaxError, UnicodeDecodeError):
                continue
        yield path.removesuffix(".py").removesuffix("/__init__").replace("/", "."), tree


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Children that may hold a definition: expressions cannot."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | _Function):
        text = (ast.get_docstring(node) or "").strip()
        if text:
            yield text
    for child in _statements(node):
        yield from _docstrings(child)


def _signatures(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    """Calls as a user would read them, with their docstrings; what is private or nested is left out."""
    for child in _statements(node):
        if isinstance(child, ast.ClassDef):
            if not child.name.startswith("_"):
                yield from _signatures(child, f"{prefix}.{child.name}")
        elif isinstance(child, _Function):
            docstring = (ast.get_docstring(child) or "").strip()
            if docstring and not docstring.startswith(">>>") and _is_public_call(child):
                yield f"{prefix}.{child.name}({_arguments(child, isinstance(node, ast.ClassDef))})", docstring
        else:
            yield from _signatures(child, prefix)


def _is_public_call(function: _Function) -> bool:
    decorators = " ".join(ast.unparse(node) for node in function.decorator_list)
    return not function.name.startswith("_") and not re.search(r"property|\.(setter|deleter)\b", decorators)


def _arguments(function: _Function, is_method: bool) -> str:
    """The parameters without annotations, and without the one that a method is bound to."""
    arguments = function.args
    decorators = [node.id for node in function.decorator_list if isinstance(node, ast.Name)]
    for holder in (arguments.posonlyargs, arguments.args):
        if is_method and holder and "staticmethod" not in decorators:
            del holder[0]
            break
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(arguments)
