"""Why peers are not in a plan (pure): what the lead saw of those who dropped out, kept for the log until an epoch is over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from protocols.reasons import Reason
from protocols.round.records import Plan, Report, Tip


class Absences:
    def __init__(self) -> None:
        self._gone: dict[str, Reason] = {}  # why each who dropped out last did
        self._told: set[str] = set()  # those of them whom a plan has named

    def forget(self) -> None:
        self._gone.clear()
        self._told.clear()

    def next_epoch(self, members: Collection[str]) -> None:
        """`members`: of the commit that closed the last one; of the others, whoever was told of once need not be again."""
        self._gone = {peer: reason for peer, reason in self._gone.items() if peer in members or peer not in self._told}

    def dropped(self, peer: str, reason: Reason) -> None:
        if peer:
            self._gone[peer] = reason
            self._told.discard(peer)

    def seated(self, peer: str) -> None:
        self._gone.pop(peer, None)

    def of(self, plan: Plan, tip: Tip, seated: Mapping[str, Report | None]) -> Iterable[tuple[str, Reason]]:
        """Whoever is `seated` (with its last report), was a member of the commit that led to `tip` or dropped out since, and is
        not in `plan`; and why."""
        for peer in sorted((seated.keys() | set(tip.members) | self._gone.keys()) - set(plan.members)):
            report = seated.get(peer)
            if peer not in seated:  # one that never came was asked, and the hearing ended without it
                reason = self._gone.get(peer, Reason.SILENT)
            elif report is None:
                reason = self._gone.get(peer, Reason.NOT_CAUGHT_UP)
            elif report.standing.lineage != tip.lineage:
                reason = Reason.OTHER_LINEAGE
            else:
                reason = Reason.REDUCER_LOST if report.caught_up else Reason.NOT_CAUGHT_UP
            self._told.add(peer)
            yield peer, reason
