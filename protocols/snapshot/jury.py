"""Whether a snapshot is what it says, by the word of the peers that were asked for one (pure).

A lineage names averages and no weights, so that a donor can give any weights under the true lineage. The organiser's own
auxiliary peer is trusted with them, as it is with where the run stands. Without it, donors with more than half of the votes must
have the same state. Where that cannot be told for long, since voters are away or cannot be dialled, most votes decide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from protocols.messages import Manifest
from protocols.round.history import has_majority, share_of


class Jury:
    """The peers of one search for state."""

    def __init__(self, anchor: str, votes: Mapping[str, float], asked: Collection[str]) -> None:
        """`votes`: of the lineage sought, as `history.electorate` gives them. `asked`: those that may yet offer, or did."""
        self.anchor = anchor
        # Where none of them has votes, each counts the same: a lineage's first epochs, or nobody tells its record.
        is_known = any(votes.get(peer) for peer in asked)
        total = sum(votes.values())
        self._votes = {peer: votes.get(peer, 0.0) / total if is_known else 1 / len(asked) for peer in asked}

    def share(self, peers: Iterable[str]) -> float:
        """The part of the votes that `peers` have, from 0 to 1."""
        return share_of(peers, self._votes)

    def is_carried(self, peers: Iterable[str]) -> bool:
        return has_majority(self.share(peers))

    def verdict(self, agree: Collection[str], disagree: Collection[str], *, waits: bool) -> bool | None:
        """Whether a state that `agree` have, and `disagree` do not, is right; None while that cannot be told and it `waits`."""
        if self.is_carried(agree) or self.is_carried(disagree):
            return self.is_carried(agree)
        return None if waits else self.share(agree) >= self.share(disagree)

    def is_enough(self, offers: Mapping[str, Manifest]) -> bool:
        """Whether nobody else needs to be waited for."""
        if self.anchor in self._votes:
            return self.anchor in offers
        return any(self.is_carried(holders(offers, offer.digest)) for offer in offers.values())

    def favourite(self, offers: Mapping[str, Manifest], best: Collection[str], target: Manifest | None) -> Manifest:
        """The snapshot to look at first: `target`, if somebody offers it; else that of the lineage with most votes behind it, of
        the anchor's if that is there; there the one that most votes, then most peers share, if it can be of a `best` peer."""
        eligible = list(offers.values())
        if self.anchor in offers:
            eligible = [offer for offer in eligible if offer.lineage == offers[self.anchor].lineage]

        def rank(offer: Manifest) -> tuple[bool, float, float, bool, int, int, str]:
            same = holders(offers, offer.digest)
            lineage = self.share(peer for peer, other in offers.items() if other.lineage == offer.lineage)
            return (
                offer == target,
                round(lineage, 9),
                round(self.share(same), 9),
                not same.isdisjoint(best),
                len(same),
                offer.epoch,
                offer.digest,
            )

        return max(eligible, key=rank)


def holders(offers: Mapping[str, Manifest], digest: str) -> set[str]:
    return {peer for peer, offer in offers.items() if offer.digest == digest}
