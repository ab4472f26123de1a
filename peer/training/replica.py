"""This peer's copy of the training state: parameters, optimizer, learning rate, and the commit that led to them.

In a run that overlaps, the parameters that gradients are computed at change at a freeze only, and the state goes ahead of them by
one commit.

Everything here runs on the thread that trains. State changes in two ways only: `apply` (one whole commit) and `restore` (one
whole snapshot).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from peer.training.accumulator import Accumulator
from peer.training.base_parameters import BaseParameters
from protocols.errors import BadMessageError, DriftError
from protocols.gradients.codecs import CODECS, PIECE_ELEMENTS, Bytes, Codec
from protocols.gradients.drift import SlicedState
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.gradients.slices import ResultLayout, Slices
from protocols.optimization import Schedule
from protocols.round.plans import MemberPlan
from protocols.round.records import Commit, SignedCommit, Tip
from protocols.signing import check_signed
from protocols.snapshot.format import StateHeader, capture, parameters_sha256, read_header, restore
from protocols.wire.convert import signed_commit_from_bytes, signed_commit_to_bytes


@dataclass(frozen=True)
class Frozen:
    """The epoch's contribution as it goes on the wire: mean gradient, encoded, with its counter range and mean loss."""

    first: int
    end: int
    base: str  # the lineage at whose parameters the gradient was computed
    loss: float
    encoded: memoryview


class Replica:
    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        max_grad_norm: float,
        run_digest: str,
        authority: bytes,
        genesis: Tip,
        genesis_sha256: str,
        error_feedback: ErrorFeedback,
        codecs: Collection[str],
        overlap: bool = False,
    ) -> None:
        """`codecs`: those that a commit may name for the next plan."""
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.run_digest = run_digest
        self.authority = authority
        self.genesis = genesis
        self.genesis_sha256 = genesis_sha256
        self._error_feedback = error_feedback
        self.codecs = codecs
        self.accumulator = Accumulator(model.parameters())
        self.overlap = overlap
        self._encoded = np.empty(0, np.uint8)  # the contribution that is out
        self._base = BaseParameters(self.accumulator.parameters)
        self._state = SlicedState(self.accumulator.parameters, optimizer)
        self.slices = Slices.of(self.accumulator.elements)
        self.tip: Tip | None = (
            None  # None while the state is not that of any lineage: before the first restore, after a failed step
        )
        self.commit: SignedCommit | None = None

    @property
    def elements(self) -> int:
        return self.accumulator.elements

    @property
    def codec(self) -> Codec:
        """Of the plans that build on this replica's tip."""
        return CODECS[(self.tip or self.genesis).codec]

    @property
    def base(self) -> str:
        """The lineage at whose parameters gradients are computed; '' when there is none."""
        return self._base.lineage or (self.tip.lineage if self.tip is not None else "")

    def restart(self) -> None:
        """Accumulate from nothing, at the parameters of the tip."""
        self.accumulator.restart()
        self._base.release()

    def freeze(self) -> Frozen | None:
        """The accumulated samples, encoded once and for all; None when there are none, or their gradient overflowed. Either way,
        the next begin at the tip. What `encoded` views is written to by the next freeze."""
        accumulator, frozen = self.accumulator, None
        if self.tip is not None and accumulator.samples and math.isfinite(accumulator.loss_sum):
            size = self.codec.encoded_bytes(self.elements)
            if len(self._encoded) != size:
                self._encoded = np.empty(size, np.uint8)
            encoded = self._encoded.data
            if self._error_feedback.encode(self.codec, accumulator, encoded):
                loss = accumulator.loss_sum / accumulator.samples
                frozen = Frozen(accumulator.first, accumulator.end, self.base, loss, encoded)
        self.restart()
        return frozen

    def outcome(self, epoch: int) -> ResultLayout:
        """How the bytes lie that the round of `epoch` comes to, once this replica is at its parent."""
        return ResultLayout(self.slices, epoch, self.codec, self._state.value_bytes)

    def slice_values(self, parent: str) -> bytes:
        """What this replica holds, at lineage `parent`, of the next epoch's slice. Raises BadMessageError elsewhere."""
        if self.tip is None or self.tip.lineage != parent:
            raise BadMessageError("this peer's state is not at the plan's parent")
        with self._base.at_tip():
            return self._state.read(self.slices.at(self.tip.epoch + 1))

    def drift(self, parent: str, start: int, stop: int, canonical: bytes | memoryview) -> float:
        """How far this replica is off `canonical`, the part of that slice in elements [start, stop), as a multiple of what
        rounding allows. Raises BadMessageError when it is of another size, or this replica elsewhere."""
        if self.tip is None or self.tip.lineage != parent:
            raise BadMessageError("this peer's state is not at the plan's parent")
        epoch = self.tip.epoch + 1
        with self._base.at_tip():
            return self._state.excess(self.slices.at(epoch, start, stop), bytes(canonical), self.slices.age(epoch))

    def refused(self, plan: MemberPlan, result: Bytes) -> dict[str, float]:
        """The reducers from whose canonical values this replica is further off than rounding allows, and how much further."""
        outcome, whole = self.outcome(plan.ballot.epoch), memoryview(result)
        excess: dict[str, float] = {}
        for shard in plan.shards:
            canonical = whole[outcome.parts(shard.start, shard.stop)[1]]
            value = self.drift(plan.ballot.parent, shard.start, shard.stop, canonical)
            if value > 1:
                excess[shard.reducer] = max(value, excess.get(shard.reducer, 0.0))
        return excess

    def forget(self) -> None:
        """This state is not to be used any more."""
        self.tip = None

    def apply(self, signed: SignedCommit, result: Bytes) -> Tip:
        """Take the canonical values of the epoch's slice, clip, step, advance. `came_to`: averages and canonical values as
        `outcome` lays them out, whose digests the commit names (checked by the caller).

        If the run overlaps, what accumulates goes on at the parameters that it began with; else it is forgotten.

        Raises BadMessageError when the commit does not follow, and DriftError when this state is further off the canonical
        values than rounding allows, with the state untouched; or whatever a failing device raises, and then the state is of no
        lineage and must be restored.
        """
        with self._base.at_tip():
            return self._apply(signed, result)

    def _apply(self, signed: SignedCommit, result: Bytes) -> Tip:
        commit, epoch = signed.commit, signed.commit.ballot.epoch
        if self.tip is None or not self.tip.leads_to(commit, overlap=self.overlap):
            raise BadMessageError("the commit does not follow this replica's state")
        self._check_codec(commit)
        averaged_bytes = self.outcome(epoch).averaged_bytes
        averaged, canonical = memoryview(result)[:averaged_bytes], bytes(memoryview(result)[averaged_bytes:])
        ranges = self.slices.at(epoch)
        excess = self._state.excess(ranges, canonical, self.slices.age(epoch))
        if excess > 1:
            raise DriftError(f"this peer's state is {excess:.3g} times as far off as rounding allows at epoch {self.tip.epoch}")
        keeps_base = self.overlap and self.accumulator.samples > 0
        if not keeps_base:
            self.restart()
        with self.accumulator.lending() as gradient:
            self.decode(averaged, gradient)
            if keeps_base:
                self._base.keep(self.tip.lineage)
            self.tip = None
            self._state.write(ranges, canonical)
            norm = commit.gradient_norm  # from the commit, never computed here: everybody must clip by the same number
            if self.max_grad_norm and norm > self.max_grad_norm:
                gradient *= self.max_grad_norm / norm
            self.schedule.set_epoch(commit.ballot.epoch - 1)
            self.optimizer.step()
        self.schedule.set_epoch(commit.ballot.epoch)
        self._error_feedback.settle(commit.contributions)
        self.commit, self.tip = signed, Tip.after(commit)
        return self.tip

    def _check_codec(self, commit: Commit) -> None:
        if commit.next_codec not in self.codecs:
            raise BadMessageError(f"the commit names {commit.next_codec} for the next plan, which this run does not use")

    def decode(self, averaged: memoryview, into: torch.Tensor) -> None:
        """Averages of the whole vector into (elements,), piece by piece. Raises BadMessageError."""
        piece = self.codec.room_for(min(PIECE_ELEMENTS, self.elements))
        for at in range(0, self.elements, PIECE_ELEMENTS):
            end = min(at + PIECE_ELEMENTS, self.elements)
            values = piece[: end - at]
            self.codec.decode_into(averaged[self.codec.encoded_bytes(at) : self.codec.encoded_bytes(end)], values)
            into[at:end] = torch.from_numpy(values)

    def capture(self) -> tuple[bytes, StateHeader, Tip]:
        """A snapshot of the state as it stands. Raises BadMessageError when the state is of no lineage."""
        if self.tip is None:
            raise BadMessageError("this peer's state is of no lineage now")
        commit = signed_commit_to_bytes(self.commit).hex() if self.commit is not None else ""
        header = StateHeader(
            run_digest=self.run_digest,
            epoch=self.tip.epoch,
            lineage=self.tip.lineage,
            samples=self.tip.total_samples,
            commit=commit,
            scheduler=self.schedule.state_dict(),
        )
        with self._base.at_tip():
            return capture(self.model, self.optimizer, header), header, self.tip

    def restore(self, snapshot: bytes) -> Tip:
        """Take over a snapshot after checking run, lineage, signature, shapes and finiteness. Raises BadMessageError, with
        the state untouched."""
        header = read_header(snapshot)
        if header.run_digest != self.run_digest:
            raise BadMessageError(f"the snapshot is of run {header.run_digest[:12]}, not {self.run_digest[:12]}")
        if header.commit:
            try:
                wire = bytes.fromhex(header.commit)
            except ValueError as error:
                raise BadMessageError("the snapshot's commit cannot be read") from error
            commit = check_signed(signed_commit_from_bytes(wire), self.authority)
            self._check_codec(commit.commit)
            tip = Tip.after(commit.commit)
        else:
            commit, tip = None, self.genesis
            if parameters_sha256(snapshot) != self.genesis_sha256:
                raise BadMessageError("the snapshot's parameters are not those that the run started from")
        if (header.lineage, header.epoch) != (tip.lineage, tip.epoch):
            raise BadMessageError("the snapshot's lineage is not that of its commit")
        with self._base.at_tip():
            restore(snapshot, self.model, self.optimizer)
        self.schedule.set_epoch(tip.epoch)
        self._error_feedback.forget()
        self.restart()
        self.commit, self.tip = commit, tip
        return tip
