"""This peer's copy of the training state: the model, and the commit that led to it.

State changes in two ways only: `apply` (one whole commit) and `restore` (one whole snapshot). How samples become a contribution
and a commit becomes a step is the strategy's part. Everything here runs on the training thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from peer.settings import RunSettings
from peer.training.strategies.base import Strategy
from protocols.errors import BadMessageError, DriftError
from protocols.gradients.codecs import CODECS, PIECE_ELEMENTS, Bytes, Codec
from protocols.gradients.drift import SlicedState
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.gradients.slices import ResultLayout, Slices
from protocols.round.plans import MemberPlan
from protocols.round.records import MAX_NORM, Commit, SignedCommit, Tip
from protocols.snapshot.format import StateHeader, capture, parameters_sha256, read_header, restore
from protocols.wire.convert import from_bytes, to_bytes


@dataclass(frozen=True)
class Frozen:
    """The epoch's contribution as it goes on the wire, encoded, with its counter range and mean loss."""

    first: int
    end: int
    base: str  # the lineage at whose parameters the samples were drawn
    loss: float
    norm: float  # L2, of the whole vector as it decodes
    encoded: memoryview


class Replica:
    """The training state at `tip`, the state after `commit`.

    `tip` is None while the state belongs to no lineage: before the first restore, and after a step that failed. `commit` is
    None at genesis.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        strategy: Strategy,
        settings: RunSettings,
        *,
        error_feedback: ErrorFeedback,
        verify: Callable[[SignedCommit], SignedCommit],
    ) -> None:
        """`verify` returns a commit whose signature is good, and raises BadMessageError for any other."""
        self.model = model
        self.strategy = strategy
        self.settings = settings
        self.slices = Slices.of(strategy.elements)
        self.tip: Tip | None = None
        self._doubted: Tip | None = None  # of a whole state that was given up, and that nothing has replaced yet
        self.commit: SignedCommit | None = None
        self._error_feedback = error_feedback
        self._verify = verify
        self._state = SlicedState(strategy.parameters, strategy.optimizer)

    @property
    def elements(self) -> int:
        return self.strategy.elements

    @property
    def codec(self) -> Codec:
        """Codec of the plans that build on this replica's tip."""
        return CODECS[(self.tip or self.settings.genesis).codec]

    @property
    def base(self) -> str:
        """The lineage at whose parameters samples are drawn; '' when there is none."""
        return self.strategy.base or (self.tip.lineage if self.tip is not None else "")

    def forget(self) -> None:
        """Give the state up: it belongs to no lineage from here on."""
        self._doubted, self.tip = self.tip or self._doubted, None

    def reinstate(self) -> Tip | None:
        """Take back the state that was given up last; None if it was not whole, or another one has replaced it."""
        self.tip, self._doubted = self._doubted, None
        return self.tip

    # -- a round ---------------------------------------------------------------------------------------------------------------

    def freeze(self) -> Frozen | None:
        """The accumulated samples as this epoch's contribution; samples drawn from here on begin at the tip.

        None when there are no samples, or when their loss or contribution is not finite. The next freeze overwrites `encoded`.
        """
        strategy, frozen = self.strategy, None
        if strategy.samples:
            strategy.finish()
        if self.tip is not None and strategy.samples and math.isfinite(strategy.loss_sum):
            encoded = self._error_feedback.encode(self.codec, strategy)
            if encoded is not None and self._error_feedback.norm <= MAX_NORM:
                loss = strategy.loss_sum / strategy.samples
                frozen = Frozen(strategy.first, strategy.end, self.base, loss, self._error_feedback.norm, encoded)
        strategy.restart()
        return frozen

    def layout(self, epoch: int) -> ResultLayout:
        """How the result of the round of `epoch` is laid out in bytes. Valid once this replica is at that round's parent."""
        return ResultLayout(self.slices, epoch, self.codec, self._state.value_bytes)

    def slice_values(self, parent: str) -> bytes:
        """This replica's values of the next epoch's slice. Raises BadMessageError unless the tip is at lineage `parent`."""
        ranges = self.slices.at(self._tip_at(parent).epoch + 1)
        with self.strategy.at_tip():
            return self._state.read(ranges)

    def drift(self, parent: str, start: int, stop: int, canonical: bytes | memoryview) -> float:
        """How far this replica is off `canonical`, the next epoch's slice of elements [start, stop), as a multiple of what
        rounding allows.

        Raises BadMessageError when `canonical` has another size, or the tip is not at lineage `parent`.
        """
        epoch = self._tip_at(parent).epoch + 1
        with self.strategy.at_tip():
            return self._state.excess(self.slices.at(epoch, start, stop), bytes(canonical), self.slices.age(epoch))

    def refused(self, plan: MemberPlan, result: Bytes) -> dict[str, float]:
        """Reducers whose canonical values in `result` this replica refuses, each with the worst `drift` above 1."""
        layout, whole = self.layout(plan.ballot.epoch), memoryview(result)
        excess: dict[str, float] = {}
        for shard in plan.shards:
            canonical = whole[layout.parts(shard.start, shard.stop)[1]]
            value = self.drift(plan.ballot.parent, shard.start, shard.stop, canonical)
            if value > 1:
                excess[shard.reducer] = max(value, excess.get(shard.reducer, 0.0))
        return excess

    def _tip_at(self, lineage: str) -> Tip:
        if self.tip is None or self.tip.lineage != lineage:
            raise BadMessageError("this peer's state is not at the plan's parent")
        return self.tip

    # -- one whole commit --------------------------------------------------------------------------------------------------------

    def apply(self, signed: SignedCommit, result: Bytes) -> Tip:
        """Take the canonical values of the epoch's slice, step by the averages, advance.

        `result` holds averages and canonical values as `layout` says. The caller has checked their digests against the commit.
        With overlap, accumulated samples stay, at their base; without, they are discarded.

        Raises BadMessageError when the commit does not follow, and DriftError when this state is further off the canonical
        values than rounding allows; both leave the state untouched. A failing device raises what it likes: then the state
        belongs to no lineage and must be restored.
        """
        commit, epoch = signed.commit, signed.commit.ballot.epoch
        if self.tip is None or not self.tip.leads_to(commit, overlap=self.settings.overlap):
            raise BadMessageError("the commit does not follow this replica's state")
        self._check_codec(commit)
        averaged_bytes = self.layout(epoch).averaged_bytes
        averaged, canonical = memoryview(result)[:averaged_bytes], bytes(memoryview(result)[averaged_bytes:])
        ranges = self.slices.at(epoch)
        with self.strategy.at_tip():
            excess = self._state.excess(ranges, canonical, self.slices.age(epoch))
            if excess > 1:
                raise DriftError(
                    f"this peer's state is {excess:.3g} times as far off as rounding allows at epoch {self.tip.epoch}"
                )
            with self.strategy.advancing(self.tip.lineage) as average:
                self.decode(averaged, average)
                self.tip = self._doubted = None
                self._state.write(ranges, canonical)
                self.strategy.step(average, commit)
        self._error_feedback.settle(commit.contributions)
        self.commit, self.tip = signed, Tip.after(commit)
        return self.tip

    def decode(self, averaged: memoryview, into: torch.Tensor) -> None:
        """Decode the averages of the whole vector into (elements,), piece by piece. Raises BadMessageError."""
        piece = self.codec.room_for(min(PIECE_ELEMENTS, self.elements))
        for at in range(0, self.elements, PIECE_ELEMENTS):
            end = min(at + PIECE_ELEMENTS, self.elements)
            values = piece[: end - at]
            self.codec.decode_into(averaged[self.codec.encoded_bytes(at) : self.codec.encoded_bytes(end)], values)
            into[at:end] = torch.from_numpy(values)

    def _check_codec(self, commit: Commit) -> None:
        if commit.next_codec not in self.settings.codecs:
            raise BadMessageError(f"the commit names {commit.next_codec} for the next plan, which this run does not use")

    # -- one whole snapshot ------------------------------------------------------------------------------------------------------

    def capture(self) -> tuple[bytes, StateHeader, Tip]:
        """A snapshot of the state at the tip. Raises BadMessageError when the state belongs to no lineage."""
        if self.tip is None:
            raise BadMessageError("this peer's state is of no lineage now")
        commit = to_bytes(self.commit).hex() if self.commit is not None else ""
        header = StateHeader(
            run_digest=self.settings.run_digest,
            epoch=self.tip.epoch,
            lineage=self.tip.lineage,
            samples=self.tip.total_samples,
            commit=commit,
            scheduler=self.strategy.schedule.state_dict(),
        )
        with self.strategy.at_tip():
            return capture(self.model, self.strategy.optimizer, header), header, self.tip

    def restore(self, snapshot: bytes) -> Tip:
        """Replace the state by a snapshot, after checking its run, lineage, signature, shapes and finiteness.

        Raises BadMessageError, with the state untouched.
        """
        commit, tip = self._origin(snapshot)
        with self.strategy.at_tip():
            restore(snapshot, self.model, self.strategy.optimizer)
        self.strategy.resume(tip.epoch)
        self._error_feedback.forget()
        self.commit, self.tip, self._doubted = commit, tip, None
        return tip

    def _origin(self, snapshot: bytes) -> tuple[SignedCommit | None, Tip]:
        """The commit that led to a snapshot, None at genesis, and the snapshot's tip. Raises BadMessageError."""
        header, settings = read_header(snapshot), self.settings
        if header.run_digest != settings.run_digest:
            raise BadMessageError(f"the snapshot is of run {header.run_digest[:12]}, not {settings.run_digest[:12]}")
        commit, tip = None, settings.genesis
        if header.commit:
            try:
                wire = bytes.fromhex(header.commit)
            except ValueError as error:
                raise BadMessageError("the snapshot's commit cannot be read") from error
            commit = self._verify(from_bytes(SignedCommit, wire))
            self._check_codec(commit.commit)
            tip = Tip.after(commit.commit)
        elif parameters_sha256(snapshot) != settings.genesis_sha256:
            raise BadMessageError("the snapshot's parameters are not those that the run started from")
        if (header.lineage, header.epoch) != (tip.lineage, tip.epoch):
            raise BadMessageError("the snapshot's lineage is not that of its commit")
        return commit, tip
