"""A run that would learn nothing stops before it costs anything."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmt.config.lora import LoraConfig
from llmt.data.batch import IGNORED, Batch
from llmt.errors import DivergedError
from llmt.models.base import BaseLanguageModel
from llmt.training.optim import Optimizer, parts_of
from llmt.units import format_number

CHECKED_STEPS = 2
"""Steps that are watched: one half of a fresh adapter has no gradient in the first."""

EMPTY_STEPS = 10
"""Steps in a row without a target after which a run stops."""

LEAK = 1e-3
"""How much an earlier position may change with a later id, as a share of the largest value: rounding."""

FIRST_LOSS = (0.5, 2.0)
"""Bounds of the first loss of random weights, as shares of ln V; a nat more is allowed."""

ROUNDING = {torch.float32: 1e-4}
"""How far, as a share, two ways to the same likelihoods may come apart; in lower precision `COARSE`."""

COARSE = 0.05

SAME = 1e-4
"""How many nats, in the mean over the labels, a fresh adapter may be away from its reference."""

APART = 6.0
"""The same where it equals its reference up to rounding, in roundings: three times what networks were found to make."""

UNSTEADY = 4.0
"""What is added to it, in distances between two readings of the reference."""

WATCHED_RATE = 1e-6
"""Steps with a lower rate are not watched: rounding to fp32 may swallow what they change."""


def check_coverage(model: nn.Module, optimizer: Optimizer) -> None:
    """Every trainable tensor is in exactly one group.

    Raises:
        DivergedError: One is missing, moved twice, or has a learning rate of zero; names it.
    """
    grouped = [w.name for group in optimizer.groups for w in group.weights]
    for name, parameter in model.named_parameters():
        times = grouped.count(name)
        if times != int(parameter.requires_grad):
            raise DivergedError(f"{name}: in {times} optimizer groups", "report this with your configuration")
    if not grouped:
        raise DivergedError("no tensor is trainable", "check lora.target_modules")
    still = next((group.weights[0].name for group in optimizer.groups if group.peak == 0), None)
    if still is not None:
        raise DivergedError(f"{still}: its learning rate is zero", "llmt train --learning-rate 3e-3")


def check_finite(step: int, loss: float, grad_norm: float, weights: Optimizer) -> None:
    """The loss and every gradient are numbers.

    Raises:
        DivergedError: One is not; names the step and the first bad tensor.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    bad = next(
        (w.name for w in weights.weights if w.master.grad is not None and not w.master.grad.isfinite().all()), None
    )
    what = f"loss became {loss}" if not math.isfinite(loss) else f"gradient norm became {grad_norm}"
    where = f", first bad tensor {bad}" if bad else ""
    raise DivergedError(f"{what} at step {step}{where}", "lower training.learning_rate or lengthen the warm-up")


def check_moved(step: int, optimizer: Optimizer) -> None:
    """A step left numbers only in the weights.

    Raises:
        DivergedError: It did not; names the step and the first bad tensor.
    """
    norms = torch._foreach_norm([weight.master.detach() for weight in optimizer.weights])
    if math.isfinite(float(torch.stack(norms).sum())):
        return
    _check_numbers(step, optimizer.masters())  # a norm may overflow where no weight does


def check_weights(step: int, optimizer: Optimizer) -> None:
    """What would be saved holds numbers only: weights, and moments, which may overflow before the weights do.

    Raises:
        DivergedError: It does not; names the step and the first bad tensor.
    """
    _check_numbers(step, optimizer.masters() | optimizer.state())


def _check_numbers(step: int, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DivergedError(
                f"{name} is not finite after step {step}", "lower training.learning_rate or lengthen the warm-up"
            )


def check_objective(batch: Batch) -> None:
    """The labels are the next ids, shifted once: neither the same ones nor those after.

    Raises:
        DivergedError: They are not.
    """
    following, labels = batch.input_ids[:, 1:], batch.labels[:, :-1]
    counted = labels != IGNORED
    if batch.position_ids is not None:
        counted = counted & (batch.position_ids[:, 1:] > 0)
    wrong = counted & (labels != following)
    # Where rows are padded, what is predicted last is followed by padding.
    ends = counted & (batch.labels[:, 1:] == IGNORED)
    if bool((wrong & ~ends).any()):
        row, column = (int(place) for place in (wrong & ~ends).nonzero()[0])
        raise DivergedError(
            f"row {row}, position {column}: the label {int(labels[row, column])} is not the next id, "
            f"{int(following[row, column])}",
            "shift labels once: labels[t] is input_ids[t + 1]",
        )


@torch.no_grad()
def check_causal(model: BaseLanguageModel, batch: Batch) -> None:
    """What a position gives does not depend on the ids after it.

    Raises:
        DivergedError: It does: the model would learn to copy what it is to predict.
    """
    ids = batch.input_ids[:1].to(model.device)
    if ids.shape[1] < 2:
        return
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.vocab_size
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            found, changed = model.hidden_states(ids), model.hidden_states(other)
    finally:
        model.train(training)
    difference = (found[:, :-1].float() - changed[:, :-1].float()).abs().max()
    if float(difference) > LEAK * (1 + float(found.float().abs().max())):
        raise DivergedError(
            "the model sees the ids that it is to predict: an earlier position changed with the last id",
            "mask what comes later in the model's attention",
        )


def check_first_loss(loss: float, vocab_size: int, *, own: bool = True) -> None:
    """A model of random weights knows nothing yet: its loss is near that of a guess, ln V.

    Args:
        loss: Nats for each token before anything moved.
        vocab_size: V.
        own: The architecture is ours. Others may begin far above a guess, as Gemma does.

    Raises:
        DivergedError: It is not.
    """
    guess = math.log(vocab_size)
    if loss < FIRST_LOSS[0] * guess or (own and loss > FIRST_LOSS[1] * guess + 1):
        raise DivergedError(
            f"the loss of random weights is {loss:.3f}, and a guess among {vocab_size:,} tokens loses {guess:.3f}",
            "check labels and initial weights, such as model.initializer_range",
        )


@dataclass(frozen=True)
class Compared:
    """What is known of a run on pairs before its first step.

    Attributes:
        fresh: The adapter is new, so that it equals its base.
        exact: It does so bit for bit, and not up to rounding.
    """

    fresh: bool
    exact: bool

    @classmethod
    def of(cls, lora: LoraConfig, *, fresh: bool) -> "Compared":
        """As the settings of an adapter say: some multiply and divide by the same, or add what sums up to nothing."""
        return cls(fresh, exact=lora.method not in ("dora", "hra") and lora.init != "orthogonal")


@torch.no_grad()
def check_preferences(model: BaseLanguageModel, batch: Batch, compared: Compared) -> None:
    """The likelihoods of the labels are those of the model's own loss, and a fresh adapter prefers nothing.

    Raises:
        DivergedError: They are not: another likelihood than the model's would be learnt, or against another reference.
    """
    positions = None if batch.position_ids is None else batch.position_ids[:1]
    here = Batch(batch.input_ids[:1], batch.labels[:1], batch.tokens, positions).to(model.device)
    dtype = next(model.parameters()).dtype
    tolerance = ROUNDING.get(dtype, COARSE)
    row = here.input_ids, here.labels, here.position_ids
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            each, nats = model.label_nats(*row), float(model.loss(*row).nats)
            with model.adapter_off():
                reference, again = model.label_nats(*row), model.label_nats(*row)
    finally:
        model.train(training)
    summed = float(each.sum())
    if abs(summed - nats) > tolerance * (1 + abs(nats)):
        raise DivergedError(
            f"the labels of a row lose {summed:.4f} nats one by one, and {nats:.4f} together",
            "a model with a loss of its own needs label_nats of its own",
        )
    # Some kernels add in any order, so that the base itself does not say the same twice.
    room = SAME if compared.exact else max(SAME, APART * torch.finfo(dtype).eps)
    found, unsteady = _mean_distance(each, reference), _mean_distance(again, reference)
    if compared.fresh and not found <= room + UNSTEADY * unsteady:
        raise DivergedError(
            f"a fresh adapter changes the likelihood of a label by {found:.2g} nats on average, and should equal its "
            "reference",
            "report this with your configuration",
        )


def _mean_distance(one: Tensor, other: Tensor) -> float:
    """The mean of the absolute differences; signed ones would cancel out."""
    return float((one.double() - other.double()).abs().sum()) / max(len(one), 1)


class Guard:
    """Watches the first steps of a process: what is trained has a gradient and changes, and nothing else does.

    Later it counts steps without a target.

    Args:
        model: What is trained.
        optimizer: What moves it.
        fresh: Weights are random, so that the first loss is known.
        own: The architecture is ours, or an adapter of ours.

    Attributes:
        proof: What the first steps have shown; empty before.
        proven_at: The step after which that was known; 0 before.
        compares: What is known of a run on pairs; None where none are compared.
    """

    def __init__(
        self, model: BaseLanguageModel, optimizer: Optimizer, *, fresh: bool = False, own: bool = True
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._fresh = fresh
        self._watch: ChangeWatch | None = None
        self._empty = 0
        self._own = own
        self._over = False
        self.proof = ""
        self.proven_at = 0
        self.compares: Compared | None = None

    def begin(self) -> None:
        """Before the first step.

        Raises:
            DivergedError: A trainable tensor is not in exactly one group, or a rate is zero.
        """
        check_coverage(self._model, self._optimizer)

    def before(self, window: Sequence[Batch], tokens: int) -> None:
        """Look at a window that is about to be trained on.

        Args:
            window: Batches of this process.
            tokens: Targets of the step, over all processes.

        Raises:
            DivergedError: Labels are not the next ids, the model sees them, there are none in many steps, or pairs are
                not compared as they should be.
        """
        if self._watch is None and not self._over:
            for batch in window:
                check_objective(batch)
            check_causal(self._model, window[0])
            if self.compares is not None:
                check_preferences(self._model, window[0], self.compares)
            self._watch = ChangeWatch(self._model, self._optimizer)
        self._empty = 0 if tokens else self._empty + 1
        if self._empty == EMPTY_STEPS:
            raise DivergedError(
                f"{EMPTY_STEPS} steps in a row held no token to predict", "llmt data inspect shows what is masked"
            )

    def gradients(self) -> None:
        """Look at the gradients of a step that are about to be used."""
        if self._watch is not None:
            self._watch.gradients()

    def after(self, rate: float, loss: float, step: int = 0) -> tuple[str, ...]:
        """Look at what a step with targets did; what is unusual and may be meant, one sentence each.

        Args:
            rate: Learning rate of the step; too low ones do not count.
            loss: Nats for each token.
            step: Steps finished, this one included.

        Raises:
            DivergedError: A trainable tensor has no gradient or is unchanged, a frozen one moved, or the first loss is
                not that of a guess.
        """
        if self._watch is None:
            return ()
        if self._fresh:
            check_first_loss(loss, self._model.vocab_size, own=self._own)
            self._fresh = False
        if rate < WATCHED_RATE:
            return ()
        warning = ""
        try:
            self._over = not self._watch.after_step()
        except NoGradientError as error:
            if self._own:
                raise
            # Other architectures have tensors that some batches do not reach, such as routers.
            self._over, warning = True, error.message
        if self._over:
            self._watch = None
        if self._over and not warning:
            count = len(self._optimizer.weights)
            self.proof, self.proven_at = f"all {format_number(count, 'trained tensor')} changed, and no other", step
        return (warning,) if warning else ()


class NoGradientError(DivergedError):
    """A trained tensor was not reached by the loss."""


class ChangeWatch:
    """Compares every tensor before the first step with the same tensor after the second."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._before = self._sums()
        self._without = {weight.name for weight in optimizer.weights}
        # The moves of SGD are as small as its gradients: rounding may swallow them.
        self._slow = {w.name for group in optimizer.groups if group.kind == "sgd" for w in group.weights}
        self._steps = 0

    def gradients(self) -> None:
        """Note which tensors have a gradient in this step."""
        for weight in self._optimizer.weights:
            gradient = weight.master.grad
            if weight.name in self._without and gradient is not None and bool(gradient.any()):
                self._without.discard(weight.name)

    def after_step(self) -> bool:
        """Count one step; at the last watched one, compare. Returns whether watching goes on.

        Raises:
            DivergedError: A trainable tensor is unchanged, or a frozen one moved.
        """
        self._steps += 1
        if self._steps < CHECKED_STEPS:
            return True
        trained = {w.name for w in self._optimizer.weights}
        for name, after in self._sums().items():
            changed = after != self._before[name]
            if changed and name not in trained:
                raise DivergedError(f"{name}: is frozen and yet it changed", "report this with your configuration")
            if name in self._without or (not changed and name in trained - self._slow):
                moved = "moved by decay alone in" if changed else "unchanged after"
                why = "it gets no gradient" if name in self._without else "though it has a gradient"
                kind = NoGradientError if name in self._without else DivergedError
                raise kind(
                    f"{name}: {moved} {CHECKED_STEPS} steps, {why}",
                    "check that the data has targets and that the learning rate is above zero",
                )
        return False

    def _sums(self) -> dict[str, tuple[float, float]]:
        masters: dict[str, Tensor] = {name: p.detach() for name, p in self._model.named_parameters()}
        masters |= self._optimizer.masters()
        return {name: _sums_of(tensor) for name, tensor in masters.items()}


def _sums_of(tensor: Tensor) -> tuple[float, float]:
    """Of the values and of their sizes, a piece at a time: the largest tensors would have a copy made of them."""
    wide = torch.float32 if tensor.device.type == "mps" else torch.float64
    parts = parts_of(tensor)
    return sum(float(p.sum(dtype=wide)) for p in parts), sum(float(p.abs().sum(dtype=wide)) for p in parts)
