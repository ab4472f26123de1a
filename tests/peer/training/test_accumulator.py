from __future__ import annotations

import pytest
import torch
from torch import nn

from peer.training.accumulator import Accumulator


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def backward(net: nn.Module, rows: torch.Tensor) -> None:
    net(rows).square().sum().backward()


def test_backward_adds_into_the_flat_buffer_in_the_models_order() -> None:
    net, reference = model(), model()
    accumulator = Accumulator(net.parameters())
    rows = torch.randn(6, 3)
    backward(net, rows[:4])
    backward(net, rows[4:])
    backward(reference, rows)
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert accumulator.elements == accumulator.flat.numel() == sum(p.numel() for p in net.parameters())
    assert torch.allclose(accumulator.flat, expected, rtol=1e-6)


def test_the_mean_is_over_the_samples_counted_and_is_a_copy() -> None:
    net = model()
    accumulator = Accumulator(net.parameters())
    backward(net, torch.randn(5, 3))
    accumulator.add(3, 6.0)
    accumulator.add(2, 1.5)
    assert (accumulator.first, accumulator.end, accumulator.samples, accumulator.loss_sum) == (0, 5, 5, 7.5)
    mean = accumulator.mean(1, 7)
    assert torch.equal(mean, accumulator.flat[1:7] / 5)
    mean.zero_()
    assert accumulator.flat.abs().sum() > 0


def test_counters_go_on_after_a_restart_so_that_no_sample_is_counted_twice() -> None:
    net = model()
    accumulator = Accumulator(net.parameters())
    seen: list[range] = []
    for count in (3, 1, 4):
        backward(net, torch.randn(count, 3))
        accumulator.add(count, 1.0)
        seen.append(range(accumulator.first, accumulator.end))
        accumulator.restart()
        assert accumulator.samples == 0
        assert accumulator.loss_sum == 0.0
        assert not accumulator.flat.any()
    numbers = [number for counters in seen for number in counters]
    assert numbers == list(range(8))


def test_gradients_still_arrive_after_a_restart_and_an_optimizers_step() -> None:
    net = model()
    accumulator = Accumulator(net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    backward(net, torch.randn(2, 3))
    optimizer.step()
    accumulator.restart()
    backward(net, torch.randn(2, 3))
    assert accumulator.flat.any()
    assert all(p.grad is not None and p.grad.data_ptr() >= accumulator.flat.data_ptr() for p in net.parameters())


def test_a_step_uses_what_is_written_into_the_buffer() -> None:
    net = model()
    accumulator = Accumulator(net.parameters())
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    accumulator.flat.copy_(torch.arange(accumulator.elements))
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.equal(after, before - torch.arange(accumulator.elements))


def test_frozen_and_tied_parameters_are_counted_as_the_optimizer_counts_them() -> None:
    net = model()
    net[0].bias.requires_grad_(False)
    net.add_module("again", net[2])  # the same parameters under a second name
    accumulator = Accumulator(net.parameters())
    assert accumulator.elements == 3 * 4 + 4 * 2 + 2
    assert net[0].bias.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_buffer_has_the_parameters_precision(dtype: torch.dtype) -> None:
    assert Accumulator(model().to(dtype).parameters()).flat.dtype == dtype
