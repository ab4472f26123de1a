"""A second training algorithm and a second aggregation rule, which only tests know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import nn

from peer.settings import RunSettings
from peer.training.base_parameters import BaseParameters
from peer.training.gradient_buffer import GradientBuffer
from peer.training.strategies import STRATEGIES
from peer.training.strategies.base import Strategy
from protocols.gradients.aggregation import RULES
from protocols.gradients.codecs import FloatArray
from protocols.optimization import Schedule
from protocols.round.records import Commit

OUTER_LEARNING_RATE, OUTER_MOMENTUM = 0.7, 0.9


class LocalSteps(Strategy):
    """Each micro-batch is a step of the inner optimizer; a commit is a step of the outer one (DiLoCo, without overlap)."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, settings: RunSettings) -> None:
        outer = torch.optim.SGD(model.parameters(), lr=OUTER_LEARNING_RATE, momentum=OUTER_MOMENTUM, nesterov=True, foreach=False)
        super().__init__(model, outer, schedule, settings)
        self._inner = optimizer
        self._gradient = GradientBuffer(self.parameters)
        self._base = BaseParameters(self.parameters)

    def after_backward(self, samples: int, loss_sum: float) -> None:
        with self.at_tip():
            self._base.keep()
        self._gradient.flat /= samples
        self._inner.step()
        self._gradient.flat.zero_()
        super().after_backward(samples, loss_sum)

    def mean(self, at: int, stop: int) -> torch.Tensor:
        local = nn.utils.parameters_to_vector(self.parameters).detach()
        with self.at_tip():
            base = nn.utils.parameters_to_vector(self.parameters).detach()
        return (base - local)[at:stop]

    def restart(self) -> None:
        super().restart()
        self._gradient.flat.zero_()
        self._base.release()

    def at_tip(self) -> AbstractContextManager[None]:
        return self._base.at_tip()

    @contextmanager
    def advancing(self, lineage: str) -> Iterator[torch.Tensor]:
        self.restart()
        with self._gradient.lending(second=False) as average:
            yield average

    def step(self, average: torch.Tensor, commit: Commit) -> None:
        self.optimizer.step()
        self.schedule.set_epoch(commit.ballot.epoch)


def largest(parts: Sequence[FloatArray], weights: Sequence[int], norms: Sequence[float]) -> FloatArray:
    """Element by element, whatever the weights."""
    result: FloatArray = np.maximum.reduce(parts)
    return result


@contextmanager
def registered() -> Iterator[None]:
    """Inside, the strategy is known as "test-local-steps" and the rule as "test-largest"."""
    STRATEGIES["test-local-steps"], RULES["test-largest"] = LocalSteps, largest
    try:
        yield
    finally:
        del STRATEGIES["test-local-steps"], RULES["test-largest"]
