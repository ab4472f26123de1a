"""Local steps: every peer trains alone for a while, and an epoch averages where the peers have come to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from peer.settings import RunSettings
from peer.training.base_parameters import BaseParameters
from peer.training.gradient_buffer import GradientBuffer
from peer.training.strategies.base import Strategy
from protocols.optimization import Schedule, build_outer_optimizer
from protocols.round.records import Commit


class LocalSteps(Strategy):
    """Contributes its movement: the parameters at the base minus those after the local steps. A commit is a step of the outer
    optimizer, whose gradient is the averaged movement (DiLoCo, Douillard et al., 2023).

    - *State*, bit-identical on all peers: the parameters, and the outer optimizer's momentum if it has any.
    - *Private*: the inner optimizer's slots. They stay through commits and snapshots, and a peer that starts begins without.
    - A local step takes `local_batch_size` samples, the last one before a freeze what there is. So a fast peer takes more steps,
      and its movement counts for more, by its samples.
    - The inner learning rate is that of the middle of the epoch: with a warm-up the first epoch moves something.

    Memory: a copy of the parameters and a gradient buffer, beside the state and the inner slots.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, settings: RunSettings
    ) -> None:
        """`optimizer` is the inner one, whose learning rate `schedule` knows."""
        outer = build_outer_optimizer(model, settings.outer_learning_rate, settings.outer_momentum)
        super().__init__(model, outer, schedule, settings)
        self.inner = optimizer
        self._gradient = GradientBuffer(self.parameters)
        self._base = BaseParameters(self.parameters)
        self._stepped = 0  # samples before this counter are in a local step

    def after_backward(self, samples: int, loss_sum: float) -> None:
        super().after_backward(samples, loss_sum)
        if self.end - self._stepped >= self.settings.local_batch_size:
            self._step_alone()

    def finish(self) -> None:
        if self.end > self._stepped:
            self._step_alone()

    def _step_alone(self) -> None:
        """A step of the inner optimizer, on a copy of the parameters."""
        with self.at_tip():
            self._base.keep()
        gradient, most = self._gradient.flat, self.settings.max_grad_norm
        gradient /= self.end - self._stepped
        norm = float(torch.linalg.vector_norm(gradient))
        if math.isfinite(norm):
            if most and norm > most:
                gradient *= most / norm
            for group in self.inner.param_groups:
                group["lr"] = self.schedule.learning_rate_at(self.schedule.epoch + 0.5)
            self.inner.step()
        else:  # the inner slots would never recover, so the contribution is given up instead
            self.loss_sum = math.nan
        gradient.zero_()
        self._stepped = self.end

    def mean(self, at: int, stop: int) -> torch.Tensor:
        return self._base.moved(at, stop)

    def restart(self) -> None:
        super().restart()
        self._stepped = self.end
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
        self.optimizer.step()  # the parameters' gradients are views of `average`
        self.schedule.set_epoch(commit.ballot.epoch)
