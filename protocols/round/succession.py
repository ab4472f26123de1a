"""Choice of the leader to follow: the first peer in the last commit's order that is not silent (pure).

There is no election. The last commit names its leader and an order of succession, so all peers of one lineage agree on the
order. A peer moves down the order only after the peer above went silent. Reachable peers that the commit does not name come
last, sorted by id. They lead only when all named peers are gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Tip


class Succession:
    """One peer's view of the order of succession, and of who in it is silent."""

    def __init__(self, me: Candidate) -> None:
        self._me = me  # its address is empty in client mode: nobody could connect to such a leader
        self._tip: Tip | None = None
        self._others: dict[str, Candidate] = {}
        self.barred: frozenset[str] = frozenset()
        """Peers that are never followed."""
        self._silent: set[str] = set()
        self._undecided: dict[str, float] = {}  # peer that may yet find that it leads -> when we first asked it
        self._fell_silent: dict[str, float] = {}  # leader that this peer itself found silent -> when
        self._looked = False  # whether discovery has answered yet

    def follow(self, tip: Tip) -> None:
        """Move to `tip`. A new lineage clears all suspicions, since its leader was there a moment ago."""
        if self._tip is None or tip.lineage != self._tip.lineage:
            self._silent.clear()
            self._fell_silent.clear()
        self._tip = tip

    def is_at(self, me: Candidate) -> None:
        """Take note of this peer's own address: it has changed."""
        self._me = me

    def know(self, others: Iterable[Candidate]) -> None:
        """Take in the reachable peers that discovery found. Their addresses replace those in the commit."""
        self._others = {candidate.peer: candidate for candidate in others}
        self._looked = True

    def silent(self, peer: str) -> None:
        """Pass over `peer` from now on."""
        self._silent.add(peer)

    def heard(self, peer: str) -> None:
        """Consider `peer` again."""
        self._silent.discard(peer)

    def led(self) -> None:
        """Take note that a leader was found: each undecided peer gets its full time again at the next search."""
        self._undecided.clear()

    def passed_over(self, peer: str, now: float, reason: Reason, *, follows: str, able: bool) -> None:
        """Go on to the next peer, since `peer` does not lead; but first give it DETECTION_S to find that it should.

        `peer` gets that time in two cases: it is able to lead (`able`), or it follows a leader that fell silent here a moment
        ago and will soon find that out. `follows` is the peer that it named as its leader, '' if none. If we went back to that
        silent leader, we would wait for its first answer once more.
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
        """Every peer that may lead, first to last. Before the first tip these are the peers that discovery found."""
        named = [self._tip.leader, *self._tip.succession] if self._tip is not None else []
        rest = sorted([*self._others.values(), self._me], key=lambda candidate: candidate.peer)
        newest = {**self._others, self._me.peer: self._me}
        unique = {candidate.peer: newest.get(candidate.peer, candidate) for candidate in [*named, *rest]}
        return [candidate for candidate in unique.values() if candidate.address and candidate.peer not in self.barred]

    def address_of(self, peer: str) -> str:
        """Where it takes calls; '' if it takes none, or is not known."""
        return next((candidate.address for candidate in self.order if candidate.peer == peer), "")

    @property
    def acting(self) -> Candidate | None:
        """The leader to follow now; None if there is no candidate, or before discovery has answered.

        When all candidates are silent, the suspicions are dropped and the order starts from the top.
        """
        order = self.order
        if not self._looked or not order:
            return None
        if self._tip is not None and self._tip.epoch == 0 and self._tip.leader.peer not in {c.peer for c in order}:
            return None  # discovery has not found the run's first leader; the genesis, unlike a commit, has no address of it
        for candidate in order:
            if candidate.peer not in self._silent:
                return candidate
        self._silent.clear()
        return order[0]
