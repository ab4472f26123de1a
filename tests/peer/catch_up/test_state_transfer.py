"""Fetching state over real gRPC on loopback, from donors that are honest, slow, cut off, silent, or lying."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

import protocols.snapshot.fetch
from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.identity import Authority, Credentials, Key
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.snapshot.chunks import Manifest
from protocols.snapshot.fetch import SnapshotFetch
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.channels import Channels, admit, listen, peer_server, refuse
from protocols.transport.state_transfer import ask, chunk_part
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire
from protocols.wire.dugnad_pb2_grpc import PeerServicer, add_PeerServicer_to_server

RUN = "ab" * 32
CHUNK = 1 << 14


def snapshot(seed: int, chunks: int = 48) -> bytes:
    return b"".join(hashlib.sha256(f"{seed} {index}".encode()).digest() * (CHUNK // 32) for index in range(chunks))


SNAPSHOT = snapshot(0)


def manifest(content: bytes = SNAPSHOT, epoch: int = 3) -> Manifest:
    digests = tuple(hashlib.sha256(content[at : at + CHUNK]).digest() for at in range(0, len(content), CHUNK))
    return Manifest(epoch, "c" * 64, len(content), CHUNK, digests)


@dataclass
class KeptState(PeerServicer):  # type: ignore[misc]
    """Serves `content`; before each chunk it waits for `go(index)`, which may raise to end the stream there."""

    content: bytes = SNAPSHOT
    named: Manifest | None = None
    epoch: int = 3
    go: Callable[[int], Awaitable[None]] | None = None
    offering: Callable[[], Awaitable[None]] | None = None
    damage: Callable[[int, bytes], bytes] = lambda index, data: data
    sent: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    calls: int = 0

    @property
    def manifest(self) -> Manifest:
        return self.named or manifest(self.content, self.epoch)

    async def Offer(self, request: pb.OfferRequest, context: Any) -> pb.Manifest:
        await admit(context, RUN)
        self.asked.append(request.digest)
        if self.offering is not None:
            await self.offering()
        return to_wire(self.manifest)

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
        await admit(context, RUN)
        self.calls += 1
        for index in range(request.first_chunk, request.first_chunk + request.chunks):
            if self.go is not None:
                try:
                    await self.go(index)
                except ConnectionError:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.sent.append(index)
            part = chunk_part(self.manifest, self.content, index)
            part.chunk.data = self.damage(index, part.chunk.data)
            yield part


def credentials(authority: Authority) -> Credentials:
    key = Key.generate()
    return Credentials(key, authority.admit(key.request()), authority.pem)


class Table:
    """Donors that serve, and a joiner that fetches from them."""

    def __init__(self, channels: Channels, there: list[Candidate], max_bytes: int, progress: Callable[[int, int], None]) -> None:
        self.channels = channels
        self.there = there
        self.failed: dict[str, RemoteError] = {}
        self.fetch = SnapshotFetch(channels, max_bytes, progress, self.failed.__setitem__)

    async def run(self, *, best: Sequence[int] = ()) -> bytes:
        return await asyncio.wait_for(self.fetch.run(self.there, best={self.there[index].peer for index in best}), 30)

    def brought_by(self, index: int) -> int:
        return self.fetch.download.verified_by[self.there[index].peer]

    def failure(self, index: int) -> RemoteError | None:
        return self.failed.get(self.there[index].peer)


@contextlib.asynccontextmanager
async def table(
    folder: Path,
    *sources: KeptState,
    run: str = RUN,
    max_bytes: int = 1 << 24,
    pretend: str = "",
    outsider: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    bandwidth: Bandwidth | None = None,
) -> AsyncIterator[Table]:
    """`pretend` dials the donors under another id; `traffic` has the limits of whoever fetches."""
    authority = Authority.load_or_create(folder / "ours")
    async with contextlib.AsyncExitStack() as stack:
        there = []
        for kept_state in sources:
            theirs = credentials(authority)
            server, tls = peer_server(theirs)
            port = listen(server, tls, "127.0.0.1", 0)
            add_PeerServicer_to_server(kept_state, server)
            await server.start()
            stack.push_async_callback(server.stop, None)
            there.append(Candidate(pretend or theirs.peer_id, f"127.0.0.1:{port}"))
        mine = credentials(Authority.load_or_create(folder / "theirs") if outsider else authority)
        channels = Channels(replace(mine, authority=authority.pem), run, bandwidth)
        stack.push_async_callback(channels.aclose)
        yield Table(channels, there, max_bytes, progress)


def play(work: Callable[[], Awaitable[None]]) -> None:
    async def wait() -> None:
        await work()

    asyncio.run(wait())


def fetch(folder: Path, kept_state: KeptState, **options: Any) -> bytes:
    async def work() -> bytes:
        async with table(folder, kept_state, **options) as it:
            return await it.run()

    return asyncio.run(work())


# -- one donor -----------------------------------------------------------------------------------------------------------------


def test_an_honest_donor_is_believed_and_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert fetch(tmp_path, KeptState(), progress=lambda done, total: seen.append((done, total))) == SNAPSHOT
    assert seen[-1] == (len(SNAPSHOT), len(SNAPSHOT)) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_chunk_that_does_not_match_the_manifest_is_refused(tmp_path: Path) -> None:
    flipped = KeptState(damage=lambda index, data: data[:-1] + b"?" if index == 7 else data)
    with pytest.raises(BadMessageError, match="chunk 7 has another digest"):
        fetch(tmp_path, flipped)


def test_fewer_chunks_than_asked_for_are_refused(tmp_path: Path) -> None:
    class Short(KeptState):
        async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
            await admit(context, RUN)
            yield chunk_part(self.manifest, self.content, request.first_chunk)

    with pytest.raises(BadMessageError, match="fewer chunks"):
        fetch(tmp_path, Short())


def test_a_chunk_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    class Elsewhere(KeptState):
        async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
            await admit(context, RUN)
            yield chunk_part(self.manifest, self.content, 47)

    with pytest.raises(BadMessageError, match="not asked for"):
        fetch(tmp_path, Elsewhere())


def test_a_snapshot_larger_than_the_model_can_have_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    kept_state = KeptState()
    with pytest.raises(BadMessageError, match="more than this model can have"):
        fetch(tmp_path, kept_state, max_bytes=len(SNAPSHOT) - 1)
    assert kept_state.sent == []


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    class Liar(KeptState):
        async def Offer(self, request: pb.OfferRequest, context: Any) -> pb.Manifest:
            offer = await super().Offer(request, context)
            offer.total_bytes = 1 << 23
            return offer

    with pytest.raises(BadMessageError, match="Manifest"):
        fetch(tmp_path, Liar())


def test_a_donor_of_another_run_refuses_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refusal:
        fetch(tmp_path, KeptState(), run="cd" * 32)
    assert refusal.value.reason == "other-run"


def test_whoever_answers_in_anothers_name_is_not_spoken_to(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        fetch(tmp_path, KeptState(), pretend="0" * 32)


def test_a_peer_with_another_authoritys_certificate_is_not_let_in(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        fetch(tmp_path, KeptState(), outsider=True)


def test_a_peer_that_is_not_there_is_said_to_be_unreachable(tmp_path: Path) -> None:
    async def work() -> None:
        channels = Channels(credentials(Authority.load_or_create(tmp_path)), RUN)
        try:
            await ask(channels, Candidate("0" * 32, "127.0.0.1:1"))
        finally:
            await channels.aclose()

    with pytest.raises(RemoteError, match="cannot be reached"):
        play(work)


# -- many donors ---------------------------------------------------------------------------------------------------------------


class Turns:
    """Donors that are equally fast: none is more than a few chunks ahead of its third of what has arrived."""

    def __init__(self) -> None:
        self._arrived = 0
        self._moved = asyncio.Event()

    def progress(self, done: int, total: int) -> None:
        self._arrived = done // CHUNK
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, kept_state: KeptState) -> None:
        while len(kept_state.sent) > self._arrived // 3 + 2:
            await self._moved.wait()


def test_three_equal_donors_share_the_work(tmp_path: Path) -> None:
    async def work() -> None:
        turns = Turns()
        sources = [KeptState() for _ in range(3)]
        for kept_state in sources:
            kept_state.go = lambda index, kept_state=kept_state: turns.wait(kept_state)  # type: ignore[misc]
        async with table(tmp_path, *sources, progress=turns.progress) as it:
            assert await it.run() == SNAPSHOT
            shares = [it.brought_by(index) for index in range(3)]
            assert sum(shares) == 48 and max(shares) <= 0.6 * 48, shares
            assert not it.failed

    play(work)


def test_when_a_donor_dies_in_mid_stream_the_others_bring_the_rest_and_what_it_brought_stays(tmp_path: Path) -> None:
    async def work() -> None:
        dead = asyncio.Event()

        async def die_after_three(index: int) -> None:
            if len(mortal.sent) == 3:
                dead.set()
                raise ConnectionError

        async def wait_for_its_death(index: int) -> None:
            await dead.wait()

        mortal = KeptState(go=die_after_three)
        others = [KeptState(go=wait_for_its_death) for _ in range(2)]
        async with table(tmp_path, mortal, *others) as it:
            assert await it.run() == SNAPSHOT
            assert it.brought_by(0) == 3
            assert it.brought_by(1) + it.brought_by(2) == 45
            assert not set(mortal.sent) & {index for other in others for index in other.sent}
            assert isinstance(it.failure(0), UnreachableError) and len(it.failed) == 1

    play(work)


def test_a_donor_that_sends_a_wrong_chunk_is_dropped_by_name_and_the_chunk_comes_from_another(tmp_path: Path) -> None:
    async def work() -> None:
        lied = asyncio.Event()

        def lie(index: int, data: bytes) -> bytes:
            lied.set()
            return b"?" * len(data)

        async def wait_for_the_lie(index: int) -> None:
            await lied.wait()

        liar = KeptState(damage=lie)
        async with table(tmp_path, liar, KeptState(go=wait_for_the_lie), KeptState(go=wait_for_the_lie)) as it:
            assert await it.run() == SNAPSHOT
            assert it.brought_by(0) == 0 and liar.calls == 1
            problem = it.failure(0)
            assert isinstance(problem, BadMessageError) and it.there[0].peer[:8] in str(problem)

    play(work)


def test_a_chunk_over_which_two_donors_died_comes_from_the_third(tmp_path: Path) -> None:
    async def work() -> None:
        died, both_asked, both_died = [0], asyncio.Event(), asyncio.Event()

        async def asked() -> None:
            if all(kept_state.asked for kept_state in mortals):
                both_asked.set()

        async def die_over_the_first_chunk(index: int) -> None:
            if index == 0:
                died[0] += 1
                if died[0] == 2:
                    both_died.set()
                raise ConnectionError

        async def wait_for_their_death(index: int) -> None:
            await both_died.wait()

        async def last() -> None:
            await both_asked.wait()

        mortals = [KeptState(go=die_over_the_first_chunk, offering=asked) for _ in range(2)]
        async with table(tmp_path, *mortals, KeptState(go=wait_for_their_death, offering=last)) as it:
            assert await it.run() == SNAPSHOT
            assert died == [2] and len(it.failed) == 2

    play(work)


def test_a_donor_that_stands_still_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def work() -> None:
        reached = asyncio.Event()

        async def stand_still(index: int) -> None:
            if len(slow.sent) == 2:
                reached.set()
                await asyncio.Event().wait()

        async def wait_for_it(index: int) -> None:
            await reached.wait()

        slow = KeptState(go=stand_still)
        async with table(tmp_path, slow, KeptState(go=wait_for_it), KeptState(go=wait_for_it)) as it:
            assert await it.run() == SNAPSHOT, "nobody waited for its silence to be too long"
            assert it.brought_by(0) == 2 and not it.failed

    play(work)


def test_a_donor_that_falls_silent_is_dropped_with_that_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols.snapshot.fetch, "IDLE_S", 0.3)

    async def forever(index: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RefusedError) as silence:
        fetch(tmp_path, KeptState(go=forever))
    assert silence.value.reason == Reason.SILENT.value


def test_after_a_cut_only_what_is_missing_is_fetched(tmp_path: Path) -> None:
    async def work() -> None:
        cut = True

        async def go(index: int) -> None:
            if cut and index >= 20:
                raise ConnectionError

        sources = [KeptState(go=go), KeptState(go=go)]
        async with table(tmp_path, *sources) as it:
            with pytest.raises(UnreachableError):
                await it.run()
            before = [list(kept_state.sent) for kept_state in sources]
            held = it.fetch.download.bytes_done // CHUNK
            assert held >= 6
            cut = False
            assert await it.run() == SNAPSHOT
            for kept_state in sources:
                assert kept_state.asked == ["", manifest().digest], "it is told which one is under way"
            later = [index for kept_state, sent in zip(sources, before, strict=True) for index in kept_state.sent[len(sent) :]]
            verified = {index for sent in before for index in sent}
            assert len(set(later)) == 48 - held and not verified & set(later)

    play(work)


def test_when_the_target_is_gone_the_chunks_that_match_are_kept(tmp_path: Path) -> None:
    """The donors lost a fork: what they hold now is another state, parts of which are the same."""

    async def work() -> None:
        half = snapshot(0, 24)
        after = half + snapshot(1, 24)

        async def go(index: int) -> None:
            if kept_state.content is SNAPSHOT and index >= 36:
                raise ConnectionError

        kept_state = KeptState(go=go)
        async with table(tmp_path, kept_state) as it:
            with pytest.raises(UnreachableError):
                await it.run()
            assert it.fetch.download.bytes_done == 36 * CHUNK
            sent = len(kept_state.sent)
            kept_state.content, kept_state.epoch = after, 5
            assert await it.run() == after
            assert sorted(kept_state.sent[sent:]) == list(range(24, 48))

    play(work)


def test_a_donor_whose_snapshot_is_replaced_in_mid_stream_is_left_for_the_others(tmp_path: Path) -> None:
    async def work() -> None:
        gone = asyncio.Event()

        class Forgetful(KeptState):
            async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> AsyncIterator[pb.SnapshotPart]:
                await admit(context, RUN)
                yield chunk_part(self.manifest, self.content, request.first_chunk)
                gone.set()
                await refuse(context, Reason.SUPERSEDED, "this peer does not have that snapshot any more")

        async def wait(index: int) -> None:
            await gone.wait()

        async with table(tmp_path, Forgetful(), KeptState(go=wait)) as it:
            assert await it.run() == SNAPSHOT
            problem = it.failure(0)
            assert isinstance(problem, RefusedError) and problem.reason == Reason.SUPERSEDED.value

    play(work)


# -- which snapshot --------------------------------------------------------------------------------------------------------------


def test_the_snapshot_that_most_donors_share_is_taken(tmp_path: Path) -> None:
    async def work() -> None:
        sources = [KeptState(snapshot(9), epoch=9), KeptState(), KeptState()]
        async with table(tmp_path, *sources) as it:
            assert await it.run(best=(0, 1, 2)) == SNAPSHOT
            assert sources[0].sent == []

    play(work)


def test_among_those_that_equally_many_share_the_newest_is_taken(tmp_path: Path) -> None:
    async def work() -> None:
        async with table(tmp_path, KeptState(), KeptState(snapshot(9), epoch=9), KeptState(snapshot(5), epoch=5)) as it:
            assert await it.run() == snapshot(9)

    play(work)


def test_what_only_lighter_peers_offer_is_taken_only_when_the_furthest_offer_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        furthest, lighter = KeptState(snapshot(9), epoch=9), [KeptState(), KeptState()]
        async with table(tmp_path, furthest, *lighter) as it:
            assert await it.run(best=[0]) == snapshot(9)

        async def dead() -> None:
            raise ConnectionError

        async with table(tmp_path, KeptState(snapshot(9), offering=dead), *lighter) as it:
            assert await it.run(best=[0]) == SNAPSHOT

    play(work)


def test_a_download_under_way_goes_on_while_its_snapshot_is_to_be_had(tmp_path: Path) -> None:
    async def work() -> None:
        cut = True

        async def go(index: int) -> None:
            if cut and index >= 20:
                raise ConnectionError

        sources = [KeptState(go=go), KeptState(snapshot(9), epoch=1)]
        async with table(tmp_path, *sources) as it:
            with pytest.raises(UnreachableError):
                await it.run(best=[0])
            cut = False
            sources[1].epoch = 9
            assert await it.run() == SNAPSHOT and sources[1].sent == []

    play(work)


def test_who_offers_late_still_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols.snapshot.fetch, "GRACE_S", 0.01)

    async def work() -> None:
        begun, helped = asyncio.Event(), asyncio.Event()

        async def first(index: int) -> None:
            begun.set()
            if early.sent:
                await helped.wait()

        async def late(index: int) -> None:
            helped.set()

        early = KeptState(go=first)
        async with table(tmp_path, early, KeptState(go=late, offering=begun.wait)) as it:  # type: ignore[arg-type]
            assert await it.run() == SNAPSHOT
            assert it.brought_by(1) > 0

    play(work)


def test_with_nobody_to_ask_it_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with table(tmp_path) as it:
            with pytest.raises(UnreachableError, match="no peer offers"):
                await it.run()

    play(work)
