"""A real swarm beside a program that was admitted and means harm: nobody ends, and the training goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import grpc
import pytest

from protocols.errors import RemoteError
from protocols.messages import BulkHello, CommitsRequest, DialBackRequest, Manifest, ObserveRequest, SnapshotRequest
from protocols.round.records import Candidate, Hello, Report, Standing
from protocols.transport.addresses import split
from protocols.transport.channels import PROTOCOL_VERSION
from protocols.transport.enrolling import Enrolment
from protocols.transport.frames import Kind
from protocols.transport.network import NetworkTransport
from protocols.transport.whereabouts import ask
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_bytes
from tests.swarm.swarm import Process, Swarm, assert_disjoint, assert_one_history

pytestmark = pytest.mark.slow
DIGEST = "ab" * 32
MOST = (1 << 64) - 1
IDLE = 600  # connections that say nothing


def strange_messages(lineage: str) -> list[pb.MemberMessage]:
    """Each as a follower can write it; no dugnad would."""
    standing = pb.Standing(epoch=1, lineage=lineage, total_samples=1)

    def report(**fields: Any) -> pb.MemberMessage:
        plain = {"standing": standing, "samples": 4, "samples_per_second": 5.0, "caught_up": True, "phase": "training"}
        return pb.MemberMessage(report=pb.Report(**{**plain, **fields}))

    return [
        report(promised_attempt=(1 << 32) - 1),
        report(promised_attempt=(1 << 53)),
        report(samples=MOST),
        report(samples=(1 << 32)),
        report(moved_bytes=MOST),
        report(upload_bytes_s=9e11, download_bytes_s=9e11),
        report(step_s=3599.0),
        report(samples_per_second=float("inf")),
        report(standing=pb.Standing(epoch=MOST, lineage=lineage, total_samples=MOST)),
        report(standing=pb.Standing(epoch=1 << 32, lineage="cd" * 32, total_samples=1 << 53)),
        report(phase="\x1b]0;owned\x07" * 50),
        report(planned_with=["f" * 32] * 4000),
        pb.MemberMessage(refuse=pb.Refuse(plan_digest=DIGEST, reason="drift", promised_attempt=(1 << 32) - 1)),
        pb.MemberMessage(failed=pb.Failed(plan_digest=DIGEST, reason="drift", member="x", reducer="y")),
        pb.MemberMessage(drifted=pb.Drifted(plan_digest=DIGEST, reducers=["x"] * 64)),
        pb.MemberMessage(),
    ]


async def follows_with(transport: NetworkTransport, peer: Candidate, message: bytes) -> None:
    with contextlib.suppress(RemoteError, asyncio.TimeoutError, grpc.RpcError):
        async with transport.open(peer, Hello(1, False, "", "", "mallory\x1b[2J")) as stream:
            standing = Standing(0, "ab" * 32, 0)
            await stream.send(Report(standing, 0, 0.0, 0.0, 0, 0, caught_up=False, phase="joining"))
            await stream._write(message)  # type: ignore[attr-defined]
            for _ in range(2):
                await asyncio.wait_for(stream.receive(), 0.15)


async def calls(transport: NetworkTransport, peer: Candidate) -> None:
    """Requests that would make a careless peer allocate, dial or search for long."""
    large = Manifest(1, DIGEST, 2 << 30, 1 << 20, (bytes(32),) * 2048)
    for opening in (
        large,
        SnapshotRequest(DIGEST, 0, 1 << 53),
        CommitsRequest(DIGEST),
        DialBackRequest("127.0.0.1:1", "\x00"),
        ObserveRequest(1 << 53, once=False),
    ):
        with contextlib.suppress(RemoteError, asyncio.TimeoutError):
            async with transport.open(peer, opening) as stream:
                await asyncio.wait_for(stream.receive(), 0.5)


async def crowd(transport: NetworkTransport, peer: Candidate, lineage: str) -> None:
    """Follows and floods, reads nothing, and asks for all that costs something, many times at once."""

    async def flood() -> None:
        report = Report(Standing(1, lineage, 1), 4, 5.0, 0.1, 0, 0, caught_up=False, phase="joining")
        async with transport.open(peer, Hello(1, False, "", "", "mallory")) as stream:
            for _ in range(5000):
                await stream.send(report)

    async def ask(opening: Any) -> None:
        async with transport.open(peer, opening) as stream:
            while await stream.receive() is not None:
                pass

    openings = (ObserveRequest(0, once=False), DialBackRequest("127.0.0.1:1", "127.0.0.1:2"), CommitsRequest(lineage))
    work = [flood(), *(ask(opening) for opening in openings for _ in range(30))]
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), 3.0)


async def bulk_frames(transport: NetworkTransport, peer: str, address: str, run_digest: str) -> None:
    hello = to_bytes(BulkHello(PROTOCOL_VERSION, run_digest))
    for sent in (
        struct.pack("<BI", Kind.HELLO, 8 << 20),
        struct.pack("<BI", Kind.HELLO, len(hello)) + hello + struct.pack("<BI", Kind.OPEN, 8 << 20),
        struct.pack("<BI", 99, (1 << 32) - 1),
    ):
        with contextlib.suppress(RemoteError, asyncio.TimeoutError):
            async with transport.bulk(peer, address) as stream:
                await stream.write(memoryview(sent))
                await asyncio.wait_for(stream.header(), 0.5)


def idle_connections(address: str) -> list[socket.socket]:
    found = []
    for _ in range(IDLE):
        with contextlib.suppress(OSError):
            found.append(socket.create_connection(split(address), timeout=1.0))
    return found


def attack(swarm: Swarm, visitor: Enrolment, lineage: str) -> None:
    peers = [peer for peer in visitor.peers if peer.address]
    assert peers, "it was told of somebody"

    async def messages(transport: NetworkTransport) -> None:
        for peer in peers:
            for message in strange_messages(lineage):
                await follows_with(transport, peer, message.SerializeToString())
            await calls(transport, peer)
            await crowd(transport, peer, lineage)
            reply = None
            with contextlib.suppress(RemoteError):
                reply = await ask(transport, peer)
            if reply is not None and reply.bulk_address:
                await bulk_frames(transport, peer.peer, reply.bulk_address, visitor.spec.digest)

    swarm.call(messages)


def test_a_swarm_goes_on_beside_an_admitted_program_that_means_harm(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=61) as swarm:
        peers = [swarm.start_peer(f"peer-{number}") for number in range(2)]
        for peer in peers:
            swarm.contributes(peer)
        visitor = swarm.visit()
        lineage = peers[0].events("committed")[-1]["lineage"]
        held = [plain for peer in visitor.peers if peer.address for plain in idle_connections(peer.address)]
        try:
            attack(swarm, visitor, lineage)
            began = peers[0].epoch()
            swarm.commits_by(peers[0], began + 3)
        finally:
            for plain in held:
                plain.close()
        everybody: list[Process] = [swarm.coordinator, *peers]
        assert all(process.running for process in everybody)
        assert not any(process.events("strike") for process in peers), "nothing came that nobody foresaw"
        assert not any("\x1b" in process.tail() for process in everybody), "nothing steers a terminal"
        late = swarm.start_peer("late")
        swarm.contributes(late)
        assert_disjoint([*everybody, late])
        assert_one_history([*everybody, late])


def test_enrolment_survives_connections_that_say_nothing_and_messages_too_large(tmp_path: Path) -> None:
    with Swarm(tmp_path, seed=62) as swarm:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        held = idle_connections(f"127.0.0.1:{swarm.port}")
        try:
            for _ in range(20):  # an HTTP/2 connection that promises much and sends nothing
                plain = socket.create_connection(("127.0.0.1", swarm.port), timeout=5)
                held.append(context.wrap_socket(plain))
            peer = swarm.start_peer("peer")
            swarm.contributes(peer)
        finally:
            for plain in held:
                plain.close()
        assert swarm.coordinator.running
