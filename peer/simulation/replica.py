"""A simulated process's training state: a small real vector, the lineage that it stands at, and the samples drawn since.

Stands in for peer/training/replica.py and strategies/accumulate.py. A gradient is a pure function of the sample and of the
lineage at which it was drawn, so that the observer can say what every average has to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from peer.simulation.messages import Snapshot, Vector
from protocols.errors import BadMessageError
from protocols.gradients.codecs import CODECS, Codec
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.gradients.slices import ResultLayout as Outcome
from protocols.gradients.slices import Slices
from protocols.round.planner import GRID
from protocols.round.records import SignedCommit, Tip

ELEMENTS = 4 * GRID  # at most four reducers
SLICES = Slices(ELEMENTS, 4)  # a block an epoch


@dataclass
class Sums:
    """The gradient sum of samples [first, end), as the residual takes it."""

    first: int
    end: int
    total: Vector
    elements: int = ELEMENTS

    def mean(self, at: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(self.total[at:stop] / (self.end - self.first))


class DeviceError(Exception):
    """A simulated device failed in the middle of a step."""


def sample_gradient(peer: str, incarnation: int, counter: int, base: str) -> Vector:
    """(ELEMENTS,) whole numbers in [-128, 127]: sums of them are exact in float64."""
    drawn = hashlib.shake_128(f"{peer} {incarnation} {counter} {base}".encode()).digest(ELEMENTS)
    return np.frombuffer(drawn, np.int8).astype(np.float64)


def stepped(state: Vector, averaged: bytes, codec: Codec) -> Vector:
    """One step: not commutative, so that an order of steps shows in the state."""
    after: Vector = state * 0.5 + codec.decode(averaged, ELEMENTS)
    after.setflags(write=False)
    return after


def layout(epoch: int, codec: Codec) -> Outcome:
    """How the bytes lie that a round comes to."""
    return Outcome(SLICES, epoch, codec, np.dtype(np.float64).itemsize)


def genesis_state() -> Vector:
    state = np.zeros(ELEMENTS)
    state.setflags(write=False)
    return state


@dataclass(frozen=True)
class Frozen:
    first: int
    end: int
    base: str
    codec: Codec
    encoded: bytes


class Replica:
    def __init__(
        self, peer: str, incarnation: int, genesis: Tip, wrote: Callable[[Vector | None], None], *, overlap: bool = False
    ) -> None:
        """`wrote` is told of each write to the training state, whoever writes; numpy refuses a write within one."""
        self.peer, self.incarnation, self._genesis, self.overlap = peer, incarnation, genesis, overlap
        self.base = ""
        self.tip: Tip | None = None
        self.commit: SignedCommit | None = None
        self._state: Vector | None = None
        self._wrote = wrote
        self.first = self.end = 0
        self._sum = np.zeros(ELEMENTS)
        self.error_feedback = ErrorFeedback(peer, incarnation)
        self.fails_next_step = False

    @property
    def state(self) -> Vector | None:
        return self._state

    @state.setter
    def state(self, after: Vector | None) -> None:
        self._state = after
        self._wrote(after)

    @property
    def samples(self) -> int:
        return self.end - self.first

    def draw(self, count: int) -> None:
        for _ in range(count):
            self._sum += sample_gradient(self.peer, self.incarnation, self.end, self.base)
            self.end += 1

    def restart(self) -> None:
        """Forget the sum, and go on at the tip; the counter goes on."""
        self.first = self.end
        self._sum = np.zeros(ELEMENTS)
        self.base = self.tip.lineage if self.tip is not None else ""

    def freeze(self) -> Frozen | None:
        frozen = None
        if self.tip is not None and self.samples:
            encoded = self.error_feedback.encode(self.codec, Sums(self.first, self.end, self._sum))
            assert encoded is not None
            frozen = Frozen(self.first, self.end, self.base, self.codec, bytes(encoded))
        self.restart()
        return frozen

    @property
    def codec(self) -> Codec:
        """Of the plans that build on this replica's tip."""
        return CODECS[(self.tip or self._genesis).codec]

    def outcome(self, epoch: int) -> Outcome:
        return layout(epoch, self.codec)

    def slice_values(self, epoch: int, start: int, stop: int) -> bytes:
        """This replica's values of what the round of `epoch` carries of elements [start, stop)."""
        assert self.state is not None
        return b"".join(self.state[begin:end].tobytes() for begin, end in SLICES.at(epoch, start, stop))

    def apply(self, signed: SignedCommit, result: bytes) -> Tip:
        """Raises DeviceError midway, after which the state is of no lineage, and BadMessageError with the state untouched."""
        commit = signed.commit
        if self.tip is None or self.state is None or not self.tip.leads_to(commit, overlap=self.overlap):
            raise BadMessageError("the commit does not follow this replica's state")
        if self.fails_next_step:
            self.fails_next_step = False
            self.tip = self.state = None
            raise DeviceError
        outcome = self.outcome(commit.ballot.epoch)
        canonical, at = np.frombuffer(result, np.float64, offset=outcome.averaged_bytes), 0
        state = self.state.copy()
        for begin, end in SLICES.at(commit.ballot.epoch):
            state[begin:end] = canonical[at : at + end - begin]
            at += end - begin
        self.state = stepped(state, result[: outcome.averaged_bytes], self.codec)
        self.error_feedback.settle(commit.contributions)
        self.commit, self.tip = signed, Tip.after(commit)
        if not (self.overlap and self.samples):
            self.restart()
        return self.tip

    def restore(self, snapshot: Snapshot) -> None:
        self.state, self.commit, self.tip = snapshot.state, snapshot.commit, snapshot.tip
        self.error_feedback.forget()
        self.restart()

    def capture(self) -> Snapshot | None:
        if self.tip is None or self.state is None:
            return None
        return Snapshot(self.tip, self.commit, self.state)
