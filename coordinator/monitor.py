"""The organiser's loop: the whole story of a coordinator, on the main thread.

It takes in what the swarm's leader says and tells the sinks. Every few epochs it fetches the state from a peer, measures its
held-out loss, and keeps it as a checkpoint. Nothing here is on the training path: when this process dies, the peers go on.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from coordinator.checkpoints.facts import CheckpointFacts
from coordinator.checkpoints.store import Checkpoints
from coordinator.invites import Admission
from coordinator.sinks.base import Sinks
from coordinator.swarm_view import SwarmView
from protocols.committed_rate import CommittedRate
from protocols.errors import BadMessageError, DiskError, RemoteError
from protocols.host.event_log import commit_fields
from protocols.observations import Committed, Evaluation, Failure, Observation, PeerView, Seen, Swarm
from protocols.optimization import Schedule
from protocols.round.records import Commit, SignedCommit
from protocols.run_spec import RunSpec
from protocols.signing import check_signed
from protocols.snapshot.format import StateHeader, read_header, read_parameters
from protocols.tasks.base import Task
from protocols.wire.convert import from_bytes

WAIT_S = 0.2  # for an observation: so often at least the loop looks at what is due
FETCH_AGAIN_S = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What is fixed while a coordinator runs."""

    spec: RunSpec
    task: Task
    model: torch.nn.Module
    schedule: Schedule
    authority: bytes


class Monitor:
    """Call start(), then step() until `finished`, then finish().

    The network's thread feeds `inbox`. `fetch` gets a snapshot from some peer, or raises RemoteError. `progress` is told of
    long work, and None when it is done.
    """

    def __init__(
        self,
        run: Run,
        sinks: Sinks,
        checkpoints: Checkpoints,
        inbox: queue.SimpleQueue[Observation | Admission],
        fetch: Callable[[], bytes],
        progress: Callable[[str | None], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._sinks = sinks
        self._checkpoints = checkpoints
        self._inbox = inbox
        self._fetch = fetch
        self._progress = progress
        self._clock = clock
        self._lineages: set[str] = set()
        self._present: dict[str, str] = {}  # peers that have joined and not left: id to name
        self._kept_epoch = 0  # the newest epoch that was evaluated
        self._fetch_not_before = 0.0
        self._rate = CommittedRate(clock)
        self.lineage, self._total_samples = "", 0
        self.epoch = 0
        self.held_out: Evaluation | None = None  # the newest
        self.last_checkpoint: Path | None = None

    @property
    def finished(self) -> bool:
        most = self._run.spec.training.max_epochs
        return most is not None and self._kept_epoch >= most

    def start(self, snapshot: bytes, *, resumed: bool) -> None:
        """Begin at `snapshot`: the run's first parameters, or those of the checkpoint that it is resumed from."""
        header = read_header(snapshot)
        self.epoch = self._kept_epoch = header.epoch
        self.lineage, self._total_samples = header.lineage, header.samples
        fields = {"run": self._run.spec.run.name, "run_digest": self._run.spec.digest}
        if resumed:
            self._sinks.event("run_resumed", **fields, epoch=header.epoch, lineage=header.lineage)
        else:
            self._sinks.event("run_started", **fields, loss_unit=self._run.task.loss_unit)
            self._load(snapshot)
            self._evaluate(header.epoch)

    def step(self) -> None:
        """Take in what has arrived, and keep the state if that is due."""
        self.take_in()
        every = min(self._run.spec.checkpoint.every_epochs, self._run.spec.evaluation.every_epochs)
        if self._due(self.epoch, every) and self._clock() >= self._fetch_not_before:
            self.keep()

    # -- what the swarm tells ------------------------------------------------------------------------------------------------

    def take_in(self) -> None:
        """Take in all that has arrived; wait a moment if nothing has."""
        try:
            self._take(self._inbox.get(timeout=WAIT_S))
            while True:
                self._take(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _take(self, observation: Observation | Admission) -> None:
        """A peer told it: whatever is wrong with it, the coordinator goes on."""
        try:
            self._observe(observation)
        except Exception:  # noqa: BLE001
            _log.exception("an observation was dropped: nobody foresaw it")

    def _observe(self, observation: Observation | Admission) -> None:
        match observation:
            case Swarm():
                self._see(SwarmView.of(observation, self._run.spec))
            case Committed():
                self._committed(observation)
            case Admission(peer, invite, _, address):
                self._sinks.event("admitted", peer=peer, invite=invite, address=address)
            case Failure(ballot, reason, peer, seconds):
                self._sinks.event(
                    "attempt_failed",
                    epoch=ballot.epoch,
                    attempt=ballot.attempt,
                    reason=reason.value,
                    peer=peer,
                    name=self._present.get(peer, ""),
                    seconds=seconds,
                )
            case Seen(peer, present=True):
                self._joined(peer)
            case Seen(peer, present=False, reason=reason):
                if self._present.pop(peer.peer, None) is not None:
                    self._sinks.event("peer_left", peer=peer.peer, name=peer.name, reason=reason)

    def _see(self, view: SwarmView) -> None:
        self._rate.reached(view.epoch, view.total_samples)
        for peer in view.peers:
            self._joined(peer)
        here = {peer.peer for peer in view.peers}
        if any(peer.is_leader for peer in view.peers):  # the leader's own view: whoever is missing in it has left
            for gone in [peer for peer in self._present if peer not in here]:
                self._sinks.event("peer_left", peer=gone, name=self._present.pop(gone), reason="not-with-the-new-leader")

    def _joined(self, peer: PeerView) -> None:
        if peer.peer not in self._present:
            self._present[peer.peer] = peer.name
            self._sinks.event("peer_joined", peer=peer.peer, name=peer.name, role=peer.role, reachable=peer.reachable)

    def _committed(self, told: Committed) -> None:
        try:
            commit = check_signed(told.signed_commit, self._run.authority).commit
        except BadMessageError as error:
            _log.warning("a commit was dropped: %s", error)
            return
        if commit.digest in self._lineages:
            return
        self._lineages.add(commit.digest)
        self.lineage, self._total_samples = commit.digest, commit.total_samples
        self.epoch = epoch = commit.ballot.epoch
        rate = self._run.schedule.learning_rate_at(epoch - 1)
        self._sinks.event(
            "committed",
            **commit_fields(commit),
            lr=rate,
            seconds=told.seconds or None,
            attempts=told.attempts or commit.ballot.attempt,
            absent={absence.peer: absence.reason.value for absence in told.absent} if told.attempts else None,
        )
        for tag, value in (
            ("train/loss", commit.loss),
            ("train/lr", rate),
            ("train/grad_norm", commit.gradient_norm),
            ("swarm/peers", float(len(commit.members))),
            ("swarm/samples_per_second", self._rate.samples_per_second or 0.0),
        ):
            self._sinks.scalar(tag, value, epoch)

    # -- checkpoints ---------------------------------------------------------------------------------------------------------

    def _due(self, epoch: int, every: int) -> bool:
        """Whether `epoch` is the run's last, or `every` epochs have come full since the last state that was kept."""
        most = self._run.spec.training.max_epochs
        is_last = most is not None and epoch >= most > self._kept_epoch
        return is_last or epoch // every > self._kept_epoch // every

    def keep(self, *, checkpoint: bool | None = None) -> None:
        """Fetch the state and evaluate it. Write a checkpoint if one is due, or as `checkpoint` says.

        A failure is logged; step() tries again after FETCH_AGAIN_S.
        """
        try:
            snapshot = self._fetch()
            header = read_header(snapshot)
            commit = self._commit_of(header)
            self._load(snapshot)
        except Exception as error:  # noqa: BLE001  a peer gave it: whatever is wrong with it, the coordinator goes on
            foreseen = isinstance(error, RemoteError)
            _log.log(logging.INFO if foreseen else logging.ERROR, "no snapshot: %s", error, exc_info=not foreseen)
            self._fetch_not_before = self._clock() + FETCH_AGAIN_S
            return
        if checkpoint is None:
            checkpoint = self._due(header.epoch, self._run.spec.checkpoint.every_epochs)
        loss = self._evaluate(header.epoch)
        if checkpoint:
            self._write(snapshot, header, commit, loss)
        self._kept_epoch = max(self._kept_epoch, header.epoch)

    def _commit_of(self, header: StateHeader) -> Commit | None:
        """The commit that led to a snapshot, None at genesis. Raises BadMessageError unless a leader of this run signed it."""
        if header.run_digest != self._run.spec.digest:
            raise BadMessageError("the snapshot is of another run")
        if header.epoch == 0:
            return None
        try:
            signed = from_bytes(SignedCommit, bytes.fromhex(header.commit))
        except ValueError as error:
            raise BadMessageError("the snapshot's commit cannot be read") from error
        commit = check_signed(signed, self._run.authority).commit
        if (commit.digest, commit.ballot.epoch, commit.total_samples) != (header.lineage, header.epoch, header.samples):
            raise BadMessageError("the snapshot's header does not agree with its commit")
        return commit

    def _load(self, snapshot: bytes) -> None:
        """Take the parameters over into the model. Raises BadMessageError if they do not fit."""
        try:
            self._run.model.load_state_dict(read_parameters(snapshot), strict=False)  # a tied parameter is there once
        except RuntimeError as error:
            raise BadMessageError(f"the snapshot is of another model: {error}") from error

    def _evaluate(self, epoch: int) -> float:
        self._progress(f"Measuring the held-out loss at epoch {epoch}")
        with torch.no_grad():
            loss = self._run.task.evaluate(self._run.model, self._run.spec.evaluation.max_samples)
        self.held_out = Evaluation(epoch, loss)
        self._sinks.event("evaluated", epoch=epoch, loss=loss)
        self._sinks.scalar("eval/loss", loss, epoch)
        self._progress(None)
        return loss

    def _write(self, snapshot: bytes, header: StateHeader, commit: Commit | None, loss: float) -> None:
        spec = self._run.spec
        facts = CheckpointFacts(
            run=spec.run.name,
            run_digest=spec.digest,
            epoch=header.epoch,
            lineage=header.lineage,
            samples=header.samples,
            peers=[contribution.peer for contribution in commit.contributions] if commit is not None else [],
            loss=loss,
        )
        began = self._clock()
        try:
            path = self._checkpoints.write(snapshot, self._run.model, self._run.task, spec_toml=spec.to_toml(), facts=facts)
        except DiskError as error:
            # Training goes on without checkpoints. The next one is tried in its turn.
            self._sinks.event("checkpoint_failed", epoch=header.epoch, reason=f"{error} {error.remedy}")
            return
        self.last_checkpoint = path
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        self._sinks.event("checkpoint_written", epoch=header.epoch, path=str(path), bytes=size, seconds=self._clock() - began)

    def finish(self) -> None:
        """Tell the sinks that the run is complete."""
        self._sinks.event("run_finished", epoch=self._kept_epoch, lineage=self.lineage, samples=self._total_samples)
