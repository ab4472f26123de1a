"""Who else is there: looked up in the DHT, and told where this peer is, as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable

from protocols.errors import LocalError, RemoteError
from protocols.round.records import Candidate, Hello, Standing
from protocols.transport.channels import Channels
from protocols.transport.discovery import ANNOUNCEMENT_S, Announcement, Discovery, sign_announcement
from protocols.transport.enrolling import announce_to
from protocols.transport.state_transfer import ask

# Others are looked for this often: eagerly while there are none.
LOOK_S, EAGER_LOOK_S = 5.0, 0.5
ANNOUNCE_S = ANNOUNCEMENT_S / 3
_log = logging.getLogger(__name__)


class Neighbours:
    """`found` is told of the other reachable peers at every look, `heard` of where one of them, drawn at random, stands."""

    def __init__(
        self,
        discovery: Discovery,
        channels: Channels,
        hello: Hello,
        coordinator: str,
        *,
        found: Callable[[Iterable[Candidate]], None],
        heard: Callable[[Standing], None],
    ) -> None:
        self._discovery = discovery
        self._channels = channels
        self._hello = hello
        self._coordinator = coordinator
        self._found = found
        self._heard = heard

    async def run(self) -> None:
        """Until cancelled. Failures are logged: peers that know each other go on without discovery."""
        announced_at = -ANNOUNCE_S
        told: list[Candidate] = []  # by the coordinator, at the last announcement
        me = self._channels.credentials.peer_id
        while True:
            others: list[Candidate] = []
            try:
                if time.monotonic() - announced_at >= ANNOUNCE_S:
                    announced_at = time.monotonic()
                    told = await self._announce(me)
                found = [*told, *(Candidate(item.peer, item.address) for item in await self._discovery.peers())]
                others = [candidate for candidate in found if candidate.peer != me]
                self._found(others)
            except (RemoteError, LocalError) as error:
                _log.warning("discovery: %s", error)
            if others:
                # Now and then one of them knows of a heavier lineage that this peer's own leader does not.
                with contextlib.suppress(RemoteError):
                    self._heard((await ask(self._channels, random.choice(others))).standing)
            await asyncio.sleep(LOOK_S if others else EAGER_LOOK_S)

    async def _announce(self, me: str) -> list[Candidate]:
        hello = self._hello
        announcement = Announcement(me, hello.incarnation, hello.address, hello.name, hello.auxiliary, self._discovery.addresses)
        signed = sign_announcement(announcement, self._channels.credentials)
        if hello.reachable:
            await self._discovery.announce(me, signed)
        try:
            return await announce_to(self._coordinator, self._channels.credentials.authority, signed)
        except RemoteError:
            return []  # the coordinator is away; training does not need it
