"""Fetching commits, with their results or as records, from donors that are honest or not; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from peer.simulation.problem import REGRESSION
from peer.simulation.transport import SimulatedSigner
from protocols.errors import BadMessageError, RefusedError, UnreachableError
from protocols.gradients.codecs import CODECS
from protocols.gradients.slices import ResultLayout
from protocols.messages import Chunk, CommitsRequest, ObserveRequest
from protocols.observations import Committed, Swarm
from protocols.reasons import Reason
from protocols.round.records import SignedCommit
from protocols.snapshot.commits import RECORDS_S, fetch_commits, fetch_records
from protocols.snapshot.fetch import IDLE_S
from protocols.transport.interface import Stream, refusal
from tests.peer.histories import CODEC, History
from tests.peer.virtual import Answers, Net

EPOCHS = 5
STANDING = Swarm(None, 0, "training", (), None)


@pytest.fixture(scope="module")
def history() -> History:
    return History(EPOCHS)


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as made:
        yield made


def layout_of(epoch: int) -> ResultLayout:
    return REGRESSION.layout(epoch, CODECS[CODEC])


def given(history: History, epoch: int, piece_bytes: int = 10_000) -> list[Any]:
    """What an honest donor sends of a commit."""
    result = history.results[epoch - 1]
    pieces = [Chunk(at, result[at : at + piece_bytes]) for at in range(0, len(result), piece_bytes)]
    return [history.commits[epoch - 1], *pieces]


def fetched(net: Net, *sent: Any, then: str = "") -> list[tuple[SignedCommit, bytes]]:
    """What comes of a donor that sends these records, and then ends the call, refuses or falls silent."""

    async def give(stream: Stream, request: CommitsRequest) -> AsyncIterator[Any]:
        for record in sent:
            yield record
        if then == "refuses":
            raise refusal(Reason.OTHER_LINEAGE, "too far back")
        if then == "falls silent":
            await asyncio.Event().wait()

    donor, joiner = net.node("ann", Answers(CommitsRequest=give)), net.node("joiner")

    async def fetch() -> list[tuple[SignedCommit, bytes]]:
        return [item async for item in fetch_commits(joiner.transport, donor.candidate, "a" * 64, layout_of)]

    return joiner.play(fetch())


def test_commits_come_with_their_results_whole(net: Net, history: History) -> None:
    found = fetched(net, *(record for epoch in (1, 2, 3) for record in given(history, epoch)))
    assert found == list(zip(history.commits, history.results, strict=True))[:3]


def test_a_donor_with_nothing_newer_gives_nothing(net: Net) -> None:
    assert fetched(net) == []


def test_a_commit_whose_result_does_not_come_whole_is_not_given_on(net: Net, history: History) -> None:
    assert fetched(net, *given(history, 1), *given(history, 2)[:-1]) == [(history.commits[0], history.results[0])]


def wrong(history: History, how: str) -> list[Any]:
    signed, *chunks = given(history, 2)
    first = chunks[0]
    match how:
        case "other bytes":
            return [signed, replace(first, data=b"\x01" + first.data[1:]), *chunks[1:]]
        case "other canonical values":
            return [signed, *chunks[:-1], replace(chunks[-1], data=chunks[-1].data[:-1] + b"\x7f")]
        case "too many bytes":
            return [signed, *chunks[:-1], replace(chunks[-1], data=chunks[-1].data + b"x")]
        case "no commit":
            return chunks
        case "two commits":
            return [signed, signed]
        case "another model":
            shards = tuple(replace(shard, stop=shard.stop + 1024) for shard in signed.commit.shards)
            return [replace(signed, commit=replace(signed.commit, shards=shards)), *chunks]
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how", ["other bytes", "other canonical values", "too many bytes", "no commit", "two commits", "another model"]
)
def test_what_does_not_fit_its_commit_is_refused(net: Net, history: History, how: str) -> None:
    with pytest.raises(BadMessageError):
        fetched(net, *wrong(history, how))


def test_a_donor_whose_commits_do_not_reach_back_says_so(net: Net) -> None:
    with pytest.raises(RefusedError) as error:
        fetched(net, then="refuses")
    assert error.value.reason == Reason.OTHER_LINEAGE.value


def test_a_donor_that_falls_silent_is_given_up(net: Net, history: History) -> None:
    with pytest.raises(RefusedError) as error:
        fetched(net, *given(history, 1), then="falls silent")
    assert error.value.reason == Reason.SILENT.value
    assert net.world.now == pytest.approx(IDLE_S, abs=1.0)


# -- records -------------------------------------------------------------------------------------------------------------------


def recorded(net: Net, *told: Any, lineage: str = "f" * 64, after: int = 0) -> list[SignedCommit]:
    """The records of a peer that tells this, and then how the swarm stands, again and again."""

    async def observe(stream: Stream, request: ObserveRequest) -> AsyncIterator[Any]:
        assert (request.after_epoch, request.once) == (after, False)
        for observation in told:
            yield observation
        while told:
            await asyncio.sleep(0.5)
            yield STANDING
        await asyncio.Event().wait()

    peer, me = net.node("ann", Answers(ObserveRequest=observe)), net.node("me")
    return me.play(fetch_records(me.transport, peer.candidate, SimulatedSigner("me"), after, lineage))


def test_records_are_all_that_a_peer_has_told_once_it_speaks_of_the_present(net: Net, history: History) -> None:
    told = [STANDING, *map(Committed, history.commits)]
    assert recorded(net, *told) == history.commits


def test_records_beyond_the_lineage_that_is_sought_are_not_waited_for(net: Net, history: History) -> None:
    told = [STANDING, *map(Committed, history.commits)]
    assert recorded(net, *told, lineage=history.tips[3].lineage) == history.commits[:3]
    assert net.world.now < 0.5


def test_a_record_that_is_not_its_leaders_is_refused(net: Net, history: History) -> None:
    forged = replace(history.commits[1], signature=b"forged")
    with pytest.raises(BadMessageError, match="not signed"):
        recorded(net, STANDING, Committed(history.commits[0]), Committed(forged))


def test_a_peer_that_tells_nothing_is_given_up(net: Net) -> None:
    with pytest.raises(UnreachableError, match="did not tell"):
        recorded(net)
    assert net.world.now == pytest.approx(RECORDS_S)
