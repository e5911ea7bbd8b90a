"""a window of uneven batches -> the gradients of one whole batch, to the last bits of float64."""

import random
import shutil
import time
from dataclasses import dataclass
from typing import Any

from harness.lab import Lab
from harness.lanes import spread
from harness.verdicts import LLMT, Family, Verdict, families

COUNT = 100
LARGEST = 1e-12
VOCABULARY, LENGTH = 50, 12


@dataclass(frozen=True)
class Window:
    """The shape of one window.

    Attributes:
        seed: Of weights, ids and labels.
        rows: Sequences in each batch; the last may have fewer.
        lengths: Tokens in each sequence, all batches after one another.
        masked: Share of the labels that are not learnt.
        empty: Whether nothing of the first batch is learnt.
    """

    seed: int
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    masked: float
    empty: bool


def windows(count: int, seed: int) -> list[Window]:
    """Shapes at random: one to five batches, a last one that is partial, lengths from one token up."""
    choose = random.Random(seed)
    found = []
    for number in range(count):
        batch = choose.randint(1, 4)
        rows = [batch] * choose.randint(1, 4) + [choose.randint(1, batch)]
        lengths = tuple(choose.randint(1, LENGTH) for _ in range(sum(rows)))
        found.append(Window(number, tuple(rows), lengths, choose.choice((0.0, 0.3, 0.9)), choose.random() < 0.2))
    return found


def batches(window: Window) -> tuple[list[Any], Any]:
    """The batches of a window, each as long as its longest sequence, and all of them as one."""
    import torch

    from llmt.data.batch import IGNORED, Batch

    torch.manual_seed(window.seed)
    ids = torch.randint(VOCABULARY, (sum(window.rows), LENGTH))
    labels = torch.randint(VOCABULARY, ids.shape)
    labels[torch.rand(ids.shape) < window.masked] = IGNORED
    for row, length in enumerate(window.lengths):
        labels[row, length:] = IGNORED
    if window.empty:
        labels[: window.rows[0]] = IGNORED
    labels[-1, 0] = 1  # something is learnt
    parts, first = [], 0
    for rows in window.rows:
        width = max(window.lengths[first : first + rows])
        part = labels[first : first + rows, :width]
        parts.append(Batch(ids[first : first + rows, :width], part, int((part != IGNORED).sum())))
        first += rows
    return parts, Batch(ids, labels, int((labels != IGNORED).sum()))


def gradients(window: list[Any], seed: int) -> dict[str, Any]:
    """What llmt computes for a window, in float64: a parameter is its own master."""
    import torch

    from llmt.config.model import ModelConfig
    from llmt.config.training import TrainingConfig
    from llmt.models.transformer import TransformerLM
    from llmt.training.optim import Optimizer
    from llmt.training.runtime import Runtime
    from llmt.training.step import Stepper

    torch.manual_seed(seed)
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    model = TransformerLM(shape, VOCABULARY, LENGTH).double()
    optimizer = Optimizer(model, TrainingConfig())
    for weight, parameter in zip(optimizer.weights, model.parameters(), strict=True):
        object.__setattr__(weight, "master", parameter)
    optimizer._copies.clear()
    tokens = sum(batch.tokens for batch in window)
    Stepper(model, optimizer, 0, Runtime()).gradients(window, 0, tokens, None)
    return {weight.name: weight.master.grad for weight in optimizer.weights}


def difference(window: Window) -> float:
    """The largest difference of a gradient to that of the whole batch; see `relative`."""
    parts, whole = batches(window)
    return relative(gradients(parts, window.seed), gradients([whole], window.seed))


def relative(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference, relative to the largest gradient in its tensor.

    A tensor whose gradients are a thousandth of the others' holds rounding only: with one token there is nothing
    to attend to.
    """
    sizes = {name: float(gradient.abs().max()) for name, gradient in expected.items()}
    least = 1e-3 * max(sizes.values())
    differences = [float((found[name] - expected[name]).abs().max()) / max(size, least) for name, size in sizes.items()]
    return max(differences)


def mean_of_means(window: Window) -> float:
    """The same for a loop that averages the mean losses of its batches, as many do."""
    import torch

    parts, whole = batches(window)
    expected = gradients([whole], window.seed)
    each = [gradients([part], window.seed) for part in parts if part.tokens]
    averaged = {name: torch.stack([one[name] for one in each]).sum(0) / len(parts) for name in expected}
    return relative(averaged, expected)


def examine(lab: Lab, window: Window) -> list[Verdict]:
    """One window, in a child that may compute gradients."""
    place = lab.fresh(f"accumulation-{window.seed}")
    out = place / "found"
    ended = lab.child(place, lambda: out.write_text(f"{difference(window)!r} {mean_of_means(window)!r}") * 0)
    what = f"batches of {window.rows} sequences, {window.masked:.0%} masked"
    if ended.code:
        return [Verdict(what, f"exit code {ended.code}: {ended.last_line}")]
    found = [float(text) for text in out.read_text().split()]
    shutil.rmtree(place)
    subjects = (LLMT, "mean of means")
    return [
        Verdict(what, f"differs by {value:.1e}" if value > LARGEST else "", subject, ("", window.seed), f"{value:.1e}")
        for subject, value in zip(subjects, found, strict=True)
    ]


def run(lab: Lab) -> list[Family]:
    """Compare windows with whole batches."""
    started = time.monotonic()
    found = spread(windows(lab.count(COUNT), lab.seed), lambda window: examine(lab, window), lab.lanes)
    verdicts = [verdict for pair in found for verdict in pair]
    largest = max((float(v.outcome) for v in verdicts if v.subject == LLMT and v.outcome), default=0.0)
    return families("accumulation", verdicts, started, {"largest difference": f"{largest:.1e}"})
