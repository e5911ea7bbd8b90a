"""The corpus that every Python carries."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from llmt.errors import DataError
from llmt.text.builtin import (
    Instruction,
    builtin_documents,
    builtin_fingerprint,
    builtin_instructions,
    instructions,
    stdlib_folder,
)

_READ_ALL = """
import json, sys
from itertools import islice
from llmt.text.builtin import builtin_documents, builtin_fingerprint, builtin_instructions, stdlib_folder
stdlib_folder()
before = set(sys.modules)
documents = [(document.source, document.text) for document in builtin_documents()]
questions = [document.text for document in islice(builtin_instructions(), 300)]
print(json.dumps([documents, questions, builtin_fingerprint(), sorted(set(sys.modules) - before)]))
"""


def test_another_process_reads_the_same_and_imports_nothing_of_it() -> None:
    """Texts, order and fingerprint do not depend on the hash seed; the topics alone are imported."""
    another = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    result = subprocess.run(
        [sys.executable, "-c", _READ_ALL],
        env={**os.environ, "PYTHONHASHSEED": another},
        capture_output=True,
        check=True,
        text=True,
    )
    documents, questions, fingerprint, imported = json.loads(result.stdout)
    assert documents == [[document.source, document.text] for document in builtin_documents()]
    assert questions == [document.text for document in islice(builtin_instructions(), 300)]
    assert fingerprint == builtin_fingerprint()
    assert set(imported) <= {"pydoc_data", "pydoc_data.topics"}


def test_it_is_large_enough_to_learn_from() -> None:
    """More than 1.5 MB in more than 300 documents, none blank, none twice."""
    documents = builtin_documents()
    texts = [document.text for document in documents]
    assert sum(len(text.encode()) for text in texts) > 1_500_000
    assert len(set(texts)) == len(texts) > 300
    assert all(text == text.strip() and text for text in texts)


def test_topics_come_first_and_modules_are_sorted() -> None:
    """Each document names the topic or the module that it came from."""
    sources = [document.source for document in builtin_documents()]
    kinds = [source.split("/")[0] for source in sources]
    assert sorted(set(kinds)) == ["builtin:module", "builtin:topic"]
    assert kinds == sorted(kinds, reverse=True)
    assert "builtin:module/json.decoder" in sources
    assert not any(".test." in f"{source}." or "/test" in source for source in sources)


def _library(folder: Path) -> Path:
    (folder / "pkg" / "tests").mkdir(parents=True)
    (folder / "a.py").write_text(
        '"""About a."""\n'
        "def outer(x: int, *, flag=True) -> None:\n"
        '    """Does a thing\n    to x.\n\n    At length."""\n'
        '    def inner():\n        """Inside."""\n'
        "def _hidden():\n"
        '    """Hidden."""\n'
        "class Box:\n"
        '    """A box."""\n'
        "    def put(self, item, /, where: str = 'top'):\n"
        '        """Put it in."""\n'
        "    @staticmethod\n"
        "    def of(size):\n"
        '        """A box of a size."""\n'
        "    @property\n"
        "    def size(self):\n"
        '        """How large."""\n'
        "raise SystemExit('a.py was run')\n"
    )
    (folder / "pkg" / "__init__.py").write_text('def f():\n    """Inside."""\ndef g():\n    """Fresh."""\n')
    (folder / "pkg" / "tests" / "b.py").write_text('"""Never read."""\n')
    (folder / "broken.py").write_text("def (:\n")
    (folder / "latin.py").write_bytes(b'"""caf\xe9"""\n')
    return folder


def test_a_module_is_its_docstrings_in_source_order(tmp_path: Path) -> None:
    """Nested ones included, repeated ones once, tests and files that do not parse left out, nothing run."""
    found = {document.source: document.text for document in builtin_documents(_library(tmp_path))}
    modules = {source: text for source, text in found.items() if source.startswith("builtin:module")}
    assert modules == {
        "builtin:module/a": "About a.\n\nDoes a thing\nto x.\n\nAt length.\n\nInside.\n\nHidden.\n\n"
        "A box.\n\nPut it in.\n\nA box of a size.\n\nHow large.",
        "builtin:module/pkg": "Fresh.",
    }


def test_an_instruction_is_a_call_and_its_first_paragraph(tmp_path: Path) -> None:
    """Public functions and methods that are called, as a user would write them."""
    assert list(instructions(_library(tmp_path))) == [
        Instruction("What does `a.outer(x, *, flag=True)` do?", "Does a thing to x.", "builtin:instructions/a"),
        Instruction("What does `a.Box.put(item, /, where='top')` do?", "Put it in.", "builtin:instructions/a"),
        Instruction("What does `a.Box.of(size)` do?", "A box of a size.", "builtin:instructions/a"),
        Instruction("What does `pkg.f()` do?", "Inside.", "builtin:instructions/pkg"),
        Instruction("What does `pkg.g()` do?", "Fresh.", "builtin:instructions/pkg"),
    ]


def test_there_are_thousands_of_instructions() -> None:
    """More than 2,000, each once, each in the one template."""
    texts = [document.text for document in builtin_instructions()]
    assert len(texts) == len(set(texts)) > 2000
    assert all(text.startswith("Question: What does `") and text.count("\nAnswer: ") == 1 for text in texts)
    prompt = "What does `shutil.copy(src, dst, *, follow_symlinks=True)` do?"
    assert any(text.startswith(f"Question: {prompt}\nAnswer: Copy data and mode bits") for text in texts)


def test_without_the_library_the_topics_stand_alone(tmp_path: Path) -> None:
    """A Python without its source still has text, but no instructions."""
    sources = [document.source for document in builtin_documents(tmp_path)]
    assert len(sources) > 50
    assert all(source.startswith("builtin:topic/") for source in sources)
    assert sources == sorted(sources)
    with pytest.raises(DataError, match="without the source"):
        list(instructions(tmp_path))


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    """Any byte of any file that is read changes it; a file that is not read does not."""
    library = _library(tmp_path)
    before = builtin_fingerprint(library)
    (library / "pkg" / "tests" / "b.py").write_text('"""Still never read."""\n')
    assert builtin_fingerprint(library) == before
    (library / "pkg" / "__init__.py").write_text('def f():\n    """Inside!"""\ndef g():\n    """Fresh."""\n')
    assert builtin_fingerprint(library) != before


def test_the_library_is_where_python_says() -> None:
    """The folder holds the module that was asked for it."""
    assert (stdlib_folder() / "sysconfig.py").exists() or (stdlib_folder() / "sysconfig").is_dir()
