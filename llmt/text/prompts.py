"""How prompts of the usual formats are written; parts stand in braces."""

INSTRUCTION_PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"
INSTRUCTION_INPUT_PROMPT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
QUESTION_PROMPT = "Question: {question}\nAnswer:"
# The completion begins with the space, so that no token crosses the border.
ANSWER = " {answer}"
