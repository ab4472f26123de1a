"""What a simulated swarm trains: by default a small regression in float64. Replica, strategy and trainer are production's own.

Sample c of a peer pulls every weight towards a target drawn from (peer, incarnation, c): its loss is half the squared distance,
and its gradient `weights - target`. So a gradient depends on the sample and on the parameters at which it was drawn, and the
observer can work out each contribution, and every step of the state, apart from the processes.

Learning rates and momenta are powers of two, so that numpy's steps and torch's round alike. The inner optimizer of local steps
has no momentum: what a peer drew in vain would stay in there, and the observer does not hear of that.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from peer.settings import RunSettings
from peer.training.gradient_norm import gradient_norm
from peer.training.strategies import build_strategy
from peer.training.strategies.base import Strategy
from protocols.gradients.codecs import Codec
from protocols.gradients.slices import ResultLayout, Slices
from protocols.optimization import build_optimizer, build_scheduler
from protocols.round.planner import GRID
from protocols.round.records import Commit
from protocols.run_spec import RunSpec
from protocols.tasks.base import Batch, Batches, Task

Vector = npt.NDArray[np.float64]
ELEMENTS = 4 * GRID  # at most four reducers
SLICES = Slices(ELEMENTS, 4)  # a block an epoch
LEARNING_RATE, MOMENTUM = 2.0**-3, 2.0**-1
MAX_NORM = 16.0  # about as long as an average of a batch: some are clipped
OUTER_LEARNING_RATE, OUTER_MOMENTUM = 2.0**-1, 2.0**-2
LOCAL_BATCH = 6  # a multiple of every micro-batch in the simulator, so that local steps do not depend on it


def _spec(momentum: float) -> RunSpec:
    optimizer = {"name": "sgd", "learning_rate": LEARNING_RATE, "momentum": momentum}
    return RunSpec.model_validate({"run": {"name": "simulation"}, "optimizer": optimizer, "schedule": {"name": "constant"}})


class DeviceError(Exception):
    """A simulated device failed in the middle of a step."""


class Regression(nn.Module):
    """(ELEMENTS,) weights, zero at genesis."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(ELEMENTS, dtype=torch.float64))


class Device:
    """A model with its optimizer and schedule, on a device that can be made to fail."""

    def __init__(self, model: nn.Module, spec: RunSpec) -> None:
        """`spec` says which optimizer and schedule."""
        self.model = model
        self._parameters = tuple(model.parameters())
        self.optimizer = build_optimizer(spec, model)
        """After `strategy`, the one whose slots are state."""

        self.schedule = build_scheduler(spec, self.optimizer)
        self.fails_next_step = False

    def strategy(self, settings: RunSettings) -> Strategy:
        """The run's strategy on this device. Ask once."""
        strategy = build_strategy(settings, self.model, self.optimizer, self.schedule)
        self.optimizer = strategy.optimizer
        self._step = self.optimizer.step
        self.optimizer.step = self._maybe_step  # type: ignore[method-assign,assignment]
        return strategy

    def _maybe_step(self) -> None:
        if self.fails_next_step:
            self.fails_next_step = False
            with torch.no_grad():
                first = next(self.model.parameters()).view(-1)
                first[: len(first) // 2] -= 1.0
            raise DeviceError("a simulated device failed")
        self._step()

    @property
    def version(self) -> int:
        """Grows with every write to the weights or the optimizer's slots."""
        state, total = self.optimizer.state, 0  # asked after every event: so without detours
        for parameter in self._parameters:
            total += parameter._version
            if parameter in state:
                for slot in state[parameter].values():
                    total += slot._version if isinstance(slot, torch.Tensor) else 0
        return total

    @property
    def slots(self) -> list[torch.Tensor]:
        """What the optimizer keeps of each parameter; empty before the first step."""
        kept = [self.optimizer.state.get(parameter, {}) for parameter in self._parameters]
        return [slot for slots in kept for slot in slots.values() if isinstance(slot, torch.Tensor)]

    def drift(self, by: float) -> None:
        """Every weight changes by this share of its size and a little more: a fault, far beyond rounding."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(1 + by).add_(by)


def targets(peer: str, incarnation: int, micro_batch: int) -> Iterator[Batch]:
    """Endless batches of one process: sample c is target c."""
    for first in itertools.count(0, micro_batch):
        drawn = [target(peer, incarnation, counter) for counter in range(first, first + micro_batch)]
        yield {"targets": torch.from_numpy(np.stack(drawn))}


class Pull:
    """The task: its loss is the sum over a batch of half the squared distances."""

    def loss(self, model: Regression, batch: Batch) -> torch.Tensor:
        return 0.5 * (model.weights - batch["targets"]).square().sum()

    def samples_in(self, batch: Batch) -> int:
        return len(batch["targets"])


def target(peer: str, incarnation: int, counter: int) -> Vector:
    """(ELEMENTS,) multiples of 1/64 in [-2, 2)."""
    drawn = hashlib.shake_128(f"{peer} {incarnation} {counter}".encode()).digest(ELEMENTS)
    return np.frombuffer(drawn, np.int8).astype(np.float64) / 64


@dataclass(frozen=True)
class State:
    """The training state: (elements,) weights, and the optimizer's slots one after another, none before the first step."""

    weights: Vector
    slots: Vector

    @classmethod
    def of(cls, device: Device) -> State:
        """A copy of what `device` holds."""
        return cls(_joined(device.model.parameters()), _joined(device.slots))

    def equals(self, other: State) -> bool:
        return np.array_equal(self.weights, other.weights) and np.array_equal(self.slots, other.slots)


def _joined(tensors: Iterable[torch.Tensor]) -> Vector:
    """A copy in float64, which holds every value of a narrower type."""
    parts = [tensor.detach().flatten().double() for tensor in tensors]
    return torch.cat(parts).numpy() if parts else np.zeros(0)


def summed(peer: str, incarnation: int, first: int, end: int, weights: Vector) -> tuple[Vector, Vector]:
    """The sum of the samples' gradients, and of their sizes."""
    gradients = [weights - target(peer, incarnation, counter) for counter in range(first, end)]
    return sum(gradients, np.zeros(ELEMENTS)), sum(map(np.abs, gradients), np.zeros(ELEMENTS))


def moved(peer: str, incarnation: int, first: int, end: int, weights: Vector) -> tuple[Vector, Vector]:
    """The movement of local steps times the samples, and the sizes of what came to it."""
    local, size = weights.copy(), np.abs(weights)
    for at in range(first, end, LOCAL_BATCH):
        stop = min(at + LOCAL_BATCH, end)
        gradient = summed(peer, incarnation, at, stop, local)[0] / (stop - at)
        step = LEARNING_RATE * min(1.0, MAX_NORM / float(np.linalg.norm(gradient))) * gradient
        local -= step
        size += np.abs(step)
    return (weights - local) * (end - first), size * (end - first)


def stepped(state: State, commit: Commit, averaged: bytes, codec: Codec) -> State:
    """The regression's state after this commit, whose encoded averages are these."""
    gradient = codec.decode(averaged, ELEMENTS).astype(np.float64)
    norm = gradient_norm(torch.from_numpy(gradient))
    if norm > MAX_NORM:
        gradient = gradient * (MAX_NORM / norm)
    momentum = state.slots * MOMENTUM + gradient if state.slots.size else gradient
    return State(state.weights - LEARNING_RATE * momentum, momentum)


def outer_stepped(state: State, commit: Commit, averaged: bytes, codec: Codec) -> State:
    """The same with local steps, by Nesterov's momentum."""
    movement = codec.decode(averaged, ELEMENTS).astype(np.float64)
    momentum = state.slots * OUTER_MOMENTUM + movement if state.slots.size else movement
    return State(state.weights - OUTER_LEARNING_RATE * (movement + OUTER_MOMENTUM * momentum), momentum)


@dataclass(frozen=True)
class Problem:
    """A model and what it learns. With `contributed` and `stepped` the observer works out every contribution and step for itself;
    without, it holds all processes against the first that stepped."""

    device: Callable[[], Device]
    task: Task
    batches: Callable[[str, int, int], Batches]
    """(peer, incarnation, samples of a micro-batch) -> its samples, without an end"""

    slices: Slices
    value_bytes: int
    """Of the canonical values of one element: the parameter and its slots."""

    contributed: Callable[[str, int, int, int, Vector], tuple[Vector, Vector]] | None = None
    """(peer, incarnation, first and end counter of the samples, weights at their base) -> (elements,) the contribution times its
    samples, and the sizes of the numbers that came to it, by which it may be rounded"""

    stepped: Callable[[State, Commit, bytes, Codec], State] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of RunSettings that belong to the problem."""

    @property
    def elements(self) -> int:
        return self.slices.elements

    def layout(self, epoch: int, codec: Codec) -> ResultLayout:
        """How the result of the round of `epoch` lies."""
        return ResultLayout(self.slices, epoch, codec, self.value_bytes)


REGRESSION = Problem(
    device=lambda: Device(Regression(), _spec(MOMENTUM)),
    task=cast(Task, Pull()),
    batches=lambda peer, incarnation, micro_batch: cast(Batches, targets(peer, incarnation, micro_batch)),
    slices=SLICES,
    value_bytes=2 * np.dtype(np.float64).itemsize,
    contributed=summed,
    stepped=stepped,
)
LOCAL_REGRESSION = replace(
    REGRESSION,
    device=lambda: Device(Regression(), _spec(0.0)),
    contributed=moved,
    stepped=outer_stepped,
    settings={
        "strategy": "local-steps",
        "local_batch_size": LOCAL_BATCH,
        "outer_learning_rate": OUTER_LEARNING_RATE,
        "outer_momentum": OUTER_MOMENTUM,
    },
)
