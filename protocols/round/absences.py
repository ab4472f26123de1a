"""Why peers are not in a plan (pure): what the lead saw of those who dropped out, kept for the log until an epoch is over."""

from __future__ import annotations

from collections.abc import Collection

from protocols.reasons import Reason
from protocols.round.records import Hello, Report


class Absences:
    def __init__(self) -> None:
        self._gone: dict[str, Reason] = {}  # why each who dropped out last did
        self._silenced: dict[str, Hello] = {}  # taken for dead, and yet connected

    def forget(self) -> None:
        self._gone.clear()
        self._silenced.clear()

    def next_epoch(self, members: Collection[str]) -> None:
        """`members`: of the commit that closed the last one; whoever else is gone was told of in it."""
        self._gone = {peer: reason for peer, reason in self._gone.items() if peer in members}

    def dropped(self, peer: str, reason: Reason) -> None:
        self._gone[peer] = reason
        self._silenced.pop(peer, None)

    def silenced(self, peer: str, hello: Hello) -> None:
        self._silenced[peer] = hello

    def back(self, peer: str) -> Hello | None:
        """Something came from `peer`. How it introduced itself, if it was taken for dead: it will not do so again, since its
        stream never ended."""
        return self._silenced.pop(peer, None)

    def seated(self, peer: str) -> None:
        self._gone.pop(peer, None)
        self._silenced.pop(peer, None)

    @property
    def peers(self) -> set[str]:
        return set(self._gone)

    def reason(self, peer: str, report: Report | None, lineage: str, *, connected: bool) -> Reason:
        """Why `peer`, whose last report this is, is not in a plan on `lineage`."""
        if not connected:  # one that never came was asked, and the hearing ended without it
            return self._gone.get(peer, Reason.SILENT)
        if report is None:
            return self._gone.get(peer, Reason.NOT_CAUGHT_UP)
        if report.standing.lineage != lineage:
            return Reason.OTHER_LINEAGE
        return Reason.REDUCER_LOST if report.caught_up else Reason.NOT_CAUGHT_UP
