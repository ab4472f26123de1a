"""A DHT node that starts again because others reach this computer now, or do not any more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from protocols.transport.announcements import Announcement, expiry_ms
from protocols.transport.discovery import Discovery, DiscoveryConfig
from tests.protocols.transport.test_bulk import RUN, credentials

pytestmark = [pytest.mark.swarm, pytest.mark.slow]
LIMIT_S = 120.0


def test_a_node_that_becomes_reachable_takes_connections_and_outlives_the_one_it_joined_by(tmp_path: Path) -> None:
    ours = credentials(tmp_path)

    def node(name: str, *initial: str) -> Discovery:
        listen = ("/ip4/127.0.0.1/tcp/0",)
        config = DiscoveryConfig(RUN, initial, listen, str(tmp_path / f"{name}.key"))
        return Discovery(config, ours, tmp_path / f"{name}.log")

    async def announce(discovery: Discovery, incarnation: int) -> None:
        where = ("127.0.0.1:1", "me", False, discovery.addresses)
        await discovery.announce(Announcement(ours.peer_id, incarnation, *where, 1, expiry_ms()))

    async def incarnations(discovery: Discovery) -> list[int]:
        return [found.incarnation for found in await discovery.peers()]

    async def work() -> None:
        first = node("first")
        await first.start()
        moving = node("moving", *first.addresses)
        third = node("third", *first.addresses)
        try:
            await moving.start(client_mode=True)
            assert moving.addresses == ()
            await moving.be(client_mode=False)
            reached_at = moving.addresses
            await moving.be(client_mode=False)
            assert moving.addresses == reached_at, "nothing has changed"
            moving.moved()
            await moving.be(client_mode=False)
            assert moving.addresses and moving.addresses != reached_at
            await announce(moving, 1)
            await third.start()
            assert await incarnations(third) == [1]
            await first.aclose()
            await third.be(client_mode=True)
            assert third.addresses == ()
            await announce(third, 2)
            assert await incarnations(moving) == [2], "they find each other without the first"
            for barred, is_found in ((frozenset({ours.peer_id, "eve"}), False), (frozenset({"eve"}), True)):
                moving.bar(barred)
                assert bool(await incarnations(moving)) is is_found
        finally:
            for discovery in (third, moving, first):
                await discovery.aclose()

    asyncio.run(asyncio.wait_for(work(), LIMIT_S))
