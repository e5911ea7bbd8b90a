"""docs/huggingface.md says what is so: each of its blocks runs, in order, offline, in one folder."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

PACKAGES = ("trl", "peft", "datasets")
"""What some blocks need and llmt does not."""

# Runs the blocks that are named, all in one namespace, and says how each ended.
RUNNER = """
import json, sys, traceback
blocks, chosen = json.loads(sys.stdin.read())
names, results = {"__name__": "page"}, {}
for number in chosen:
    try:
        exec(compile(blocks[number], f"block {number}", "exec"), names)
        results[number] = None
    except BaseException:
        results[number] = traceback.format_exc()
with open("results.json", "w", encoding="utf-8") as file:
    json.dump(results, file)
"""


def _missing(block: str) -> list[str]:
    """The packages that a block imports and that are not here."""
    named = [name for name in PACKAGES if re.search(rf"^(?:from|import) {name}\b", block, re.MULTILINE)]
    return [name for name in named if importlib.util.find_spec(name) is None]


def _small_vocabulary(folder: Path, texts: list[str]) -> None:
    """A byte-level vocab.json and merges.txt, as GPT-2's, and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True)
    backend.model.save(str(folder))


def _prelude(folder: Path, llmt: Any) -> None:
    """What the page takes as given: an adapter, files of several makes, a hub's cache, rows with two columns."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed: it makes a model")
    text = (folder / "text.txt").read_text(encoding="utf-8")
    documents = text.split("\n\n")
    _small_vocabulary(folder / "two-files", documents)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_prefix=str(folder / "pieces"), vocab_size=45, minloglevel=2
    )
    commit = "0" * 40
    cached = folder / "hub" / "models--gpt2"
    _small_vocabulary(cached / "snapshots" / commit, documents)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    rows = [{"prompt": "Write about the sea.", "text": document} for document in documents]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    adapter = llmt(
        *("train", "--lora", "--base", "runs/quickstart", "--data", "text.txt", "--name", "lora"),
        *("--max-steps", "2", "--device", "cpu", "--precision", "fp32", "--compile", "never", "--block-size", "32"),
        *("--per-device-train-batch-size", "4", "--sample-tokens", "2"),
        cwd=folder,
    )
    assert adapter.code == 0, adapter.err


@pytest.fixture(scope="module")
def ended(
    finished: tuple[Path, Any],
    llmt: Any,
    environment: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, str | None]:
    """How each block that could run ended: None, or what went wrong."""
    folder = tmp_path_factory.mktemp("page") / "work"
    shutil.copytree(finished[0], folder)
    _prelude(folder, llmt)
    chosen = [number for number, block in enumerate(BLOCKS) if not _missing(block)]
    caches = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=folder,
        env={**environment, **caches, "TQDM_DISABLE": "1"},
        input=json.dumps([BLOCKS, chosen]),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, str | None] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {int(number): result for number, result in results.items()}


def test_the_number_of_blocks() -> None:
    """The search for blocks still finds them."""
    assert len(BLOCKS) == 21


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, ended: Mapping[int, str | None]) -> None:
    """A block runs after those before it, and what it claims holds."""
    if missing := _missing(BLOCKS[number]):
        pytest.skip(f"{', '.join(missing)} cannot be imported: the block is not run")
    assert ended[number] is None, f"{BLOCKS[number]}\n{ended[number]}"
