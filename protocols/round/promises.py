"""The ballots that a member promised itself to, of the lineages that it left: a step that fails may lead back to one (pure)."""

from __future__ import annotations

from protocols.round.records import Ballot, Tip

# Lineages of which a promise is remembered: as many as donors keep commits, and some to spare.
KEPT_PROMISES = 32


class Promises:
    def __init__(self) -> None:
        self._kept: dict[str, Ballot] = {}  # by parent, the one left last at the end

    def moved(self, promised: Ballot | None, here: Tip | None, there: Tip) -> Ballot | None:
        """What is promised `there`; `promised` was `here`, which is left unless it is the same lineage."""
        if here is not None and here.lineage == there.lineage:
            return promised
        if promised is not None:
            self._kept[promised.parent] = promised
            for oldest in list(self._kept)[:-KEPT_PROMISES]:
                del self._kept[oldest]
        return self._kept.get(there.lineage)
