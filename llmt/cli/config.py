"""`llmt config`: what every setting is, where it was set, and what it may be."""

import json
from typing import Annotated, Any

import typer

from llmt.cli.context import CONTEXT
from llmt.cli.options import load_asked, with_settings
from llmt.cli.output import Output
from llmt.config.base import Section
from llmt.config.fields import json_schema, walk_fields
from llmt.config.layers import Given
from llmt.config.load import dump_config, plain, template_names, template_text
from llmt.config.run import TrainConfig

app = typer.Typer(help="Settings: what they are and where they come from.", context_settings=CONTEXT)

Config = Annotated[str | None, typer.Argument(metavar="CONFIG", help="A template, a YAML file, or a run's directory.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any setting by its dotted name.")
]


@app.command("show", context_settings=CONTEXT)
@with_settings(TrainConfig)
def show(
    out: Output,
    given: list[Given],
    config: Config = None,
    sets: Sets = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say of every value where it was set.")] = False,
) -> None:
    """Print the whole configuration of a training run, as YAML that `llmt train` reads."""
    _, loaded = load_asked(config, given, sets or ())
    if out.as_json:
        out.json({"config": plain(loaded.config.model_dump()), "origins": loaded.origins})
    elif origin:
        values = loaded.config.model_dump()
        rows = [
            (f.path, _value(values, f.path), loaded.origins.get(f.path, "default")) for f in walk_fields(TrainConfig)
        ]
        out.table(rows, header=("setting", "value", "set by"), to_result=True)
    else:
        out.result(dump_config(loaded.config).rstrip())
    for note in loaded.notes:
        out.say(f"note: {note}")


@app.command("schema", context_settings=CONTEXT)
@with_settings(Section)
def schema(out: Output, given: list[Given]) -> None:
    """Print the JSON schema of the configuration."""
    if out.as_json:
        out.json(json_schema(TrainConfig))
    else:
        typer.echo(json.dumps(json_schema(TrainConfig), indent=2))


@app.command("template", context_settings=CONTEXT)
@with_settings(Section)
def template(
    out: Output,
    given: list[Given],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of a template; none lists them.")] = None,
) -> None:
    """Print a template, to be changed and trained with."""
    if name is None:
        names = template_names() + [f"tokenizer/{n}" for n in template_names("tokenizer")]
        if out.as_json:
            out.json({"templates": names})
        else:
            typer.echo("\n".join(names))
    elif out.as_json:
        out.json({"name": name, "text": template_text(name)})
    else:
        typer.echo(template_text(name), nl=False)


def _value(values: dict[str, Any], path: str) -> str:
    node: Any = values
    for part in path.split("."):
        node = node[part]
    return json.dumps(plain(node))
