"""Whom a leader must have heard before it plans: somebody may hold a commit that it does not know of (pure)."""

from __future__ import annotations

from collections.abc import Collection

# Members that did not come are asked again this often: they may have begun to follow, or to be, another leader.
ASK_EVERY_S = 0.5


class RollCall:
    """Each question is open until it is answered, its peer cannot be dialled, or `wait_s` are over: it is silent then."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._unheard: set[str] = set()
        self._until = self._again_at = 0.0

    def ask(self, peers: Collection[str], now: float) -> tuple[str, ...]:
        """Those to ask now."""
        if peers:
            self._unheard.update(peers)
            self._until = now + self._wait_s
            self._again_at = now + ASK_EVERY_S
        return tuple(sorted(peers))

    def ask_again(self, now: float) -> tuple[str, ...]:
        if not self._unheard or not self._again_at <= now < self._until:
            return ()
        self._again_at = now + ASK_EVERY_S
        return tuple(sorted(self._unheard))

    def heard(self, peer: str) -> None:
        self._unheard.discard(peer)

    def is_over(self, now: float) -> bool:
        """From then on whoever did not answer is taken for silent."""
        if self._unheard and now < self._until:
            return False
        self._unheard.clear()
        return True

    def forget(self) -> None:
        self._unheard.clear()
