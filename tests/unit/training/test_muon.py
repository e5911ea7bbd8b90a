"""Muon in the precision of the run, against torch's own and against what it is meant to compute."""

import pytest
import torch
from torch import nn

from llmt.config.training import TrainingConfig
from llmt.training.muon import AT_ONCE, BatchedMuon, orthogonalise
from llmt.training.optim import Optimizer

COEFFICIENTS = (3.4445, -4.775, 2.0315)
SHAPES = [(32, 32), (48, 16), (16, 48), (1, 8)]


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_vectors_stay_and_their_values_come_near_one(shape: tuple[int, int]) -> None:
    """Against the decomposition itself; matrices that are taken together do not see each other."""
    matrices = torch.stack([_drawn(*sorted(shape), seed=seed) for seed in range(3)])
    for matrix, found in zip(matrices, orthogonalise(matrices.clone(), COEFFICIENTS, 5, 1e-7), strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ found @ right.T
        assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-4)
        large = inside.diagonal()[values > 0.1 * values.max()]
        assert ((large > 0.6) & (large < 1.25)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [AT_ONCE, 1, 2 * 16 * 48])
def test_steps_are_those_of_torch(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over ten steps with decay and momentum, to what bf16 can tell; in batches of any size."""
    monkeypatch.setattr("llmt.training.muon.AT_ONCE", at_once)
    ours = [nn.Parameter(_drawn(*shape)) for shape in SHAPES]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    pair = BatchedMuon(ours, dtype, **options), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options)
    for step in range(10):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = _drawn(*one.shape, seed=100 * step + number)
            other.grad = one.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for one, other, shape in zip(ours, theirs, SHAPES, strict=True):
        moved = (one - _drawn(*shape)).norm()
        assert (one - other).norm() < 0.01 * moved
        buffers = [
            optimizer.state[weight]["momentum_buffer"] for optimizer, weight in zip(pair, (one, other), strict=True)
        ]
        assert torch.equal(*buffers)


def test_a_weight_without_a_gradient_stays() -> None:
    """No decay, no state; and the closure is called."""
    weight = nn.Parameter(_drawn(4, 4))
    optimizer = BatchedMuon([weight], torch.float32, lr=0.1, weight_decay=0.5)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(weight, _drawn(4, 4))
    assert not optimizer.state[weight]


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_the_precision_of_the_run_decides(dtype: torch.dtype, computed: torch.dtype) -> None:
    """In fp32 and fp16 nothing is computed in bf16, which not every processor can."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False)])

    optimizer = Optimizer(Model().to(dtype), TrainingConfig(optimizer="muon")).groups[0].optimizer
    assert isinstance(optimizer, BatchedMuon)
    assert optimizer.dtype == computed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_iterations_are_another_step(dtype: torch.dtype) -> None:
    """`muon_ns_steps` reaches whichever Muon moves the weights: one iteration spreads wider than five."""
    moved = {}
    for number in (1, 5):
        model = nn.Module()
        model.layers = nn.ModuleList([nn.Linear(8, 8, bias=False)])
        weight = model.layers[0].weight  # type: ignore[union-attr]
        with torch.no_grad():
            weight.copy_(_drawn(8, 8))  # type: ignore[operator]
        model.to(dtype)
        optimizer = Optimizer(model, TrainingConfig(optimizer="muon", weight_decay=0.0, muon_ns_steps=number))
        optimizer.weights[0].master.grad = _drawn(8, 8)
        before = optimizer.weights[0].master.detach().clone()
        optimizer.set_rate(1.0)
        optimizer.step()
        moved[number] = torch.linalg.svdvals(before - optimizer.weights[0].master.detach())
    spread = {number: float(values.max() / values.min()) for number, values in moved.items()}
    assert spread[5] < 2 < spread[1]
