"""`llmt train`: text to a finished model, with everything that was decided and why."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmt.cli.options import load_asked, with_settings
from llmt.cli.output import Output
from llmt.cli.progress import TrainingView, progress_bar
from llmt.cli.results import Around, evaluation_line, show_before, show_plan, show_result, show_trained
from llmt.cli.signals import Stopped, heed_swallowed
from llmt.config.layers import Given
from llmt.config.load import ConfigSource, find_source, load_run
from llmt.config.names import NEWEST
from llmt.config.run import TrainConfig
from llmt.errors import Interrupted, MismatchError, ModelFileError, UsageError
from llmt.system.machine import use_portable_numerics

if TYPE_CHECKING:
    from llmt.training.build import Prepared
    from llmt.training.directory import Resume as ResumeWanted
    from llmt.training.finish import Finished
    from llmt.training.keeper import RunKeeper
    from llmt.training.loop import TrainingLoop
    from llmt.training.runtime import Runtime

Config = Annotated[str | None, typer.Argument(metavar="CONFIG", help="A template, a YAML file, or a run's directory.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any setting by its dotted name.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Show what would be done, and stop.")]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[auto|PATH]",
        help="Go on from the newest whole checkpoint of the run; `auto`: if there is one, else begin; PATH: from "
        "that checkpoint, or that run.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict-resume", help="Refuse a resume that would not be the same bit for bit (exit code 5).")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify-resume", help="Train the last interval between two checkpoints again, compare every bit, and stop."
    ),
]
DataChange = Annotated[
    bool, typer.Option("--allow-data-change", help="Go on though the training text changed; the run records it.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that stands in the output directory.")]


@with_settings(TrainConfig)
def train(
    out: Output,
    given: list[Given],
    config: Config = None,
    sets: Sets = None,
    plan: Plan = False,
    resume: Resume = None,
    strict_resume: Strict = False,
    verify_resume: Verify = False,
    allow_data_change: DataChange = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model: from scratch, from a base, or an adapter.

    With nothing else, the quickstart model on the documentation inside Python.
    """
    of_resume = {"--strict-resume": strict_resume, "--allow-data-change": allow_data_change}
    wanted = _wanted(resume, of_resume, verify=verify_resume, overwrite=overwrite)
    if wanted is not None and wanted.directory is not None:
        config = _same_run(config, wanted.directory)
    asked, going_on = _read(out, config, given, sets or (), wanted)
    how = How(
        step=wanted.step if wanted is not None else None,
        resume=going_on, strict=strict_resume, verify=verify_resume, data_change=allow_data_change,
        overwrite=overwrite, plan=plan,
    )  # fmt: skip
    status = None if plan else _elsewhere(out, asked)
    if status is not None:
        raise typer.Exit(status)
    _run(out, asked, config, given, sets or (), how)


def _wanted(
    resume: str | None, of_resume: Mapping[str, bool], *, verify: bool, overwrite: bool
) -> "ResumeWanted | None":
    """The resume that was asked for, if one was."""
    if not resume and not verify:
        alone = next((flag for flag, given in of_resume.items() if given), None)
        if alone is not None:
            raise UsageError(f"{alone}: is about a resume, and none is asked for", f"--resume {alone}")
        return None
    if overwrite:
        raise UsageError("--resume and --overwrite: one goes on, the other starts again", "type one of the two")
    from llmt.training.directory import parse_resume

    return parse_resume(resume or NEWEST)


@dataclass(frozen=True)
class How:
    """How a run is begun, beside its configuration."""

    step: int | None = None
    resume: bool = False
    strict: bool = False
    verify: bool = False
    data_change: bool = False
    overwrite: bool = False
    plan: bool = False
    result: bool = True


def _run(
    out: Output, asked: TrainConfig, config: str | None, given: list[Given], sets: Sequence[str], how: How
) -> None:
    from llmt.training.base import choose_base, refuse_unread, spare
    from llmt.training.build import check_device, with_sources, within_context
    from llmt.training.directory import claim_directory, held, run_directory
    from llmt.training.runtime import take_own_device

    asked = with_sources(asked)
    directory = run_directory(asked)
    base = choose_base(asked, None if how.resume else config, resume=how.resume)
    if not how.resume:
        refuse_unread(asked, base, given, sets)
    if how.plan:
        check_device(asked)
        prepared = _prepare(out, _settled(asked, base, how), directory, base, how, _imagined(asked))
        _say_damaged(out, prepared)
        show_plan(out, prepared)
        return
    take_own_device(asked.device)
    check_device(asked)
    # A run that stands there has written down the blocks that its model can read.
    written = asked if how.resume else within_context(asked, base)[0]
    claim = partial(claim_directory, directory, written, resume=how.resume, overwrite=how.overwrite)
    with _open(asked) as runtime:
        runtime.on_main(claim)
        if base is None and asked.takes_newest:
            base = _first_base(out, asked, runtime)
        if how.overwrite:
            runtime.on_main(lambda: spare(directory, base, asked))
        asked = _settled(asked, base, how)
        with held(directory) if runtime.is_main else nullcontext() as killed:
            if killed is not None:
                out.say(f"note: {killed} ended without a word: it was killed, maybe for want of memory")
            runtime.on_main(claim)
            _train(out, asked, directory, base, how, runtime)


def _settled(asked: TrainConfig, base: Path | None, how: How) -> TrainConfig:
    """The configuration with its base written down; a run that goes on has done that."""
    from llmt.training.base import with_base

    return asked if how.resume and asked.base is not None and not asked.takes_newest else with_base(asked, base)


def _same_run(config: str | None, directory: Path) -> str:
    """The run that `--resume PATH` names; a CONFIG beside it has to be the same."""
    if config is not None and Path(config).resolve() != directory.resolve():
        raise UsageError(f"--resume {directory}: CONFIG is {config}, another run", "leave CONFIG out")
    return str(directory)


def _elsewhere(out: Output, asked: TrainConfig) -> int | None:
    """With several processes, start them and wait; the exit code, or None in a process that trains itself."""
    from llmt.training.directory import run_directory
    from llmt.training.launch import launch
    from llmt.training.worker import check_launcher, in_worker, quiet_unless_main

    processes = check_launcher(asked)
    if in_worker():
        out.quiet = quiet_unless_main() or out.quiet
    if processes == 1 or in_worker():
        return None
    hint = f"llmt train {run_directory(asked)} --resume"
    return launch(processes, out.arguments, timeout=asked.training.distributed_timeout, hint=hint)


def _imagined(asked: TrainConfig) -> "Runtime":
    """The processes that a plan is made for, of which only this one is here."""
    from llmt.training.runtime import Runtime
    from llmt.training.worker import check_launcher

    runtime = Runtime()
    runtime.world_size = check_launcher(asked)
    return runtime


@contextmanager
def _open(asked: TrainConfig) -> Iterator["Runtime"]:
    """The processes of the run."""
    from llmt.system.machine import inspect_machine
    from llmt.system.plan import choose_backend, choose_device
    from llmt.training.runtime import open_runtime

    device, _ = choose_device(asked.device, inspect_machine())
    runtime = open_runtime(asked, device.kind, choose_backend(asked, device).value)
    try:
        yield runtime
    finally:
        runtime.close()


def _asked(
    out: Output, argument: str | None, given: list[Given], sets: Sequence[str]
) -> tuple[ConfigSource, TrainConfig]:
    """The configuration under its name, and where it is from."""
    source, loaded = load_asked(argument, given, sets)
    for note in loaded.notes:
        out.say(f"note: {note}")
    asked = loaded.config if loaded.config.name else loaded.config.model_copy(update={"name": source.name})
    if asked.portable_numerics:  # torch is loaded later
        use_portable_numerics()
    return source, asked


def _read(
    out: Output, argument: str | None, given: list[Given], sets: Sequence[str], wanted: "ResumeWanted | None"
) -> tuple[TrainConfig, bool]:
    """The configuration, that of a resume from the run itself; and whether it is one."""
    source, asked = _asked(out, argument, given, sets)
    if wanted is None:
        return asked, False
    from llmt.checkpoints.store import CheckpointStore
    from llmt.training.build import within_context
    from llmt.training.directory import run_directory
    from llmt.training.resume import check_same_config

    in_run = source.path is not None and argument is not None and Path(argument).is_dir()
    directory = source.path.parent if in_run and source.path is not None else run_directory(asked)
    if not wanted.required and not CheckpointStore(directory).holds_any():
        return asked, False
    if not (directory / "config.yaml").is_file():
        return asked, True
    own = ConfigSource(directory.name, path=directory / "config.yaml")
    asked = load_run(own, flags=given, sets=sets).config.model_copy(update={"output_dir": str(directory)})
    # The run has written down the blocks that its model can read.
    base = None if asked.base is None else Path(asked.base).expanduser()
    asked, _ = within_context(asked, base if base is not None and base.is_dir() else None)
    check_same_config(directory, asked)
    return asked, True


def _first_base(out: Output, asked: TrainConfig, runtime: "Runtime") -> Path:
    """With no finished run anywhere, the quickstart model is trained first, as the base of an adapter."""
    out.say("no finished run under ./runs: training the quickstart model first, as the base")
    from llmt.training.build import with_sources
    from llmt.training.directory import claim_directory, held, run_directory

    source = find_source(None)
    directory = run_directory(TrainConfig(name=source.name))
    started = any(directory.glob("checkpoint-*"))
    if started:
        source = find_source(str(directory))
    full = [
        Given("lora.enabled", False, "the base of an adapter"),
        Given("training.objective", "next_token", "the base of an adapter"),
        Given("device", asked.device, "--device"),
        Given("portable_numerics", asked.portable_numerics, "--portable-numerics"),
    ]
    first = load_run(source, flags=full).config.model_copy(update={"name": directory.name, "output_dir": None})
    runtime.on_main(lambda: claim_directory(directory, first, resume=started, overwrite=False))
    with held(directory) if runtime.is_main else nullcontext():
        _train(out, with_sources(first), directory, None, How(resume=started, result=False), runtime)
    return directory


def _prepare(
    out: Output, asked: TrainConfig, directory: Path, base: Path | None, how: How, runtime: "Runtime | None"
) -> "Prepared":
    from llmt.training.build import Going, prepare

    with progress_bar(out, "preparing") as bar:
        return prepare(
            asked,
            directory,
            base=base,
            resume=how.resume
            and Going(
                how.step,
                how.data_change,
                rename=not (how.plan or how.verify or how.strict),
                writes=not how.verify,
            ),
            runtime=runtime,
            progress=lambda what, done, total: bar.update(done, total, what),
        )


def _train(out: Output, asked: TrainConfig, directory: Path, base: Path | None, how: How, runtime: "Runtime") -> None:
    """Train in a directory that is held, and show the result unless another run is still to come."""
    from llmt.training.build import build_trainer
    from llmt.training.finish import finish

    started = time.monotonic()
    heed_swallowed()
    prepared = _prepare(out, asked, directory, base, how, runtime)
    heed_swallowed()
    _say_damaged(out, prepared)
    if how.strict:
        runtime.on_main(lambda: _require_exact(prepared))
    if how.verify:
        _verify(out, prepared, base, runtime)
        return
    loop, keeper = build_trainer(prepared, base=base, overwrite=how.overwrite, runtime=runtime)
    heed_swallowed()
    if not out.as_json:
        show_plan(out, replace(prepared, plan=keeper.plan))
        show_trained(out, loop.model)
    if how.resume:
        _say_resume(out, loop)
    before = show_before(out, prepared, loop) if runtime.is_main else ""
    try:
        _steps(out, loop, keeper, asked.logging.steps)
        finished = _publish(loop, partial(finish, loop, keeper, prepared, base), last=how.result)
        if finished is not None and (how.result or not out.as_json):
            show_result(out, finished, prepared, loop, Around(time.monotonic() - started, before))
    except Interrupted as stopped:
        message = f"{stopped.message} {keeper.store.path(loop.state.step)}"
        raise Interrupted(message, f"llmt train {directory} --resume", stopped.signum) from None
    except (KeyboardInterrupt, Stopped) as stopped:
        signum = stopped.signum if isinstance(stopped, Stopped) else signal.SIGINT
        raise _stopped_at_once(directory, keeper, signum) from None


def _publish(loop: "TrainingLoop", work: Callable[[], "Finished"], *, last: bool) -> "Finished | None":
    """What the first process makes of a run that is done; the others may go, unless they train another one."""
    if not last:
        return loop.runtime.on_main(work)
    return work() if loop.runtime.is_main else None


def _say_damaged(out: Output, prepared: "Prepared") -> None:
    for sentence in prepared.damaged:
        out.say(f"warning: {sentence}", "yellow")


def _say_resume(out: Output, loop: "TrainingLoop") -> None:
    """Where a resume goes on, and why it is not the same bit for bit."""
    if loop.notes:
        out.say(f"note: the resume is not bit for bit: {', '.join(loop.notes)}")
    out.say(f"resuming at step {loop.state.step} of {loop.schedule.total_steps}")


def _require_exact(prepared: "Prepared") -> None:
    """Refuse a resume that is not the same bit for bit, before anything of the run is touched."""
    if prepared.damaged:
        raise ModelFileError(f"--strict-resume: {'; '.join(prepared.damaged)}", "leave --strict-resume out")
    if prepared.regroup and prepared.config.training.auto_micro_batch:
        raise MismatchError("--strict-resume: training.auto_micro_batch may find other passes", "leave one of them out")
    if prepared.notes:
        why = ", ".join(prepared.notes)
        raise MismatchError(f"--strict-resume: not bit for bit: {why}", "leave --strict-resume out, or undo that")


def _verify(out: Output, prepared: "Prepared", base: Path | None, runtime: "Runtime") -> None:
    """Train the last interval again and say whether it came out the same."""
    if prepared.notes:
        out.say(f"note: what may make it differ: {', '.join(prepared.notes)}")
    from llmt.training.build import build_trainer
    from llmt.training.replay import replay

    with progress_bar(out, "replaying") as bar:
        found = replay(
            prepared,
            lambda apart: build_trainer(apart, base=base, runtime=runtime)[0],
            lambda step, last: bar.update(step, last, f"step {step} of {last}"),
        )
    if out.as_json:
        out.json({"from": found.first, "to": found.last, "tensors": found.tensors, "sha256": found.sha256})
        return
    out.result(f"steps {found.first} to {found.last} replayed: {found.tensors} tensors equal, sha256 {found.sha256}")


def _steps(out: Output, loop: "TrainingLoop", keeper: "RunKeeper", every: int) -> None:
    """Run the loop to its end, showing and logging its reports."""
    from llmt.training.signals import stop_on_signal

    total, seconds = loop.schedule.total_steps, loop.limits.max_seconds or math.inf
    view = TrainingView(out, total, every)
    first = loop.state.step

    def heard(signum: int) -> None:
        loop.request_stop(signum)
        out.at_once("stopping after this step, once it is saved; Ctrl-C again stops at once")

    with stop_on_signal(heard), progress_bar(out, "training") as bar:
        for report in loop.run():
            done = max(report.step - first, 1)  # a run that went back may be before where it began
            left = max(min((total - report.step) * report.seconds / done, seconds - loop.state.seconds), 0)
            line = view.line(report.step, report.loss, report.learning_rate, report.tokens_per_second, left)
            view.show(bar, report.step, line)
            _say_proof(out, loop, report.step)
            for sentence in report.warnings:
                out.say(f"warning: {sentence}", "yellow")
            if report.evaluation is not None:
                out.say(evaluation_line(report.step, report.evaluation, best=report.is_best))
            if report.sample is not None:
                out.say(f"step {report.step}  sample: {report.sample}")
            refused = keeper.log(report) if loop.runtime.is_main else ""
            if refused:
                out.say(f"warning: {refused}", "yellow")
    for sentence in loop.unsaid:
        out.say(f"warning: {sentence}", "yellow")
    if loop.stop_signal:  # it came after the last step, and nothing had to be saved any more
        raise Stopped(loop.stop_signal)
    if loop.stopped_early:
        out.say(f"stopped early: {loop.state.stale} validations without a gain over step {loop.state.best_step}")


def _say_proof(out: Output, loop: "TrainingLoop", step: int) -> None:
    """What the first steps have shown, once it is known."""
    if loop.guard is not None and step == loop.guard.proven_at:
        out.say(f"step {step}  {loop.guard.proof}")


def _stopped_at_once(directory: Path, keeper: "RunKeeper", signum: int) -> Interrupted:
    """What is left after a stop that did not wait for a checkpoint."""
    steps = keeper.store.steps()
    if not steps:
        return Interrupted(f"stopped before {directory} had a checkpoint", "--overwrite starts it again", signum)
    kept = keeper.store.path(steps[-1])
    return Interrupted(f"stopped at once; {kept} is the last checkpoint", f"llmt train {directory} --resume", signum)
