"""All gradients of a model in one flat buffer, of which the parameters' `.grad` are views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class GradientBuffer:
    """`flat` is (elements,), on the parameters' device and in their dtype. `backward()` adds into it without a copy."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        like = parameters[0]
        elements = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(elements, dtype=like.dtype, device=like.device)
        self._point_to(self.flat)

    @contextmanager
    def lending(self, *, second: bool) -> Iterator[torch.Tensor]:
        """(elements,) gradients for one optimizer step, to be filled in by the caller.

        `second`: take a second buffer, and keep the sum in `flat`. Otherwise lend `flat` itself, and leave it at zero.
        """
        gradient = torch.empty_like(self.flat) if second else self.flat
        self._point_to(gradient)
        try:
            yield gradient
        finally:
            if second:
                self._point_to(self.flat)
            else:
                self.flat.zero_()

    def _point_to(self, gradient: torch.Tensor) -> None:
        parts = torch.split(gradient, [parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
