"""The gradient sum of an epoch, in one flat buffer that the parameters' `.grad` are views of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Accumulator:
    """`flat` is (elements,) on the parameters' device and in their dtype; autograd adds into it without a copy.

    A sample's place in the order of draws is its counter; [first, end) are those whose gradients are in the sum.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.elements = sum(parameter.numel() for parameter in self.parameters)
        like = self.parameters[0]
        self.flat = torch.zeros(self.elements, dtype=like.dtype, device=like.device)
        self._point_to(self.flat)
        self.first = self.end = 0
        self.loss_sum = 0.0

    @property
    def samples(self) -> int:
        return self.end - self.first

    def add(self, samples: int, loss_sum: float) -> None:
        """`samples` more have been through backward()."""
        self.end += samples
        self.loss_sum += loss_sum

    def mean(self, at: int, stop: int) -> torch.Tensor:
        """(stop - at,) of the gradient averaged over the accumulated samples, on the CPU. A copy."""
        return (self.flat[at:stop] / self.samples).to("cpu")

    @contextmanager
    def lending(self) -> Iterator[torch.Tensor]:
        """Within, the parameters' gradients are what this gives, (elements,), to be filled in for a step; a sum that was begun is
        not touched. While none is, its buffer holds them, and no memory is taken."""
        gradient = torch.empty_like(self.flat) if self.samples else self.flat
        self._point_to(gradient)
        try:
            yield gradient
        finally:
            if gradient is self.flat:
                self.flat.zero_()
            else:
                self._point_to(self.flat)

    def _point_to(self, gradient: torch.Tensor) -> None:
        at = 0
        for parameter in self.parameters:
            parameter.grad = gradient[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()

    def restart(self) -> None:
        """Forget the sum; the counter goes on, so that no sample is ever counted twice."""
        self.flat.zero_()
        self.first = self.end
        self.loss_sum = 0.0
