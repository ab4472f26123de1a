"""Fetching a snapshot from donors that are honest, slow, cut off, silent, or lying; in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.messages import Chunk, Manifest, OfferRequest, SnapshotRequest
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.snapshot.fetch import IDLE_S, SnapshotFetch
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import Stream, refusal
from tests.peer.virtual import Net

CHUNK = 1 << 14


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as made:
        yield made


def snapshot(seed: int, chunks: int = 48) -> bytes:
    return b"".join(hashlib.sha256(f"{seed} {index}".encode()).digest() * (CHUNK // 32) for index in range(chunks))


SNAPSHOT = snapshot(0)


def manifest(content: bytes = SNAPSHOT, epoch: int = 3) -> Manifest:
    digests = tuple(hashlib.sha256(content[at : at + CHUNK]).digest() for at in range(0, len(content), CHUNK))
    return Manifest(epoch, "c" * 64, len(content), CHUNK, digests)


async def until(condition: Callable[[], object]) -> None:
    """Looks again every millisecond of virtual time: donors run on loops of their own."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@dataclass
class Donor:
    """Serves `content`. Before each chunk it waits for `go(index)`, which may raise to break the stream off there."""

    content: bytes = SNAPSHOT
    epoch: int = 3
    go: Callable[[int], Awaitable[None]] | None = None
    offering: Callable[[], Awaitable[None]] | None = None
    damage: Callable[[int, bytes], bytes] = lambda index, data: data
    sent: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    calls: int = 0

    async def serve(self, stream: Stream, opening: Any) -> None:
        if isinstance(opening, OfferRequest):
            self.asked.append(opening.digest)
            if self.offering is not None:
                await self.offering()
            await stream.send(manifest(self.content, self.epoch))
        else:
            assert isinstance(opening, SnapshotRequest)
            self.calls += 1
            await self.chunks(stream, opening)

    async def chunks(self, stream: Stream, request: SnapshotRequest) -> None:
        for index in range(request.first_chunk, request.first_chunk + request.chunks):
            if self.go is not None:
                await self.go(index)
            self.sent.append(index)
            await stream.send(Chunk(index * CHUNK, self.damage(index, self.chunk(index).data)))

    def chunk(self, index: int) -> Chunk:
        return Chunk(index * CHUNK, self.content[index * CHUNK : (index + 1) * CHUNK])

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        raise AssertionError("snapshots do not come over bulk connections")


def gone() -> UnreachableError:
    return UnreachableError("gone")


class Table:
    """Donors that serve, and a joiner that fetches from them."""

    def __init__(
        self,
        net: Net,
        *donors: Donor,
        max_bytes: int = 1 << 24,
        progress: Callable[[int, int], None] = lambda done, total: None,
        max_download: float | None = None,
        max_upload: float | None = None,
        line_bytes_s: float = 1e9,
    ) -> None:
        """`line_bytes_s`: how fast each donor's line is."""
        nodes = [net.node(f"donor-{index}", donor) for index, donor in enumerate(donors)]
        for node in nodes:
            node.machine.up_bytes_s = line_bytes_s
        self.there = [node.candidate for node in nodes]
        limits = {"max_download_bytes_s": max_download, "max_upload_bytes_s": max_upload}
        self.joiner = net.node("joiner", bandwidth=lambda clock: Bandwidth(**limits, clock=clock))
        self.failed: dict[str, RemoteError] = {}
        self._fetch: SnapshotFetch | None = None
        self._options = (max_bytes, progress, self.failed.__setitem__)

    @property
    def fetch(self) -> SnapshotFetch:
        """One search: its chunks stay from run to run. It belongs to the joiner's loop."""
        if self._fetch is None:
            with self.joiner.loop.running():
                self._fetch = SnapshotFetch(self.joiner.transport, *self._options)
        return self._fetch

    def run(self, *, best: Sequence[int] = ()) -> bytes:
        return self.joiner.play(self.fetch.run(self.there, best={self.there[index].peer for index in best}))

    def brought_by(self, index: int) -> int:
        return self.fetch.download.verified_by[self.there[index].peer]

    def failure(self, index: int) -> RemoteError | None:
        return self.failed.get(self.there[index].peer)


# -- one donor -----------------------------------------------------------------------------------------------------------------


def test_an_honest_donor_is_believed_and_progress_is_told(net: Net) -> None:
    seen: list[tuple[int, int]] = []
    assert Table(net, Donor(), progress=lambda done, total: seen.append((done, total))).run() == SNAPSHOT
    assert seen[-1] == (len(SNAPSHOT), len(SNAPSHOT)) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_chunk_that_does_not_match_the_manifest_is_refused(net: Net) -> None:
    flipped = Donor(damage=lambda index, data: data[:-1] + b"?" if index == 7 else data)
    with pytest.raises(BadMessageError, match="chunk 7 has another digest"):
        Table(net, flipped).run()


def test_fewer_chunks_than_asked_for_are_refused(net: Net) -> None:
    class Short(Donor):
        async def chunks(self, stream: Stream, request: SnapshotRequest) -> None:
            await stream.send(self.chunk(request.first_chunk))

    with pytest.raises(BadMessageError, match="fewer chunks"):
        Table(net, Short()).run()


def test_a_chunk_that_was_not_asked_for_is_refused(net: Net) -> None:
    class Elsewhere(Donor):
        async def chunks(self, stream: Stream, request: SnapshotRequest) -> None:
            await stream.send(self.chunk(47))

    with pytest.raises(BadMessageError, match="not asked for"):
        Table(net, Elsewhere()).run()


def test_what_is_no_chunk_ends_the_donors_part(net: Net) -> None:
    class Confused(Donor):
        async def chunks(self, stream: Stream, request: SnapshotRequest) -> None:
            await stream.send(manifest())

    with pytest.raises(BadMessageError, match="fewer chunks"):
        Table(net, Confused()).run()


def test_a_snapshot_larger_than_the_model_can_have_is_refused_before_it_is_fetched(net: Net) -> None:
    donor = Donor()
    with pytest.raises(BadMessageError, match="more than this model can have"):
        Table(net, donor, max_bytes=len(SNAPSHOT) - 1).run()
    assert donor.sent == []


def test_a_donor_that_is_not_there_is_said_to_be_unreachable(net: Net) -> None:
    table = Table(net)
    table.there = [Candidate("nobody", "nobody:1")]
    with pytest.raises(UnreachableError):
        table.run()


# -- limits ----------------------------------------------------------------------------------------------------------------------

LIMIT = 1e4  # bytes/s: a snapshot takes more than a minute
SNAPSHOT_S = pytest.approx(len(SNAPSHOT) / LIMIT, rel=0.05)


@pytest.mark.parametrize("donors", [1, 2])
def test_a_snapshot_is_downloaded_no_faster_than_allowed_however_many_donors_share(net: Net, donors: int) -> None:
    assert Table(net, *(Donor() for _ in range(donors)), max_download=LIMIT).run() == SNAPSHOT
    assert net.world.now == SNAPSHOT_S


def test_a_limit_on_uploads_does_not_slow_a_download(net: Net) -> None:
    assert Table(net, Donor(), max_upload=LIMIT).run() == SNAPSHOT
    assert net.world.now < 5.0


# -- many donors ---------------------------------------------------------------------------------------------------------------


def test_three_equal_donors_share_the_work(net: Net) -> None:
    table = Table(net, *(Donor() for _ in range(3)), line_bytes_s=1e5)
    assert table.run() == SNAPSHOT
    shares = [table.brought_by(index) for index in range(3)]
    assert sum(shares) == 48 and max(shares) <= 0.6 * 48, shares
    assert not table.failed


def test_when_a_donor_dies_in_mid_stream_the_others_bring_the_rest_and_what_it_brought_stays(net: Net) -> None:
    async def die_after_three(index: int) -> None:
        if len(mortal.sent) == 3:
            dead.append(index)
            raise gone()

    async def wait_for_its_death(index: int) -> None:
        await until(lambda: dead)

    dead: list[int] = []
    mortal = Donor(go=die_after_three)
    others = [Donor(go=wait_for_its_death) for _ in range(2)]
    table = Table(net, mortal, *others)
    assert table.run() == SNAPSHOT
    assert table.brought_by(0) == 3
    assert table.brought_by(1) + table.brought_by(2) == 45
    assert not set(mortal.sent) & {index for other in others for index in other.sent}
    assert isinstance(table.failure(0), UnreachableError) and len(table.failed) == 1


def test_a_donor_that_sends_a_wrong_chunk_is_dropped_by_name_and_the_chunk_comes_from_another(net: Net) -> None:
    lied: list[int] = []

    def lie(index: int, data: bytes) -> bytes:
        lied.append(index)
        return b"?" * len(data)

    async def wait_for_the_lie(index: int) -> None:
        await until(lambda: lied)

    liar = Donor(damage=lie)
    table = Table(net, liar, Donor(go=wait_for_the_lie), Donor(go=wait_for_the_lie))
    assert table.run() == SNAPSHOT
    assert table.brought_by(0) == 0 and liar.calls == 1
    problem = table.failure(0)
    assert isinstance(problem, BadMessageError) and table.there[0].peer[:8] in str(problem)


def test_a_chunk_over_which_two_donors_died_comes_from_the_third(net: Net) -> None:
    died: list[int] = []

    async def die_over_the_first_chunk(index: int) -> None:
        if index == 0:
            died.append(index)
            raise gone()

    async def wait_for_their_death(index: int) -> None:
        await until(lambda: len(died) == 2)

    async def last() -> None:
        await until(lambda: all(mortal.asked for mortal in mortals))

    mortals = [Donor(go=die_over_the_first_chunk) for _ in range(2)]
    table = Table(net, *mortals, Donor(go=wait_for_their_death, offering=last))
    assert table.run() == SNAPSHOT
    assert len(died) == 2 and len(table.failed) == 2


def test_a_donor_that_stands_still_does_not_hold_up_the_end(net: Net) -> None:
    async def stand_still(index: int) -> None:
        if len(slow.sent) == 2:
            stands.append(index)
            await asyncio.Event().wait()

    async def wait_for_it(index: int) -> None:
        await until(lambda: stands)

    stands: list[int] = []
    slow = Donor(go=stand_still)
    table = Table(net, slow, Donor(go=wait_for_it), Donor(go=wait_for_it))
    assert table.run() == SNAPSHOT
    assert net.world.now < IDLE_S, "nobody waited for its silence to be too long"
    assert table.brought_by(0) == 2 and not table.failed


def test_a_donor_that_falls_silent_is_dropped_with_that_reason(net: Net) -> None:
    async def forever(index: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RefusedError) as silence:
        Table(net, Donor(go=forever)).run()
    assert silence.value.reason == Reason.SILENT.value
    assert IDLE_S < net.world.now < IDLE_S + 2


def test_after_a_cut_only_what_is_missing_is_fetched(net: Net) -> None:
    async def go(index: int) -> None:
        if cut and index >= 20:
            raise gone()

    cut, donors = [True], [Donor(go=go), Donor(go=go)]
    table = Table(net, *donors)
    with pytest.raises(UnreachableError):
        table.run()
    before = [list(donor.sent) for donor in donors]
    held = table.fetch.download.bytes_done // CHUNK
    assert held >= 6
    cut.clear()
    assert table.run() == SNAPSHOT
    for donor in donors:
        assert donor.asked == ["", manifest().digest], "it is told which one is under way"
    later = [index for donor, sent in zip(donors, before, strict=True) for index in donor.sent[len(sent) :]]
    verified = {index for sent in before for index in sent}
    assert len(set(later)) == 48 - held and not verified & set(later)


def test_when_the_target_is_gone_the_chunks_that_match_are_kept(net: Net) -> None:
    """The donors lost a fork: what they hold now is another state, parts of which are the same."""
    after = snapshot(0, 24) + snapshot(1, 24)

    async def go(index: int) -> None:
        if donor.content is SNAPSHOT and index >= 36:
            raise gone()

    donor = Donor(go=go)
    table = Table(net, donor)
    with pytest.raises(UnreachableError):
        table.run()
    assert table.fetch.download.bytes_done == 36 * CHUNK
    sent = len(donor.sent)
    donor.content, donor.epoch = after, 5
    assert table.run() == after
    assert sorted(donor.sent[sent:]) == list(range(24, 48))


def test_a_donor_whose_snapshot_is_replaced_in_mid_stream_is_left_for_the_others(net: Net) -> None:
    class Forgetful(Donor):
        async def chunks(self, stream: Stream, request: SnapshotRequest) -> None:
            await stream.send(self.chunk(request.first_chunk))
            replaced.append(request)
            raise refusal(Reason.SUPERSEDED, "this peer does not have that snapshot any more")

    async def wait(index: int) -> None:
        await until(lambda: replaced)

    replaced: list[Any] = []
    table = Table(net, Forgetful(), Donor(go=wait))
    assert table.run() == SNAPSHOT
    problem = table.failure(0)
    assert isinstance(problem, RefusedError) and problem.reason == Reason.SUPERSEDED.value


# -- which snapshot --------------------------------------------------------------------------------------------------------------


def test_the_snapshot_that_most_donors_share_is_taken(net: Net) -> None:
    donors = [Donor(snapshot(9), epoch=9), Donor(), Donor()]
    assert Table(net, *donors).run(best=(0, 1, 2)) == SNAPSHOT
    assert donors[0].sent == []


def test_among_those_that_equally_many_share_the_newest_is_taken(net: Net) -> None:
    donors = [Donor(), Donor(snapshot(9), epoch=9), Donor(snapshot(5), epoch=5)]
    assert Table(net, *donors).run() == snapshot(9)


def test_what_the_furthest_offer_is_taken_even_if_more_of_the_lighter_agree(net: Net) -> None:
    assert Table(net, Donor(snapshot(9), epoch=9), Donor(), Donor()).run(best=[0]) == snapshot(9)


def test_what_only_lighter_peers_offer_is_taken_when_the_furthest_offer_nothing(net: Net) -> None:
    async def dead() -> None:
        raise gone()

    assert Table(net, Donor(snapshot(9), offering=dead), Donor(), Donor()).run(best=[0]) == SNAPSHOT


def test_a_download_under_way_goes_on_while_its_snapshot_is_to_be_had(net: Net) -> None:
    async def go(index: int) -> None:
        if cut and index >= 20:
            raise gone()

    cut, donors = [True], [Donor(go=go), Donor(snapshot(9), epoch=1)]
    table = Table(net, *donors)
    with pytest.raises(UnreachableError):
        table.run(best=[0])
    cut.clear()
    donors[1].epoch = 9
    assert table.run() == SNAPSHOT and donors[1].sent == []


def test_who_offers_late_still_helps(net: Net) -> None:
    async def first(index: int) -> None:
        begun.append(index)
        if early.sent:
            await until(lambda: helped)

    async def late(index: int) -> None:
        helped.append(index)

    async def once_it_has_begun() -> None:
        await until(lambda: begun)

    begun, helped = list[int](), list[int]()
    early = Donor(go=first)
    table = Table(net, early, Donor(go=late, offering=once_it_has_begun))
    assert table.run() == SNAPSHOT
    assert table.brought_by(1) > 0


def test_with_nobody_to_ask_it_says_so(net: Net) -> None:
    with pytest.raises(UnreachableError, match="no peer offers"):
        Table(net).run()
