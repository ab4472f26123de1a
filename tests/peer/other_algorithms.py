"""A second training algorithm and a second aggregation rule, which only tests know.

As a process of its own, two whole peers train with both, over real connections: `python -m tests.peer.other_algorithms FOLDER`.
It prints as JSON how often the rule was called, and what both peers held at each lineage, until they share EPOCHS of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.engines.base import Seat
from benchmarks.engines.dugnad import Member
from benchmarks.links import Link
from peer.settings import RunSettings
from peer.training.base_parameters import BaseParameters
from peer.training.gradient_buffer import GradientBuffer
from peer.training.strategies import STRATEGIES
from peer.training.strategies.base import Strategy
from protocols.gradients.aggregation import RULES, Rule
from protocols.gradients.codecs import FloatArray
from protocols.optimization import Schedule
from protocols.round.records import Commit

OUTER_LEARNING_RATE, OUTER_MOMENTUM = 0.7, 0.9
EPOCHS = 3


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


def largest(parts: Sequence[FloatArray], weights: Sequence[int]) -> FloatArray:
    """Element by element, whatever the weights."""
    result: FloatArray = np.maximum.reduce(parts)
    return result


@contextmanager
def registered(rule: Rule = largest) -> Iterator[None]:
    """Inside, the strategy is known as "test-local-steps" and the rule as "test-largest"."""
    STRATEGIES["test-local-steps"], RULES["test-largest"] = LocalSteps, rule
    try:
        yield
    finally:
        del STRATEGIES["test-local-steps"], RULES["test-largest"]


class Quadratic:
    """Draws everything towards one."""

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.01)
        return torch.stack([(parameter - 1).square().sum() for parameter in model.parameters()]).sum() * 4

    def samples_in(self, batch: dict[str, torch.Tensor]) -> int:
        return 4


def main(folder: Path) -> None:
    links = (Link(), Link())
    seats = [Seat(rank, links, "127.0.0.1", "lo", 5000, "fp32", "ours", folder) for rank in range(2)]
    combined = 0

    def counted(parts: Sequence[FloatArray], weights: Sequence[int]) -> FloatArray:
        nonlocal combined
        combined += 1
        return largest(parts, weights)

    with registered(rule=counted):
        change = {"strategy": "test-local-steps", "rule": "test-largest"}
        members = [Member(seat, task=Quadratic(), target_batch=64, **change) for seat in seats]
        greetings = [member.listen() for member in members]
        for member in members:
            member.meet(greetings)
        for member in members:
            member.train()
        states: list[dict[str, float]] = [{}, {}]  # lineage -> largest parameter there
        until = time.monotonic() + 60
        while time.monotonic() < until and len(states[0].keys() & states[1].keys()) < EPOCHS:
            for member, seen in zip(members, states, strict=True):
                tip, values = member.jobs.put(lambda it=member.replica: (it.tip, at_tip(it.strategy))).result()  # type: ignore[misc]
                if tip is not None:
                    seen[tip.lineage] = float(values.max())
    print(json.dumps({"states": states, "combined": combined}))
    sys.stdout.flush()
    os._exit(0)  # the servers' threads go on


def at_tip(strategy: Strategy) -> torch.Tensor:
    with strategy.at_tip():
        return nn.utils.parameters_to_vector(strategy.parameters).detach().clone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
