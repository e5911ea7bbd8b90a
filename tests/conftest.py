"""What tests of whole commands share: a way to run llmt, and one tiny finished run."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a pause of the machine is no failure
settings.load_profile("untimed")

WORDS = [
    "the",
    "sea",
    "ship",
    "captain",
    "island",
    "storm",
    "wind",
    "night",
    "morning",
    "bird",
    "sailed",
    "over",
    "under",
    "through",
    "quiet",
    "dark",
    "bright",
    "returned",
    "found",
    "water",
    "harbour",
    "letter",
    "lantern",
]

TINY = (
    "--hidden-size", "32", "--intermediate-size", "64", "--num-hidden-layers", "2", "--num-attention-heads", "2",
    "--block-size", "32", "--vocab-size", "300", "--per-device-train-batch-size", "4", "--precision", "fp32",
    "--compile", "never", "--device", "cpu", "--sample-tokens", "5",
)  # fmt: skip
"""Flags of a model that trains in a second."""


def pytest_configure() -> None:
    """A shell that starts tests in the background ignores signals for them; runs under test are sent some."""
    for name, default in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, default)


@pytest.fixture(autouse=True)
def _libraries() -> Iterator[None]:
    """After each test torch chooses who multiplies in fp32, whatever was trained in this process."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].backends.mkldnn.matmul.fp32_precision = "none"


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of stderr."""
        return self.err.splitlines()


Command = Callable[..., Result]


def make_text(documents: int = 60, words: int = 60) -> str:
    """English-looking text, always the same."""
    choose = random.Random(0).choice
    return "\n\n".join(" ".join(choose(WORDS) for _ in range(words)) + "." for _ in range(documents))


def listing(directory: Path) -> dict[str, int]:
    """Every path below a directory, with its size."""
    return {
        str(path.relative_to(directory)): path.stat().st_size if path.is_file() else -1
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Flags of a model that trains in a second."""
    return TINY


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home directory with an empty cache, shared by all commands of the session."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def environment(home: Path) -> dict[str, str]:
    """The environment of a stranger's shell: nothing of llmt in it, one thread, no network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLMT_", "COLUMNS", "NO_COLOR", "FORCE_COLOR"))}
    places = {name: str(home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME")}
    return kept | places | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"}


@pytest.fixture(scope="session")
def llmt(environment: Mapping[str, str]) -> Command:
    """Run `python -m llmt ARGUMENTS` as its own process."""

    def run(
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stdin: str | None = "",
        timeout: float = 120,
        program: tuple[str, ...] = ("-m", "llmt"),
    ) -> Result:
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=cwd, env={**environment, **(env or {})}, input=stdin, timeout=timeout,
            capture_output=True, encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def inside(
    environment: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Command:
    """Run a command line in this process: the same path, without importing torch each time."""
    from llmt.cli.app import run as run_command

    for name in [name for name in os.environ if name.startswith(("LLMT_", "COLUMNS"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, stdin: str = "") -> Result:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            capfd.readouterr()
            code = run_command(list(arguments))
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def finished(llmt: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A directory with `text.txt` and the finished run `runs/quickstart`; and what the run said. Not to be changed."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "text.txt").write_text(make_text(), encoding="utf-8")
    arguments = ("train", "quickstart", "--data", "text.txt", *TINY, "--max-steps", "12", "--save-steps", "4")
    result = llmt(*arguments, cwd=directory)
    assert result.code == 0, result.err
    return directory, result


@pytest.fixture
def workplace(finished: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the directory with the finished run, to do anything in."""
    target = tmp_path / "work"
    shutil.copytree(finished[0], target)
    return target


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text file in an otherwise empty directory."""
    path = tmp_path / "text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def listing_of() -> Callable[[Path], dict[str, int]]:
    """Every path below a directory, with its size."""
    return listing
