"""run record -> the README.md of a model directory."""

from typing import Any


def model_card(name: str, kind: str, settings: str, summary: dict[str, Any]) -> str:
    """A model card: what this is, how it was made, how good it is, how to use it.

    Args:
        name: Name of the run.
        kind: `full` or `adapter`.
        settings: The run as asked, as YAML.
        summary: Its numbers; a value of None is left out.
    """
    rows = [f"| {key.replace('_', ' ')} | {_number(value)} |" for key, value in summary.items() if value is not None]
    loader = "AutoPeftModelForCausalLM" if kind == "adapter" else "AutoModelForCausalLM"
    package = "peft" if kind == "adapter" else "transformers"
    return "\n".join(
        [
            "---",
            "library_name: " + package,
            "pipeline_tag: text-generation",
            "tags: [llmt]",
            "---",
            "",
            f"# {name}",
            "",
            "Trained with llmt." if kind == "full" else "A low-rank adapter, trained with llmt.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "```python",
            f"from {package} import {loader}",
            "from transformers import AutoTokenizer",
            "",
            f'model = {loader}.from_pretrained("path/to/this/directory")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")',
            "```",
            "",
            "## Configuration",
            "",
            "```yaml",
            settings.rstrip(),
            "```",
            "",
        ]
    )


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
