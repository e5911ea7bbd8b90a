"""What a comparison trains: the shape of the model, the batch, and how much computing that is."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Work:
    """A Llama, and the batch of one step.

    Attributes:
        name: Of the shape.
        hidden_size: d.
        intermediate_size: f, of the gated feed-forward layer.
        num_hidden_layers: L.
        num_attention_heads: H.
        vocab_size: V; the output head is the embeddings.
        batch_size: B, sequences of a step.
        length: T, tokens of a sequence.
        device: Kind of device.
    """

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    batch_size: int
    length: int
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.length

    @property
    def parameters(self) -> int:
        """Embeddings, blocks and norms."""
        d, layers = self.hidden_size, self.num_hidden_layers
        return self.vocab_size * d + layers * (4 * d * d + 3 * d * self.intermediate_size + 2 * d) + d

    @property
    def flops_per_token(self) -> int:
        """Forward and backward: 6 for each parameter, and the products of causal attention."""
        return 6 * self.parameters + 6 * self.num_hidden_layers * self.length * self.hidden_size

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def with_batch(self, batch_size: int | None, length: int | None, device: str) -> "Work":
        """The same model with other batches, elsewhere."""
        return replace(self, batch_size=batch_size or self.batch_size, length=length or self.length, device=device)


WORKS = {
    work.name: work
    for work in (
        Work("tiny", 64, 128, 2, 2, 1024, 4, 64),
        Work("20m", 384, 1024, 8, 6, 16384, 8, 256),
        Work("25m", 448, 1088, 8, 7, 16384, 8, 256),
        Work("117m", 768, 2304, 12, 12, 32768, 4, 512),
        Work("124m", 768, 2048, 12, 12, 50304, 16, 1024),
        Work("1b", 2048, 5632, 18, 16, 32768, 4, 2048),
    )
}
"""By name: for tests, the yardsticks of training and of adapters, `cpu-medium`, and two for a GPU."""
