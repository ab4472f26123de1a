"""What a pass adds to the gradients, in each precision."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from peer.config import Precision
from peer.training import gradient_pass
from peer.training.gradient_pass import GradientPass
from peer.training.tuning import Trials, Way
from protocols.errors import LocalError
from tests.replicas import Data, SquaredError, make_model

SAMPLES = 8


class Scaled(SquaredError):
    """A loss of another size, and so are its gradients."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch) * self._factor


def batch_of() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {"inputs": torch.randn(SAMPLES, 20, generator=draw), "targets": torch.randn(SAMPLES, 6, generator=draw)}


def gradient_of(precision: Precision, *, factor: float = 1.0, passes: int = 1, compiled: bool = False) -> torch.Tensor:
    model = make_model(torch.float32)
    task: Any = Scaled(factor)
    over = GradientPass(task, model, torch.device("cpu"), precision=precision, compiled=compiled)
    for _ in range(passes):
        samples, loss = over(batch_of())
        assert samples == SAMPLES and loss > 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.dtype is torch.float32 for gradient in gradients)
    return torch.cat([gradient.flatten() for gradient in gradients]) / factor


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.02), ("fp16", 0.003)])
def test_16_bits_give_the_gradient_of_32_but_for_rounding(precision: Precision, error: float) -> None:
    exact, found = gradient_of("fp32"), gradient_of(precision)
    off = float((found - exact).norm() / exact.norm())
    print(f"off by {off:.2g}")
    assert 0 < off < error


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_passes_add_up(precision: Precision) -> None:
    assert torch.allclose(gradient_of(precision, passes=3), 3 * gradient_of(precision), rtol=1e-4, atol=1e-4)


def test_fp16_keeps_gradients_that_it_could_not_hold_unscaled() -> None:
    """Each is below 2^-24, the smallest number of fp16."""
    exact, found = gradient_of("fp32", factor=1e-9), gradient_of("fp16", factor=1e-9)
    assert float((found - exact).norm() / exact.norm()) < 0.01


def test_what_overflows_is_passed_through_again_and_leaves_nothing_behind() -> None:
    exact, found = gradient_of("fp32", factor=100.0, passes=2), gradient_of("fp16", factor=100.0, passes=2)
    assert float((found - exact).norm() / exact.norm()) < 0.01


def test_fp16_that_overflows_at_every_scale_is_said() -> None:
    with pytest.raises(LocalError, match="overflow in fp16"):
        gradient_of("fp16", factor=1e12)


def test_the_scale_grows_again_after_enough_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_pass, "GROWS_AFTER", 2)
    task: Any = Scaled(1e-3)
    over = GradientPass(task, make_model(torch.float32), torch.device("cpu"), precision="fp16")
    first = over._scale
    for _ in range(2):
        over(batch_of())
    assert over._scale == 2 * first


def test_a_trial_times_real_passes() -> None:
    class Task(SquaredError):
        drawn = 0

        @contextlib.contextmanager
        def batches(self, *, seed: int, peer: str, micro_batch: int) -> Iterator[Any]:
            self.drawn += 1
            yield Data.make(torch.float32).batches(peer, micro_batch)

    task: Any = Task()
    model = make_model(torch.float32)
    rate = Trials(task, model, torch.device("cpu"), seed=1, peer="ann").rate(Way(micro_batch=4, precision="bf16", threads=1))
    assert rate > 0 and task.drawn == 1
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_model_gives_the_same_gradient() -> None:
    assert torch.allclose(gradient_of("fp32", compiled=True), gradient_of("fp32"), rtol=1e-4, atol=1e-5)
