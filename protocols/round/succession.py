"""Whom this peer takes for the leader: the first in the last commit's order that is not silent (pure).

No election: the last commit names its leader and an order of succession, so that all peers of one lineage agree on the order,
and a peer only
ever moves down it after the one above went silent. Reachable peers that the commit does not name come last, by id: they lead
only when
everybody that it names is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Tip


class Succession:
    def __init__(self, me: Candidate) -> None:
        self._me = me  # with an empty address in client mode: nobody could open a connection to such a leader
        self._tip: Tip | None = None
        self._others: dict[str, Candidate] = {}
        self._silent: set[str] = set()
        self._undecided: dict[str, float] = {}  # peers that may yet lead, and since when they hesitate
        self._fell_silent: dict[str, float] = {}  # leads that this peer itself found silent, and when
        self._looked = False

    def follow(self, tip: Tip) -> None:
        """A new tip names a leader that was there a moment ago: suspicions start afresh."""
        if self._tip is None or tip.lineage != self._tip.lineage:
            self._silent.clear()
            self._fell_silent.clear()
        self._tip = tip

    def know(self, others: Iterable[Candidate]) -> None:
        """Reachable peers found by discovery; their addresses are newer than those in the commit."""
        self._others = {candidate.peer: candidate for candidate in others}
        self._looked = True

    def silent(self, peer: str) -> None:
        self._silent.add(peer)

    def heard(self, peer: str) -> None:
        self._silent.discard(peer)

    def led(self) -> None:
        """Somebody leads: whoever hesitated is given a fresh start next time."""
        self._undecided.clear()

    def passed_over(self, peer: str, now: float, reason: Reason, *, follows: str, able: bool) -> None:
        """`peer` does not lead: go on to the next, unless it is there and only slower to find that its turn has come (`able`).

        `follows`: whom it named instead of itself, '' if nobody. One that follows a leader which has just fallen silent here is
        about to find that too: going back to that leader would cost the wait for another first answer.
        """
        if reason is Reason.SILENT:
            self._fell_silent[peer] = now
        since = self._undecided.setdefault(peer, now)
        about_to_find = now - self._fell_silent.get(follows, -DETECTION_S) < DETECTION_S
        if (able or about_to_find) and now - since < DETECTION_S:
            return
        del self._undecided[peer]
        self.heard(follows)
        self.silent(peer)

    @property
    def order(self) -> list[Candidate]:
        """Everybody who may lead, first to last; before the first tip, whoever was found."""
        named = [self._tip.leader, *self._tip.succession] if self._tip is not None else []
        rest = sorted([*self._others.values(), self._me], key=lambda candidate: candidate.peer)
        newest = {**self._others, self._me.peer: self._me}
        unique = {candidate.peer: newest.get(candidate.peer, candidate) for candidate in [*named, *rest]}
        return [candidate for candidate in unique.values() if candidate.address]

    @property
    def acting(self) -> Candidate | None:
        """The lead to follow now; None while nobody can be followed, or nobody has looked yet who is there.

        When everybody is silent the suspicions are dropped and the order is tried from the top.
        """
        order = self.order
        if not self._looked or not order:
            return None
        if self._tip is not None and self._tip.epoch == 0 and self._tip.leader.peer not in {c.peer for c in order}:
            return None  # the run's first leader has not been found yet: a commit names its leader's address, the genesis cannot
        for candidate in order:
            if candidate.peer not in self._silent:
                return candidate
        self._silent.clear()
        return order[0]
