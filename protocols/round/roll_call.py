"""The peers that a leader must hear before it plans: one of them may hold a commit that the leader does not know (pure)."""

from __future__ import annotations

from collections.abc import Collection

# Members without an answer are asked again this often: meanwhile one may follow another leader, or lead itself.
ASK_EVERY_S = 0.5


class RollCall:
    """Waits for an answer of each peer asked, for `wait_s` seconds at most. Then a peer without an answer counts as silent."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._unheard: set[str] = set()
        self._until = self._again_at = 0.0

    def ask(self, peers: Collection[str], now: float) -> tuple[str, ...]:
        """Begin to wait for `peers`. Returns those to ask now, sorted."""
        if peers:
            self._unheard.update(peers)
            self._until = now + self._wait_s
            self._again_at = now + ASK_EVERY_S
        return tuple(sorted(peers))

    def ask_again(self, now: float) -> tuple[str, ...]:
        """The peers to ask once more now, sorted."""
        if not self._unheard or not self._again_at <= now < self._until:
            return ()
        self._again_at = now + ASK_EVERY_S
        return tuple(sorted(self._unheard))

    def heard(self, peer: str) -> None:
        """Stop waiting for `peer`: it answered, or cannot be dialled."""
        self._unheard.discard(peer)

    def is_over(self, now: float) -> bool:
        """Whether every peer has answered or its time is up. If so, the others are forgotten as silent."""
        if self._unheard and now < self._until:
            return False
        self._unheard.clear()
        return True
