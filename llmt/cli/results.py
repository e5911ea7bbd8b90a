"""plan and result of a run -> what `llmt train` prints of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmt.cli.output import Output
from llmt.units import format_count, format_duration, format_number

if TYPE_CHECKING:
    from llmt.evaluation.preference import PreferenceReport
    from llmt.models.base import BaseLanguageModel
    from llmt.training.build import Prepared
    from llmt.training.finish import Finished
    from llmt.training.loop import TrainingLoop
    from llmt.training.objective import Report


def show_plan(out: Output, prepared: "Prepared") -> None:
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
    if prepared.config.takes_newest:
        out.say("  base    the quickstart model, trained first: no finished run under ./runs")
    elif prepared.config.base is not None:
        out.say(f"  base    {_shown(Path(prepared.config.base))}")
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


def _shown(path: Path) -> Path:
    """A path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show_trained(out: Output, model: "BaseLanguageModel") -> None:
    """What is trained and how much of the model that is."""
    from llmt.training.trained import trained_parts

    parts, whole = trained_parts(model), model.num_parameters()
    tensors, parameters = sum(part.tensors for part in parts), sum(part.parameters for part in parts)
    rows = [(part.name, part.tensors, part.parameters) for part in parts] if parameters < whole else []
    rows.append(("in all", tensors, parameters))
    out.heading("trained")
    out.table(
        [
            (name, format_number(count, "tensor"), f"{numbers:,} parameters", f"{100 * numbers / whole:.2f} %")
            for name, count, numbers in rows
        ]
    )


def show_before(out: Output, prepared: "Prepared", loop: "TrainingLoop") -> str:
    """What the base of an adapter answers before the first step; the same prompt is answered at the end."""
    from llmt.training.sample import first_sample

    config = prepared.config
    if not (config.lora.enabled and config.logging.sample_tokens and loop.state.step == 0):
        return ""
    said = first_sample(loop.model, prepared.corpus.tokenizer, config)
    if not out.as_json:
        out.heading("before")
        out.say(config.logging.sample_prompt + said)
    return said


def evaluation_line(step: int, report: "Report", *, best: bool) -> str:
    """What a validation during the run found."""
    from llmt.evaluation.preference import PreferenceReport

    if isinstance(report, PreferenceReport):
        measured = f", {_preferences(report)}"
    else:
        measured = f", {report.bits_per_byte:.3f} bits per byte" if report.bits_per_byte is not None else ""
    return f"step {step}  validation loss {report.loss:.4f}{measured}{'  (best so far)' if best else ''}"


def measured_line(report: "Report") -> str:
    """What the finished model came to on held-out text."""
    from llmt.evaluation.preference import PreferenceReport

    if isinstance(report, PreferenceReport):
        return f"loss {report.loss:.4f}, {_preferences(report)}, {report.pairs:,} pairs"
    bits = "" if report.bits_per_byte is None else f"{report.bits_per_byte:.3f} bits per byte, "
    return f"{bits}perplexity {report.perplexity:.2f}, {report.tokens:,} tokens"


def _preferences(report: "PreferenceReport") -> str:
    return f"chosen preferred in {100 * report.reward_accuracy:.1f} %, reward margin {report.reward_margin:.3f}"


@dataclass(frozen=True)
class Around:
    """What belongs to a run beside its loop.

    Attributes:
        seconds: How long all of it took.
        before: What the base of an adapter answered at first.
    """

    seconds: float
    before: str = ""


def show_result(out: Output, finished: "Finished", prepared: "Prepared", loop: "TrainingLoop", around: Around) -> None:
    """Validation, a sample, and what to type next."""
    from llmt.training.finish import sample_text

    if finished.warning:
        out.say(f"warning: {finished.warning}", "yellow")
    values = finished.evaluation.values() if finished.evaluation is not None else {}
    if out.as_json:
        sample = "".join(sample_text(finished, prepared))
        out.json({"directory": str(finished.directory), "step": finished.step, "seconds": around.seconds,
                  "validation": values or None, "sample": sample, "sample_before": around.before or None})  # fmt: skip
        return
    out.heading("done")
    out.result(f"model: {finished.directory} (step {finished.step}, {format_duration(around.seconds)})")
    if finished.evaluation is not None:
        out.result(f"validation: {measured_line(finished.evaluation)}")
    if prepared.config.logging.sample_tokens:
        out.heading("after" if prepared.config.lora.enabled else "sample")
        if prepared.config.logging.sample_prompt:
            out.stream(prepared.config.logging.sample_prompt)
        for piece in sample_text(finished, prepared):
            out.stream(piece)
        out.result("")
    out.heading("next")
    out.say(f"  llmt generate {finished.directory}")
    out.say(f"  llmt eval {finished.directory}")
    out.say(f"  llmt train {finished.directory} --resume {_twice(prepared, loop)}")


def _twice(prepared: "Prepared", loop: "TrainingLoop") -> str:
    """The flag that makes a run twice as long: that of the stop which ended it."""
    training, total = prepared.config.training, prepared.plan.total_steps
    if loop.stopped_early:
        return f"--early-stopping-patience {2 * (training.early_stopping_patience or 1)}"
    if training.max_time is not None and loop.state.seconds >= training.max_time:
        return f"--max-time {round(2 * training.max_time)}s"
    if training.max_steps == total:
        return f"--max-steps {2 * total}"
    if training.max_tokens is not None:
        return f"--max-tokens {2 * training.max_tokens}"
    return f"--num-train-epochs {2 * (training.num_train_epochs or 1):g}"
