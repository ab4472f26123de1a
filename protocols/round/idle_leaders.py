"""Leaders that let their followers wait: they are passed over for a while, each time for longer (pure).

Times are on the clock of `now`. A leader may have good reasons to wait: its roll call, stragglers, peers that left. So each
limit is far above what these take. It is short only where the batch is full for all that this peer knows.
"""

from __future__ import annotations

from collections import deque

from protocols.round.strikes import Strikes

# A full batch waits for a plan no longer than so many epochs, and any batch no longer than so many; at least so many seconds.
FULL_EPOCHS, FULL_S = 3.0, 20.0
ANY_EPOCHS, ANY_S = 10.0, 60.0
MOST_ATTEMPTS = 10  # of one leader, none of which brought a commit
KEPT_ENDED = 256
NEWEST_SHARE = 0.3  # of the newest epoch in the moving mean


class IdleLeaders:
    """One follower's view of the leader that it follows, and of those that it left."""

    def __init__(self) -> None:
        self._leader = ""
        self._committed_at = self._since = self._full_since = 0.0
        self._epoch_s = 0.0  # moving mean; 0 before the second commit
        # Of the leader that is followed: attempts since the last commit, and when that was, or when it was first followed.
        self._attempts, self._waits_since = 0, 0.0
        self._strikes = Strikes(free=0)
        self._ended: deque[str] = deque(maxlen=KEPT_ENDED)  # digests of plans

    def committed(self, leader: str, now: float) -> None:
        """Take note of a commit, by `leader`."""
        if self._committed_at:
            newest = now - self._committed_at
            self._epoch_s = (1 - NEWEST_SHARE) * self._epoch_s + NEWEST_SHARE * newest if self._epoch_s else newest
        self._committed_at = now
        self._strikes.helped(leader)
        self._attempts, self._waits_since = 0, now
        self.counts_from(now)

    def planned(self, now: float) -> None:
        """Take note of a plan of the leader that is followed."""
        self._attempts += 1
        self.counts_from(now)

    def counts_from(self, now: float) -> None:
        """There is a plan, or this peer was away: the time counts anew."""
        self._since = self._full_since = now

    def idle(self, leader: str, *, is_full: bool, now: float) -> float:
        """Seconds without a commit after which `leader` is to be left now; 0 while it is not. `is_full`: there are samples for
        a whole batch."""
        if leader != self._leader:
            self._leader, self._attempts, self._waits_since = leader, 0, now
            self.counts_from(now)
        if not is_full:
            self._full_since = now
        full_s, any_s = now - self._full_since, now - self._since
        too_long = full_s > max(FULL_S, FULL_EPOCHS * self._epoch_s)
        too_long = too_long or (self._epoch_s > 0 and any_s > max(ANY_S, ANY_EPOCHS * self._epoch_s))
        if not too_long and self._attempts <= MOST_ATTEMPTS:
            return 0.0
        self._strikes.strike(leader, now)
        self._attempts = 0
        self.counts_from(now)
        return now - self._waits_since

    def ended(self, plan_digest: str) -> None:
        """Take note that the leader said that this attempt is over."""
        self._ended.append(plan_digest)

    def lied(self, leader: str, plan_digest: str, now: float) -> bool:
        """Whether `leader`, which committed this plan, had said that the attempt is over. Then it is left."""
        if plan_digest not in self._ended:
            return False
        self._ended.remove(plan_digest)
        self._strikes.strike(leader, now)
        return True

    def rests(self, leader: str, now: float) -> bool:
        """Whether to pass `leader` over."""
        return self._strikes.rests(leader, now)
