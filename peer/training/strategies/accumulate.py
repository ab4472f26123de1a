"""Accumulate gradients: every epoch is one optimizer step on one large batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from peer.settings import RunSettings
from peer.training.base_parameters import BaseParameters
from peer.training.gradient_buffer import GradientBuffer
from peer.training.gradient_norm import gradient_norm
from peer.training.strategies.base import Strategy
from protocols.optimization import Schedule
from protocols.round.records import Commit


class Accumulate(Strategy):
    """Contributes the mean gradient. A commit clips the averaged gradient and steps the optimizer.

    N peers equal one process that trains on all their samples as one batch (DeDLOC, Diskin et al., NeurIPS 2021).

    With overlap, gradients are one step stale. That takes a copy of the parameters, and a second gradient buffer in the step.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, settings: RunSettings
    ) -> None:
        super().__init__(model, optimizer, schedule, settings)
        self.gradient = GradientBuffer(self.parameters)
        self._base = BaseParameters(self.parameters)

    def mean(self, at: int, stop: int) -> torch.Tensor:
        return (self.gradient.flat[at:stop] / self.samples).to("cpu")

    def restart(self) -> None:
        super().restart()
        self.gradient.flat.zero_()
        self._base.release()

    def at_tip(self) -> AbstractContextManager[None]:
        return self._base.at_tip()

    @contextmanager
    def advancing(self, lineage: str) -> Iterator[torch.Tensor]:
        goes_on = self.settings.overlap and self.samples > 0
        if goes_on:
            self._base.keep()
            self.base = self.base or lineage
        else:
            self.restart()
        with self.gradient.lending(second=goes_on) as average:
            yield average

    def step(self, average: torch.Tensor, commit: Commit) -> None:
        most = self.settings.max_grad_norm
        if most and (norm := gradient_norm(average)) > most:
            average *= most / norm
        self.schedule.set_epoch(commit.ballot.epoch - 1)
        self.optimizer.step()  # the parameters' gradients are views of `average`
        self.schedule.set_epoch(commit.ballot.epoch)
