"""The swarm as the organiser sees it: plain values, for the screen and for `dugnad status --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.host.reason_words import in_words
from protocols.host.terminal import display_name, plural
from protocols.observations import Committed, PeerView, Swarm
from protocols.reasons import Reason
from protocols.round.records import Standing
from protocols.run_spec import RunSpec

_NOT_STARTED = Standing(epoch=0, lineage="0" * 64, total_samples=0)


@dataclass(frozen=True)
class SwarmView:
    """The whole swarm. `samples` counts towards the present batch; `total_samples` is the weight of `lineage`."""

    run: str
    run_digest: str
    epoch: int
    lineage: str
    samples: int
    target_batch_size: int
    total_samples: int
    phase: str
    peers: tuple[PeerView, ...]
    max_epochs: int | None
    loss: float | None = None
    """Training loss of the newest commit. This and the rest: as far as that was told."""
    committed_samples_per_second: float | None = None
    """Over recent epochs."""
    left_s: float | None = None
    """Until the last epoch, at that pace."""
    problems: tuple[str, ...] = ()
    """What slows the swarm down, in words."""

    @classmethod
    def of(cls, swarm: Swarm, spec: RunSpec, recent: Sequence[Committed] = ()) -> SwarmView:
        """What a peer said, beside what the run's spec asks for. `recent`: its commits up to now, oldest first."""
        standing, last = swarm.standing or _NOT_STARTED, spec.training.max_epochs
        return cls(
            run=spec.run.name,
            run_digest=spec.digest,
            epoch=standing.epoch,
            lineage=standing.lineage,
            samples=swarm.samples,
            target_batch_size=spec.training.target_batch_size,
            total_samples=standing.total_samples,
            phase=swarm.phase,
            peers=swarm.peers,
            max_epochs=last,
            loss=recent[-1].signed_commit.commit.loss if recent else None,
            committed_samples_per_second=swarm.committed_samples_per_second or None,
            left_s=swarm.epoch_s * (last - standing.epoch) if swarm.epoch_s and last is not None else None,
            problems=_problems(swarm, recent),
        )

    @property
    def samples_per_second(self) -> float:
        """The sum over all peers that are not silent."""
        return sum(peer.samples_per_second for peer in self.peers if peer.state != "silent")


# These are as a volunteer or an organiser wants them.
_NO_PROBLEM = (Reason.AUXILIARY, Reason.LEFT, Reason.JOINED)


def _problems(swarm: Swarm, recent: Sequence[Committed]) -> tuple[str, ...]:
    names = {peer.peer: peer.name for peer in swarm.peers}
    problems = [f"{display_name(peer.name, peer.peer)} is silent" for peer in swarm.peers if peer.state == "silent"]
    failed = sum(told.attempts > 1 for told in recent)
    if failed:
        problems.append(f"{failed} of the last {plural(len(recent), 'epoch')} took more than one attempt")
    for absence in recent[-1].absent if recent else ():
        if absence.reason not in _NO_PROBLEM:
            who = display_name(names.get(absence.peer, ""), absence.peer)
            problems.append(f"{who} was not in the last epoch: {in_words(absence.reason)}")
    if not any(peer.role == "contributor" and peer.state != "silent" for peer in swarm.peers):
        problems.append("nobody trains")
    return tuple(problems)
