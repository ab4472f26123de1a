"""Reducers that this member could not reach: no plan gives it to them before it has dialled them again (pure)."""

from __future__ import annotations

from dataclasses import dataclass

# The first dial follows at once: the reducer may have started again. After each further failure the rest before the next dial
# doubles.
FIRST_REST_S, LONGEST_REST_S = 2.0, 600.0
MAX_REMEMBERED = 64


@dataclass
class _Failed:
    failures: int = 0  # since the last round that it served
    rests: bool = False  # not dialled successfully since the last failure
    dial_at: float = 0.0


class Unreached:
    """A member names these reducers in its reports, and the leader plans around the pairs. Times are on the clock of `now`."""

    def __init__(self) -> None:
        self._failed: dict[str, _Failed] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """For reports, sorted."""
        return tuple(sorted(peer for peer, it in self._failed.items() if it.rests))

    def failed(self, reducer: str, now: float) -> float:
        """Take note that a dial, or the exchange of a shard, failed. Returns the seconds until `due` names it."""
        it = self._failed.pop(reducer, None) or _Failed()
        rest_s = min(FIRST_REST_S * 2 ** min(it.failures - 1, 32), LONGEST_REST_S) if it.failures else 0.0
        self._failed[reducer] = _Failed(it.failures + 1, rests=True, dial_at=now + rest_s)
        if len(self._failed) > MAX_REMEMBERED:
            del self._failed[next(iter(self._failed))]
        return rest_s

    def due(self, now: float) -> tuple[str, ...]:
        """The reducers to dial now, sorted. Each is named once: answer with `reached`, `failed` or `postpone`."""
        due = tuple(sorted(peer for peer, it in self._failed.items() if it.rests and now >= it.dial_at))
        for peer in due:
            self._failed[peer].dial_at = float("inf")
        return due

    def postpone(self, reducer: str, now: float) -> None:
        """The dial told nothing: `due` names the reducer again soon, and the failures stay as many as they were."""
        if reducer in self._failed:
            self._failed[reducer].dial_at = now + FIRST_REST_S

    def reached(self, reducer: str) -> None:
        """The dial succeeded. The failures before it count until the reducer has served a round."""
        if reducer in self._failed:
            self._failed[reducer].rests = False

    def served(self, reducer: str) -> None:
        """The reducer has served a round."""
        it = self._failed.get(reducer)
        if it is not None and not it.rests:
            del self._failed[reducer]
