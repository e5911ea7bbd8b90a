"""conversations on stdin -> what a chat template makes of them: a process of its own, with bounded memory.

A template is a program by a stranger. It runs in the sandbox of Jinja as transformers sets it up, and here, where it
can be ended when it does not end by itself. A door of transformers.
"""

import json
import sys
from typing import Any

from llmt.system.children import receive, send
from llmt.tokenizers.trial_child import limit_memory

MAX_TEXT = 64_000_000
"""So long a text may be, in characters; a longer one is an error."""


def serve() -> None:
    """Take `{template, has_spans, values}`, say `{}`, then answer `{text, spans}` or `{error}` to each conversation.

    They come as `{conversations, opens}`; `opens` says that each goes on with an answer that begins.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    first = receive(sys.stdin.buffer)
    if first is None:
        return
    setup = json.loads(first)
    # What a sandboxed program can make the interpreter raise.
    failures = (
        TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, MemoryError
    )  # fmt: skip
    limit_memory()
    send(sys.stdout.buffer, b"{}")  # from now on time counts
    while (data := receive(sys.stdin.buffer)) is not None:
        asked = json.loads(data)
        for messages in asked["conversations"]:
            try:
                answer = _render(render_jinja_template, setup, messages, opens=asked["opens"])
            except failures as error:
                said = " ".join(str(error).split()) or type(error).__name__
                answer = {"error": said[:300]}
            send(sys.stdout.buffer, json.dumps(answer).encode())


def _render(render: Any, setup: dict[str, Any], messages: list[dict[str, str]], *, opens: bool) -> dict[str, Any]:
    texts, spans = render(
        [messages],
        chat_template=setup["template"],
        return_assistant_tokens_mask=setup["has_spans"],
        add_generation_prompt=opens,
        **setup["values"],
    )
    if len(texts[0]) > MAX_TEXT:
        return {"error": f"it writes more than {MAX_TEXT // 1_000_000} million characters"}
    return {"text": texts[0], "spans": spans[0] if spans else []}
