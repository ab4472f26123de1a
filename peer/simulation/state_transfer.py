"""Giving and taking state: peer/catch_up/kept_state.py and peer/catch_up/catch_up.py at the level of messages, in virtual
time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peer.simulation.messages import (
    CommitsRequest,
    KeptCommit,
    NoMore,
    Offer,
    OfferRequest,
    Refused,
    Snapshot,
    SnapshotChunk,
    SnapshotRequest,
    Whereabouts,
)
from peer.simulation.network import Stream
from peer.simulation.replica import ELEMENTS, DeviceError
from peer.simulation.world import Later, Task, start
from protocols.errors import BadMessageError
from protocols.reasons import Reason
from protocols.round.member import Phase
from protocols.round.records import Candidate
from protocols.snapshot.chunks import Download, Manifest, choose

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer

# As in peer/catch_up/catch_up.py, peer/catch_up/kept_state.py and protocols/transport/.
TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 20, 0.25, 8.0
REPLAYS_A_TRY, DONORS_A_TRY = 3, 8
IDLE_S = 10.0
WANTED_S, UNUSED_S = 120.0, 30.0
CAPTURE_S = 0.005
# Fewer than in production, so that peers fall off the end and need a snapshot.
KEPT_COMMITS = 4
# Production measures how far apart the common epochs are.
EVERY_EPOCHS = 2
# Small, so that a snapshot comes from several donors.
CHUNK_BYTES = ELEMENTS
CHUNKS = 8


@dataclass(eq=False)
class HeldSnapshot:
    offer: Offer
    state: bytes
    used_at: float = float("-inf")


class KeptState:
    def __init__(self, process: SimulatedPeer) -> None:
        self._process = process
        self._commits: deque[KeptCommit] = deque(maxlen=KEPT_COMMITS)
        self._held: list[HeldSnapshot] = []
        self._asked_at = float("-inf")

    def keep(self, signed: Any, averaged: bytes) -> None:
        self._commits.append(KeptCommit(signed, averaged))
        wanted = self._process.now - self._asked_at < WANTED_S and len(self._in_use()) < 2
        if wanted and signed.commit.ballot.epoch % EVERY_EPOCHS == 0:
            self._process.trainer.job(CAPTURE_S, self._capture_unasked)

    def forget(self) -> None:
        self._commits.clear()
        self._held.clear()

    def commits_after(self, lineage: str) -> list[KeptCommit] | None:
        kept = list(self._commits)
        if kept and kept[-1].signed.commit.digest == lineage:
            return []
        for index, item in enumerate(kept):
            if item.signed.commit.ballot.parent == lineage:
                return kept[index:]
        return None

    def serve_offer(self, stream: Stream, request: OfferRequest) -> None:
        process = self._process

        def answer(held: HeldSnapshot | None) -> None:
            lighter = held is None or (request.at_least is not None and request.at_least.heavier_than(held.offer.tip.standing))
            if held is not None and not lighter:
                held.used_at = process.now
            stream.send(process, held.offer if held is not None and not lighter else Refused(Reason.BEHIND))
            stream.close(process)

        self._asked_at = process.now
        if process.member.tip is None or process.member.phase is Phase.CATCHING_UP:
            answer(None)
            return
        found = self._of_use(request)
        if found is not None:
            answer(found)
        else:
            process.trainer.job(CAPTURE_S, lambda: answer(self._capture()))

    def serve_chunks(self, stream: Stream, request: SnapshotRequest) -> None:
        process = self._process
        held = next((held for held in self._held if held.offer.manifest.digest == request.digest), None)
        if held is None:
            stream.send(process, Refused(Reason.SUPERSEDED))
        else:
            held.used_at = process.now
            for index in range(request.first_chunk, min(request.first_chunk + request.chunks, CHUNKS)):
                data = held.state[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                stream.send(process, SnapshotChunk(index, data), len(data))
        stream.close(process)

    def _of_use(self, request: OfferRequest) -> HeldSnapshot | None:
        of_use = [
            held
            for held in self._held
            if not (request.at_least is not None and request.at_least.heavier_than(held.offer.tip.standing))
            and (held.offer.tip == self._process.replica.tip or self.commits_after(held.offer.tip.lineage) is not None)
        ]
        return max(
            of_use, key=lambda held: (held.offer.manifest.digest == request.digest, held.offer.tip.total_samples), default=None
        )

    def _capture(self) -> HeldSnapshot | None:
        captured = self._process.replica.capture()
        if captured is None:
            return None
        state = captured.state.tobytes()
        digests = tuple(hashlib.sha256(state[at : at + CHUNK_BYTES]).digest() for at in range(0, len(state), CHUNK_BYTES))
        manifest = Manifest(captured.tip.epoch, captured.tip.lineage, len(state), CHUNK_BYTES, digests)
        held = HeldSnapshot(Offer(manifest, captured.tip, captured.commit), state)
        self._held = [*self._in_use()[-1:], held]
        return held

    def _capture_unasked(self) -> None:
        self._capture()

    def _in_use(self) -> list[HeldSnapshot]:
        return [held for held in self._held if self._process.now - held.used_at < UNUSED_S]

    def serve_commits(self, stream: Stream, after: str) -> None:
        process = self._process
        kept = self.commits_after(after)
        if kept is None:
            stream.send(process, Refused(Reason.OTHER_LINEAGE))
        else:
            for item in kept:
                stream.send(process, item, len(item.averaged))
            stream.send(process, NoMore())
        stream.close(process)


def catch_up(process: SimulatedPeer) -> Task:
    """Bring the replica to the heaviest lineage among those who answer; with nobody further, that is its own."""
    download = Download()
    vain, pause_s = 0, FIRST_PAUSE_S
    while vain < TRIES:
        known = {candidate.peer: candidate for candidate in (*process.bootstrap, *process.succession.order)}
        found = yield from _ask_all(process, [candidate for peer, candidate in known.items() if peer != process.name])
        process.stranded = not found
        before, target, bytes_done = process.replica.tip, download.manifest, download.bytes_done
        ahead = [there for there in found if before is None or there.standing.heavier_than(before.standing)]
        hidden = [
            peer for peer, theirs in process.pushed_snapshots.hidden() if before is None or theirs.heavier_than(before.standing)
        ]
        if before is not None and not ahead and not hidden:
            process.vain_searches.ended(before.standing, process.now)
            process.stranded = False
            process.caught_up()
            return
        took = bool(ahead) and (yield from _take_from(process, ahead, download))
        for peer in [] if took else hidden:
            if (yield from _be_brought(process, peer)):
                break
        mine = process.replica.tip
        got_on = mine is not None and (before is None or mine.standing.heavier_than(before.standing))
        if got_on or (target is not None and download.manifest == target and download.bytes_done > bytes_done):
            vain, pause_s = 0, FIRST_PAUSE_S
        else:
            vain += 1
            yield _sleep(process, pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    process.gives_up()


def _sleep(process: SimulatedPeer, seconds: float) -> Later:
    later = Later()
    process.world.at(seconds, process, later.set)
    return later


def _ask_all(process: SimulatedPeer, peers: list[Candidate]) -> Generator[Later, Any, list[Whereabouts]]:
    asked = [process.ask(candidate.peer) for candidate in peers]
    found = []
    for later in asked:
        answer = yield later
        if answer is not None and answer.caught_up:
            found.append(answer)
    process.world.random.shuffle(found)
    return sorted(found, key=lambda there: (-there.standing.total_samples, there.standing.lineage))


class _Fetch:
    """A stream read part by part; None when it broke or went idle."""

    def __init__(self, process: SimulatedPeer, kept_state: str, kind: str, request: Any) -> None:
        self._process = process
        self._parts: deque[Any] = deque()
        self._waiting: Later | None = None
        self._stream = process.network.dial(process, kept_state, kind, request, self._got, lambda: self._got(None))

    def next(self) -> Later:
        later = Later()
        if self._parts:
            later.set(self._parts.popleft())
        else:
            self._waiting = later
            self._process.world.at(IDLE_S, self._process, later.set)
        return later

    def close(self) -> None:
        self._stream.close(self._process)

    def _got(self, part: Any) -> None:
        if self._waiting is not None and not self._waiting.done:
            self._waiting.set(part)
        else:
            self._parts.append(part)


def _take_from(process: SimulatedPeer, ahead: list[Whereabouts], download: Download) -> Generator[Later, Any, bool]:
    """Whether somebody gave what was asked for."""
    for there in ahead[:REPLAYS_A_TRY]:
        if process.replica.tip is not None and (yield from _replay(process, there.peer)):
            return True
    return (yield from _take_snapshot(process, ahead[:DONORS_A_TRY], download))


def _take_snapshot(process: SimulatedPeer, donors: list[Whereabouts], download: Download) -> Generator[Later, Any, bool]:
    """As SnapshotFetch.run and CatchUp._take_snapshot."""
    mine, target = process.replica.tip, download.manifest
    request = OfferRequest(target.digest if target is not None else "", mine.standing if mine is not None else None)
    asked = {there.peer: _Fetch(process, there.peer, "offer", request) for there in donors}
    offers: dict[str, Offer] = {}
    for peer, fetch in asked.items():
        answer = yield fetch.next()
        fetch.close()
        if isinstance(answer, Offer):
            offers[peer] = answer
    if not offers:
        return False
    best = {there.peer for there in donors if there.standing == donors[0].standing}
    chosen = choose({peer: offer.manifest for peer, offer in offers.items()}, best, target)
    download.aim(chosen)
    sharers = [peer for peer, offer in offers.items() if offer.manifest.digest == chosen.digest]
    fetching = _Fetching(process, download)
    for peer in sharers if not download.done else ():
        start(fetching.pull(peer), process)
    if not download.done:
        yield fetching.over
    if not download.done:
        return False
    process.observer.downloaded(process, dict(download.verified_by))
    offer = offers[sharers[0]]
    state = np.frombuffer(download.snapshot())
    download.forget()
    return (yield from _restore(process, Snapshot(offer.tip, offer.commit, state)))


def _be_brought(process: SimulatedPeer, peer: str) -> Generator[Later, Any, bool]:
    snapshot = yield process.pushed_snapshots.request(peer)
    return isinstance(snapshot, Snapshot) and (yield from _restore(process, snapshot))


def _restore(process: SimulatedPeer, snapshot: Snapshot) -> Generator[Later, Any, bool]:
    yield _job(process, lambda: process.replica.restore(snapshot))
    process.observer.restored(process, snapshot.tip)
    process.kept_state.forget()
    return True


class _Fetching:
    """The donors of one download at work, each a task."""

    def __init__(self, process: SimulatedPeer, download: Download) -> None:
        self._process = process
        self._download = download
        self._at_work = 0
        self._idle: list[Later] = []
        self.over = Later()

    def pull(self, kept_state: str) -> Task:
        download = self._download
        self._at_work += 1
        download.join(kept_state)
        while not self.over.done:
            wanted = download.next(kept_state)
            if wanted is None:
                later = Later()
                self._idle.append(later)
                yield later
                continue
            assert download.manifest is not None
            request = SnapshotRequest(download.manifest.digest, wanted.first, wanted.count)
            fetch = _Fetch(self._process, kept_state, "snapshot", request)
            while not self.over.done and download.owes(kept_state):
                part = yield fetch.next()
                if self.over.done:
                    break
                if not isinstance(part, SnapshotChunk):
                    fetch.close()
                    self._lost(kept_state)
                    return
                if download.received(kept_state, part.index, part.data):
                    self._moved()
            fetch.close()

    def _lost(self, kept_state: str) -> None:
        self._download.leave(kept_state)
        self._at_work -= 1
        self._moved()

    def _moved(self) -> None:
        if self._download.done or not self._at_work:
            self.over.set()
        idle, self._idle = self._idle, []
        for later in idle:
            later.set()


def _replay(process: SimulatedPeer, kept_state: str) -> Generator[Later, Any, bool | None]:
    """None when the donor's commits do not reach back to this replica's tip."""
    assert process.replica.tip is not None
    fetch = _Fetch(process, kept_state, "commits", CommitsRequest(process.replica.tip.lineage))
    try:
        while True:
            part = yield fetch.next()
            if isinstance(part, Refused):
                return None
            if isinstance(part, NoMore):
                return True
            if part is None:
                return False
            if not (yield _job(process, lambda part=part: _apply(process, part))):
                return False
    finally:
        fetch.close()


def _apply(process: SimulatedPeer, kept: KeptCommit) -> bool:
    try:
        tip = process.replica.apply(kept.signed, kept.averaged)
    except (BadMessageError, DeviceError):
        process.observer.apply_failed(process)
        return False
    process.advanced(kept.signed, tip, kept.averaged)
    return True


def _job(process: SimulatedPeer, act: Any) -> Later:
    later = Later()
    process.trainer.job(0.005 * process.trainer.slowness, lambda: later.set(act()))
    return later
