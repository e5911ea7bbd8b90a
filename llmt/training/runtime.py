"""The processes of a run: what one of them tells the others, and how all of them end alike."""

import hashlib
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from llmt import errors
from llmt.errors import DeviceError, LlmtError, MismatchError, PeerLostError, UsageError

if TYPE_CHECKING:
    from llmt.config.run import TrainConfig
    from llmt.training.optim import Optimizer

T = TypeVar("T")

BUCKET_BYTES = 25 << 20
"""Gradients are sent in pieces of about this many bytes: few messages, and little memory beside the gradients."""

BEATS = 4
"""Signs of life within the timeout, while the first process works alone."""

SHORTEST = 10.0
"""Seconds that processes have to find each other, where the timeout allows as much: they do not start at one moment."""

_BUSY = -1


class Runtime:
    """One process by itself.

    Several processes are a subclass; a loop that asks these questions works on any number of them. Every process
    has to ask the same ones in the same order.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """This process writes and prints."""
        return self.rank == 0

    def prepare(self, model: nn.Module, optimizer: "Optimizer") -> None:
        """Get a model and its optimizer ready, in place. Weights that a resume brings are in them already.

        Raises:
            MismatchError: Processes begin with different weights.
        """

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all processes, in float64."""
        return list(numbers)

    def highest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return number

    def from_main(self, number: float) -> float:
        """The first process's number: where clocks could disagree, its clock counts."""
        return number

    def share(self, value: T) -> T:
        """The first process's value, as JSON gives it back: what was measured or chosen there is what all go by."""
        return value

    def sum_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Sum each gradient over all processes, in place.

        Args:
            gradients: fp32, of the same tensors in the same order everywhere; None where a process has none, which
                must then be so on all of them.

        Raises:
            MismatchError: One process has a gradient that another has not, or of another size.
        """

    def check_equal(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Make sure that all processes hold the same bits.

        Raises:
            MismatchError: They do not; it names `what` and the first tensor that differs.
        """

    def on_main(self, work: Callable[[], T]) -> T | None:
        """What `work` returns on the first process, which alone does it; None on the others, which wait for it.

        It may take longer than the timeout, as long as the process lives. It must not ask the other processes.

        Raises:
            LlmtError: It failed, on every process alike.
        """
        return work()

    def close(self) -> None:
        """Leave the others; ask nothing afterwards."""


class AcceleratedRuntime(Runtime):
    """The processes that torchrun, `accelerate launch` or `llmt train --num-processes` started; or one.

    What is small goes through gloo in float64; gradients go through the backend. There is no wrapper around the model
    that averages behind the loop's back.

    Args:
        device: `cpu`, `cuda` or `mps`. On CUDA each process takes the device of its local number.
        backend: `gloo` or `nccl`.
        processes: How many there are.
        timeout: Seconds that a process waits for the others.
        hint: What to type when one of them is lost.

    Raises:
        PeerLostError: The others did not come.
        UsageError: Something else in this process has set up accelerate in another way, or accelerate finds another
            number of processes.
    """

    def __init__(self, device: str, backend: str, processes: int, *, timeout: float, hint: str = "") -> None:
        self._timeout = timeout
        self._hint = hint
        self._lost = False
        self._small: Any = None
        if processes > 1:  # imported later, its functions hold the group, whose threads outlive it and abort the exit
            import_module("torch.distributed.nn")
        with self._waiting("all processes to start"):
            self._accelerator = _accelerator(device, backend if processes > 1 else None, timeout)
            self.rank = int(self._accelerator.process_index)
            self.world_size = int(self._accelerator.num_processes)
            if self.world_size != processes:
                self.close()
                raise UsageError(
                    f"the environment speaks of {processes} processes, and accelerate found {self.world_size}",
                    f"llmt train --num-processes {processes}",
                )
            if self.world_size > 1:
                distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout))
            if self.world_size > 1 and backend != "gloo":
                self._small = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def prepare(self, model: nn.Module, optimizer: "Optimizer") -> None:
        """As the base class, through `Accelerator.prepare`.

        Of several processes, the model is prepared as one that is only read: DistributedDataParallel would average
        means of unequal numbers of tokens.
        """
        movers = [group.optimizer for group in optimizer.groups]
        if self.world_size == 1:
            found = self._accelerator.prepare(model, *movers, device_placement=[False] * (1 + len(movers)))
            prepared = found[1:]
        else:
            held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            masters = {f"fp32 {name}": tensor for name, tensor in optimizer.masters().items()}
            self.check_equal(held | masters | optimizer.state(), "weights at the start")
            self._accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            prepared = [self._accelerator.prepare_optimizer(mover, device_placement=False) for mover in movers]
        groups = zip(optimizer.groups, prepared, strict=True)
        optimizer.groups = [replace(group, optimizer=mover) for group, mover in groups]

    def total(self, *numbers: float) -> list[float]:
        """As the base class."""
        values = torch.tensor(numbers, dtype=torch.float64)
        self._reduce(values, distributed.ReduceOp.SUM, "the sums of a step")
        return [float(value) for value in values]

    def highest(self, number: int) -> int:
        """As the base class."""
        value = torch.tensor([number], dtype=torch.int64)
        self._reduce(value, distributed.ReduceOp.MAX, "an agreement")
        return int(value)

    def from_main(self, number: float) -> float:
        """As the base class."""
        value = torch.tensor([number], dtype=torch.float64)
        self._send(value, "a number of process 0")
        return float(value)

    def share(self, value: T) -> T:
        """As the base class."""
        if self.world_size == 1:
            return value
        text = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(text)], dtype=torch.int64)
        self._send(length, "what process 0 chose")
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_main:
            content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._send(content, "what process 0 chose")
        shared: T = json.loads(bytes(content.tolist()))
        return shared

    def sum_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """As the base class."""
        if self.world_size == 1:
            return
        sizes = torch.tensor([0 if g is None else g.numel() for g in gradients], dtype=torch.int64)
        self._check_sizes(sizes, "the gradients of a step")
        for bucket in _buckets([g for g in gradients if g is not None]):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._sum(bucket[0])
                continue
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._sum(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def check_equal(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """As the base class."""
        if self.world_size == 1:
            return
        names = sorted(tensors)
        own = torch.tensor([list(_digest(name, tensors[name])) for name in names], dtype=torch.uint8)
        self._check_sizes(torch.tensor([own.numel()], dtype=torch.int64), what)
        first = own.clone()
        self._send(first, what)
        differing = (own != first).any(dim=1).nonzero().flatten().tolist() if names else []
        position = self.highest(len(names) - differing[0] if differing else 0)
        if position:
            raise MismatchError(
                f"{what}: {names[len(names) - position]} is not the same on all processes",
                "start all processes with the same files, settings and versions",
            )

    def on_main(self, work: Callable[[], T]) -> T | None:
        """As the base class."""
        if self.world_size == 1:
            return work()
        if not self.is_main:
            self._await_main()
            return None
        with _Telling(self._send, self._timeout / BEATS):
            return work()

    def close(self) -> None:
        """As the base class."""
        # What lost a peer in nccl cannot be taken down without waiting for it.
        if distributed.is_initialized() and not (self._lost and self._small is not None):
            distributed.destroy_process_group()
        _forget()

    def _await_main(self) -> None:
        """Wait until the first process has done its work, however long it takes; fail as it failed."""
        state = torch.tensor([_BUSY], dtype=torch.int64)
        while int(state) == _BUSY:
            self._send(state, "process 0 to finish its work")
        if int(state):
            outcome = torch.zeros(int(state), dtype=torch.uint8)
            self._send(outcome, "process 0 to say how it failed")
            raise _restored(bytes(outcome.tolist()), self._hint)

    def _check_sizes(self, sizes: Tensor, what: str) -> None:
        """Make sure that no process sends what another does not wait for."""
        both = torch.cat([sizes, -sizes])
        self._reduce(both, distributed.ReduceOp.MAX, what)
        largest, smallest = both[: len(sizes)], -both[len(sizes) :]
        if not torch.equal(largest, smallest):
            number = int((largest != smallest).nonzero()[0])
            raise MismatchError(
                f"{what}: number {number} has {int(smallest[number])} values on one process and "
                f"{int(largest[number])} on another",
                "start all processes with the same files, settings and versions",
            )

    def _sum(self, values: Tensor) -> None:
        with self._waiting("the sum of the gradients"):
            distributed.all_reduce(values)

    def _reduce(self, values: Tensor, how: Any, what: str) -> None:
        if self.world_size > 1:
            with self._waiting(what):
                distributed.all_reduce(values, op=how, group=self._small)

    def _send(self, values: Tensor, what: str) -> None:
        """The first process's values, on all."""
        if self.world_size > 1:
            with self._waiting(what):
                distributed.broadcast(values, 0, group=self._small)

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Say of a failure of the connection who waited for what, and how long."""
        begun = time.monotonic()
        try:
            yield
        except RecursionError:  # of an import that a signal interrupted
            raise
        except RuntimeError as error:  # of gloo, nccl and the store; there is no narrower class for all of them
            self._lost = True
            seconds = time.monotonic() - begun
            message = f"process {self.rank} waited {seconds:.1f} s for {what}: {_reason(error)}"
            raise PeerLostError(message, self._hint) from error


class _Telling:
    """A context on the first process: the others hear that it lives, and at its end how it went.

    Args:
        send: Gives values to the others.
        interval: Seconds between two signs of life.
    """

    def __init__(self, send: Callable[[Tensor, str], None], interval: float) -> None:
        self._send = send
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="llmt-alive", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        outcome = b"" if error is None else _described(error)
        try:
            self._send(torch.tensor([len(outcome)], dtype=torch.int64), "the others to hear how it went")
            if outcome:
                self._send(torch.frombuffer(bytearray(outcome), dtype=torch.uint8), "the others to hear how it went")
        except PeerLostError:
            if error is None:  # otherwise what failed first is what counts
                raise

    def _beat(self) -> None:
        while not self._done.wait(self._interval):
            try:
                self._send(torch.tensor([_BUSY], dtype=torch.int64), "")
            except PeerLostError:  # the end of the context will meet it too
                return


def take_own_device(asked: str) -> None:
    """In one of several processes: what is done on CUDA from here on is done on the device of its local number.

    Args:
        asked: The device of the configuration.
    """
    from llmt.training.worker import in_worker, local_rank

    wanted = in_worker() and asked in ("auto", "cuda") and torch.cuda.is_available()
    if wanted and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())


def open_runtime(config: "TrainConfig", device: str, backend: str, environ: Mapping[str, str] | None = None) -> Runtime:
    """The processes of this run. On CUDA it chooses the device, so it comes before everything that lies there.

    Args:
        config: The run as asked.
        device: `cpu`, `cuda` or `mps`.
        backend: `gloo` or `nccl`.
        environ: Stands in for the environment of the process.

    Raises:
        DeviceError: The device cannot be shared by several processes.
        PeerLostError: The others did not come.
        UsageError: The environment of the processes is incomplete.
    """
    from llmt.training.directory import run_directory
    from llmt.training.worker import world_size

    processes = world_size(environ)
    if processes == 1 and not config.training.accelerate:
        return Runtime()
    if processes > 1 and device == "mps":
        raise DeviceError("mps: cannot be shared by several processes", "--device cpu, or one process")
    again = f"llmt train {run_directory(config)} --resume"
    hint = again if config.training.num_processes == processes else "the same command with --resume"
    return AcceleratedRuntime(device, backend, processes, timeout=config.training.distributed_timeout, hint=hint)


def _accelerator(device: str, backend: str | None, timeout: float) -> Any:
    """An `Accelerator` that changes nothing of the computation: neither precision nor compilation nor threads.

    A backend of None is for a process by itself. Finding each other takes several waits, each with a timeout.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    threads, hook = torch.get_num_threads(), sys.excepthook
    finding = min(timeout, max(timeout / 2, SHORTEST))
    group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=finding))
    handlers = [group] if backend is not None else []  # with a backend it would look for a group
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it sets the threads where OMP_NUM_THREADS does not, and says so
            accelerator = Accelerator(
                cpu=device == "cpu", mixed_precision="no", dynamo_backend="no", kwargs_handlers=handlers
            )
    except ValueError as error:
        _forget()
        raise UsageError(f"accelerate: {str(error).splitlines()[0]}", "start llmt in a process of its own") from error
    torch.set_num_threads(threads)
    sys.excepthook = hook  # torch puts the rank before each line of a report
    return accelerator


def _forget() -> None:
    """Let accelerate begin anew in this process: it keeps its state for all of it."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _digest(name: str, tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's name, type, shape and bits."""
    content = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name} {content.dtype} {tuple(content.shape)}".encode())
    digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in their order, in pieces of about `BUCKET_BYTES` of one number format."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _reason(error: RuntimeError) -> str:
    """What a failure of the connection means, in few words."""
    text = str(error).strip()
    words = text.lower()
    if "timed out" in words or "timeout" in words:
        return "no answer"
    if any(found in words for found in ("closed by peer", "connection reset", "broken pipe", "connection refused")):
        return "another process is gone"
    line = (text.splitlines() or [type(error).__name__])[0]
    return line.partition("] ")[2] or line


def _described(error: BaseException) -> bytes:
    """An error as the other processes read it."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    values = {name: value for name, value in vars(error).items() if isinstance(value, str | int | tuple)}
    return json.dumps({"kinds": kinds, "text": str(error), "values": values}, default=str).encode()


def _restored(outcome: bytes, hint: str) -> LlmtError:
    """The first process's error; what is no refusal of llmt means that this process is lost."""
    found = json.loads(outcome)
    known = (getattr(errors, name, None) for name in found["kinds"])
    kind = next((k for k in known if isinstance(k, type) and issubclass(k, LlmtError)), None)
    if kind is None:
        return PeerLostError(f"process 0 failed: {found['kinds'][0]}: {found['text']}", hint)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in found["values"].items()}
    error = kind.__new__(kind)
    LlmtError.__init__(error, found["text"])
    vars(error).update(values)
    return error
