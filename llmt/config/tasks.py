"""The settings of every command besides `train`; `LLMT_<COMMAND>__<FIELD>` reaches each of them."""

from pydantic import Field

from llmt.config.base import Count, Flag, Number, Section, Text, TextLines, TextList
from llmt.config.conversion import ConvertSettings, GgufSettings, MergeSettings, ToPytorchSettings
from llmt.config.data import EncodingErrors, Truncation
from llmt.config.run import Device
from llmt.config.tokenizer import TokenizerTraining


class TokenizerTrainSettings(TokenizerTraining):
    """`llmt tokenizer train`: text to a tokenizer directory."""

    vocab_size: Count = Field(30000, gt=0, le=1_000_000)
    """Number of tokens, special tokens included."""

    data: TextList = ()
    """Files, folders, glob patterns, `hf:NAME` or `-` to learn from. Empty: the documentation inside Python."""

    text_column: Text = "text"
    """Field of a .jsonl row that holds the text."""

    encoding_errors: EncodingErrors = "strict"
    """What to do with bytes that are not UTF-8: stop and name the offset, or put U+FFFD there."""

    dataset_config: Text | None = None
    """Configuration of a data set named `hf:NAME`."""

    dataset_split: Text = "train"
    """Split of a data set named `hf:NAME`."""

    max_samples: Count | None = Field(None, gt=0)
    """Read at most this many documents. None reads all."""

    num_proc: Count | None = Field(None, gt=0)
    """`wordpiece` only: processes that count words. None takes all cores for 50 MB or more, else one."""

    output_dir: Text | None = None
    """Directory to write. None means `./tokenizers/ALGO`."""

    overwrite: Flag = False
    """Replace a tokenizer that stands there already."""


class TokenizerInspectSettings(Section):
    """`llmt tokenizer inspect`: what a tokenizer does with text."""

    data: TextList = ()
    """Files, folders, glob patterns or `-` to measure on. Empty: TEXT, or a sample of Python's documentation."""

    text_column: Text = "text"
    """Field of a .jsonl row that holds the text."""

    encoding_errors: EncodingErrors = "strict"
    """What to do with bytes in `data` that are not UTF-8: stop and name the offset, or put U+FFFD there."""

    max_characters: Count = Field(1_000_000, gt=0)
    """Measure so many characters at most, from the beginning."""

    limit: Count = Field(40, gt=0)
    """Tokens of the text that are listed with their ids."""

    check: Count = Field(20_000, ge=0)
    """Tokens that the text does not hold are checked, so many at most, for being out of reach of any text."""

    word: Text | None = None
    """Show the merges by which this word is built; of several words each."""

    compare: TextLines = ()
    """Another tokenizer, to be measured on the same text. May be given several times."""

    sweep: Flag = False
    """Measure the smaller vocabularies of the same training as well."""

    html: Text | None = None
    """File that gets everything as a page."""

    overwrite: Flag = False
    """Replace a page that stands there already."""


class EvalSettings(Section):
    """`llmt eval`: loss, perplexity and bits per byte of a model on text."""

    data: TextList = ()
    """Files, folders or glob patterns to measure on. Empty means the held-out part of the run's own data."""

    text_column: Text | None = None
    """Field or column of a row of `data` that holds the text. None takes that of the run."""

    encoding_errors: EncodingErrors | None = None
    """What to do with bytes in `data` that are not UTF-8: stop and name the offset (`strict`), or put U+FFFD there
    (`replace`). None does as the run did."""

    truncation: Truncation | None = None
    """What happens to a document or a pair of `data` that is longer than the context: cut it into several, keep its
    beginning, leave it out, or stop. None cuts documents, and does with pairs as the run did."""

    adapter: Text | None = None
    """Directory of an adapter to put on the model. What the run of the adapter did counts, where it has one."""

    device: Device = "auto"
    """Where to compute: `auto` takes CUDA, then MPS, then the CPU."""

    block_size: Count | None = Field(None, gt=1)
    """Context length in tokens. None means the one the model was trained with."""

    batch_size: Count = Field(16, gt=0)
    """Sequences that pass through the model at once."""

    max_batches: Count | None = Field(None, gt=0)
    """Measure on this many batches only. None measures on everything."""

    output: Text | None = None
    """File that gets the result as JSON."""


class GenerateSettings(Section):
    """`llmt generate`: text from a model."""

    prompt: TextLines = ()
    """Starts to go on from."""

    prompts_file: Text | None = None
    """File with one prompt a line."""

    chat: Flag = False
    """Talk with the model, a turn a line, through its chat template; `/help` lists the commands."""

    system: Text | None = None
    """What opens the conversation of `chat`: whom the model is to be."""

    output: Text | None = None
    """File that gets one JSON object a line: the prompt and its continuation, or a turn and its answer."""

    adapter: TextLines = ()
    """Directory of an adapter to put on the model, or NAME=DIRECTORY. Of several each prompt gets a continuation with
    each; `chat` begins with the first."""

    device: Device = "auto"
    """Where to compute: `auto` takes CUDA, then MPS, then the CPU."""

    max_new_tokens: Count = Field(100, gt=0)
    """Longest continuation or answer, in tokens."""

    temperature: Number = Field(0.8, ge=0)
    """Below 1 favours likely tokens; 0 always takes the likeliest."""

    top_k: Count = Field(50, ge=0)
    """Sample among this many likeliest tokens. 0 takes all."""

    top_p: Number = Field(0.95, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability. 1 takes all."""

    repetition_penalty: Number = Field(1.0, gt=0)
    """Above 1 makes tokens that occurred before less likely."""

    num_return_sequences: Count = Field(1, gt=0)
    """Continuations of each prompt."""

    seed: Count = Field(42, ge=0)
    """Start of the random numbers."""


class DoctorSettings(Section):
    """`llmt doctor`: what this machine can do."""

    device: Device = "auto"
    """Check this device only; `auto` checks all."""


TASKS: dict[str, type[Section]] = {
    "tokenizer_train": TokenizerTrainSettings,
    "tokenizer_inspect": TokenizerInspectSettings,
    "eval": EvalSettings,
    "generate": GenerateSettings,
    "convert": ConvertSettings,
    "safetensors_to_pt": ToPytorchSettings,
    "merge_lora": MergeSettings,
    "gguf": GgufSettings,
    "doctor": DoctorSettings,
}
