"""Who may import whom, and where each outside library comes in."""

import subprocess
import sys

import pytest
from source import ORDER, PACKAGE, Module, modules, step_of

ROOMS = [m for m in modules() if m.room and m.name != "llmt.__main__"]

DOORS = {
    "typer": ("llmt.cli",),
    "rich": ("llmt.cli",),
    "pydantic": ("llmt.config",),
    "yaml": ("llmt.config.strictyaml",),
    "psutil": ("llmt.system.memory",),
    "safetensors": (),  # the format is read and written by our own code; the library is the oracle of its tests
    "datasets": ("llmt.text.hub",),
    "accelerate": ("llmt.training.runtime",),
    "peft": ("llmt.models.lora", "llmt.models.peft_methods"),
    "transformers": ("llmt.tokenizers.huggingface", "llmt.models.huggingface", "llmt.data.chat_child"),
    "jinja2": ("llmt.data.chat_child",),
    "pyarrow": ("llmt.text.compressed", "llmt.text.tables"),
    "tokenizers": ("llmt.tokenizers",),
    "tiktoken": ("llmt.tokenizers.ranks",),
    "numba": ("llmt.tokenizers",),
    "gguf": ("llmt.export.gguf",),
    "huggingface_hub": ("llmt.models.hub", "llmt.models.huggingface", "llmt.tokenizers.huggingface", "llmt.text.hub"),
    "click": (),
    "pickle": (),
}
"""Library -> the modules or packages that may import it."""

LAZY_DOORS = {
    "gguf",
    "huggingface_hub",
    "psutil",
    "jinja2",
    "pyarrow",
    "tiktoken",
    "datasets",
    "accelerate",
    "peft",
    "transformers",
}
"""Behind these doors the import stands inside a function."""

TORCH_AT_THE_TOP = {"checkpoints", "data", "models", "training", "evaluation", "generation", "export"}
TORCH_NEVER = {f"llmt.checkpoints.{name}" for name in ("layout", "atomic", "sharding", "pickled", "convert", "store")}


def test_every_room_has_a_place_in_the_order() -> None:
    """No package or module stands outside the import order."""
    known = {room for step in ORDER for room in step}
    assert {m.room for m in ROOMS} <= known


@pytest.mark.parametrize("module", ROOMS, ids=lambda m: m.name)
def test_imports_run_with_the_order(module: Module) -> None:
    """A room imports from its own step and from earlier ones, inside functions too; `data` and `models` stand apart."""
    for found in module.imports():
        parts = found.module.split(".")
        if parts[0] != "llmt" or len(parts) < 2 or parts[1] == "__version__":
            continue
        place = f"{module.name}:{found.line} imports {found.module}"
        assert step_of(parts[1]) <= step_of(module.room), place
        if step_of(parts[1]) == step_of(module.room):
            assert parts[1] == module.room, place


@pytest.mark.parametrize("module", ROOMS, ids=lambda m: m.name)
def test_each_library_comes_in_through_its_door(module: Module) -> None:
    """An outside library is imported by the modules that own it and by nobody else."""
    for found in module.imports():
        library = found.module.split(".")[0]
        if library in DOORS:
            allowed = any(module.name == door or module.name.startswith(door + ".") for door in DOORS[library])
            assert allowed, f"{module.name}:{found.line} imports {library}"
            assert found.lazy or library not in LAZY_DOORS, f"{module.name}:{found.line} imports {library} at the top"


@pytest.mark.parametrize("module", ROOMS, ids=lambda m: m.name)
def test_torch_stays_where_tensors_are(module: Module) -> None:
    """Torch is imported at the top only by rooms that compute, and never by the files that must do without it."""
    for found in module.imports():
        if found.module.split(".")[0] == "torch":
            assert module.name not in TORCH_NEVER, f"{module.name}:{found.line}"
            assert found.lazy or module.room in TORCH_AT_THE_TOP, f"{module.name}:{found.line}"


def test_no_import_cycle() -> None:
    """No module reaches itself through imports, lazy ones included."""
    names = {m.name for m in modules()}
    graph = {m.name: {i.module for i in m.imports() if i.module in names and i.module != "llmt"} for m in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_the_longest_import_chain_is_short() -> None:
    """No chain of top-level imports is longer than 10 modules."""
    names = {m.name for m in modules()}
    graph = {m.name: {i.module for i in m.imports() if i.module in names and not i.lazy} for m in modules()}
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((measure(other) for other in graph[name]), default=0)
        return depth[name]

    longest = max(names, key=measure)
    assert depth[longest] <= 10, longest


def test_importing_the_package_is_light() -> None:
    """`import llmt` loads nothing heavy, and every public name can be had from it."""
    heavy = ["torch", "transformers", "datasets", "accelerate", "peft", "numpy", "pydantic", "typer", "rich"]
    code = f"import sys, llmt; print([m for m in {heavy!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
    code = "import llmt; [getattr(llmt, name) for name in llmt.__all__]; print(len(llmt.__all__))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) >= 20


def test_few_modules_read_the_environment() -> None:
    """os.environ and os.getenv stand in config/load and system/machine, where a shell asks for completions, and where
    a launcher tells a process its number.
    """
    readers = {
        str(m.path.relative_to(PACKAGE)).replace("\\", "/")
        for m in modules()
        if "os.environ" in m.path.read_text(encoding="utf-8") or "getenv" in m.path.read_text(encoding="utf-8")
    }
    assert readers == {"config/load.py", "system/machine.py", "cli/app.py", "training/launch.py", "training/worker.py"}
