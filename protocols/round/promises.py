"""A member's promises on the lineages that it left: after a failed step it may come back to one of them (pure)."""

from __future__ import annotations

from protocols.round.records import Ballot, Tip

# Promises remembered, one for each lineage: as many as donors keep commits, and some to spare.
KEPT_PROMISES = 32


class Promises:
    """Remembers the highest ballot that the member promised on each lineage that it left."""

    def __init__(self) -> None:
        self._kept: dict[str, Ballot] = {}  # parent lineage -> ballot, oldest first

    def moved(self, promised: Ballot | None, here: Tip | None, there: Tip) -> Ballot | None:
        """Move from tip `here` to tip `there`: keep `promised`, which holds at `here`, and return what is promised at `there`."""
        if here is not None and here.lineage == there.lineage:
            return promised
        if promised is not None:
            self._kept[promised.parent] = promised
            for oldest in list(self._kept)[:-KEPT_PROMISES]:
                del self._kept[oldest]
        return self._kept.get(there.lineage)
