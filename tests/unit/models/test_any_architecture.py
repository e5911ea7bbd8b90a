"""Other architectures: from a bare configuration, from weights, from the hub's cache, and registered classes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import IDS, KINDS, SHAPE, fresh
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llmt import BaseLanguageModel, HuggingFaceModelWrapper, load_model, register_model
from llmt.checkpoints.weights import load_weights
from llmt.config.model import ModelConfig
from llmt.errors import ConfigError, HubError, ModelFileError, UsageError
from llmt.models.fresh import measured_shape, new_model


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_from_its_bare_configuration(tmp_path: Path, kind: str) -> None:
    """Its sizes are those of the text, its weights follow the seed; it learns, and opens here and in transformers."""
    model, ids = fresh(kind), torch.arange(48).reshape(3, 16)
    assert (model.vocab_size, model.context_length) == (61, 32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh(kind).parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), fresh(kind, 4).parameters(), strict=True))
    values, parameters = measured_shape(ModelConfig(huggingface={"model_type": kind, **KINDS[kind]}), 61, 32)
    assert (values["model_type"], parameters) == (kind, model.num_parameters())
    assert values.get("eos_token_id") is None
    before = float(model.loss(ids[:, :-1], ids[:, 1:]).nats.detach())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (model.loss(ids[:, :-1], ids[:, 1:]).nats / 45).backward()
        optimizer.step()
    assert float(model.loss(ids[:, :-1], ids[:, 1:]).nats.detach()) < before
    model.save_pretrained(tmp_path / "m")
    with torch.no_grad():
        expected = model(ids)
        assert torch.allclose(HuggingFaceModelWrapper.from_pretrained(tmp_path / "m").eval()(ids), expected, atol=1e-5)
        assert torch.allclose(load_model(tmp_path / "m").eval()(ids), expected, atol=1e-5)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
    assert theirs.config.eos_token_id == 1


MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "a bound": ("gemma2", {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}),
    "a factor": ("cohere", {**SHAPE, "num_key_value_heads": 1}),
    "a bias": ("phi", SHAPE),
}
"""What an architecture does to the product of hidden states and head."""


@pytest.mark.parametrize("masked", [0, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_logits_that_are_a_plain_product_never_exist_whole(dropout: float, masked: int) -> None:
    """Loss and gradients are those of the whole logits, with the same values dropped; the head is not called."""
    model = fresh("gpt2", attn_pdrop=dropout, resid_pdrop=dropout, embd_pdrop=dropout).train()
    ids, labels = torch.arange(48).reshape(3, 16), torch.arange(48).reshape(3, 16).roll(-1, 1).clone()
    labels[:, :masked] = -100
    model.loss(ids, labels)  # tries the head
    assert model.training
    called: list[int] = []
    model.inner.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    torch.manual_seed(0)
    found = model.loss(ids, labels)
    assert not called
    gradients = torch.autograd.grad(found.nats, list(model.parameters()))
    torch.manual_seed(0)
    plain = nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum")
    assert found.nats.item() == pytest.approx(plain.item(), rel=1e-6)
    assert found.tokens == 48 - 3 * masked
    for one, other in zip(gradients, torch.autograd.grad(plain, list(model.parameters())), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", MORE)
def test_a_head_that_does_more_is_asked_for_its_logits(what: str) -> None:
    kind, values = MORE[what]
    model = new_model(ModelConfig(huggingface={"model_type": kind, **values}), 61, 32, 3, IDS).train()
    assert isinstance(model, HuggingFaceModelWrapper)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(48).reshape(3, 16)
    called: list[int] = []
    model.inner.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    model.loss(ids[:, :-1], ids[:, 1:])
    before = len(called)
    found = model.loss(ids[:, :-1], ids[:, 1:])
    assert len(called) == before + 1
    plain = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert found.nats.item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_resized(kind: str) -> None:
    """Logits of the old tokens stay as they were, and the new rows are their mean."""
    model, ids = fresh(kind), torch.arange(16)[None]
    with torch.no_grad():
        before = model(ids)
        model.resize_token_embeddings(64)
        assert model.vocab_size == model(ids).shape[-1] == 64
        assert torch.allclose(model(ids)[..., :61], before, atol=1e-5)
    weight = model.output_weight()
    assert torch.allclose(weight[61:], weight[:61].mean(0).expand(3, -1), atol=1e-6)


@pytest.mark.parametrize(("values", "named"), [
    ({"model_type": "gpt3"}, "did you mean gpt"), ({"model_type": "bert_of_mine"}, "no causal language model"),
    ({"model_type": "gpt2", "n_head": 5}, "model.huggingface"), ({"model_type": "gpt2", "n_layer": "four"}, "n_layer"),
    ({"model_type": "gpt2", "auto_map": {}}, "auto_map"),
    ({"model_type": "llama", "num_attention_heads": 0}, "model.huggingface"),
    ({"model_type": "gpt2", "quantization_config": {"quant_method": "gptq"}}, "quantised"),
])  # fmt: skip
def test_a_bare_configuration_without_meaning_is_refused(values: dict[str, Any], named: str) -> None:
    """An unknown architecture, impossible sizes and code are errors of the configuration, with exit code 2."""
    with pytest.raises(ConfigError, match=named) as caught:
        new_model(ModelConfig(huggingface=values), 61, 32, 0, IDS)
    assert caught.value.exit_code == 2


def test_what_the_configuration_says_itself_stands() -> None:
    """A context and a vocabulary that are given are not replaced by those of the text."""
    model = fresh("gpt2", n_positions=20, vocab_size=64)
    assert (model.vocab_size, model.context_length) == (64, 20)
    assert fresh("gpt2", max_position_embeddings=24).context_length == 24


def snapshot(model: BaseLanguageModel, home: Path, name: str, **options: Any) -> Path:
    """A model as the hub's cache holds it: files are links into a folder beside."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    model.save_pretrained(folder / "whole", **options)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    revision = folder / "snapshots" / ("0" * 40)
    revision.mkdir(parents=True)
    for number, file in enumerate(sorted((folder / "whole").iterdir())):
        shutil.move(file, folder / "blobs" / str(number))
        (revision / file.name).symlink_to(f"../../blobs/{number}")
    (revision / "MANIFEST.json").unlink()
    (folder / "whole").rmdir()
    return revision


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4KB"}, {"safe_serialization": False}], ids=str)
def test_a_name_on_the_hub_is_found_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A cached model opens by its name without a network; a name that is not there is exit code 6 and says so."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model, ids = fresh("gpt2"), torch.arange(16)[None]
    snapshot(model, tmp_path, "owner/name", **options)
    with torch.no_grad():
        for name in ("owner/name", "hf:owner/name"):
            assert torch.equal(HuggingFaceModelWrapper.from_pretrained(name).eval()(ids), model(ids))
    with pytest.raises(HubError, match="not in the cache") as caught:
        HuggingFaceModelWrapper.from_pretrained("owner/other")
    assert caught.value.exit_code == 6
    for name in ("./nowhere", "a/b/c", "with space"):
        with pytest.raises(ModelFileError, match="does not exist"):
            HuggingFaceModelWrapper.from_pretrained(name)


class Mean(BaseLanguageModel):
    def __init__(self, vocab_size: int, context_length: int, width: int = 4) -> None:
        super().__init__(width=width)
        self.vocab_size, self.context_length = vocab_size, context_length
        self.embed = nn.Embedding(vocab_size, width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("forgotten", torch.full((1,), 3.0), persistent=False)

    def hidden_states(self, input_ids: Tensor, cache: Any = None, position_ids: Tensor | None = None) -> Tensor:
        return self.embed(input_ids).cumsum(1)

    def output_weight(self) -> Tensor:
        return self.embed.weight


def test_a_registered_class_is_opened_by_its_name(tmp_path: Path) -> None:
    """Options come back to the constructor; without registration nothing is saved; names are not taken twice."""
    with pytest.raises(UsageError, match="has no model_type"):
        Mean(9, 8).save_pretrained(tmp_path / "none")
    register_model("mean_of_test")(Mean)
    model = new_model(ModelConfig(custom={"model_type": "mean_of_test", "width": 6}), 9, 8, 1, IDS)
    assert isinstance(model, Mean)
    model.save_pretrained(tmp_path / "m", token_ids={"eos_token_id": 1})
    for again in (load_model(tmp_path / "m"), Mean.from_pretrained(tmp_path / "m")):
        assert isinstance(again, Mean)
        assert torch.equal(again.embed.weight, model.embed.weight)
        assert again.head.weight is again.embed.weight
        assert (float(again.scale), float(again.forgotten)) == (1.0, 3.0)
    assert len(load_weights(tmp_path / "m")) == 2
    assert json.loads((tmp_path / "m" / "config.json").read_text())["width"] == 6
    with pytest.raises(UsageError, match="taken"):
        register_model("llama")(Mean)
    with pytest.raises(UsageError, match="taken"):
        register_model("mean_of_test")(type("Other", (Mean,), {}))
    with pytest.raises(UsageError, match="mean_of_test"):
        new_model(ModelConfig(custom={"model_type": "meen"}), 9, 8, 1, IDS)
    with pytest.raises(UsageError, match="depth"):
        new_model(ModelConfig(custom={"model_type": "mean_of_test", "depth": 6}), 9, 8, 1, IDS)


class Frozen(Mean):
    def __init__(self, vocab_size: int, context_length: int) -> None:
        super().__init__(vocab_size, context_length)
        self.options = {}
        self.head = nn.Linear(4, vocab_size)
        self.embed.weight.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(1))
        self.rates = [float(x) for x in torch.linspace(0, 1, 3)]

    def output_weight(self) -> Tensor:
        return self.head.weight


def test_what_a_class_froze_and_counts_survives(tmp_path: Path) -> None:
    """Frozen parameters stay frozen, buffers and a bias of the head come back, and a resized model opens again."""
    register_model("frozen_of_test")(Frozen)
    values, _ = measured_shape(ModelConfig(custom={"model_type": "frozen_of_test"}), 9, 8)
    assert values["model_type"] == "frozen_of_test"
    model = Frozen(9, 8)
    model.seen += 7
    model.resize_token_embeddings(12)
    model.save_pretrained(tmp_path / "m")
    again = Frozen.from_pretrained(tmp_path / "m")
    assert (again.embed.weight.requires_grad, again.head.weight.requires_grad) == (False, True)
    assert float(again.seen) == 7.0
    assert again.head.bias.shape == (12,)


@pytest.mark.parametrize("name", ["./nowhere.py", "no_such_module_of_llmt", "broken.py"])
def test_a_plugin_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """`LLMT_PLUGINS` with a missing file or module, or one that is no Python, is exit code 2 and names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("class\n")
    monkeypatch.setenv("LLMT_PLUGINS", name)
    with pytest.raises(UsageError, match="LLMT_PLUGINS"):
        new_model(ModelConfig(custom={"model_type": "unknown"}), 9, 8, 1, IDS)


def test_a_plugin_may_have_the_name_of_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file `types.py` is loaded although Python has a module of that name."""
    (tmp_path / "types.py").write_text(
        "from llmt import register_model\nfrom test_any_architecture import Mean\n"
        "register_model('named_like_a_module')(type('Named', (Mean,), {}))\n"
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("LLMT_PLUGINS", str(tmp_path / "types.py"))
    model = new_model(ModelConfig(custom={"model_type": "named_like_a_module"}), 9, 8, 1, IDS)
    assert type(model).__name__ == "Named"
