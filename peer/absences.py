"""Who gave nothing to an epoch, and why: for the log of the epoch's lead (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from protocols.reasons import Reason
from protocols.round.attempt import Seat
from protocols.round.records import Commit


def absences(
    commit: Commit, seats: Mapping[str, Seat], members_before: Iterable[str], dropped: Mapping[str, str]
) -> dict[str, str]:
    """Peer -> reason code, for everybody connected to the lead or in the epoch before whose contribution `commit` does not name.

    `seats` are the lead's now, `dropped` those who left or made an attempt of this epoch fail, and why.
    """
    gave = {contribution.peer for contribution in commit.contributions}
    everybody = (seats.keys() | set(members_before) | dropped.keys()) - gave
    return {peer: dropped.get(peer) or _why(commit, peer, seats.get(peer)).value for peer in sorted(everybody)}


def _why(commit: Commit, peer: str, seat: Seat | None) -> Reason:
    if seat is None:
        return Reason.SILENT  # it never came to this lead, which has asked for it
    if seat.hello.auxiliary:
        return Reason.AUXILIARY
    if peer in commit.members:
        return Reason.NOTHING_TO_GIVE
    if seat.report is None or not seat.report.caught_up:
        return Reason.NOT_CAUGHT_UP
    # The report is of before the commit, or of after it.
    if seat.report.standing.lineage not in (commit.ballot.parent, commit.digest):
        return Reason.OTHER_LINEAGE
    return Reason.NOT_PLANNED
