"""Why each absent peer is not in a plan, or gave nothing to a commit: the leader's list of an epoch, for the log (pure)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from protocols.reasons import Reason
from protocols.round.attempt import Follower
from protocols.round.plans import Plan
from protocols.round.records import Commit, Tip

Absent = tuple[tuple[str, Reason], ...]  # (peer, why), by peer


class Absences:
    """Collects why peers dropped out, and names a reason for every peer that a plan or a commit leaves out."""

    def __init__(self) -> None:
        self._gone: dict[str, Reason] = {}  # peer that dropped out -> why it did so last
        self._told: set[str] = set()  # absent peers that a plan's list has named
        self._too_slow: frozenset[str] = frozenset()  # members of the newest plan that only receive

    def next_epoch(self, members: Collection[str], connected: Collection[str]) -> None:
        """Begin the next epoch. `members` are those of the commit that closed the last one; `connected` is everybody connected.

        A peer that was no member of that commit is forgotten once a list has named it.
        """
        self._gone = {
            peer: reason
            for peer, reason in self._gone.items()
            if (peer in members or peer not in self._told) and peer not in connected
        }
        self._told &= self._gone.keys()

    def dropped(self, peer: str, reason: Reason) -> None:
        """Take note that `peer` ('' for nobody) dropped out."""
        if peer:
            self._gone[peer] = reason
            self._told.discard(peer)

    def connected(self, peer: str) -> None:
        """Take note that `peer` is connected again."""
        self._gone.pop(peer, None)
        self._told.discard(peer)

    def from_plan(self, plan: Plan, too_slow: Collection[str], tip: Tip, followers: Mapping[str, Follower]) -> Absent:
        """The known peers that are not in `plan`, and those in it that give nothing because they are `too_slow`.

        A peer is known if it is connected, was a member of the commit that led to `tip`, or dropped out since.
        """
        self._too_slow = frozenset(too_slow)
        absent = self._everybody(tip, followers) - set(plan.members)
        self._told |= absent
        why = {peer: self._why_not_planned(peer, tip, followers.get(peer)) for peer in absent}
        return tuple(sorted((why | dict.fromkeys(self._too_slow, Reason.SLOW_LINK)).items()))

    def from_commit(self, commit: Commit, tip: Tip, followers: Mapping[str, Follower]) -> Absent:
        """The known peers whose contribution is not in `commit`, which builds on `tip`."""
        absent = self._everybody(tip, followers) - {contribution.peer for contribution in commit.contributions}
        return tuple((peer, self._why_not_committed(peer, commit, tip, followers.get(peer))) for peer in sorted(absent))

    def _everybody(self, tip: Tip, followers: Mapping[str, Follower]) -> set[str]:
        return followers.keys() | set(tip.members) | self._gone.keys()

    def _why_not_planned(self, peer: str, tip: Tip, follower: Follower | None) -> Reason:
        if follower is None:  # it was asked, and the roll call ended without its answer
            return self._gone.get(peer, Reason.SILENT)
        if follower.report is None:
            return self._gone.get(peer, Reason.NOT_CAUGHT_UP)
        if follower.report.standing.lineage != tip.lineage:
            return Reason.OTHER_LINEAGE
        return self._gone.get(peer, Reason.REDUCER_LOST) if follower.report.caught_up else Reason.NOT_CAUGHT_UP

    def _why_not_committed(self, peer: str, commit: Commit, tip: Tip, follower: Follower | None) -> Reason:
        if peer in self._gone:
            return self._gone[peer]
        if peer in self._too_slow:
            return Reason.SLOW_LINK
        if follower is not None and follower.hello.auxiliary:
            return Reason.AUXILIARY
        if peer in commit.members:
            return Reason.NOTHING_TO_GIVE
        why = self._why_not_planned(peer, tip, follower)
        came_later = why is Reason.REDUCER_LOST and peer not in self._told
        return Reason.NOT_PLANNED if came_later else why
