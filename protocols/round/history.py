"""Which of two lineages a peer stays on, or goes to: who voted for the commits in which the two differ (pure).

Samples are claimed, and so is a lineage's weight: an admitted peer can sign itself a chain as heavy as it likes. It cannot sign
for others. So each commit carries the votes of members that were ready for it. A vote weighs what its peer has committed in the
last epochs before the fork, on the lineage that both sides share. A side for which more than half of the votes were given, in
any of its commits, wins over one with fewer. Of two with more than half, or of two with fewer, the heavier wins; and so it does
where the voters are few, since then one of them may have half of the votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from protocols.round.records import Commit, SignedCommit, Tip
from protocols.round.weights import capped_weights

# Votes weigh by the samples of so many epochs.
RECENT_EPOCHS = 64
# No peer has more of the votes, unless two equal parts are more.
MAX_VOTES_SHARE = 0.25
MAJORITY = 0.5
FEWEST_VOTERS = 4


def electorate(commits: Sequence[Commit], founder: str) -> dict[str, float]:
    """Who may vote on what follows the last of `commits`, and what each vote weighs; sum 1.

    The peers whose samples are in the last RECENT_EPOCHS commits; before the first commit, `founder`, the run's first leader.
    """
    samples = Counter[str]()
    for commit in commits[-RECENT_EPOCHS:]:
        for contribution in commit.contributions:
            samples[contribution.peer] += contribution.weight
    if not samples:
        return {founder: 1.0}
    weights = capped_weights(list(samples.values()), MAX_VOTES_SHARE)
    return {peer: weight / sum(weights) for peer, weight in zip(samples, weights, strict=True)}


def share_of(peers: Iterable[str], votes: Mapping[str, float]) -> float:
    """The part of the electorate that `peers` are, from 0 to 1."""
    return sum(votes.get(peer, 0.0) for peer in set(peers))


def has_majority(share: float) -> bool:
    return share > MAJORITY


def follows_on(tip: Tip | None, commits: Sequence[SignedCommit]) -> bool:
    """Whether `commits` are a chain on `tip`, each with the weight, epoch and codec that follow from the one before.

    Without a `tip` the first is taken as it is.
    """
    for signed in commits:
        if tip is not None and not tip.leads_to(signed.commit, overlap=True):
            return False
        tip = Tip.after(signed.commit)
    return True


class Fork:
    """Where a chain of commits leaves the lineage that a peer has on record."""

    def __init__(self, record: Sequence[SignedCommit], tip: Tip, theirs: Sequence[SignedCommit], genesis: Tip) -> None:
        """`record` is the unbroken chain that ends at `tip`, oldest first, as far as it is known. `theirs` is another chain."""
        index_of = {signed.commit.digest: index for index, signed in enumerate(record)}
        self.theirs = [signed for signed in theirs if signed.commit.digest not in index_of]
        """The commits that are theirs alone."""

        at = self.theirs[0].commit.ballot.parent if self.theirs else tip.lineage
        root = record[0].commit.ballot.parent if record else tip.lineage
        self.is_known = at == root or at in index_of
        """False when the chain does not reach back to the record: nothing can be said of it."""

        shared = record[: index_of.get(at, -1) + 1] if self.is_known else record
        self.mine = record[len(shared) :]
        """The commits that are this peer's alone."""

        # Where the record begins at the fork, whoever takes part right after it has to stand for those who did before.
        self.votes = electorate(
            [signed.commit for signed in shared or (record if root != genesis.lineage else [])], genesis.leader.peer
        )
        """What each vote weighs."""

        base = Tip.after(shared[-1].commit) if shared else genesis if at == genesis.lineage else None
        self.is_sound = not self.is_known or follows_on(base, self.theirs)
        """False when the chain's weights or epochs do not add up."""

    @property
    def counts(self) -> bool:
        """Whether there are voters enough."""
        return self.is_known and len(self.votes) >= FEWEST_VOTERS

    def carried(self, commits: Sequence[SignedCommit]) -> bool:
        """Whether more than half of the votes were given for any of `commits`, one side of the fork."""
        return has_majority(share_of((vote.peer for signed in commits for vote in signed.votes), self.votes))

    @property
    def mine_wins(self) -> bool:
        """Whatever the weights are."""
        return self.counts and self.carried(self.mine) and not self.carried(self.theirs)

    @property
    def theirs_wins(self) -> bool:
        """Whatever the weights are."""
        return self.counts and self.carried(self.theirs) and not self.carried(self.mine)
