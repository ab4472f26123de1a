"""Catching up: ask who is furthest, replay their commits if those reach back to here, else fetch a snapshot first."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from peer.catch_up.claims import Claims
from peer.catch_up.kept_state import KeptState
from peer.catch_up.pushed_snapshots import max_snapshot_bytes
from peer.catch_up.sources import Sources
from peer.catch_up.witnesses import Witnesses
from peer.environment import Environment
from peer.training.side import TrainingSide
from protocols.errors import BadMessageError, DriftError, RefusedError, RemoteError, UnreachableError
from protocols.reasons import Reason
from protocols.round.records import Candidate, SignedCommit, Standing, Tip
from protocols.round.strikes import Strikes
from protocols.round.vain_searches import VainSearches
from protocols.snapshot.commits import fetch_commits
from protocols.snapshot.fetch import SnapshotFetch
from protocols.snapshot.format import read_header
from protocols.transport.whereabouts import Whereabouts, ask_all

# Given up after so many tries in vain. The pause between two doubles from the first to the longest: two minutes in all.
TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 20, 0.25, 8.0
# After so many tries, half a minute, in which nobody at all has state, a peer takes back the state that it gave up. Whoever said
# that it was off may have lied to everybody; and if it is off, the others' drift checks will say so again.
TRIES_BEFORE_OWN = 8
# With a state of its own a peer looks for a heavier one for so long, about ten seconds, and then goes on where it is.
TRIES_WITH_STATE = 5
REPLAYS_A_TRY = 3
# A snapshot is fetched from at most so many donors at once.
DONORS_A_TRY = 8

_log = logging.getLogger(__name__)
Restored = Callable[[Tip], None]  # (the tip of a snapshot that was restored)
Advanced = Callable[[SignedCommit, Tip, bytes], None]  # (a commit that was replayed, the tip after it, its round's result)


class CatchUp:
    """This peer's search for the heaviest lineage."""

    def __init__(
        self,
        environment: Environment,
        training: TrainingSide,
        kept_state: KeptState,
        sources: Sources,
        claims: Claims,
        follows: Callable[[], str],
        events: Callable[..., None],
    ) -> None:
        """`follows`: this peer's leader, '' if there is none."""
        self._follows = follows
        self._environment = environment
        self._transport = environment.transport
        self._replica = training.replica
        self._jobs = training.jobs
        self._kept_state = kept_state
        self._sources = sources
        self._events = events
        self._vain_searches = VainSearches()
        self._claims = claims
        self._claimants = Strikes(free=0)  # peers that said they were further, and gave nothing, or were outvoted
        self.stranded = False  # it looks for state, and nobody who can be dialled has any
        # Both are of this search: peers that gave data that does not fit together; peers whose state is sound. If no peer is
        # known to be sound, every peer may give its state.
        self._distrusted: set[str] = set()
        self._sound: set[str] = set()
        # Where a replay showed drift. From a snapshot of that state, or of an older one, it would show the same again.
        self._drifted_at: Standing | None = None

    def worth(self, theirs: Standing, peer: str) -> bool:
        """Whether to look for this heavier lineage, of which `peer` speaks. A search in vain is not repeated at once."""
        now = self._environment.clock()
        return not self._claimants.rests(peer, now) and self._vain_searches.worth(theirs, now)

    async def run(self, reason: Reason, advanced: Advanced, restored: Restored, sound: Iterable[str] = ()) -> Tip:
        """Bring the replica to the heaviest lineage among the peers known; its tip.

        `advanced` hears of each replayed commit, `restored` of each snapshot.

        If one of the `sound` peers gives its state, nobody else is asked for one.

        If nobody is further than this replica, or can show it in TRIES_WITH_STATE tries, the tip is its own. Without a state of
        its own, this raises UnreachableError, which names the last problem, after TRIES tries in a row that brought nothing: no
        commit, and no chunk of a snapshot that was begun before.
        """
        self._events("catching_up", reason=reason)
        if reason is Reason.DRIFT:
            await self._forget()
        max_bytes = max_snapshot_bytes(self._replica.elements)
        self._witnesses = Witnesses(
            self._transport,
            self._environment.random,
            self._failed,
            anchor=self._replica.settings.genesis.leader.peer,
            parameters=frozenset(name for name, _ in self._replica.model.named_parameters()),
            steps=lambda epoch: self._replica.slices.age(epoch + 1),
        )
        fetch = SnapshotFetch(self._transport, max_bytes, self._environment.progress, self._failed, self._witnesses)
        self._distrusted, self._sound = set(), set(sound)
        self._drifted_at = None
        problem: RemoteError = UnreachableError("no peer answers that holds the run's state")
        vain, pause_s = 0, FIRST_PAUSE_S
        while vain < TRIES:
            found = await ask_all(self._transport, self._sources.reachable(), self._environment.random)
            self.stranded = not found
            before, target = self._replica.tip, (fetch.download.manifest, fetch.download.bytes_done)
            ahead, hidden = await self._ahead(found, before)
            if before is not None and not ahead and not hidden:
                self._arrived(before)
                return before
            if before is not None and vain >= TRIES_WITH_STATE:  # nobody shows what was claimed: a claim ends no peer
                for claimant in (*(there.peer.peer for there in ahead), *hidden):
                    self.doubt(claimant)
                self._arrived(before)
                return before
            if self.stranded and not hidden and vain >= TRIES_BEFORE_OWN:
                own = await self._jobs.run(self._replica.reinstate) if before is None else None
                if own is not None:
                    self._events("reinstated", epoch=own.epoch)
                    self._arrived(own)
                    return own
            try:
                await self._advance(ahead, hidden, fetch, advanced, restored)
            except RemoteError as error:
                problem = error
            except Exception as error:  # noqa: BLE001  a donor's doing: another one is tried
                _log.exception("catching up met what nobody foresaw")
                problem = BadMessageError(f"a donor sent what nobody foresaw ({type(error).__name__})")
            if self._got_on(before, target, fetch):
                vain, pause_s = 0, FIRST_PAUSE_S
            else:
                vain += 1
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise UnreachableError(
            f"this peer could not catch up with the run, after {TRIES} tries; the last problem: {problem}",
            remedy=problem.remedy or "Check this machine's connection, and that the coordinator runs; then join again.",
        )

    def doubt(self, claimant: str) -> None:
        """What it says to be heavier is left alone for a while, each time for longer."""
        self._claimants.strike(claimant, self._environment.clock())

    async def _ahead(self, found: list[Whereabouts], mine: Tip | None) -> tuple[list[Whereabouts], list[str]]:
        """Who stands on a lineage that is to take the place of `mine`: those that can be asked, and those that cannot."""
        if mine is None:
            return await self._right(found), [peer for peer, _ in self._sources.hidden()]
        stand = {**dict(self._sources.followers()), **{there.peer.peer: there.standing for there in found}}
        held: dict[str, bool] = {}  # by lineage

        async def is_ahead(peer: str, standing: Standing) -> bool:
            rests = self._claimants.rests(peer, self._environment.clock())
            if rests or standing.lineage == mine.lineage:
                return False
            if not standing.heavier_than(mine.standing) and not self._claims.may_lose(mine):
                return False
            if not held.get(standing.lineage):
                held[standing.lineage] = await self._claims.wins(peer, standing, self._follows(), stand)
            return held[standing.lineage]

        ahead = [there for there in found if await is_ahead(there.peer.peer, there.standing)]
        return ahead, [peer for peer, standing in self._sources.hidden() if await is_ahead(peer, standing)]

    async def _right(self, found: list[Whereabouts]) -> list[Whereabouts]:
        """Those on the lineage of which the coordinator speaks; all if none of them is, or it says nothing."""
        held: dict[str, bool] = {}  # by lineage
        for there in found:
            if not held.get(there.standing.lineage):
                held[there.standing.lineage] = await self._claims.wins(there.peer.peer, there.standing, "")
        right = [there for there in found if held[there.standing.lineage]]
        if found and not right:
            _log.warning("nobody shows that its lineage is the one of which the coordinator speaks")
        return right or found

    def _got_on(self, before: Tip | None, target: tuple[Any, int], fetch: SnapshotFetch) -> bool:
        """A new target alone is no progress: a download that begins anew for ever must be given up some time."""
        mine, (manifest, bytes_done) = self._replica.tip, target
        if mine is not None and (before is None or mine.lineage != before.lineage):
            return True
        return manifest is not None and fetch.download.manifest == manifest and fetch.download.bytes_done > bytes_done

    def _arrived(self, tip: Tip) -> None:
        self.stranded = False
        vain = self._vain_searches.ended(tip.standing, self._environment.clock())
        if vain is not None:
            standing, rest_s = vain
            samples = standing.total_samples
            self._events("left_alone", reason=Reason.NO_HOLDER, lineage=standing.lineage, samples=samples, seconds=rest_s)
        self._events("caught_up", epoch=tip.epoch, lineage=tip.lineage)

    def _failed(self, peer: str, problem: RemoteError) -> None:
        if isinstance(problem, BadMessageError):
            self._distrusted.add(peer)
        self._events("donor_failed", peer=peer, reason=_reason_of(problem), problem=str(problem))

    # -- ways to get on ----------------------------------------------------------------------------------------------------------

    async def _advance(
        self, ahead: list[Whereabouts], hidden: list[str], fetch: SnapshotFetch, advanced: Advanced, restored: Restored
    ) -> None:
        """By replay, else from a snapshot, else from one that is pushed. Raises RemoteError when nothing of it works."""
        problem: RemoteError = UnreachableError("nobody who is further gives its state")
        mine = self._replica.tip
        if not any(map(self._trusts, (*(there.peer.peer for there in ahead), *hidden))):  # whoever is left, then
            self._distrusted, self._sound = set(), set()
        trusted = [there for there in ahead if self._trusts(there.peer.peer)]
        for there in trusted[:REPLAYS_A_TRY]:
            try:
                if self._replica.tip is not None and await self._replay(there.peer, advanced):
                    self._claimants.helped(there.peer.peer)
                    return
            except RemoteError as error:
                problem = error
                self._failed(there.peer.peer, error)
        if trusted:
            anchor = [there for there in trusted[DONORS_A_TRY:] if there.peer.peer == self._witnesses.anchor]
            try:
                await self._take_snapshot([*trusted[: DONORS_A_TRY - len(anchor)], *anchor], fetch, restored)
                return
            except RemoteError as error:
                problem = error
        for peer in filter(self._trusts, hidden):
            try:
                restored(await self._restore(await self._sources.pushed_by(peer), mine.standing if mine is not None else None))
                return
            except RemoteError as error:
                problem = error
                self._failed(peer, error)
        raise problem

    def _trusts(self, peer: str) -> bool:
        """The organiser's own peer too: whoever says which states are sound may name its own kind."""
        is_sound = not self._sound or peer in (*self._sound, self._witnesses.anchor)
        return peer not in self._distrusted and is_sound

    async def _take_snapshot(self, donors: list[Whereabouts], fetch: SnapshotFetch, restored: Restored) -> None:
        furthest = {there.peer.peer for there in donors if there.standing == donors[0].standing}
        mine = self._replica.tip
        began = self._environment.clock()
        at_least = mine.standing if mine is not None else self._drifted_at
        if at_least is not None and not donors[0].standing.heavier_than(at_least):
            at_least = None  # more votes were given for their lineage
        candidates = [there.peer for there in donors]
        is_anchored = self._witnesses.anchor in {candidate.peer for candidate in candidates}
        votes = {} if is_anchored or len(candidates) == 1 else await self._claims.electorate(candidates, donors[0].standing)
        votes.pop(self._environment.me, None)  # it cannot be its own witness
        self._witnesses.ask(candidates, votes)
        snapshot = await fetch.run(candidates, best=furthest, at_least=at_least, strictly=True)
        shares = dict(fetch.download.verified_by)
        self._events("fetched", bytes=len(snapshot), chunks=shares, seconds=self._environment.clock() - began)
        fetch.download.forget()
        try:
            restored(await self._restore(snapshot, at_least))
        except BadMessageError as error:  # every chunk is what the manifest promised: so the peers that promised it are at fault
            for peer in shares:
                self._failed(peer, error)
            raise

    async def _restore(self, snapshot: bytes, at_least: Standing | None) -> Tip:
        header = read_header(snapshot)
        if at_least is not None and at_least.heavier_than(Standing(header.epoch, header.lineage, header.samples)):
            raise BadMessageError("the snapshot is of a state that is less far than this peer's own")
        tip: Tip = await self._jobs.run(functools.partial(self._replica.restore, snapshot))
        self._kept_state.forget()
        return tip

    async def _forget(self) -> None:
        """This peer's own state is off: nobody is to have it, this peer included."""
        await self._jobs.run(self._replica.forget)
        self._kept_state.forget()

    async def _replay(self, donor: Candidate, advanced: Advanced) -> bool:
        """False when the donor's commits do not reach back to this replica's tip."""
        assert self._replica.tip is not None
        commits = fetch_commits(self._transport, donor, self._replica.tip.lineage, self._replica.layout)
        try:
            async for signed, result in commits:
                self._environment.signer.verify(signed)
                tip = await self._apply(signed, result)
                if tip is None:
                    return False
                advanced(signed, tip, result)
        except RefusedError as error:
            if error.reason == Reason.OTHER_LINEAGE.value:
                return False
            raise
        finally:
            await commits.aclose()  # type: ignore[attr-defined]  # the call ends now, not when memory is collected
        return True

    async def _apply(self, signed: SignedCommit, result: bytes) -> Tip | None:
        """The tip after this commit; None when the state had to be given up. Raises BadMessageError when the commit is bad."""
        before = self._replica.tip
        try:
            tip: Tip = await self._jobs.run(functools.partial(self._replica.apply, signed, result))
        except DriftError as error:
            _log.warning("%s; taking a snapshot instead", error)
            self._drifted_at = before.standing if before is not None else None
        except RemoteError:
            raise
        except Exception:  # noqa: BLE001  whatever a failing device raises: the state is given up, and the cause is in the log
            _log.exception("replaying a commit failed; taking a snapshot instead")
        else:
            return tip
        await self._forget()
        return None


def _reason_of(problem: RemoteError) -> str:
    if isinstance(problem, RefusedError):
        return problem.reason
    return Reason.BAD_CHUNK.value if isinstance(problem, BadMessageError) else Reason.CONNECTION_LOST.value
