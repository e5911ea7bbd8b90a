"""The settings of an adapter: what is trained beside a frozen base."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llmt.config.base import Count, Flag, Number, Section, TextList

HONOURED: dict[str, tuple[str, ...]] = {
    "lora": ("r", "alpha", "dropout", "bias", "init"),
    "rslora": ("r", "alpha", "dropout", "bias", "init"),
    "dora": ("r", "alpha", "dropout", "bias", "init"),
    "adalora": ("r", "alpha", "dropout", "bias"),
    "loha": ("r", "alpha", "dropout"),
    "lokr": ("r", "alpha", "dropout"),
    "vera": ("r", "dropout", "bias"),
    "hra": ("r", "bias"),
    "miss": ("r", "dropout", "bias"),
    "ia3": (),
}
"""Method -> those of its settings that mean something for it, beside the layers."""

IN_4_BITS = ("lora", "rslora", "dora")
"""Methods that learn around layers in 4 bits in every precision: peft's others fail in bf16."""

CHANGES_BASE = ("pissa", "olora")
"""First numbers that are taken out of the base's weights."""


class LoraConfig(Section):
    """A small adapter on a frozen base model (https://arxiv.org/abs/2106.09685)."""

    enabled: Flag = False
    """Train an adapter instead of the whole model."""

    method: Literal["lora", "rslora", "dora", "adalora", "loha", "lokr", "vera", "hra", "miss", "ia3"] = "lora"
    """`lora`, rank-stabilised `rslora`, weight-decomposed `dora`, `adalora`, which spends ranks where they matter, or
    another method of peft: `loha`, `lokr`, `vera`, `hra`, `miss`, `ia3`."""

    r: Count = Field(8, gt=0)
    """Rank of the update. `adalora` begins with half as many again and ends with this on average."""

    alpha: Count = Field(16, gt=0)
    """The update is scaled by alpha / r."""

    dropout: Number = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training."""

    target_modules: TextList = ("auto",)
    """Layers that get an adapter: the last part of their names, or a pattern of whole names such as
    `model.layers.[0-3].*.q_proj`. `auto` takes all linear layers of the blocks."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias vectors are trained besides."""

    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "mica"] = "default"
    """First numbers of the adapter. `pissa` and `olora` take the largest directions out of the base's weights, `mica`
    trains in the smallest; each leaves what the model says as it is."""

    modules_to_save: TextList = ()
    """Other modules that are trained whole and kept with the adapter, such as `embed_tokens` or `lm_head`."""

    quantize: Literal["none", "4bit"] = "none"
    """Hold the linear layers of the frozen base in 4 bits (https://arxiv.org/abs/2305.14314): on CUDA, with the package
    bitsandbytes."""

    @model_validator(mode="after")
    def _is_honoured(self) -> Self:
        honoured = HONOURED[self.method]
        for name in ("r", "alpha", "dropout", "bias", "init"):
            if name not in honoured and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: means nothing for the method {self.method}")
        if self.r % 2 and (self.init == "orthogonal" or self.method == "hra"):  # its reflections cancel in pairs
            which = "init orthogonal" if self.init == "orthogonal" else "method hra"
            raise ValueError(f"{which} needs an even r, not {self.r}")
        if self.quantize != "none" and self.method not in IN_4_BITS:
            raise ValueError(f"quantize {self.quantize}: goes with {', '.join(IN_4_BITS)}, not with {self.method}")
        if self.init in (*CHANGES_BASE, "mica") and self.quantize != "none":
            raise ValueError(
                f"init {self.init} is taken from the base's weights, which quantize {self.quantize} rounds"
            )
        return self
