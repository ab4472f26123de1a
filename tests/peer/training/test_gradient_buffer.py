from __future__ import annotations

import pytest
import torch
from torch import nn

from peer.training.gradient_buffer import GradientBuffer


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def buffer_of(net: nn.Module) -> GradientBuffer:
    return GradientBuffer(list(net.parameters()))


def backward(net: nn.Module, rows: torch.Tensor) -> None:
    net(rows).square().sum().backward()


def test_backward_adds_into_the_flat_buffer_in_the_models_order() -> None:
    net, reference = model(), model()
    buffer = buffer_of(net)
    rows = torch.randn(6, 3)
    backward(net, rows[:4])
    backward(net, rows[4:])
    backward(reference, rows)
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert buffer.flat.numel() == sum(p.numel() for p in net.parameters())
    assert torch.allclose(buffer.flat, expected, rtol=1e-6)


@pytest.mark.parametrize("second", [False, True])
def test_a_step_uses_what_is_written_into_the_buffer_that_is_lent(second: bool) -> None:
    net = model()
    buffer = buffer_of(net)
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    with buffer.lending(second=second) as gradient:
        gradient.copy_(torch.arange(len(gradient)))
        torch.optim.SGD(net.parameters(), lr=1.0).step()
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.equal(after, before - torch.arange(len(before)))


@pytest.mark.parametrize("second", [False, True])
def test_a_second_buffer_leaves_the_sum_as_it_is_and_the_first_is_zero_afterwards(second: bool) -> None:
    net = model()
    buffer = buffer_of(net)
    backward(net, torch.randn(2, 3))
    before = buffer.flat.clone()
    with pytest.raises(RuntimeError), buffer.lending(second=second) as gradient:
        gradient.fill_(7.0)
        raise RuntimeError("the device failed")
    assert torch.equal(buffer.flat, before if second else torch.zeros_like(before))
    backward(net, torch.randn(2, 3))
    assert not torch.equal(buffer.flat, before), "gradients arrive again"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_buffer_has_the_parameters_precision(dtype: torch.dtype) -> None:
    assert buffer_of(model().to(dtype)).flat.dtype == dtype
