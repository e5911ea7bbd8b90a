"""How prompts of the usual formats are written; parts stand in braces."""

from collections.abc import Mapping

from llmt.text.documents import Layout

INSTRUCTION_PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"
INSTRUCTION_INPUT_PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
QUESTION_PROMPT = "Question: {question}\nAnswer:"
# The completion begins with the space, so that no token crosses the border.
ANSWER = " {answer}"


def _template(prompt: str, part: str, answer: str) -> str:
    """A chat template in which each exchange is a document of its own; what a document learns is marked."""
    before, _, after = prompt.partition(part)
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        f"{{% generation %}}{{{{ {answer} + eos_token }}}}{{% endgeneration %}}"
        "{% elif message['role'] == 'user' %}"
        f"{{{{ {before!r} + message['content'] + {after!r} }}}}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% else %}{{ raise_exception('this model knows no turns of tools') }}{% endif %}"
        "{% endfor %}"
    )


CHAT_TEMPLATES: Mapping[Layout, str] = {
    "question": _template(QUESTION_PROMPT, "{question}", "' ' + message['content']"),
    "instruction": _template(INSTRUCTION_PROMPT, "{instruction}", "message['content']"),
}
"""Layout of rows -> the chat template that writes one exchange as training wrote a row."""
