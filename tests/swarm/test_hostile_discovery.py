"""A newcomer joins while an outsider, an admitted DHT node, and announcements mean discovery harm."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import RefusedError, UnreachableError
from protocols.transport.announcements import Announcement, expiry_ms, sign_announcement
from protocols.transport.discovery import DiscoveryConfig, sign_node
from protocols.transport.enrolling import Enrolment, announce_to
from protocols.wire import dugnad_pb2 as pb
from tests.swarm.swarm import Swarm, wait_until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of hivemind's own making, while it is imported
    from protocols.transport import discovery_process as dht

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of hivemind's own making, too
NOBODY = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
IN_2126 = time.time() + 100 * 365 * 86400


def signed(visitor: Enrolment, **fields: Any) -> bytes:
    """An announcement past every check of an honest peer."""
    credentials = visitor.credentials
    body = pb.Announcement(peer=credentials.peer_id, incarnation=1, name="evil", **fields).SerializeToString()
    signature = credentials.key.sign(b"dugnad announcement " + body)
    return pb.SignedAnnouncement(announcement=body, signature=signature, certificate=credentials.certificate).SerializeToString()


async def outsider(visitor: Enrolment) -> list[Any]:
    """What a node without a certificate finds, and what is stored for it, at each DHT node that a ticket leads to."""
    p2p = await dht.P2P.create(initial_peers=visitor.discovery, no_listen=True, dht_mode="client", host_maddrs=None)
    node = await dht.DHTNode.create(p2p, client_mode=True)
    try:
        key = dht.DHTID.generate(dht.key_of(visitor.spec.digest))
        there = {dht.PeerID.from_base58(address.rpartition("/")[2]) for address in visitor.discovery}
        assert there <= {peer.peer_id for peer in await p2p.list_peers()}, "it is connected to them"
        found = [await node.protocol.call_find(peer, [key]) for peer in there]
        stored = [await node.protocol.call_store(peer, [key], [b"x"], IN_2126, subkeys=["x"]) for peer in there]
        return found + stored
    finally:
        await node.shutdown()
        await p2p.shutdown()


async def admitted(visitor: Enrolment, folder: Path) -> Any:
    """A node with a certificate, that checks nothing, and hands out whatever spoils a look-up."""

    async def sign(node: str) -> Any:
        certificate, signature = sign_node(node, visitor.credentials)
        return dht.AccessToken(public_key=certificate, signature=signature)

    listen = ("/ip4/127.0.0.1/tcp/0",)
    config = DiscoveryConfig(visitor.spec.digest, visitor.discovery, listen, str(folder / "evil.key"))
    node = await dht._start(config, visitor.credentials.authority, sign)
    node.protocol.record_validator = None
    node.protocol.storage = dht.DHTLocalStorage()
    await dht._join(node, visitor.discovery)
    return node


async def attack(node: Any, visitor: Enrolment) -> list[Any]:
    """What of it the coordinator's node stored."""
    key = dht.DHTID.generate(dht.key_of(visitor.spec.digest))
    me = visitor.credentials.peer_id
    dump = dht.MSGPackSerializer.dumps
    large = signed(visitor, discovery=["x" * 4000] * 225)
    garbage = signed(visitor, discovery=["garbage", f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}x"])
    fine = sign_announcement(Announcement(me, 1, "127.0.0.1:1", "evil", False, (), 1, expiry_ms()), visitor.credentials)
    for number in range(4):  # as much as goes into one message
        node.protocol.storage.store_subkey(key, f"{number:032x}", dump(large), IN_2126)
    coordinator = dht.PeerID.from_base58(visitor.discovery[0].rpartition("/")[2])
    answers = []
    for value in (large, garbage, fine):
        answers.append(await node.protocol.call_store(coordinator, [key], [dump(value)], IN_2126, subkeys=[me]))
    others = [dht.DHTID.generate(f"key {number}") for number in range(2000)]
    soon, values = time.time() + 20, [dump(fine)] * 2000
    answers.append(await node.protocol.call_store(coordinator, others, values, soon, subkeys=[me] * 2000))
    for other in others[:50]:
        answers.append(await node.protocol.call_store(coordinator, [other], values[:1], soon, subkeys=[me]))
    return [answer for answer in answers if answer and any(answer)]


def test_a_newcomer_joins_whatever_outsiders_and_admitted_nodes_do_to_discovery(tmp_path: Path) -> None:
    async def work(swarm: Swarm) -> None:
        visitor = swarm.visit()
        credentials = visitor.credentials
        answers = await outsider(visitor)
        assert len(answers) >= 4 and not any(answers)
        node = await admitted(visitor, tmp_path)
        try:
            assert await attack(node, visitor) == []
            for fields in ({"discovery": ["garbage"]}, {"discovery": ["x" * 4000] * 10}, {"address": "\x1b[2J"}):
                with pytest.raises(RefusedError):
                    await announce_to(visitor.coordinator, credentials.authority, signed(visitor, **fields))
            with pytest.raises(UnreachableError, match="larger"):
                await announce_to(visitor.coordinator, credentials.authority, signed(visitor, discovery=["x" * 4000] * 225))
            # This one breaks no rule: it leads to nobody, and newcomers get it from the coordinator before all others.
            nowhere = (f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY}", f"/dns4/nowhere.invalid/tcp/1/p2p/{NOBODY}")
            dead = Announcement(credentials.peer_id, 1, "127.0.0.1:1", "evil", True, nowhere, 1, expiry_ms())
            await announce_to(visitor.coordinator, credentials.authority, sign_announcement(dead, credentials))
            newcomer = swarm.start_peer("newcomer")
            await asyncio.to_thread(swarm.contributes, newcomer)
            assert dht.DHTID.generate(dht.key_of(visitor.spec.digest)) in node.protocol.storage, "it kept handing that out"
            later = swarm.start_peer("later")
            await asyncio.to_thread(swarm.contributes, later)
            for process in (newcomer, later, swarm.coordinator):
                assert "no check foresaw" not in process.tail() and process.running
            again = dataclasses.replace(dead, name="again")
            await announce_to(visitor.coordinator, credentials.authority, sign_announcement(again, credentials))
        finally:
            await node.shutdown()
            await node.p2p.shutdown()

    with Swarm(tmp_path, seed=31, batch=32) as swarm:
        wait_until(lambda: swarm.coordinator.events("peer_joined"), "the auxiliary peer")
        asyncio.run(asyncio.wait_for(work(swarm), 150))
