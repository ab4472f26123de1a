"""Giving and taking state: peer/donor.py and peer/catch_up.py at the level of messages, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from protocols.errors import BadMessageError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.simulation.messages import CommitsRequest, KeptCommit, NoMore, Refused, Snapshot, SnapshotRequest, Whereabouts
from protocols.simulation.network import Stream
from protocols.simulation.replica import ELEMENTS, DeviceError
from protocols.simulation.world import Later, Task

if TYPE_CHECKING:
    from protocols.simulation.process import SimulatedPeer

# As in peer/catch_up.py, peer/donor.py and protocols/transport/state_transfer.py.
TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 20, 0.25, 8.0
DONORS_A_TRY = 3
IDLE_S = 10.0
# Fewer than in production, so that peers fall off the end and need a snapshot.
KEPT_COMMITS = 4


class Donor:
    def __init__(self, process: SimulatedPeer) -> None:
        self._process = process
        self._commits: deque[KeptCommit] = deque(maxlen=KEPT_COMMITS)

    def keep(self, signed: Any, averaged: bytes) -> None:
        self._commits.append(KeptCommit(signed, averaged))

    def forget(self) -> None:
        self._commits.clear()

    def commits_after(self, lineage: str) -> list[KeptCommit] | None:
        kept = list(self._commits)
        if kept and kept[-1].signed.commit.digest == lineage:
            return []
        for index, item in enumerate(kept):
            if item.signed.commit.ballot.parent == lineage:
                return kept[index:]
        return None

    def serve_snapshot(self, stream: Stream) -> None:
        process = self._process
        if process.member.tip is None:
            stream.send(process, Refused(Reason.NOT_CAUGHT_UP))
            stream.close(process)
            return

        def captured() -> None:
            snapshot = process.replica.capture()
            stream.send(process, snapshot if snapshot is not None else Refused(Reason.NOT_CAUGHT_UP), 8.0 * ELEMENTS)
            stream.close(process)

        process.trainer.job(0.005, captured)

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


Way = Callable[["SimulatedPeer", str], Generator[Later, Any, bool]]


def catch_up(process: SimulatedPeer) -> Task:
    """Bring the replica to the heaviest lineage among those who answer; with nobody further, that is its own."""
    pause_s = FIRST_PAUSE_S
    for _ in range(TRIES):
        known = {candidate.peer: candidate for candidate in (*process.bootstrap, *process.succession.order)}
        found = yield from _ask_all(process, [candidate for peer, candidate in known.items() if peer != process.name])
        mine = process.replica.tip
        ahead = [there for there in found if mine is None or there.standing.heavier_than(mine.standing)]
        hidden = [peer for peer, theirs in process.uploads.hidden() if mine is None or theirs.heavier_than(mine.standing)]
        if mine is not None and not ahead and not hidden:
            process.caught_up()
            return
        ways: list[tuple[Way, str]] = [(_take_from, there.peer) for there in ahead[:DONORS_A_TRY]]
        ways += [(_be_brought, peer) for peer in hidden[:DONORS_A_TRY]]
        for take, donor in ways:
            if (yield from take(process, donor)):
                pause_s = FIRST_PAUSE_S
                break
        else:
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

    def __init__(self, process: SimulatedPeer, donor: str, kind: str, request: Any) -> None:
        self._process = process
        self._parts: deque[Any] = deque()
        self._waiting: Later | None = None
        self._stream = process.network.dial(process, donor, kind, request, self._got, lambda: self._got(None))

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


def _take_from(process: SimulatedPeer, donor: str) -> Generator[Later, Any, bool]:
    """Whether the donor gave what it was asked for."""
    if process.replica.tip is not None:
        replayed = yield from _replay(process, donor)
        if replayed is not None:
            return replayed
    fetch = _Fetch(process, donor, "snapshot", SnapshotRequest())
    snapshot = yield fetch.next()
    fetch.close()
    return (yield from _restore(process, snapshot))


def _be_brought(process: SimulatedPeer, peer: str) -> Generator[Later, Any, bool]:
    snapshot = yield process.uploads.request(peer)
    return (yield from _restore(process, snapshot))


def _restore(process: SimulatedPeer, snapshot: Any) -> Generator[Later, Any, bool]:
    if not isinstance(snapshot, Snapshot):
        return False
    yield _job(process, lambda: process.replica.restore(snapshot))
    process.observer.restored(process, snapshot.tip)
    process.donor.forget()
    return True


def _replay(process: SimulatedPeer, donor: str) -> Generator[Later, Any, bool | None]:
    """None when the donor's commits do not reach back to this replica's tip."""
    assert process.replica.tip is not None
    fetch = _Fetch(process, donor, "commits", CommitsRequest(process.replica.tip.lineage))
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
