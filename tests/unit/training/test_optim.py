"""Parameter groups, fp32 masters and the state of the optimizers."""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmt.checkpoints.saving import save_tensors
from llmt.checkpoints.weights import load_tensors
from llmt.config.lora import LoraConfig
from llmt.config.model import ModelConfig
from llmt.config.training import TrainingConfig
from llmt.data.batch import Batch
from llmt.errors import DeviceError, MismatchError, MissingPackageError
from llmt.models.base import BaseLanguageModel
from llmt.models.lora import add_lora
from llmt.models.transformer import TransformerLM
from llmt.training import groups, optim
from llmt.training.optim import Optimizer
from llmt.training.runtime import Runtime
from llmt.training.step import Stepper

IDS = torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(0))
KINDS = {
    "adamw": torch.optim.AdamW, "muon": torch.optim.Muon, "sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor,
}  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)


def _model(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> tuple[TransformerLM, dict[str, Tensor]]:
    """A fresh network in a precision, and its fp32 weights from before the rounding."""
    shape = ModelConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        tie_word_embeddings=tied)  # fmt: skip
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
    """Muon moves the matrices of the blocks and AdamW the embeddings, the head and the norms; others move all."""
    optimizer = Optimizer(_model()[0], _config(kind, learning_rate=0.004, muon_learning_rate=0.02))
    by_name = {w.name: group for group in optimizer.groups for w in group.weights}
    for name, group in by_name.items():
        expected = "adamw" if kind == "muon" and not name.endswith("proj.weight") else kind
        assert group.kind == expected
        assert isinstance(group.optimizer, KINDS[expected])
        assert group.peak == (0.02 if expected == "muon" else 0.004)
    optimizer.set_rate(0.25)
    for group in optimizer.groups:
        assert group.optimizer.param_groups[0]["lr"] == group.peak * 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_decay_shrinks_matrices_only(kind: str) -> None:
    """With gradients of zero a step scales matrices by 1 - rate * decay and leaves norms alone."""
    model, exact = _model()
    optimizer = Optimizer(model, _config(kind, weight_decay=0.5, learning_rate=0.1, muon_learning_rate=0.1))
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
@pytest.mark.parametrize("dtype", HALVES)
def test_parameters_are_rounded_masters(kind: str, dtype: torch.dtype) -> None:
    """Masters begin as the unrounded weights; after each step the parameters are the masters, rounded."""
    model, exact = _model(dtype)
    optimizer = Optimizer(model, _config(kind, learning_rate=1e-4), exact)
    assert all(w.master.dtype == torch.float32 and torch.equal(w.master, exact[w.name]) for w in optimizer.weights)
    for _ in range(3):
        before = {name: p.clone() for name, p in optimizer.masters().items()}
        _step(model, optimizer)
        for weight in optimizer.weights:
            assert torch.equal(weight.parameter, weight.master.to(dtype))
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


@pytest.mark.parametrize(("dtype", "first"), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_gradients_add_up_in_fp32(dtype: torch.dtype, first: float) -> None:
    """Gradients of many passes are summed in fp32: 256 + 1 + 1 is 258, which sums in bf16 would not reach."""
    layer = nn.Linear(1, 1, bias=False).to(dtype)
    optimizer = Optimizer(layer, _config("adamw"))
    for value in [first, *[1.0] * 50]:
        layer.weight.grad = torch.full((1, 1), value, dtype=dtype)
        optimizer.accumulate()
        assert layer.weight.grad is None
    assert float(optimizer.gradients()[0]) == first + 50


@pytest.mark.parametrize("turned", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("at_once", [1, 5, 8])
def test_large_tensors_add_up_a_part_at_a_time(
    at_once: int, turned: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum is the same in parts that do not come out even, and where either gradient lies in columns."""
    monkeypatch.setattr(optim, "AT_ONCE", at_once)
    layer = nn.Linear(4, 3).to(torch.bfloat16)
    if all(turned):  # then autograd's own gradients lie so
        layer.weight.data = layer.weight.data.T.contiguous().T
    optimizer = Optimizer(layer, _config("adamw"))
    gradients = [torch.arange(12.0).view(4, 3).T if one else torch.arange(12.0).view(3, 4) for one in turned]
    for gradient in gradients:
        layer.weight.grad = gradient.to(torch.bfloat16)
        optimizer.accumulate()
    assert torch.equal(optimizer.gradients()[0], sum(gradients))


def _gradients(model: BaseLanguageModel, optimizer: Optimizer, passes: int = 1) -> list[Tensor]:
    """Of a step of so many equal batches, as a run makes them."""
    stepper = Stepper(model, optimizer, 0, Runtime())
    batch = Batch(IDS, (IDS + 1) % 61, IDS.numel())
    stepper.gradients([batch] * passes, 0, passes * IDS.numel(), None)
    return optimizer.gradients()


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_head_takes_its_gradient_in_fp32(
    tied: bool, dtype: torch.dtype, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loss gives to the master, and what else arrives at a tied head, add up to what autograd alone makes."""
    found, given = [], []
    for exact_head in (True, False):
        model, exact = _model(dtype, tied=tied)
        optimizer = Optimizer(model, _config("adamw"), exact)
        if not exact_head:
            monkeypatch.setattr(optimizer, "master_of", lambda _: None)
        whole = model.loss

        def loss(*batch: Any, model: TransformerLM = model, whole: Any = whole) -> Any:
            given.append(model.exact_head is not None)
            return whole(*batch)

        monkeypatch.setattr(model, "loss", loss)
        found.append(_gradients(model, optimizer, passes))
        assert model.exact_head is None
        assert dtype == torch.float32 or model.output_weight().grad is None
    assert given == passes * [dtype != torch.float32] + passes * [False]
    for one, other in zip(*found, strict=True):
        close = 2**-8 if dtype == torch.bfloat16 else 1e-6
        assert float((one - other).abs().max()) <= close * float(other.abs().max())


def test_a_hook_on_the_head_sees_its_whole_gradient() -> None:
    """As where only some rows are to be learnt."""
    model, exact = _model(torch.bfloat16)
    head = model.output_weight()
    mask = (torch.arange(61) >= 40).to(torch.bfloat16)[:, None]
    head.register_hook(lambda gradient: gradient * mask)
    optimizer = Optimizer(model, _config("adamw"), exact)
    _gradients(model, optimizer)
    (gradient,) = (w.master.grad for w in optimizer.weights if w.parameter is head)
    assert gradient is not None
    assert not bool(gradient[:40].any())
    assert bool(gradient[40:].any())


def test_only_copies_have_masters() -> None:
    """Not what is frozen under an adapter, nor what is computed from a parameter."""
    model = add_lora(_model()[0], LoraConfig(enabled=True)).to(torch.bfloat16)
    optimizer = Optimizer(model, _config("adamw"))
    assert optimizer.master_of(model.output_weight()) is None
    weight = optimizer.weights[0]
    assert optimizer.master_of(weight.parameter) is weight.master
    assert optimizer.master_of(weight.parameter * 1) is None


def test_unscaling_reaches_every_gradient() -> None:
    """Gradients of copies and of fp32 parameters are multiplied in place; one that is missing stays so."""
    model = nn.ModuleList([nn.Linear(2, 3).to(torch.float16), nn.Linear(2, 3), nn.Linear(2, 3)])
    optimizer = Optimizer(model, _config("adamw"))
    optimizer.unscale(0.5)
    for layer in model[:2]:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, 60000.0)
    optimizer.accumulate()
    before = [gradient.data_ptr() for gradient in optimizer.gradients()]
    optimizer.unscale(2.0**-16)
    assert [gradient.data_ptr() for gradient in optimizer.gradients()] == before
    assert len(before) == 4
    assert all(bool((gradient == 60000 * 2.0**-16).all()) for gradient in optimizer.gradients())


def _drawn(tensor: Tensor, seed: int) -> Tensor:
    """A gradient in which a row is zero, as of a token that did not occur."""
    gradient = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    gradient[0] = 0
    return 0.01 * gradient


def _theirs(kind: str, parameters: list[Tensor], decay: float) -> torch.optim.Optimizer:
    """torch's own, without any of the options that only change how fast it is."""
    if kind == "sgd":
        return torch.optim.SGD(parameters, momentum=0.8)
    if kind == "adafactor":
        return torch.optim.Adafactor(parameters, weight_decay=decay, eps=(1e-15, 1.0), foreach=True)
    return torch.optim.AdamW(parameters, betas=(0.8, 0.9), eps=1e-6, weight_decay=decay)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_steps_are_those_of_torch(kind: str, dtype: torch.dtype) -> None:
    """Over twenty steps of changing rates torch's optimizer moves the same weights to the same place.

    The decay of SGD is applied to the weights by hand: torch's own goes through the momentum.
    """
    model, exact = _model(dtype)
    settings = {"weight_decay": 0.3, "sgd_momentum": 0.8, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}
    ours = Optimizer(model, _config(kind, learning_rate=0.01, **settings), exact)
    copies = {name: nn.Parameter(tensor.clone()) for name, tensor in exact.items()}
    matrices = [p for p in copies.values() if p.ndim == 2]
    pair = _theirs(kind, matrices, 0.3), _theirs(kind, [p for p in copies.values() if p.ndim == 1], 0.0)
    for step in range(20):
        factor = 1 / (1 + step)
        for number, (name, parameter) in enumerate(model.named_parameters()):
            parameter.grad = _drawn(parameter, 100 * step + number).to(dtype)
            copies[name].grad = parameter.grad.float()
        if kind == "sgd":
            with torch.no_grad():
                torch._foreach_mul_(matrices, 1 - 0.01 * factor * 0.3)
        for optimizer in pair:
            optimizer.param_groups[0]["lr"] = 0.01 * factor
            optimizer.step()
        ours.accumulate()
        ours.set_rate(factor)
        ours.step()
    assert all((ours.masters()[name] - p).abs().max() <= 1e-7 for name, p in copies.items() if p.ndim == 2)
    assert all(torch.allclose(ours.masters()[name], p, rtol=1e-6, atol=0) for name, p in copies.items() if p.ndim == 1)


def test_sgd_without_momentum_is_that_of_torch() -> None:
    """There decay by way of the gradient is decay of the weights, and nothing is kept."""
    one, other = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    other.load_state_dict(one.state_dict())
    ours = Optimizer(one, _config("sgd", learning_rate=0.1, sgd_momentum=0.0, weight_decay=0.3))
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, weight_decay=0.3)
    for step in range(10):
        one.weight.grad = _drawn(one.weight, step)
        other.weight.grad = _drawn(one.weight, step)
        ours.step()
        theirs.step()
    assert torch.allclose(one.weight, other.weight, rtol=0, atol=1e-6)
    assert ours.state() == {}


def test_sgd_calls_the_closure_and_passes_over_what_has_no_gradient() -> None:
    """As torch's does: such a weight is not decayed either."""
    layer = nn.Linear(4, 4, bias=False)
    before = layer.weight.detach().clone()
    optimizer = Optimizer(layer, _config("sgd", weight_decay=0.5)).groups[0].optimizer
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(layer.weight, before)


def test_adafactor_has_the_learning_rate_as_its_rate() -> None:
    """Matrices move as by transformers' Adafactor with that rate, and not with one relative to step and weights."""
    from transformers import Adafactor

    model = nn.ModuleList([nn.Linear(7, 12, bias=False), nn.Linear(5, 4, bias=False)])
    nn.init.zeros_(model[1].weight)
    copies = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    ours = Optimizer(model, _config("adafactor", learning_rate=3e-3, weight_decay=0.1))
    theirs = Adafactor(copies, lr=3e-3, weight_decay=0.1, scale_parameter=False, relative_step=False)
    for step in range(100):
        for number, (one, other) in enumerate(zip(model.parameters(), copies, strict=True)):
            one.grad = _drawn(one, 100 * step + number) * 1e-3
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
        if step == 0:  # weights of zero move by about the rate
            assert 2e-3 < float(model[1].weight.detach().square().mean().sqrt()) <= 3e-3
    pairs = zip(model.parameters(), copies, strict=True)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_rate_of_zero_moves_nothing(kind: str, dtype: torch.dtype) -> None:
    """Neither gradients nor decay change a bit."""
    model, exact = _model(dtype)
    optimizer = Optimizer(model, _config(kind, learning_rate=0.0, muon_learning_rate=0.0, weight_decay=0.5), exact)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        _step(model, optimizer)
    assert all(torch.equal(optimizer.masters()[name], value) for name, value in exact.items())
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))


def _reload(optimizer: Optimizer, fresh: Optimizer, folder: Path) -> None:
    """Give an optimizer's weights and state to another one, by way of files and in another order."""
    for file, tensors in (("masters", optimizer.masters()), ("state", optimizer.state())):
        save_tensors(folder, f"{file}.safetensors", dict(reversed(tensors.items())))
    fresh.load(load_tensors(folder / "masters.safetensors"), load_tensors(folder / "state.safetensors"))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


@pytest.mark.parametrize("kind", [*KINDS, "sgd without momentum"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("used", [False, True])
def test_state_by_name_continues_bit_for_bit(kind: str, dtype: torch.dtype, used: bool, tmp_path: Path) -> None:
    """Masters and state, written by one optimizer and read by another, go on as if nothing had happened.

    That the other one has been used before makes no difference.
    """
    kind, _, still = kind.partition(" ")
    settings = {"sgd_momentum": 0.0} if still else {}
    model, exact = _model(dtype)
    optimizer = Optimizer(model, _config(kind, **settings), exact)
    for shift in (1, 2):
        _step(model, optimizer, shift)
    other, _ = _model(dtype)
    fresh = Optimizer(other, _config(kind, **settings))
    for shift in range(7 * used):
        _step(other, fresh, shift)
    _reload(optimizer, fresh, tmp_path)
    assert _same(fresh.state(), optimizer.state())
    for shift in (3, 4):
        _step(model, optimizer, shift)
        _step(other, fresh, shift)
    assert _same(fresh.state(), optimizer.state())
    assert _same(fresh.masters(), optimizer.masters())
    assert _same(other.state_dict(), model.state_dict())
    kept: defaultdict[str, set[str]] = defaultdict(set)
    for key in fresh.state():
        kept[key.rpartition(".")[0]].add(key.rpartition(".")[2])
    kinds = {w.name: group.kind for group in fresh.groups for w in group.weights}
    assert all(entries in groups.ENTRIES[kinds[name]] for name, entries in kept.items())
    assert kept.keys() == (set() if still else kinds.keys())


def test_state_is_loaded_through_what_accelerate_puts_around() -> None:
    """A group whose optimizer has been wrapped takes up its state all the same."""
    model, _ = _model()
    optimizer = Optimizer(model, _config("adamw"))
    _step(model, optimizer)
    masters, state = dict(optimizer.masters()), {name: tensor.clone() for name, tensor in optimizer.state().items()}
    wrapped = [replace(g, optimizer=SimpleNamespace(state=g.optimizer.state)) for g in optimizer.groups]
    optimizer.groups = wrapped
    optimizer.load(masters, state)
    assert _same(optimizer.state(), state)


class StandIn(torch.optim.Optimizer):
    """Keeps for a weight what bitsandbytes' AdamW8bit does, and computes with all of it."""

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.map = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for weight in self.param_groups[0]["params"]:
            state, large = self.state[weight], weight.numel() >= 512
            if not state:
                state["step"] = 0
                for number in "12":
                    state[f"state{number}"] = torch.zeros_like(weight, dtype=torch.uint8 if large else None)
                    if large:
                        state[f"qmap{number}"], state[f"absmax{number}"] = self.map, torch.zeros(3)
            assert type(state["step"]) is int
            state["step"] += 1
            for number in "12":
                if large:
                    assert state[f"state{number}"].dtype == torch.uint8
                    state[f"state{number}"] += (weight.grad > 0).to(torch.uint8)
                    state[f"absmax{number}"] += weight.grad.abs().max()
                    weight -= state[f"qmap{number}"][state[f"state{number}"].int()] * state[f"absmax{number}"][0]
                else:
                    state[f"state{number}"] += weight.grad
                    weight -= state[f"state{number}"] / state["step"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_in_8_bit_continues_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Bytes, their scales, shared quantisation maps and a count that is no tensor are kept as what they are."""
    monkeypatch.setattr(groups, "require_adamw_8bit", lambda device: StandIn)
    pairs = []
    for _ in range(2):
        model, exact = _model(dtype)
        pairs.append((model, Optimizer(model, _config("adamw_8bit"), exact)))
    (model, optimizer), (other, fresh) = pairs
    for shift in (1, 2):
        _step(model, optimizer, shift)
    _reload(optimizer, fresh, tmp_path)
    for shift in (3, 4):
        _step(model, optimizer, shift)
        _step(other, fresh, shift)
    assert {tensor.dtype for tensor in fresh.state().values()} == {torch.int64, torch.uint8, torch.float32}
    assert _same(fresh.state(), optimizer.state())
    assert _same(fresh.masters(), optimizer.masters())


def test_8_bit_needs_cuda_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another device, and where bitsandbytes cannot be imported, the run ends with exit code 9 and what to type."""
    with pytest.raises(DeviceError, match="adamw_8bit: needs CUDA, and the weights are on cpu") as caught:
        Optimizer(_model()[0], _config("adamw_8bit"))
    assert (caught.value.exit_code, caught.value.hint) == (9, "llmt train --optimizer adamw")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(MissingPackageError, match="bitsandbytes") as missing:
        groups.require_adamw_8bit("cuda")
    assert (missing.value.exit_code, missing.value.package) == (9, "bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=StandIn))
    assert groups.require_adamw_8bit("cuda") is StandIn


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", "model.norm.weight: the checkpoint holds no such tensor"),
        ("shape", r"model.norm.weight: the checkpoint holds \(3,\), the model needs \(32,\)"),
        ("stranger", "model.nowhere.weight: the checkpoint's optimizer tensors are exp_avg"),
        ("part", "model.norm.weight: the checkpoint's optimizer tensors are exp_avg_sq, step"),
        ("other", "model.norm.weight: the checkpoint's optimizer tensors are momentum_buffer"),
    ],
)
def test_state_that_does_not_fit(change: str, named: str) -> None:
    """Weights and states that are missing, misshapen or another optimizer's are refused by name, before any is used."""
    model, _ = _model()
    optimizer = Optimizer(model, _config("adamw"))
    _step(model, optimizer)
    held = {name: tensor.clone() for name, tensor in optimizer.masters().items()}
    masters = {name: tensor + 1 for name, tensor in held.items()}
    state, prefix = dict(optimizer.state()), "model.norm.weight."
    if change == "missing":
        del masters["model.norm.weight"]
    elif change == "shape":
        masters["model.norm.weight"] = torch.ones(3)
    elif change == "stranger":
        state["model.nowhere.weight.exp_avg"] = torch.ones(3)
    elif change == "part":
        del state[prefix + "exp_avg"]
    else:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        state[prefix + "momentum_buffer"] = torch.ones(32)
    with pytest.raises(MismatchError, match=named) as caught:
        optimizer.load(masters, state)
    assert caught.value.exit_code == 5
    assert _same(dict(optimizer.masters()), held)
