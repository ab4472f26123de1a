"""The parameters that gradients are computed at, where they are not the training state's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class BaseParameters:
    """Switches a module between the training state's own parameters and a copy of them.

    From `keep` to `release` the module holds the copy, and the state may change without it. Inside `at_tip` the module
    holds the state's own tensors. Only `keep` copies values; the other switches exchange pointers.

    The copy has the parameters' shapes, devices and dtypes. The first `keep` allocates it.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._state: list[torch.Tensor] = []  # while the module holds the copy
        self._copy: list[torch.Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the state's parameters as they are now. Call inside `at_tip`. Does nothing while an earlier copy is kept."""
        if self._state:
            return
        if not self._copy:
            self._copy = [torch.empty_like(parameter.data) for parameter in self._parameters]
        for copy, parameter in zip(self._copy, self._parameters, strict=True):
            copy.copy_(parameter.data)
        self._state = [parameter.data for parameter in self._parameters]

    def release(self) -> None:
        """Give the module the state's own parameters back."""
        if self._state:
            self._show(self._state)
        self._state = []

    def moved(self, at: int, stop: int) -> torch.Tensor:
        """(stop - at,) elements of the flat vector of the state's parameters minus the copy, on the CPU. Call between `keep` and
        `release`."""
        pieces, first = [], 0  # `first`: the flat element that a parameter begins with
        for state, copy in zip(self._state, self._copy, strict=True):
            begin, end = max(at - first, 0), min(stop - first, state.numel())
            if begin < end:
                pieces.append((state.reshape(-1)[begin:end] - copy.reshape(-1)[begin:end]).to("cpu"))
            first += state.numel()
        return torch.cat(pieces)

    @contextmanager
    def at_tip(self) -> Iterator[None]:
        """Inside, the module holds the state's own parameters. All code that reads or writes state runs inside."""
        if self._state:
            self._show(self._state)
        try:
            yield
        finally:
            if self._state:
                self._show(self._copy)

    def _show(self, tensors: Sequence[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._parameters, tensors, strict=True):
            parameter.data = tensor
