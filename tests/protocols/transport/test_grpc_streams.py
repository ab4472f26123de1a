"""Calls over real gRPC on loopback: records both ways, refusals, broken links, and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from protocols.errors import BadMessageError, PortInUseError, RefusedError, UnreachableError
from protocols.messages import (
    MAX_CHUNK_BYTES,
    AskReply,
    AskRequest,
    Chunk,
    CommitsRequest,
    Heartbeat,
    Leave,
    NeedState,
    NotLeader,
    SnapshotRequest,
)
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello, Report, Standing
from protocols.transport import callers, channels, grpc_streams
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.grpc_streams import SERVICE
from protocols.transport.interface import Stream, call, refusal
from protocols.transport.network import NetworkTransport
from protocols.wire.calls import MEMBER_BYTES
from tests.protocols.transport.test_bulk import LIMIT_S, RUN, credentials

HELLO = Hello(1, False, "", "", "ann")
STANDING = Standing(3, "c" * 64, 30)


def report(number: int) -> Report:
    return Report(STANDING, number, 0.0, 0.0, 0, 0, True, "training", 0.0, 0.0, None, ())


def beat(number: int) -> Heartbeat:
    return Heartbeat(STANDING, number, 0.0, 1)


Serve = Callable[[Stream, Any], Awaitable[None]]


class Service:
    """Answers each call with `serve`, and notes how that ended."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.began, self.ended = asyncio.Event(), asyncio.Event()
        self.callers: list[str] = []
        self.heard: list[Any] = []

    async def serve(self, stream: Stream, opening: Any) -> None:
        self.callers.append(stream.peer)
        self.heard.append(opening)
        self.began.set()
        try:
            await self._serve(stream, opening)
        finally:
            self.ended.set()

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        await stream.send(Kind.DONE, b"by bulk")


@dataclass
class Pair:
    """A peer that calls (`here`) and one that serves (`there`)."""

    here: NetworkTransport
    there: NetworkTransport
    service: Service
    me: str
    peer: Candidate
    bulk_address: str

    def open(self, opening: Any = HELLO) -> Any:
        return self.here.open(self.peer, opening)

    async def opened_with(self, data: bytes, name: str = "Control") -> None:
        """A call whose first bytes are `data`. Raises as gRPC does."""
        async with self.here._channels.to(self.peer.peer, self.peer.address) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/{name}", bytes, bytes)(metadata=self.here._channels.metadata)
            await stream.write(data)
            await stream.read()


@contextlib.asynccontextmanager
async def pair(folder: Path, serve: Serve, *, authority: str = "ours", run: str = RUN, pretend: str = "") -> AsyncIterator[Pair]:
    """`pretend`: the peer that the caller means."""
    theirs, mine = credentials(folder), credentials(folder, authority)
    there, here = NetworkTransport(theirs, RUN), NetworkTransport(replace(mine, authority=theirs.authority), run)
    service = Service(serve)
    port, bulk_port = there.listen("127.0.0.1", 0)
    await there.serve(service)
    peer = Candidate(pretend or theirs.peer_id, f"127.0.0.1:{port}")
    try:
        yield Pair(here, there, service, mine.peer_id, peer, f"127.0.0.1:{bulk_port}")
    finally:
        await here.aclose()
        await there.aclose()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


async def for_ever(stream: Stream, opening: Any) -> None:
    await asyncio.Event().wait()


async def echo(stream: Stream, opening: Any) -> None:
    while (record := await stream.receive()) is not None and not isinstance(record, Leave):
        await stream.send(beat(record.samples))


# -- records -------------------------------------------------------------------------------------------------------------------


def test_records_go_both_ways_in_order_until_the_server_ends_the_call(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo) as two, two.open() as stream:
            for number in range(5):
                await stream.send(report(number))
                assert await stream.receive() == beat(number)
            await stream.send(Leave())
            assert await stream.receive() is None
            assert two.service.heard == [HELLO] and two.service.callers == [two.me]
            assert stream.peer == two.peer.peer

    run(work())


def test_after_a_move_calls_go_over_a_new_connection_and_those_under_way_go_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo) as two:
            connections = two.here._channels
            async with two.open() as stream:
                (before,) = connections._channels.values()
                await two.here.moved()
                async with two.open() as other:
                    await other.send(report(1))
                    assert await other.receive() == beat(1)
                (after,) = connections._channels.values()
                assert after is not before
                await stream.send(report(2))
                assert await stream.receive() == beat(2)
            assert not connections._calls, "the old connection is closed with its last call"

    run(work())


def test_a_server_that_speaks_before_it_is_told_anything_more_is_heard(tmp_path: Path) -> None:
    async def greet(stream: Stream, opening: Any) -> None:
        await stream.send(NotLeader("", "", True))

    async def work() -> None:
        async with pair(tmp_path, greet) as two:
            assert await call(two.here, two.peer, HELLO, LIMIT_S) == NotLeader("", "", True)

    run(work())


def test_what_was_posted_arrives_in_order_before_either_side_ends(tmp_path: Path) -> None:
    heard: list[Any] = []

    async def post_and_listen(stream: Stream, opening: Any) -> None:
        for number in range(100):
            stream.post(beat(number))
        while not isinstance(record := await stream.receive(), Leave):
            heard.append(record)

    async def work() -> None:
        async with pair(tmp_path, post_and_listen) as two, two.open() as stream:
            for number in range(100):
                stream.post(report(number))
            stream.post(Leave())
            told = []
            while (record := await stream.receive()) is not None:
                told.append(record)
            assert told == [beat(number) for number in range(100)]
            assert heard == [report(number) for number in range(100)]

    run(work())


def test_who_posts_and_goes_has_posted(tmp_path: Path) -> None:
    heard: list[Any] = []

    async def listen(stream: Stream, opening: Any) -> None:
        while (record := await stream.receive()) is not None:
            heard.append(record)
            await stream.send(NeedState())

    async def work() -> None:
        async with pair(tmp_path, listen) as two:
            async with two.open() as stream:
                stream.post(report(7))
                await stream.receive()
            await two.service.ended.wait()
            assert heard == [report(7)]

    run(work())


def test_a_chunk_of_the_largest_size_passes(tmp_path: Path) -> None:
    chunk = Chunk(5, bytes(MAX_CHUNK_BYTES))

    async def give(stream: Stream, opening: Any) -> None:
        await stream.send(chunk)

    async def work() -> None:
        async with pair(tmp_path, give) as two:
            assert await call(two.here, two.peer, SnapshotRequest("a" * 64, 0, 1), LIMIT_S) == chunk

    run(work())


def test_a_posted_record_after_the_end_is_dropped(tmp_path: Path) -> None:
    async def end(stream: Stream, opening: Any) -> None:
        pass

    async def work() -> None:
        async with pair(tmp_path, end) as two, two.open() as stream:
            assert await stream.receive() is None
            stream.post(report(1))

    run(work())


# -- saying no, and going away ---------------------------------------------------------------------------------------------------


def test_a_refusal_comes_with_its_reason_and_its_sentence(tmp_path: Path) -> None:
    async def refuse(stream: Stream, opening: Any) -> None:
        raise refusal(Reason.OTHER_LINEAGE, "it does not reach back: so far")

    async def work() -> None:
        async with pair(tmp_path, refuse) as two:
            with pytest.raises(RefusedError) as error:
                await call(two.here, two.peer, CommitsRequest("f" * 64), LIMIT_S)
            assert (error.value.reason, error.value.sentence) == (Reason.OTHER_LINEAGE.value, "it does not reach back: so far")

    run(work())


def test_a_server_that_goes_away_breaks_the_call_for_receiver_and_sender(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, for_ever) as two, two.open() as stream:
            await two.service.began.wait()
            receiving = asyncio.ensure_future(stream.receive())
            await two.there.aclose()
            with pytest.raises(UnreachableError):
                await receiving
            with pytest.raises(UnreachableError):
                await stream.send(report(1))

    run(work())


@pytest.mark.parametrize("serve", [for_ever, echo], ids=["waits for something else", "waits for the caller"])
def test_a_client_that_closes_ends_the_servers_handler(tmp_path: Path, serve: Serve) -> None:
    async def work() -> None:
        async with pair(tmp_path, serve) as two:
            async with two.open():
                await two.service.began.wait()
                assert not two.service.ended.is_set()
            await two.service.ended.wait()

    run(work())


def test_a_handler_that_fails_ends_its_call_alone(tmp_path: Path) -> None:
    async def fail(stream: Stream, opening: Any) -> None:
        if isinstance(opening, Hello):
            raise ZeroDivisionError
        raise refusal(Reason.BEHIND, "still here")

    async def work() -> None:
        async with pair(tmp_path, fail) as two:
            with pytest.raises(UnreachableError):
                await call(two.here, two.peer, HELLO, LIMIT_S)
            with pytest.raises(RefusedError, match="still here"):
                await call(two.here, two.peer, AskRequest(), LIMIT_S)

    run(work())


def test_who_does_not_answer_in_time_is_unreachable(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, for_ever) as two:
            with pytest.raises(UnreachableError, match="does not answer"):
                await call(two.here, two.peer, AskRequest(), 0.05)

    run(work())


def test_who_answers_nothing_breaks_the_protocol(tmp_path: Path) -> None:
    async def nothing(stream: Stream, opening: Any) -> None:
        pass

    async def work() -> None:
        async with pair(tmp_path, nothing) as two:
            with pytest.raises(BadMessageError, match="answered nothing"):
                await call(two.here, two.peer, AskRequest(), LIMIT_S)

    run(work())


# -- bytes that are no records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"\xff\xff\xff", "Control"), (b"", "Control"), (b"\x12\x00", "Control"), (b"\xff\xff\xff", "Snapshot")],
    ids=["noise", "an envelope without content", "another record than the opening", "noise in place of a request"],
)
def test_bytes_that_break_the_protocol_end_their_call_and_not_the_server(
    tmp_path: Path, data: bytes, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo) as two:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await two.opened_with(data, name)
            assert error.value.details().startswith(Reason.BAD_MESSAGE.value)
            assert two.service.heard == [], "nothing of it came through"
            async with two.open() as stream:
                await stream.send(report(1))
                assert await stream.receive() == beat(1)
            assert f"{two.me[:8]} breaks the protocol in {name}" in caplog.text

    run(work())


def test_bytes_in_the_middle_of_a_call_that_are_no_record_end_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo) as two, two.open() as stream:
            await stream._write(b"\xff\xff\xff")
            with pytest.raises(RefusedError) as error:
                await stream.receive()
            assert error.value.reason == Reason.BAD_MESSAGE.value

    run(work())


def test_a_server_that_sends_no_record_breaks_the_protocol(tmp_path: Path) -> None:
    async def noise(stream: Any, opening: Any) -> None:
        await stream._write(b"\xff\xff\xff")

    async def work() -> None:
        async with pair(tmp_path, noise) as two:
            with pytest.raises(BadMessageError):
                await call(two.here, two.peer, AskRequest(), LIMIT_S)

    run(work())


# -- what is too much ------------------------------------------------------------------------------------------------------------


def test_who_does_not_read_has_so_much_waiting_at_most_and_then_gets_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    posted = list[bool]()

    async def tell(stream: Any, opening: Any) -> None:
        for number in range(100_000):
            posted.append(stream.post(beat(number)))
            if not posted[-1]:
                break
        assert not stream._posted, "nothing of it is kept"
        with pytest.raises(UnreachableError):
            await stream.send(beat(0))

    async def work() -> None:
        async with pair(tmp_path, tell) as two, two.open():
            await two.service.ended.wait()
        assert 10_000 < len(posted) < 100_000 and posted[-1] is False
        assert f"{two.me[:8]} does not read what it is sent" in caplog.text

    run(work())


def test_who_takes_no_chunk_for_long_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_streams, "SEND_S", 0.2)

    async def give(stream: Stream, opening: Any) -> None:
        with pytest.raises(UnreachableError, match="takes nothing"):
            for _ in range(100):
                await stream.send(Chunk(0, bytes(MAX_CHUNK_BYTES)))

    async def work() -> None:
        async with pair(tmp_path, give) as two, two.open(SnapshotRequest("a" * 64, 0, 1)):
            await two.service.ended.wait()

    run(work())


def test_who_opens_a_call_and_does_not_say_what_for_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_streams, "OPENING_S", 0.1)

    async def work() -> None:
        async with pair(tmp_path, echo) as two, two.here._channels.to(two.peer.peer, two.peer.address) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/Control", bytes, bytes)(metadata=two.here._channels.metadata)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stream.read()
            assert error.value.details().startswith(Reason.SILENT.value)

    run(work())


def test_a_message_is_no_larger_than_its_kind_needs(tmp_path: Path) -> None:
    large = b"\x12" + bytes(MEMBER_BYTES)  # less than a chunk

    async def work() -> None:
        async with pair(tmp_path, echo) as two:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await two.opened_with(large)
            assert f"a message of {len(large)} bytes" in error.value.details()

    run(work())


def test_a_flood_of_records_waits_at_home_and_the_others_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "BYTES_S_OF_PEER", 64 << 10)  # 32 records a second, after a burst of 64
    heard = 0

    async def listen(stream: Stream, opening: Any) -> None:
        nonlocal heard
        if isinstance(opening, AskRequest):
            await stream.send(AskReply(STANDING, True, Candidate("", ""), ""))
        else:
            while await stream.receive() is not None:
                heard += 1

    async def flood(stream: Stream) -> None:
        while True:
            await stream.send(report(1))

    async def work() -> None:
        async with pair(tmp_path, listen) as two, two.open() as stream:
            theirs = two.here.credentials.authority
            other = NetworkTransport(replace(credentials(tmp_path), authority=theirs), RUN)
            flooding = asyncio.create_task(flood(stream))
            began = time.monotonic()
            await asyncio.sleep(0.3)
            await call(other, two.peer, AskRequest(), 1.0)
            rate = 64 + 32 * (time.monotonic() - began)
            assert 30 < heard <= rate
            flooding.cancel()
            await other.aclose()

    run(work())


def test_a_peer_with_too_many_calls_is_refused_whatever_connections_it_makes(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, for_ever) as two, contextlib.AsyncExitStack() as stack:
            for _ in range(callers.MAX_CALLS_OF_PEER):
                await stack.enter_async_context(two.open())
            while len(two.service.heard) < callers.MAX_CALLS_OF_PEER:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            again = NetworkTransport(two.here.credentials, RUN)
            with pytest.raises(RefusedError) as error:
                await call(again, two.peer, AskRequest(), LIMIT_S)
            assert error.value.reason == Reason.BUSY.value
            await again.aclose()

    run(work())


def test_connections_beyond_those_of_a_run_are_closed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [
        (name, 3 if name == "grpc.max_allowed_incoming_connections" else value) for name, value in channels._SERVER_OPTIONS
    ]
    monkeypatch.setattr(channels, "_SERVER_OPTIONS", options)

    async def work() -> None:
        async with pair(tmp_path, for_ever) as two:
            where = ("127.0.0.1", int(two.peer.address.split(":")[1]))
            made = [await asyncio.open_connection(*where) for _ in range(8)]
            ended = 0
            for reader, _ in made:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(1 << 10), 0.05)
                    ended += reader.at_eof()
            assert ended >= 5
            for _, writer in made:
                writer.close()

    run(work())


# -- who is let in ---------------------------------------------------------------------------------------------------------------


def test_a_peer_of_another_run_is_told_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo, run="cd" * 32) as two:
            with pytest.raises(RefusedError) as error:
                await call(two.here, two.peer, AskRequest(), LIMIT_S)
            assert error.value.reason == Reason.OTHER_RUN.value and two.service.heard == []

    run(work())


@pytest.mark.parametrize("how", [{"pretend": "0" * 32}, {"authority": "strangers"}], ids=["answers in its name", "not admitted"])
def test_nobody_speaks_in_anothers_name_or_without_the_runs_certificate(tmp_path: Path, how: dict[str, str]) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo, **how) as two:
            with pytest.raises(UnreachableError):
                await call(two.here, two.peer, AskRequest(), LIMIT_S)
            assert two.service.heard == []

    run(work())


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    async def work() -> None:
        here = NetworkTransport(credentials(tmp_path), RUN)
        with pytest.raises(UnreachableError, match="cannot be reached"):
            await call(here, Candidate("0" * 32, "127.0.0.1:1"), AskRequest(), LIMIT_S)
        await here.aclose()

    run(work())


def test_bulk_connections_are_served_beside_the_calls(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo) as two, two.here.bulk(two.peer.peer, two.bulk_address) as stream:
            await stream.send(Kind.PROBE)
            kind, length = await stream.header()
            data = bytearray(length)
            await stream.receive_into(memoryview(data))
            assert (kind, bytes(data)) == (Kind.DONE, b"by bulk")

    run(work())


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo) as two:
            with pytest.raises(PortInUseError):
                NetworkTransport(credentials(tmp_path), RUN).listen("127.0.0.1", int(two.peer.address.split(":")[1]))

    run(work())


# -- dials ---------------------------------------------------------------------------------------------------------------------


def test_a_dial_finds_at_once_who_has_just_started_where_calls_failed(tmp_path: Path) -> None:
    async def work() -> None:
        theirs, mine = credentials(tmp_path), credentials(tmp_path)
        there, here = NetworkTransport(theirs, RUN), NetworkTransport(mine, RUN)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        peer = Candidate(theirs.peer_id, f"127.0.0.1:{port}")
        for _ in range(2):  # from here on the kept channel waits before it tries again
            with pytest.raises(UnreachableError):
                await call(here, peer, AskRequest(), LIMIT_S)
        with pytest.raises(UnreachableError, match="takes no connection"):
            await here.dial(peer, LIMIT_S)
        there.listen("127.0.0.1", port)
        await there.serve(Service(echo))
        await here.dial(peer, LIMIT_S)
        await here.aclose()
        await there.aclose()

    run(work())


def test_a_dial_asks_for_the_certificate_of_the_peer_that_is_meant(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, echo, pretend="0" * 32) as two:
            with pytest.raises(UnreachableError):
                await two.here.dial(two.peer, LIMIT_S)

    run(work())


def test_a_dial_to_a_port_that_never_answers_ends(tmp_path: Path) -> None:
    async def work() -> None:
        here = NetworkTransport(credentials(tmp_path), RUN)
        with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UnreachableError, match="does not answer"):
            await here.dial(Candidate("0" * 32, f"127.0.0.1:{mute.getsockname()[1]}"), 0.3)
        await here.aclose()

    run(work())
