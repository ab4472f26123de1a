"""The parameters that gradients are computed at, where they are not the training state's own: in a run that overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class BaseParameters:
    """After `keep`, the module's parameters are a copy of what they were then, while the state goes ahead by a commit; within
    `at_tip`, and after `release`, they are the state's own tensors. Nothing is copied but by `keep`.

    The copy, (elements,) on the parameters' device and in their dtype, is made at the first `keep`: who never accumulates while
    an epoch is averaged has none.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._state: list[torch.Tensor] = []  # while the module has the copy
        self._copy: list[torch.Tensor] = []
        self.lineage = ""  # of the copy, '' while the parameters are the state's own

    @torch.no_grad()
    def keep(self, lineage: str) -> None:
        """Within `at_tip`, with the state at `lineage` and about to change. An earlier copy stays what it is."""
        if self.lineage:
            return
        if not self._copy:
            sizes = [parameter.numel() for parameter in self._parameters]
            like = self._parameters[0]
            parts = torch.split(torch.empty(sum(sizes), dtype=like.dtype, device=like.device), sizes)
            self._copy = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]
        self._state = [parameter.data for parameter in self._parameters]
        for copy, own in zip(self._copy, self._state, strict=True):
            copy.copy_(own)
        self.lineage = lineage

    def release(self) -> None:
        """Gradients are computed at the state's own parameters from here on."""
        if self.lineage:
            self._show(self._state)
        self.lineage = ""

    @contextmanager
    def at_tip(self) -> Iterator[None]:
        """Within, the module's parameters are the state's own: whatever reads or writes state does so here."""
        if self.lineage:
            self._show(self._state)
        try:
            yield
        finally:
            if self.lineage:
                self._show(self._copy)

    def _show(self, tensors: Sequence[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._parameters, tensors, strict=True):
            parameter.data = tensor
