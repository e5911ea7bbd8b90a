"""Bytes and floating-point operations of a run before it starts, by arithmetic."""

from dataclasses import dataclass

from llmt.config.model import ModelConfig


@dataclass(frozen=True)
class Workload:
    """The size of one forward and backward pass.

    Attributes:
        model: Shape of the network.
        vocab_size: Number of tokens.
        batch_size: Sequences at once.
        block_size: Tokens of each.
        trainable: Share of the parameters that get a gradient, 0 to 1.
        counted: Parameters of the network where they were counted; None counts those of `model`.
    """

    model: ModelConfig
    vocab_size: int
    batch_size: int
    block_size: int
    trainable: float = 1.0
    counted: int | None = None

    @property
    def parameters(self) -> int:
        """Parameters of the network."""
        return self.counted or self.model.num_parameters(self.vocab_size)

    @property
    def tokens(self) -> int:
        """Tokens of one pass."""
        return self.batch_size * self.block_size

    def flops(self) -> float:
        """Floating-point operations of forward and backward: 6 per parameter and token, and attention's.

        Source: appendix B of https://arxiv.org/abs/2204.02311, with causal attention counted half.
        """
        attention = 6 * self.model.num_hidden_layers * self.block_size * self.model.hidden_size
        return float(self.tokens * (6 * self.parameters + attention))


INTERPRETER_BYTES = 330_000_000
"""Resident bytes of Python with torch and llmt loaded, before the model."""

CUDA_BUILD_BYTES = 360_000_000
"""What torch's build for CUDA takes of main memory besides, with or without a GPU."""

LOGIT_BYTES = 12
"""Bytes held for each logit where all exist, in fp16, and in architectures that do more than multiply: itself, its fp32
copy, the probability and the gradient."""

PIECE = 1 << 23
"""Logits of our own that exist at a time, as `models.chunked_loss` has it."""

FEWEST_ROWS = 256
"""Rows of such a piece at least."""

HEAD_ROWS = 2048
"""Tokens whose gradients in the output head exist at a time, of a piece."""


SUMMED_BYTES = 8
"""Bytes for each trained parameter that a step of several passes takes besides: gradients lie beside activations."""


def training_bytes(
    work: Workload,
    precision: str,
    *,
    checkpointing: bool,
    accumulates: bool = False,
    average: bool = False,
    copied: int = 0,
) -> int:
    """Peak bytes of training: weights, gradients, two moments, activations and logits.

    The factors were fitted to measured peaks; `tests/bench/memory.py` prints them again.

    Args:
        work: Size of one pass.
        precision: `fp32`, or `bf16` or `fp16` with fp32 masters besides.
        checkpointing: Each block keeps only its input.
        accumulates: Gradients of several passes are summed.
        average: A moving average of what is trained is kept, in fp32.
        copied: Bytes of a checkpoint that is copied, to be written while training goes on.
    """
    half = precision != "fp32"
    weight = 2 if half else 4
    trained = work.parameters * work.trainable
    state = work.parameters * weight + trained * ((4 + 4 + 8 + weight) if half else (4 + 8))
    state += (4 * trained if average else 0) + (SUMMED_BYTES * trained if accumulates else 0) + copied
    width = work.model.hidden_size + work.model.intermediate_size / 2
    element = 2 if half else 4
    factor = 20.0 if half else 17.0
    layers = 1 + work.model.num_hidden_layers / factor if checkpointing else work.model.num_hidden_layers
    activations = factor * work.tokens * layers * width * element
    logits = work.tokens * work.vocab_size * LOGIT_BYTES
    if work.counted is None and precision != "fp16":
        piece = min(work.tokens * work.vocab_size, max(PIECE, FEWEST_ROWS * work.vocab_size))
        part = min(HEAD_ROWS, work.vocab_size) * (4 + element)  # what a piece adds to the head's gradient, and its copy
        logits = piece * element + (4 * work.vocab_size + part) * work.model.hidden_size
    return round(INTERPRETER_BYTES + state + activations + logits)


def checkpoint_bytes(parameters: int, trainable: float = 1.0, *, adapter: bool = False, average: bool = False) -> int:
    """Bytes of one checkpoint: fp32 weights and two fp32 moments of what is trained.

    Args:
        parameters: Of the network.
        trainable: Share of them that is trained.
        adapter: What is frozen stays where it came from, and is not written.
        average: The model is an average, and the weights that training goes on from are written besides.
    """
    trained = parameters * trainable
    return round(4 * (trained if adapter else parameters) + (12 if average else 8) * trained)
