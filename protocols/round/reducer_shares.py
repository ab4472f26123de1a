"""How much of the vector each reducer may get: rates are claimed, so shares grow only with rounds that went well (pure)."""

from __future__ import annotations

from collections.abc import Mapping

# At most so many times an equal part at first, and so many times its last share afterwards.
GROWTH = 2.0
# After a round that took so many times as long as planned, a share shrinks by GROWTH, but not below an equal part.
LATE = 4.0
LATE_S = 1.0  # a shorter delay says nothing about lines


class ReducerShares:
    """Of the rounds that this leader committed. A new leader knows none, and begins with equal parts."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def most(self, peer: str, reducers: int) -> float:
        """The largest part of the vector that `peer`, one of `reducers`, may get in the next plan."""
        equal = 1 / max(1, reducers)
        return min(1.0, GROWTH * max(equal, self._last.get(peer, 0.0)))

    def reduced(self, fractions: Mapping[str, float], seconds: float, planned_s: float) -> None:
        """A round of these shares (reducer -> part of the vector) was committed; its transfers took `seconds`, where `planned_s`
        were planned (0: unknown)."""
        is_late = bool(planned_s) and seconds > max(LATE * planned_s, planned_s + LATE_S)
        self._last = {peer: fraction / GROWTH**2 if is_late else fraction for peer, fraction in fractions.items()}
