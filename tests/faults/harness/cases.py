"""kinds of saves -> what is run, what is struck, and how one goes on afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import peers
from harness.lab import LORA, SCRATCH, Lab, command, finished, sha256
from harness.verdicts import LLMT

SAVING = ("--max-steps", "4", "--save-steps", "2", "--eval-steps", "1000", "--set", "training.save_total_limit=1")

RUN_DIRECTORY = "runs/tiny"


@dataclass(frozen=True)
class Case:
    """One kind of save.

    Attributes:
        name: Of the case.
        make: Fills the folder that everything begins with; once.
        struck: The folder below which calls are struck.
        work: What is struck, in a child.
        again: What a user does afterwards, in a child.
        digest: The hash of what is there in the end.
        run: The folder of a run with checkpoints; empty where there are none.
        subject: Whose save it is.
        shared: Other machines may write there: what a killed process leaves is removed a day later.
        sparse: What need not be tried everywhere is tried at every so many calls; of a peer's save everything.
    """

    name: str
    make: Callable[[Lab, Path], None]
    struck: str
    work: Callable[[], object]
    again: Callable[[], object]
    digest: Callable[[Path], str]
    run: str = ""
    subject: str = LLMT
    sparse: int = 1
    shared: bool = False


def train(arguments: tuple[str, ...]) -> Callable[[], object]:
    """A run, in a child."""
    return lambda: command((*arguments, "-o", RUN_DIRECTORY))


def train_again(arguments: tuple[str, ...]) -> Callable[[], object]:
    """What a scheduler does after a failure: go on where there is a checkpoint, else start."""

    def work() -> None:
        from llmt.checkpoints.store import CheckpointStore

        if CheckpointStore(Path(RUN_DIRECTORY)).steps():
            command(("train", RUN_DIRECTORY, "--resume"))
        command((*arguments, "-o", RUN_DIRECTORY))

    return work


def warm_cache(lab: Lab, place: Path) -> None:
    """The token cache that a scratch run reads, so that only its saves are struck."""
    lab.must(place, *SCRATCH, "--max-steps", "1", "-o", "other")


def with_base(lab: Lab, place: Path) -> None:
    """A finished model to put an adapter on."""
    lab.must(place, *SCRATCH, "--max-steps", "4", "-o", "base")
    lab.must(place, *LORA, "--max-steps", "1", "-o", "other")


def earlier_tokenizer(lab: Lab, place: Path) -> None:
    """A tokenizer that stands where the new one is to stand."""
    (place / "out").mkdir()
    lab.must(place, "tokenizer", "train", "text.txt", "--vocab-size", "290", "-o", "out/tokenizer")


def earlier_model(lab: Lab, place: Path) -> None:
    """A model that stands where the shards are to stand."""
    lab.must(place, *SCRATCH, "--max-steps", "2", "-o", "base")
    lab.child(place, write_whole)


def write_whole() -> None:
    """The base again, in one file."""
    from llmt.models.load import load_model

    load_model(Path("base")).save_pretrained("out")


def write_shards() -> None:
    """The base again, in many small files, over the earlier model."""
    from llmt.models.load import load_model

    load_model(Path("base")).save_pretrained("out", max_shard_size=20_000)


BPE = ("train", "quickstart", "--data", "text.txt", *SCRATCH[4:-2], "--algo", "bpe", "--vocab-size", "300")
TOKENIZER = ("tokenizer", "train", "text.txt", "--vocab-size", "300", "-o", "out/tokenizer", "--overwrite")


def saving(name: str, *more: str, sparse: int = 1) -> Case:
    """A run from scratch that saves in some way."""
    arguments = (*SCRATCH, *SAVING, *more)
    return Case(name, warm_cache, "runs", train(arguments), train_again(arguments),
                lambda p: finished(p / RUN_DIRECTORY), RUN_DIRECTORY, sparse=sparse)  # fmt: skip


CASES = (
    saving("full"),
    saving("pytorch", "--set", "training.save_format=pytorch", sparse=8),
    saving("average", "--ema-decay", "0.9", sparse=8),
    saving("async", "--set", "training.async_save=true", sparse=8),
    Case("lora", with_base, "runs", train((*LORA, *SAVING)), train_again((*LORA, *SAVING)),
         lambda p: finished(p / RUN_DIRECTORY), RUN_DIRECTORY, sparse=4),
    Case("shards", earlier_model, "out", write_shards, write_shards, lambda p: finished(p / "out"), sparse=4),
    Case("tokenizer", earlier_tokenizer, "out", lambda: command(TOKENIZER), lambda: command(TOKENIZER),
         lambda p: sha256(p / "out" / "tokenizer" / "tokenizer.json"), sparse=4),
    Case("cache", lambda lab, place: None, "cache", train((*BPE, "--max-steps", "2")),
         train_again((*BPE, "--max-steps", "2")), lambda p: finished(p / RUN_DIRECTORY), RUN_DIRECTORY, sparse=4,
         shared=True),
    Case("HF Trainer", peers.prepare_hf, "run", peers.train_hf, peers.train_hf, peers.digest_hf, "", "HF Trainer",
         sparse=2),
    Case("torch.save", lambda lab, place: (place / "run").mkdir(), "run", peers.train_plain, peers.train_plain,
         peers.digest_plain, "", "torch.save in place", sparse=4),
)  # fmt: skip
