"""The state that this peer keeps to give to others: snapshots, and the last commits with their results.

A snapshot is captured on the training thread, and served from memory on the network's loop. A peer that asks is offered a
snapshot that is at hand, if the commits since then are too. Donors that were asked lately capture at the same epochs, so that
they hold the same snapshots.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from peer.environment import Environment
from peer.training.side import TrainingSide
from protocols.errors import BadMessageError
from protocols.gradients.codecs import Bytes
from protocols.messages import Manifest
from protocols.round.records import SignedCommit, Standing, Tip
from protocols.snapshot.format import StateHeader, manifest_of

# Results of commits are kept for peers that miss one, or replay commits after a snapshot: `Sizes.kept_commits` of them, of so
# many bytes in all. While a snapshot is at hand, the commits since then are kept too, up to the size of the snapshot. A peer that
# fetches commits as fast as they come needs that many after its download; slower peers could never catch up.
KEPT_BYTES = 256 << 20
# A donor that was asked within this time goes on capturing, and keeps what it captured.
WANTED_S = 120.0
# A snapshot that was offered or fetched of within this time is in use.
UNUSED_S = 30.0
# Captures stop training; at the common epochs they may take this share of its time.
CAPTURE_SHARE = 0.01
# And this share when a joiner asks, and would have to replay more bytes than a new snapshot has.
ASKED_SHARE = 0.05
_log = logging.getLogger(__name__)
_Captured = concurrent.futures.Future[tuple[bytes, StateHeader, Tip]]


@dataclass(frozen=True)
class KeptCommit:
    signed: SignedCommit
    result: Bytes


@dataclass(eq=False)
class HeldSnapshot:
    manifest: Manifest
    snapshot: bytes
    standing: Standing
    captured_at: float
    used_at: float = float("-inf")  # last offered or fetched of
    joiners: dict[str, tuple[float, float]] = field(default_factory=dict)  # peer -> its first and its last request


class KeptState:
    """What this peer can give to others that catch up."""

    def __init__(self, training: TrainingSide, environment: Environment) -> None:
        self._replica = training.replica
        self._jobs = training.jobs
        self._clock = environment.clock
        self._sizes = environment.sizes
        self._held: list[HeldSnapshot] = []  # oldest first, at most two: for downloads under way, and for who comes next
        self._capturing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._commits: deque[KeptCommit] = deque()
        self._asked_at = float("-inf")
        self._capture_s = 0.0  # the last capture
        self._epoch_s = 0.0  # moving mean
        self._kept_at = 0.0
        self._moves = 0  # to other lineages

    # -- commits ---------------------------------------------------------------------------------------------------------------

    def keep(self, signed: SignedCommit, result: Bytes) -> None:
        """The newest commit, just applied; older ones go when there are too many. At least the newest stays, however large."""
        self._commits.append(KeptCommit(signed, result))
        while len(self._commits) > 1 and self._too_many():
            self._commits.popleft()
        now = self._clock()
        seconds = now - self._kept_at if self._kept_at else 0.0
        self._epoch_s = 0.8 * self._epoch_s + 0.2 * seconds if self._epoch_s else seconds
        self._kept_at = now
        self._release(now)
        wanted = now - self._asked_at < WANTED_S and len(self._in_use(now)) < 2
        if wanted and signed.commit.ballot.epoch % self.every_epochs == 0:
            # Handed over at once: before the next commit's step, so that the snapshot is of this very epoch.
            captured = self._jobs.put(self._capture)
            task = asyncio.get_running_loop().create_task(self._hold_in_turn(captured))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _too_many(self) -> bool:
        total_bytes = sum(len(kept.result) for kept in self._commits)
        if len(self._commits) <= self._sizes.kept_commits and total_bytes <= KEPT_BYTES:
            return False
        oldest = self._commits[0].signed.commit.ballot.epoch
        return not any(held.manifest.epoch < oldest and total_bytes <= len(held.snapshot) for held in self._held)

    def forget(self) -> None:
        """This peer moved to another lineage: what it kept does not lead there."""
        self._commits.clear()
        self._held.clear()
        self._moves += 1
        self._kept_at = self._epoch_s = 0.0

    def commits_after(self, lineage: str) -> Iterator[KeptCommit] | None:
        """The kept commits that lead on from `lineage`, oldest first; None when the chain does not reach back to it."""
        kept = list(self._commits)
        if kept and kept[-1].signed.commit.digest == lineage:
            return iter(())
        for index, item in enumerate(kept):
            if item.signed.commit.ballot.parent == lineage:
                return iter(kept[index:])
        return None

    def commit(self, lineage: str) -> KeptCommit | None:
        """The kept commit that led to `lineage`."""
        return next((kept for kept in self._commits if kept.signed.commit.digest == lineage), None)

    # -- snapshots ---------------------------------------------------------------------------------------------------------------

    @property
    def every_epochs(self) -> int:
        """The common epochs are the multiples of this: a power of two, so that donors that measure differently still share some.

        Long enough for the downloads seen so far, and for captures to take no more than their share of the time.
        """
        downloads = [last - first for held in self._held for first, last in held.joiners.values()]
        min_s = max([self._capture_s / CAPTURE_SHARE, *downloads])
        every = 1
        while self._epoch_s and every * self._epoch_s < min_s:
            every *= 2
        return every

    async def offer(self, digest: str, at_least: Standing | None, *, strictly: bool = False) -> Manifest | None:
        """The snapshot named `digest` if it is here and of use; else the newest that is of use and not old; else a new one.

        Of use is what is not lighter than `at_least` (with `strictly`: heavier) and can be followed by the commits kept. None
        when this peer's own state is not that far. Raises BadMessageError when its state is of no lineage.
        """

        def is_enough(standing: Standing) -> bool:
            return at_least is None or not (at_least.heavier_than(standing) or (strictly and standing == at_least))

        self._asked_at = self._clock()
        tip = self._replica.tip
        if tip is not None and not is_enough(tip.standing):
            return None
        async with self._capturing:
            found = self._of_use(digest, is_enough)
            if found is None or (found.manifest.digest != digest and self._is_old(found)):
                found = await self._hold(self._jobs.put(self._capture), self._moves)
        if found is None or not is_enough(found.standing):
            return None
        found.used_at = self._clock()
        return found.manifest

    def _of_use(self, digest: str, is_enough: Callable[[Standing], bool]) -> HeldSnapshot | None:
        tip = self._replica.tip
        of_use = [
            held
            for held in self._held
            if is_enough(held.standing)
            and (
                (tip is not None and tip.lineage == held.manifest.lineage)
                or self.commits_after(held.manifest.lineage) is not None
            )
        ]
        return max(of_use, key=lambda held: (held.manifest.digest == digest, held.standing.total_samples), default=None)

    def _is_old(self, held: HeldSnapshot) -> bool:
        """Whether the commits since then are larger than a new snapshot, and the last capture was long enough ago."""
        way_on = self.commits_after(held.manifest.lineage) or ()
        rested = self._clock() - self._held[-1].captured_at >= self._capture_s / ASKED_SHARE
        return rested and sum(len(kept.result) for kept in way_on) > len(held.snapshot)

    def fetched(self, peer: str, digest: str) -> HeldSnapshot | None:
        """The snapshot named `digest`, of which `peer` fetches chunks now; None if it is not here any more."""
        now = self._clock()
        for held in self._held:
            if held.manifest.digest == digest:
                held.used_at = now
                held.joiners[peer] = (held.joiners.get(peer, (now, now))[0], now)
                return held
        return None

    # -- capturing ---------------------------------------------------------------------------------------------------------------

    def _capture(self) -> tuple[bytes, StateHeader, Tip]:
        """On the training thread."""
        began = self._clock()
        captured = self._replica.capture()
        self._capture_s = self._clock() - began
        return captured

    async def _hold_in_turn(self, captured: _Captured) -> None:
        moves = self._moves
        async with self._capturing:
            try:
                await self._hold(captured, moves)
            except BadMessageError as error:
                _log.warning("no snapshot was captured: %s", error)

    async def _hold(self, captured: _Captured, moves: int) -> HeldSnapshot | None:
        """None when this peer has moved to another lineage meanwhile."""
        snapshot, header, tip = await asyncio.wrap_future(captured)
        manifest = await asyncio.to_thread(manifest_of, snapshot, header, self._sizes.snapshot_chunk_bytes)
        if moves != self._moves:
            return None
        for held in self._held:
            if held.manifest.digest == manifest.digest:
                return held
        held = HeldSnapshot(manifest, snapshot, tip.standing, captured_at=self._clock())
        self._held = [*self._in_use(held.captured_at)[-1:], held]
        return held

    def _in_use(self, now: float) -> list[HeldSnapshot]:
        return [held for held in self._held if now - held.used_at < UNUSED_S]

    def _release(self, now: float) -> None:
        """What nobody uses any more gives its memory back, the newest a little later."""
        newest = [held for held in self._held[-1:] if now - max(held.used_at, held.captured_at) < WANTED_S]
        self._held = [*(held for held in self._in_use(now) if held not in newest), *newest]
