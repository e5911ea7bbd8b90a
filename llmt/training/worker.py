"""environment of a process -> whether somebody started several of it, and what it does and says then.

Processes are numbered from 0. Nothing here imports torch before a number of devices is asked for.
"""

import os
import signal
import time
from collections.abc import Mapping

from llmt.config.run import TrainConfig
from llmt.errors import DeviceError, LlmtError, PeerLostError, UsageError
from llmt.training.signals import STOP_SIGNALS

SETTLING = 2.0
"""Seconds after a process gave up the others in which the rest has to give up too, or it is taken for hung."""

LAUNCHED = "_LLMT_LAUNCHED"
"""Set where `training.launch` started the process."""

_SEVERAL = "llmt train --num-processes 2, or torchrun --standalone --nproc-per-node 2 -m llmt train"
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def in_worker(environ: Mapping[str, str] | None = None) -> bool:
    """This process is one of several that somebody started together, or the only one that torchrun started."""
    return "LOCAL_RANK" in _environment(environ)


def local_rank() -> int:
    """Number of this process on its machine."""
    return _number(os.environ, "LOCAL_RANK", 0)


def is_launched(environ: Mapping[str, str] | None = None) -> bool:
    """It was `launch` that started this process: what ended the run is said there, so a lost peer need not be."""
    return LAUNCHED in _environment(environ)


def world_size(environ: Mapping[str, str] | None = None) -> int:
    """Processes that were started together.

    Raises:
        UsageError: The environment is no launcher's.
    """
    return _number(_environment(environ), "WORLD_SIZE", 1)


def is_first(environ: Mapping[str, str] | None = None) -> bool:
    """This process writes and prints."""
    return _environment(environ).get("RANK", "0") == "0"


def quiet_unless_main(environ: Mapping[str, str] | None = None) -> bool:
    """Send standard output nowhere, unless this is the first process; whether it is not."""
    if not in_worker(environ) or is_first(environ):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return True


def should_report(error: LlmtError, environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process prints an error that ends it.

    The first process prints what all of them ended by. Under `launch` a lost peer is told there, and what the
    others print is kept for it. Under torchrun they print what may be theirs alone.
    """
    if not in_worker(environ):
        return True
    alone = isinstance(error, PeerLostError)
    if is_launched(environ):
        return not (alone and is_first(environ))
    return is_first(environ) or alone or error.exit_code in (1, 7)


def wait_for_first(seconds: float = SETTLING) -> None:
    """Let the first process say what ends all of them: torchrun ends the others as soon as one has ended.

    For a process that `should_report` tells to keep silent. A signal ends it at once, without a word.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    time.sleep(seconds)


def check_launcher(config: TrainConfig, environ: Mapping[str, str] | None = None) -> int:
    """How many processes this run has, once nothing speaks against them.

    Args:
        config: The run as asked.
        environ: Stands in for the environment of the process.

    Raises:
        DeviceError: There are fewer CUDA devices.
        UsageError: A launcher started something else than it was asked for; or the data cannot be divided.
    """
    found = _environment(environ)
    _check_environment(config, found)
    asked, world = config.training.num_processes, world_size(found)
    if in_worker(found) and asked not in (1, world):
        raise UsageError(
            f"training.num_processes {asked}: the launcher started {world}",
            f"leave --num-processes out, or --num-processes {world}",
        )
    processes = world if in_worker(found) else asked
    if processes > 1:
        _check_data(config)
        _check_devices(config, _number(found, "LOCAL_WORLD_SIZE", processes))
    return processes


def _check_environment(config: TrainConfig, found: Mapping[str, str]) -> None:
    """Refuse what a launcher left behind that is not what it was asked for."""
    accelerate = any(name.startswith("ACCELERATE_") for name in found)
    if accelerate and not in_worker(found) and {"MASTER_ADDR", "MASTER_PORT"} <= set(found):
        raise UsageError("accelerate launch was asked for several processes and started one", _SEVERAL)
    alone = "WORLD_SIZE" not in found and any(_number(found, name, 1) > 1 for name in _MPI)
    if alone or (world_size(found) > 1 and not {"RANK", "LOCAL_RANK"} <= set(found)):
        raise UsageError("several processes were started without RANK, LOCAL_RANK and WORLD_SIZE", _SEVERAL)
    _check_accelerate(config, found)


def _check_accelerate(config: TrainConfig, found: Mapping[str, str]) -> None:
    """Refuse what accelerate was configured to do and llmt does not, or does otherwise."""
    sharded = next((n for n in _SHARDED if found.get(f"ACCELERATE_USE_{n}", "").lower() in ("1", "true", "yes")), None)
    if sharded is not None:
        message = f"accelerate launch asks for {sharded}: every process holds the whole model here"
        raise UsageError(message, _SEVERAL)
    precision = found.get("ACCELERATE_MIXED_PRECISION") or "no"
    if precision != "no" and config.training.precision == "auto":
        message = f"accelerate launch asks for mixed precision {precision}: it is a setting here"
        raise UsageError(message, f"--precision {precision}")


def _check_data(config: TrainConfig) -> None:
    if config.data.streaming:
        raise UsageError(
            "data.streaming: a stream is not divided among processes", "leave out data.streaming, or use one process"
        )
    if any(source == "-" or source.endswith(":-") for source in config.data.sources):
        raise UsageError("-: several processes cannot read one standard input", "write it into a file and name that")


def _check_devices(config: TrainConfig, processes: int) -> None:
    if config.device not in ("auto", "cuda"):
        return
    import torch

    there = torch.cuda.device_count()
    if 0 < there < processes:
        raise DeviceError(
            f"training.num_processes {processes}: each takes a CUDA device, and there are {there}",
            f"--num-processes {there}, or --device cpu",
        )


def _environment(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if environ is None else environ


def _number(found: Mapping[str, str], name: str, otherwise: int) -> int:
    text = found.get(name, "")
    if not text:
        return otherwise
    if not text.isdecimal():
        raise UsageError(f"the environment variable {name} is {text!r}, not a number", f"unset {name}")
    return int(text)
