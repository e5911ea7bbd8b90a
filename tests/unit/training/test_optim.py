"""Parameter groups, fp32 masters and the state of the optimizers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmt.config.model import ModelConfig
from llmt.config.training import LoraConfig, TrainingConfig
from llmt.errors import MismatchError
from llmt.models.base import BaseLanguageModel
from llmt.models.lora import add_lora
from llmt.models.transformer import TransformerLM
from llmt.training.optim import Optimizer

IDS = torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(0))
KINDS = ("adamw", "muon")


def _model(dtype: torch.dtype = torch.float32) -> tuple[TransformerLM, dict[str, Tensor]]:
    """A fresh network in a precision, and its fp32 weights from before the rounding."""
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        tie_word_embeddings=False)  # fmt: skip
    model = TransformerLM(shape, 61, 16)
    model.initialize(1)
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    return model.to(dtype), exact


def _config(kind: str, **settings: Any) -> TrainingConfig:
    return TrainingConfig(optimizer=kind, **settings)


def _step(model: BaseLanguageModel, optimizer: Optimizer, shift: int = 1) -> None:
    loss = model.loss(IDS, (IDS + shift) % 61)
    (loss.nats / loss.tokens).backward()
    optimizer.accumulate()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True])
def test_every_trainable_tensor_is_moved_by_one_optimizer(kind: str, lora: bool) -> None:
    """Each trainable tensor is in exactly one group, each frozen one in none."""
    model: BaseLanguageModel = _model()[0]
    if lora:
        model = add_lora(model, LoraConfig(enabled=True))
    optimizer = Optimizer(model, _config(kind))
    grouped = [w.name for group in optimizer.groups for w in group.weights]
    assert sorted(grouped) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    inside = [id(p) for g in optimizer.groups for options in g.optimizer.param_groups for p in options["params"]]
    assert len(inside) == len(set(inside)) == len(grouped)


@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind: str) -> None:
    """Muon moves the matrices of the blocks, AdamW the embeddings, the head and the norms; norms are not decayed."""
    optimizer = Optimizer(_model()[0], _config(kind, weight_decay=0.3, learning_rate=0.004, muon_learning_rate=0.02))
    by_name = {w.name: group for group in optimizer.groups for w in group.weights}
    for name, group in by_name.items():
        is_matrix = name.endswith("proj.weight")
        expected = torch.optim.Muon if kind == "muon" and is_matrix else torch.optim.AdamW
        assert isinstance(group.optimizer, expected)
        assert group.peak == (0.02 if expected is torch.optim.Muon else 0.004)
        assert group.optimizer.param_groups[0]["weight_decay"] == (0.0 if "norm" in name else 0.3)
    optimizer.set_rate(0.25)
    for group in optimizer.groups:
        assert group.optimizer.param_groups[0]["lr"] == group.peak * 0.25


def test_decay_shrinks_matrices_only() -> None:
    """With gradients of zero a step scales matrices by 1 - rate * decay and leaves norms alone."""
    model, exact = _model()
    optimizer = Optimizer(model, _config("adamw", weight_decay=0.5, learning_rate=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = exact[name] if "norm" in name else exact[name] * 0.95
        assert torch.allclose(parameter, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_has_no_copies(kind: str) -> None:
    """In fp32 the masters are the parameters themselves."""
    model, _ = _model()
    optimizer = Optimizer(model, _config(kind))
    assert all(w.master is w.parameter and not w.is_copy for w in optimizer.weights)
    _step(model, optimizer)
    assert {w.name: w.master.data_ptr() for w in optimizer.weights} == {
        name: p.data_ptr() for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_parameters_are_rounded_masters(kind: str) -> None:
    """Masters begin as the unrounded weights; after each step the parameters are the masters, rounded."""
    model, exact = _model(torch.bfloat16)
    optimizer = Optimizer(model, _config(kind, learning_rate=1e-4), exact)
    assert all(w.master.dtype == torch.float32 and torch.equal(w.master, exact[w.name]) for w in optimizer.weights)
    for _ in range(3):
        before = {name: p.clone() for name, p in optimizer.masters().items()}
        _step(model, optimizer)
        for weight in optimizer.weights:
            assert torch.equal(weight.parameter, weight.master.to(torch.bfloat16))
            assert weight.parameter.grad is None
            assert weight.master.grad is None
        assert any(not torch.equal(p, before[name]) for name, p in optimizer.masters().items())
    assert all(tensor.dtype == torch.float32 for tensor in optimizer.state().values())


def test_small_steps_are_not_lost_in_bf16() -> None:
    """A thousand updates too small for bf16 add up in the masters and reach the parameter."""
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.ones_(layer.weight)
    layer.to(torch.bfloat16)
    optimizer = Optimizer(layer, _config("adamw", learning_rate=1e-4, weight_decay=0.0))
    for _ in range(1000):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.accumulate()
        optimizer.step()
    assert torch.allclose(layer.weight.float(), torch.full((2, 2), 0.9), atol=0.004)


def test_gradients_add_up_in_fp32() -> None:
    """bf16 gradients of many passes are summed in fp32: 256 + 1 + 1 is 258, which bf16 sums would not reach."""
    layer = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = Optimizer(layer, _config("adamw"))
    for value in [256.0, *[1.0] * 50]:
        layer.weight.grad = torch.full((1, 1), value, dtype=torch.bfloat16)
        optimizer.accumulate()
        assert layer.weight.grad is None
    assert float(optimizer.gradients()[0]) == 306.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_by_name_continues_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    """Masters and state taken from one optimizer and given to a fresh one go on as if nothing had happened."""
    model, exact = _model(dtype)
    optimizer = Optimizer(model, _config(kind), exact)
    for shift in (1, 2):
        _step(model, optimizer, shift)
    masters = {name: tensor.clone() for name, tensor in optimizer.masters().items()}
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    other, _ = _model(dtype)
    fresh = Optimizer(other, _config(kind))
    fresh.load(dict(reversed(masters.items())), dict(reversed(state.items())))
    for shift in (3, 4):
        _step(model, optimizer, shift)
        _step(other, fresh, shift)
    assert fresh.state().keys() == optimizer.state().keys()
    assert all(torch.equal(tensor, optimizer.state()[name]) for name, tensor in fresh.state().items())
    assert all(torch.equal(tensor, optimizer.masters()[name]) for name, tensor in fresh.masters().items())
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("change", ["missing", "shape", "state"])
def test_state_that_does_not_fit(change: str) -> None:
    """A missing or misshapen weight and a state without its weight are refused by name with exit code 5."""
    model, _ = _model()
    optimizer = Optimizer(model, _config("adamw"))
    _step(model, optimizer)
    masters, state = dict(optimizer.masters()), dict(optimizer.state())
    if change == "missing":
        del masters["model.norm.weight"]
    elif change == "shape":
        masters["model.norm.weight"] = torch.ones(3)
    else:
        state["model.nowhere.weight.exp_avg"] = torch.ones(3)
    with pytest.raises(MismatchError, match=r"model\.(norm|nowhere)") as caught:
        optimizer.load(masters, state)
    assert caught.value.exit_code == 5
