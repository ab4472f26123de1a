"""Whether to leave for a heavier lineage: its commits are fetched first, without their results, and held against our own.

See protocols/round/history.py for the rule. It needs a fork. A longer lineage that builds on this peer's own tip, and that no
majority voted for, is waited with until a majority says that it has left: while it is here, its next commit makes the fork.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from peer.catch_up.sources import Sources
from peer.environment import Environment
from protocols.errors import RemoteError
from protocols.round.history import FEWEST_VOTERS, RECENT_EPOCHS, Fork, electorate, has_majority, share_of
from protocols.round.records import Candidate, SignedCommit, Standing, Tip
from protocols.snapshot.commits import chain_to, fetch_records
from protocols.transport.whereabouts import ask_all

# A lineage that has not grown for so many of its epochs, and so many seconds, is left for a longer one without a majority.
LIVE_EPOCHS, LIVE_S = 10.0, 60.0
_log = logging.getLogger(__name__)


class Claims:
    """Checks what others claim, for the peer whose state is at `tip()`."""

    def __init__(
        self,
        environment: Environment,
        genesis: Tip,
        sources: Sources,
        tip: Callable[[], Tip | None],
        record: Callable[[], Iterable[SignedCommit]],
        said: Callable[[], Standing | None] = lambda: None,
    ) -> None:
        """`record`: the commits that this peer has on record, of its own lineage and perhaps others. `said`: where the
        coordinator says that the run stands."""
        self._said = said
        self._environment = environment
        self._genesis = genesis
        self._sources = sources
        self._tip = tip
        self._record = record
        self._advanced_at = self._epoch_s = 0.0  # of the last commit; moving mean
        self._weak_at = -RECENT_EPOCHS  # the last epoch without a majority
        self._earlier: list[SignedCommit] = []  # on this peer's lineage, before those that it applied itself

    def advanced(self, signed: SignedCommit, now: float) -> None:
        """Take note of a commit that this peer applied, and of whether it was carried by a majority."""
        if self._advanced_at:
            newest = now - self._advanced_at
            self._epoch_s = 0.8 * self._epoch_s + 0.2 * newest if self._epoch_s else newest
        self._advanced_at = now
        record = chain_to(signed.commit.ballot.parent, [*self._earlier, *self._record()])
        fork = Fork(record, Tip.after(record[-1].commit) if record else self._genesis, [signed], self._genesis)
        if fork.counts and not fork.carried([signed]):
            self._weak_at = signed.commit.ballot.epoch

    def may_lose(self, tip: Tip) -> bool:
        """Whether a lighter lineage may have more votes: this one has a commit without a majority among its last."""
        return tip.epoch - self._weak_at < RECENT_EPOCHS

    async def wins(self, peer: str, theirs: Standing, follows: str, stand: Mapping[str, Standing] | None = None) -> bool:
        """Whether to leave this peer's lineage for `theirs`, of which `peer` speaks. `follows`: this peer's leader.

        `stand`: where peers said just now to stand; they are asked if that is needed and not given.
        """
        tip = self._tip()
        if tip is None:
            return await self._goes_on_from(self._said(), peer, theirs)
        heavier = theirs.heavier_than(tip.standing)
        record = chain_to(tip.lineage, [*self._earlier, *self._record()])
        chain = await self._chain(peer, theirs, tip)
        fork = Fork(record, tip, chain, self._genesis)
        if not fork.is_sound:
            _log.warning("%s speaks of a lineage whose commits do not add up", peer[:8])
            return False
        if not chain or not fork.is_known:
            return heavier and not await self._is_majority(fork, tip, peer, theirs, stand, here=True)
        if fork.mine:
            return fork.theirs_wins or (heavier and not (fork.mine_wins and self._is_live()))
        if not heavier or fork.carried(fork.theirs) or peer == follows or not self._is_live():
            return heavier
        return len(fork.votes) < FEWEST_VOTERS or await self._is_majority(fork, tip, peer, theirs, stand, here=False)

    async def _goes_on_from(self, said: Standing | None, peer: str, theirs: Standing) -> bool:
        """Whether `theirs` is where the coordinator says that the run stands, or follows on it by a majority's votes."""
        if said is None or said.lineage in (theirs.lineage, self._genesis.lineage):
            return True
        candidate = self._sources.candidate(peer)
        if candidate is None:
            return False
        try:
            records = await self._fetch(candidate, max(0, said.epoch - RECENT_EPOCHS), theirs.lineage)
        except RemoteError as error:
            _log.info("%s does not show how it came to its lineage: %s", peer[:8], error)
            return False
        chain = chain_to(theirs.lineage, records)
        digests = [signed.commit.digest for signed in chain]
        if said.lineage not in digests:
            return False
        record = chain[: digests.index(said.lineage) + 1]
        fork = Fork(record, Tip.after(record[-1].commit), chain, self._genesis)
        return fork.is_sound and (not fork.counts or fork.carried(fork.theirs))

    def _is_live(self) -> bool:
        """Whether the lineage grew a short while ago. If a majority is on it, its next commit will say who is right. If it does
        not grow, those who voted for it have gone, perhaps to the other side."""
        return self._environment.clock() - self._advanced_at < max(LIVE_S, LIVE_EPOCHS * self._epoch_s)

    async def _is_majority(
        self, fork: Fork, tip: Tip, peer: str, theirs: Standing, stand: Mapping[str, Standing] | None, *, here: bool
    ) -> bool:
        """Whether peers with a majority of the votes say that they stand at this peer's tip (`here`) or elsewhere (not `here`).

        Peers that cannot be asked count for neither. False among fewer than FEWEST_VOTERS voters.
        """
        stand = {**(stand if stand is not None else await self._ask()), self._environment.me: tip.standing, peer: theirs}
        such = (other for other, standing in stand.items() if (standing.lineage == tip.lineage) == here)
        return len(fork.votes) >= FEWEST_VOTERS and has_majority(share_of(such, fork.votes))

    async def _ask(self) -> dict[str, Standing]:
        found = await ask_all(self._environment.transport, self._sources.reachable(), self._environment.random)
        return {**dict(self._sources.followers()), **{there.peer.peer: there.standing for there in found}}

    async def _chain(self, peer: str, theirs: Standing, tip: Tip) -> list[SignedCommit]:
        """The commits that lead to `theirs`, as far back as needed, as far as `peer` has them; none if it does not tell them."""
        candidate = self._sources.candidate(peer)
        chain = list[SignedCommit]()
        if candidate is None:
            return chain
        for after in sorted({tip.epoch, max(0, tip.epoch - RECENT_EPOCHS), 0}, reverse=True):
            try:
                records = await self._fetch(candidate, after, theirs.lineage)
            except RemoteError as error:
                _log.info("%s does not show how it came to its lineage: %s", peer[:8], error)
                return []
            chain = chain_to(theirs.lineage, records)
            if chain and self._reaches_back(chain, tip):
                break
        return chain

    def _reaches_back(self, chain: Sequence[SignedCommit], tip: Tip) -> bool:
        known = {signed.commit.digest for signed in (*self._earlier, *self._record())} | {tip.lineage, self._genesis.lineage}
        return chain[0].commit.ballot.parent in known

    async def recall(self, tip: Tip) -> None:
        """Learn who took part before `tip`, where this peer has arrived with a snapshot."""
        record = chain_to(tip.lineage, [*self._earlier, *self._record()])
        if len(record) >= min(RECENT_EPOCHS, tip.epoch):
            self._earlier = record
            return
        self._earlier = []
        for candidate in self._sources.reachable():
            try:
                records = await self._fetch(candidate, max(0, tip.epoch - RECENT_EPOCHS), tip.lineage)
            except RemoteError as error:
                _log.info("no records from %s: %s", candidate.peer[:8], error)
                continue
            self._earlier = max(self._earlier, chain_to(tip.lineage, records), key=len)
            if len(self._earlier) >= min(RECENT_EPOCHS, tip.epoch):
                return

    async def electorate(self, holders: Iterable[Candidate], at: Standing) -> dict[str, float]:
        """What the votes of peers weigh at `at`, by the longest record of it that a holder tells; nothing if none does.

        A record is as true as the lineage: each commit names the one before.
        """

        async def chain_of(candidate: Candidate) -> list[SignedCommit]:
            try:
                return chain_to(at.lineage, await self._fetch(candidate, max(0, at.epoch - RECENT_EPOCHS), at.lineage))
            except RemoteError as error:
                _log.info("no records from %s: %s", candidate.peer[:8], error)
                return []

        chains = await asyncio.gather(*map(chain_of, holders))
        longest = max(chains, key=len, default=[])
        return electorate([signed.commit for signed in longest], self._genesis.leader.peer) if longest else {}

    async def _fetch(self, candidate: Candidate, after: int, lineage: str) -> list[SignedCommit]:
        environment = self._environment
        return await fetch_records(environment.transport, candidate, environment.signer, after, lineage)
