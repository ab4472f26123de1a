"""Bulk connections over real TLS sockets on loopback: what arrives, who is let in, and what a broken or lying side comes to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from protocols.errors import BadMessageError, PortInUseError, RefusedError, UnreachableError
from protocols.identity import Authority, Credentials, Key
from protocols.messages import Averaged
from protocols.reasons import Reason
from protocols.transport import bulk
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import BulkConnections, BulkServer, TlsStream
from protocols.transport.frames import FrameStream, Kind, refuse

RUN = "ab" * 32
LIMIT_S = 30.0


def credentials(folder: Path, authority: str = "ours") -> Credentials:
    (folder / authority).mkdir(exist_ok=True)
    admitted_by = Authority.load_or_create(folder / authority)
    key = Key.generate()
    return Credentials(key, admitted_by.admit(key.request()), admitted_by.pem)


@dataclass
class Pair:
    connections: BulkConnections
    server: BulkServer
    here: Bandwidth
    there: Bandwidth
    peer: str
    address: str
    served: list[FrameStream]

    def to(self) -> Any:
        return self.connections.to(self.peer, self.address)


async def echo(stream: FrameStream, kind: Kind, length: int) -> None:
    data = bytearray(length)
    await stream.receive_into(memoryview(data))
    await stream.send(Kind.CHUNK, data)


async def flood(stream: FrameStream, size: int) -> None:
    """A request, and `size` bytes behind it."""
    await stream.send(Kind.CHUNK, b"x")
    await stream.write(memoryview(bytes(size)))


@contextlib.asynccontextmanager
async def pair(
    folder: Path,
    serve: Callable[[FrameStream, Kind, int], Awaitable[None]] = echo,
    *,
    client: str = "ours",
    run: str = RUN,
    here: Bandwidth | None = None,
) -> AsyncIterator[Pair]:
    mine, theirs = credentials(folder, client), credentials(folder)
    here, there, served = here or Bandwidth(), Bandwidth(), list[FrameStream]()

    async def serving(stream: FrameStream, kind: Kind, length: int) -> None:
        served.append(stream)
        await serve(stream, kind, length)

    server, connections = BulkServer(theirs, RUN, there, "127.0.0.1", 0), BulkConnections(mine, run, here)
    server.start(serving)
    try:
        yield Pair(connections, server, here, there, theirs.peer_id, f"127.0.0.1:{server.port}", served)
    finally:
        connections.close()
        await server.aclose()


async def until(condition: Callable[[], object]) -> None:
    """Lets everything else run until then; run() bounds it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


@pytest.mark.parametrize("size", [0, 1, 16 << 10, (16 << 10) + 1, 512 << 10])
def test_a_frame_arrives_as_it_went_and_both_sides_count_it(tmp_path: Path, size: int) -> None:
    payload = os.urandom(size)

    async def work() -> None:
        async with pair(tmp_path) as two, two.to() as stream:
            await stream.send(Kind.CHUNK, payload)
            kind, length = await stream.header()
            back = bytearray(length)
            await stream.receive_into(memoryview(back))
            assert (kind, bytes(back)) == (Kind.CHUNK, payload)
            assert two.here.up.moved_bytes == two.there.down.moved_bytes
            assert two.here.down.moved_bytes == two.there.up.moved_bytes == size + 5

    run(work())


def test_large_frames_both_ways_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    size, frames = 512 << 10, 32  # 16 MiB: more than two systems' buffers hold

    async def send(stream: FrameStream) -> None:
        for _ in range(frames):
            await stream.send(Kind.CHUNK, bytes(size))

    async def receive(stream: FrameStream, frames: int = frames) -> None:
        for _ in range(frames):
            assert await stream.header() == (Kind.CHUNK, size)
            await stream.receive_into(memoryview(bytearray(size)))

    async def both(stream: FrameStream, kind: Kind, length: int) -> None:
        await stream.receive_into(memoryview(bytearray(length)))
        await asyncio.gather(send(stream), receive(stream, frames - 1))

    async def work() -> None:
        async with pair(tmp_path, both) as two, two.to() as stream:
            await asyncio.gather(send(stream), receive(stream))

    run(work())


def test_a_connection_is_used_again_and_one_that_broke_is_not(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path) as two:
            for _ in range(3):
                async with two.to() as stream:
                    await stream.send(Kind.PROBE, b"x")
                    _, length = await stream.header()
                    await stream.receive_into(memoryview(bytearray(length)))
            assert len(set(map(id, two.served))) == 1
            two.served[0].close()
            (idle,) = two.connections._idle[two.peer, two.address]
            await until(lambda: not idle.is_idle)  # what is idle is looked at when it is taken, and the end is on its way
            async with two.to() as again:
                await again.send(Kind.PROBE, b"x")
                await again.header()
            assert len(set(map(id, two.served))) == 2

    run(work())


def test_only_the_peer_that_was_meant_is_talked_to(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path) as two:
            with pytest.raises(UnreachableError):
                async with two.connections.to(credentials(tmp_path).peer_id, two.address):
                    pass

    run(work())


def test_who_was_not_admitted_to_the_run_gets_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, client="strangers") as two:
            with pytest.raises(UnreachableError):
                async with two.to() as stream:
                    await stream.send(Kind.PROBE, b"x")
                    await stream.header()
            assert two.served == []

    run(work())


def test_a_peer_of_another_run_is_told_so(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, run="cd" * 32) as two:
            with pytest.raises(RefusedError) as refused:
                async with two.to() as stream:
                    await stream.header()
            assert refused.value.reason == Reason.OTHER_RUN.value

    run(work())


def test_a_refusal_reaches_a_caller_that_is_still_sending(tmp_path: Path) -> None:
    async def refusing(stream: FrameStream, kind: Kind, length: int) -> None:
        await refuse(stream, Reason.SUPERSEDED, "too late")

    async def work() -> None:
        async with pair(tmp_path, refusing) as two:
            with pytest.raises(RefusedError, match="too late"):
                async with two.to() as stream:
                    sending = asyncio.create_task(flood(stream, 32 << 20))
                    try:
                        await stream.header()
                    finally:
                        sending.cancel()
                        await asyncio.gather(sending, return_exceptions=True)

    run(work())


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(struct.pack("<BI", 99, 0), id="an unknown kind"),
        pytest.param(struct.pack("<BI", Kind.AVERAGED, 1 << 30), id="a record too large to be one"),
        pytest.param(struct.pack("<BI", Kind.HELLO, 8 << 20), id="a hello of 8 MiB"),
        pytest.param(struct.pack("<BI", Kind.AVERAGED, 3) + b"\xff\xff\xff", id="a record that is none"),
    ],
)
def test_what_breaks_the_protocol_is_refused_before_it_is_read(tmp_path: Path, sent: bytes) -> None:
    async def lying(stream: FrameStream, kind: Kind, length: int) -> None:
        await stream.write(memoryview(sent))
        await stream.drain()

    async def work() -> None:
        async with pair(tmp_path, lying) as two:
            with pytest.raises(BadMessageError):
                async with two.to() as stream:
                    await stream.send(Kind.PROBE)
                    _, length = await stream.header()
                    await stream.record(Averaged, length)

    run(work())


def test_a_side_that_goes_away_ends_the_wait_of_the_other(tmp_path: Path) -> None:
    async def leaving(stream: FrameStream, kind: Kind, length: int) -> None:
        stream.close()

    async def work() -> None:
        async with pair(tmp_path, leaving) as two:
            with pytest.raises(UnreachableError):
                async with two.to() as stream:
                    await stream.send(Kind.PROBE)
                    await stream.header()

    run(work())


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    async def work() -> None:
        connections = BulkConnections(credentials(tmp_path), RUN, Bandwidth())
        for address in ("127.0.0.1:1", "127.0.0.1:none", f"127.0.0.1:{10**30}", "nowhere.invalid:80"):
            with pytest.raises(UnreachableError):
                async with connections.to("bob", address):
                    pass

    run(work())


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortInUseError):
            BulkServer(credentials(tmp_path), RUN, Bandwidth(), "127.0.0.1", other.getsockname()[1])

    run(work())


def test_who_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "DIAL_S", 0.1)

    async def work() -> None:
        async with pair(tmp_path) as two:
            host, port = two.address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await reader.read() == b"", "the server closes"
            writer.close()

    run(work())


def test_strangers_that_say_nothing_make_room_for_others_and_take_none_from_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_STRANGERS_OF_ADDRESS", 4)

    async def work() -> None:
        async with pair(tmp_path) as two, two.to() as known:
            host, port = two.address.split(":")
            idle = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
            await until(lambda: sum(reader.at_eof() for reader, _ in idle) == 8)
            assert [reader.at_eof() for reader, _ in idle] == [True] * 8 + [False] * 4, "the oldest go"
            async with two.to() as another:
                for stream in (known, another):
                    await stream.send(Kind.PROBE, b"x")
                    _, length = await stream.header()
                    await stream.receive_into(memoryview(bytearray(length)))
            for _, writer in idle:
                writer.close()

    run(work())


@pytest.mark.skipif(not bulk.SO_MAX_PACING_RATE, reason="only Linux paces a socket")
def test_a_pace_holds_and_is_taken_off_for_the_next_request(tmp_path: Path) -> None:
    """Once the kernel has put a packet off for long, no later pace hastens it: so there is a least pace."""

    def rate(stream: TlsStream) -> int:
        return int.from_bytes(stream._connection.getsockopt(socket.SOL_SOCKET, bulk.SO_MAX_PACING_RATE, 8), sys.byteorder)

    async def work() -> None:
        async with pair(tmp_path) as two:
            for bytes_s, kept in (
                (0.0, bulk.MIN_PACE_BYTES_S),
                (5e-324, bulk.MIN_PACE_BYTES_S),
                (1e6, 10**6),
                (float("inf"), bulk.UNPACED),
                (None, bulk.UNPACED),
            ):
                async with two.to() as stream:
                    assert rate(stream) == bulk.UNPACED, "of an earlier request nothing is left"
                    stream.set_rate(bytes_s)
                    assert rate(stream) == kept
                    await stream.send(Kind.PROBE, bytes(100))
                    _, length = await stream.header()
                    await stream.receive_into(memoryview(bytearray(length)))
            assert len(set(map(id, two.served))) == 1

    run(work())


@pytest.mark.parametrize("limit", ["MAX_CONNECTIONS_OF_PEER", "MAX_CONNECTIONS_OF_ADDRESS", "MAX_CONNECTIONS"])
def test_connections_of_one_peer_are_limited(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, limit, 2)

    async def work() -> None:
        async with pair(tmp_path) as two, two.to() as first, two.to() as second:
            for stream in (first, second):
                await stream.send(Kind.PROBE, b"x")
                _, length = await stream.header()
                await stream.receive_into(memoryview(bytearray(length)))
            # Being refused for something else makes no room for one more.
            ours = two.connections._hello
            two.connections._hello = replace(ours, run_digest="cd" * 32)
            for reason in (Reason.OTHER_RUN, Reason.BUSY):
                with pytest.raises(RefusedError) as refused:
                    async with two.to() as third:
                        await third.header()
                assert refused.value.reason == reason.value
                two.connections._hello = ours

    run(work())


def test_connections_that_broke_are_forgotten_when_another_is_dialled(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path) as two:
            async with two.to() as stream:
                pass
            two.connections._idle["gone", "nowhere:1"].append(stream)
            two.connections._idle[two.peer, two.address].clear()
            stream.close()
            async with two.to():
                assert ("gone", "nowhere:1") not in two.connections._idle

    run(work())


def test_a_closed_connection_leaves_alone_what_has_its_file_descriptor_now(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path) as two, two.to() as stream:
            descriptor = stream._connection.fileno()
            mine, other = socket.socketpair()
            stream.close()
            os.dup2(mine.fileno(), descriptor)
            with mine, other:
                other.setblocking(False)
                other.send(b"x")
                with pytest.raises(UnreachableError):
                    await stream.send(Kind.PROBE, b"x")
                with pytest.raises(UnreachableError):
                    await stream.header()
                assert not stream.is_idle
                assert mine.recv(1) == b"x"
                with pytest.raises(BlockingIOError):
                    other.recv(1)
            os.close(descriptor)

    run(work())


class Entangled:
    """A connection on which sending and receiving both wait for the same, as in TLS a key update has it: until the other side has
    sent (or read) something."""

    def __init__(self, plain: socket.socket, wants: type[SSL.Error]) -> None:
        self._plain = plain
        self._wants = wants
        self.fileno, self.close = plain.fileno, plain.close

    def send(self, data: memoryview) -> int:
        return self._wait_or(len(data))

    def recv_into(self, view: memoryview) -> int:
        return self._wait_or(len(view))

    def _wait_or(self, size: int) -> int:
        readable, writable, _ = select.select([self._plain], [self._plain], [], 0)
        if not (readable if self._wants is SSL.WantReadError else writable):
            raise self._wants
        return size


@pytest.mark.parametrize("wants", [SSL.WantReadError, SSL.WantWriteError])
def test_a_sender_and_a_receiver_that_wait_for_the_same_are_both_woken(wants: type[SSL.Error]) -> None:
    async def work() -> None:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    here.send(bytes(1 << 16))
            there.setblocking(False)
            stream = TlsStream(Entangled(here, wants), "bob", Bandwidth())  # type: ignore[arg-type]
            tasks = [
                asyncio.create_task(stream.receive_into(memoryview(bytearray(10)))),
                asyncio.create_task(stream.write(memoryview(b"hello"))),
                asyncio.create_task(stream.receive_into(memoryview(bytearray(10)))),
            ]
            await asyncio.sleep(0)
            assert not any(task.done() for task in tasks)
            tasks.pop().cancel()  # it does not take the others' wait with it
            await asyncio.sleep(0)
            if wants is SSL.WantReadError:
                there.send(b"update")
            else:
                with contextlib.suppress(BlockingIOError):
                    while there.recv(1 << 16):
                        pass
            await asyncio.wait_for(asyncio.gather(*tasks), 5)

    run(work())


def test_who_waits_hears_that_the_connection_was_closed(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path) as two, two.to() as stream:
            waiting = asyncio.create_task(stream.header())
            await asyncio.sleep(0)
            stream.close()
            with pytest.raises(UnreachableError, match="is closed"):
                await waiting

    run(work())


def test_a_write_that_was_cancelled_midway_ends_the_connection(tmp_path: Path) -> None:
    async def deaf(stream: FrameStream, kind: Kind, length: int) -> None:
        await asyncio.Event().wait()

    async def work() -> None:
        async with pair(tmp_path, deaf) as two, two.to() as stream:
            sending = asyncio.create_task(flood(stream, 64 << 20))
            await until(lambda: stream._writers)  # until no buffer takes any more
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(UnreachableError):  # and is not waited for
                await stream.write(memoryview(bytes(1 << 20)))

    run(work())


def test_a_server_on_all_of_ipv6_is_reached_by_ipv4_too(tmp_path: Path) -> None:
    server = BulkServer(credentials(tmp_path), RUN, Bandwidth(), "::", 0)
    with contextlib.closing(server._listener), socket.create_connection(("127.0.0.1", server.port), LIMIT_S):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is not everywhere")
def test_who_makes_connections_without_end_waits_for_its_handshakes_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "HANDSHAKES_S", 10.0)
    monkeypatch.setattr(bulk, "HANDSHAKES_BURST_S", 0.2)
    made = 0

    async def work() -> None:
        nonlocal made
        async with pair(tmp_path) as two:
            context, port = two.connections._tls, int(two.address.split(":")[1])

            async def from_address(address: str) -> None:
                plain = socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
                plain.setblocking(False)
                connection = SSL.Connection(context, plain)
                connection.set_connect_state()
                stream = TlsStream(connection, "", Bandwidth())
                with contextlib.closing(stream):
                    await stream.handshake()

            async def flood() -> None:
                nonlocal made
                while True:
                    await from_address("127.0.0.1")
                    made += 1

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(0.4)
            await asyncio.wait_for(from_address("127.0.0.2"), 0.2)
            assert 2 <= made <= 2 + 7
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)

    run(work())
