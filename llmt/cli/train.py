"""`llmt train`: text to a finished model, with everything that was decided and why."""

import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmt.cli.options import load_asked, with_settings
from llmt.cli.output import Output
from llmt.cli.progress import TrainingView, progress_bar
from llmt.cli.signals import Stopped
from llmt.config.layers import Given
from llmt.config.load import ConfigSource, find_source, load_run
from llmt.config.run import TrainConfig
from llmt.errors import Interrupted, UsageError
from llmt.units import format_count, format_duration

if TYPE_CHECKING:
    from llmt.training.build import Prepared
    from llmt.training.finish import Finished
    from llmt.training.keeper import RunKeeper
    from llmt.training.trainer import Trainer

Config = Annotated[str | None, typer.Argument(metavar="CONFIG", help="A template, a YAML file, or a run's directory.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any setting by its dotted name.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Show what would be done, and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that stands in the output directory.")]


@with_settings(TrainConfig)
def train(
    out: Output,
    given: list[Given],
    config: Config = None,
    sets: Sets = None,
    plan: Plan = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model: from scratch, from a base, or an adapter.

    With nothing else, the quickstart model on the documentation inside Python.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite: one goes on, the other starts again", "type one of the two")
    asked = _read(out, config, given, sets or (), resume=resume)
    from llmt.training.base import choose_base, refuse_unread, spare, with_base
    from llmt.training.build import check_device, with_sources
    from llmt.training.directory import claim_directory, held, run_directory

    asked = with_sources(asked)
    directory = run_directory(asked)
    base = choose_base(asked, None if resume else config)
    if not resume:
        refuse_unread(asked, base, given, sets or ())
    if plan:
        _show_plan(out, _prepare(out, with_base(asked, base), directory, base, resume=resume))
        return
    check_device(asked)
    claim_directory(directory, resume=resume, overwrite=overwrite)
    if base is None and asked.lora.enabled:
        base = _first_base(out, asked)
    if overwrite:
        spare(directory, base)
    asked = with_base(asked, base)
    with held(directory):
        claim_directory(directory, resume=resume, overwrite=overwrite)
        _train(out, asked, directory, base, resume=resume, overwrite=overwrite)


def _read(
    out: Output, argument: str | None, given: list[Given], sets: tuple[str, ...] | list[str], *, resume: bool
) -> TrainConfig:
    """The configuration; that of a resume comes from the run itself."""
    source, loaded = load_asked(argument, given, sets)
    asked = loaded.config if loaded.config.name else loaded.config.model_copy(update={"name": source.name})
    for note in loaded.notes:
        out.say(f"note: {note}")
    if not resume:
        return asked
    from llmt.training.directory import run_directory
    from llmt.training.resume import check_same_config

    in_run = source.path is not None and source.path.name == "config.yaml"
    directory = source.path.parent if in_run and source.path is not None else run_directory(asked)
    if not (directory / "config.yaml").is_file():
        return asked
    own = ConfigSource(directory.name, path=directory / "config.yaml")
    asked = load_run(own, flags=given, sets=sets).config.model_copy(update={"output_dir": str(directory)})
    check_same_config(directory, asked)
    return asked


def _first_base(out: Output, asked: TrainConfig) -> Path:
    """With no finished run anywhere, the quickstart model is trained first, as the base of an adapter."""
    out.say("no finished run under ./runs: training the quickstart model first, as the base")
    from llmt.training.build import with_sources
    from llmt.training.directory import claim_directory, held, run_directory

    source = find_source(None)
    directory = run_directory(TrainConfig(name=source.name))
    started = any(directory.glob("checkpoint-*"))
    if started:
        source = find_source(str(directory))
    full = [Given("lora.enabled", False, "the base of an adapter"), Given("device", asked.device, "--device")]
    first = load_run(source, flags=full).config.model_copy(update={"name": directory.name, "output_dir": None})
    claim_directory(directory, resume=started, overwrite=False)
    with held(directory):
        _train(out, with_sources(first), directory, None, resume=started, result=False)
    return directory


def _prepare(out: Output, asked: TrainConfig, directory: Path, base: Path | None, *, resume: bool) -> "Prepared":
    from llmt.training.build import prepare

    with progress_bar(out, "preparing") as bar:
        return prepare(
            asked,
            directory,
            base=base,
            resume=resume,
            progress=lambda what, done, total: bar.update(done, total, what),
        )


def _show_plan(out: Output, prepared: "Prepared") -> None:
    """The plan with its reasons; the result itself under `--plan`."""
    data, plan = prepared.corpus.data, prepared.plan
    model = f"{format_count(prepared.work.parameters)} parameters, vocabulary {prepared.work.vocab_size:,}"
    if prepared.config.lora.enabled:
        model += f", adapter of rank {prepared.config.lora.r}"
    text = data.describe()
    if out.as_json:
        out.json({"model": model, "data": text, "notes": [*prepared.corpus.notes, *data.notes], **plan.values()})
        return
    out.heading("plan")
    if prepared.config.base is not None:
        out.say(f"  base    {prepared.config.base}")
    elif prepared.config.lora.enabled:
        out.say("  base    the quickstart model, trained first: no finished run under ./runs")
    out.say(f"  model   {model}")
    out.say(f"  data    {text}")
    for note in (*prepared.corpus.notes, *data.notes):
        out.say(f"          {note}")
    rows: list[tuple[object, ...]] = []
    rows += [
        (line.name, str(line.value).lower() if isinstance(line.value, bool) else line.value, line.reason)
        for line in plan.lines
    ]
    out.table(rows)


def _train(
    out: Output,
    asked: TrainConfig,
    directory: Path,
    base: Path | None,
    *,
    resume: bool,
    overwrite: bool = False,
    result: bool = True,
) -> None:
    """Train in a directory that is held, and show the result unless another run is still to come."""
    from llmt.training.build import build_trainer
    from llmt.training.finish import finish

    started = time.monotonic()
    prepared = _prepare(out, asked, directory, base, resume=resume)
    for sentence in prepared.damaged:
        out.say(f"warning: {sentence}", "yellow")
    if not out.as_json:
        _show_plan(out, prepared)
    trainer, keeper = build_trainer(prepared, base=base, overwrite=overwrite)
    if trainer.notes:
        out.say(f"note: the resume is not bit for bit: {', '.join(trainer.notes)}")
    if resume:
        out.say(f"resuming at step {trainer.state.step} of {trainer.schedule.total_steps}")
    try:
        _steps(out, trainer, keeper, asked.logging.steps)
        finished = finish(trainer, keeper, prepared, base)
    except Interrupted as stopped:
        message = f"{stopped.message} {keeper.store.path(trainer.state.step)}"
        raise Interrupted(message, f"llmt train {directory} --resume", stopped.signum) from None
    except (KeyboardInterrupt, Stopped) as stopped:
        signum = stopped.signum if isinstance(stopped, Stopped) else signal.SIGINT
        raise _stopped_at_once(directory, keeper, signum) from None
    if result or not out.as_json:
        _show_result(out, finished, prepared, time.monotonic() - started)


def _steps(out: Output, trainer: "Trainer", keeper: "RunKeeper", every: int) -> None:
    """Run the trainer to its end, showing and logging its reports."""
    from llmt.training.signals import stop_on_signal

    total, seconds = trainer.schedule.total_steps, trainer.limits.max_seconds or math.inf
    view = TrainingView(out, total, every)
    first = trainer.state.step
    with stop_on_signal(trainer.request_stop), progress_bar(out, "training") as bar:
        for report in trainer.run():
            done = report.step - first
            left = max(min((total - report.step) * report.seconds / done, seconds - trainer.state.seconds), 0)
            line = view.line(report.step, report.loss, report.learning_rate, report.tokens_per_second, left)
            view.show(bar, report.step, line)
            if report.evaluation is not None:
                out.say(_evaluation_line(report.step, report.evaluation.values(), best=report.is_best))
            if report.step % every == 0 or report.evaluation is not None or done == 1:
                keeper.log(report)


def _stopped_at_once(directory: Path, keeper: "RunKeeper", signum: int) -> Interrupted:
    """What is left after a stop that did not wait for a checkpoint."""
    steps = keeper.store.steps()
    if not steps:
        return Interrupted(f"stopped before {directory} had a checkpoint", "--overwrite starts it again", signum)
    kept = keeper.store.path(steps[-1])
    return Interrupted(f"stopped at once; {kept} is the last checkpoint", f"llmt train {directory} --resume", signum)


def _twice(prepared: "Prepared") -> str:
    """The flag that makes a run twice as long: that of the stop which ended it."""
    training, total = prepared.config.training, prepared.plan.total_steps
    if training.max_steps == total:
        return f"--max-steps {2 * total}"
    if training.max_tokens is not None:
        return f"--max-tokens {2 * training.max_tokens}"
    return f"--num-train-epochs {2 * (training.num_train_epochs or 1):g}"


def _evaluation_line(step: int, values: dict[str, float | int | None], *, best: bool) -> str:
    bits = values["bits_per_byte"]
    measured = f", {bits:.3f} bits per byte" if bits is not None else ""
    return f"step {step}  validation loss {values['loss']:.4f}{measured}{'  (best so far)' if best else ''}"


def _show_result(out: Output, finished: "Finished", prepared: "Prepared", seconds: float) -> None:
    """Validation, a sample, and what to type next."""
    from llmt.training.finish import sample_text

    values = finished.evaluation.values() if finished.evaluation is not None else {}
    if out.as_json:
        sample = "".join(sample_text(finished, prepared))
        out.json({"directory": str(finished.directory), "step": finished.step, "seconds": seconds,
                  "validation": values or None, "sample": sample})  # fmt: skip
        return
    out.heading("done")
    out.result(f"model: {finished.directory} (step {finished.step}, {format_duration(seconds)})")
    if finished.evaluation is not None:
        report = finished.evaluation
        bits = report.bits_per_byte
        measured = "" if bits is None else f"{bits:.3f} bits per byte, "
        out.result(f"validation: {measured}perplexity {report.perplexity:.2f}, {report.tokens:,} tokens")
    if prepared.config.logging.sample_tokens:
        out.heading("sample")
        if prepared.config.logging.sample_prompt:
            out.stream(prepared.config.logging.sample_prompt)
        for piece in sample_text(finished, prepared):
            out.stream(piece)
        out.result("")
    out.heading("next")
    out.say(f"  llmt generate {finished.directory}")
    out.say(f"  llmt eval {finished.directory}")
    out.say(f"  llmt train {finished.directory} --resume {_twice(prepared)}")
