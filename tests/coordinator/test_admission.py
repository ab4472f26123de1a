"""What a peer hears in reply to its announcements: bans that it does not know yet, and a new certificate when its own is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.admission import EnrolmentService
from coordinator.ban_news import BanNews
from coordinator.genesis import RunFolder
from coordinator.invites import Invites
from protocols.ban_list import check_ban_list
from protocols.errors import RefusedError
from protocols.identity import FRESH, Authority, Credentials, Key, invite_of, issued_at
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.announcements import Announcement, expiry_ms, sign_announcement
from protocols.transport.channels import enrolment_server
from protocols.transport.enrolling import Genesis, announce_to
from protocols.transport.interface import News
from protocols.transport.network import NetworkTransport
from protocols.wire.dugnad_pb2_grpc import add_EnrolmentServicer_to_server
from tests import factories

LONG_AGO = time.time() - 2 * FRESH.total_seconds()


class Clock:
    now = LONG_AGO

    def __call__(self) -> float:
        return self.now


class Coordinator:
    def __init__(self, folder: Path) -> None:
        (folder / "identity").mkdir()
        self.clock = Clock()
        self.authority = Authority.load_or_create(folder / "identity", self.clock)
        self.invites = Invites(folder, self.clock)
        own = self.authority.coordinator_credentials(Key.generate())
        self.transport = NetworkTransport(own, "ab" * 32)
        self.barred: frozenset[str] = frozenset()
        self.reachable: list[Candidate] = []
        self.bans = BanNews(self.invites, self.authority, self.transport, lambda: self.reachable, self._heed)
        spec, genesis = factories.run_spec(), Genesis("ab" * 16, "cd" * 32)
        self.folder = RunFolder(folder, spec, self.authority, own, b"secret", genesis, folder / "snapshot", False)

    def _heed(self, barred: frozenset[str]) -> None:
        self.barred = barred

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server, port = enrolment_server(self.folder.credentials, "127.0.0.1", 0)
        service = EnrolmentService(
            self.folder,
            self.invites,
            discovery=tuple,
            peers=list,
            announced=lambda announcement: None,
            news=lambda: (None, {}),
            standing=lambda: None,
            bans=lambda: self.bans.newest,
        )
        add_EnrolmentServicer_to_server(service, server)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)
            self.invites.close()

    def admitted(self) -> Credentials:
        key = Key.generate()
        return Credentials(key, self.authority.admit(key.request(), "friends"), self.authority.pem)

    async def hears(self, at: str, peer: Credentials, bans_version: int = 0) -> News:
        announcement = Announcement(peer.peer_id, 1, "", "ann", False, (), 1, expiry_ms())
        return await announce_to(at, self.authority.pem, sign_announcement(announcement, peer), bans_version)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path)


def test_a_list_is_sent_to_who_does_not_have_it(coordinator: Coordinator) -> None:
    async def work() -> None:
        ann = coordinator.admitted()
        async with coordinator.serving() as at:
            assert (await coordinator.hears(at, ann)).bans is None, "nobody was ever banned"
            coordinator.invites.ban(["eve"])
            bans = (await coordinator.hears(at, ann)).bans
            assert bans is not None and bans.bans.peers == ("eve",) and coordinator.barred == {"eve"}
            check_ban_list(bans, coordinator.authority.pem)
            assert (await coordinator.hears(at, ann, bans.bans.version)).bans is None

    asyncio.run(work())


def test_a_peer_is_renewed_in_the_middle_of_its_week_unless_it_is_banned(coordinator: Coordinator) -> None:
    async def work() -> None:
        ann, eve = coordinator.admitted(), coordinator.admitted()
        async with coordinator.serving() as at:
            assert not (await coordinator.hears(at, ann)).certificate
            coordinator.clock.now += 0.6 * FRESH.total_seconds()
            coordinator.invites.ban([eve.peer_id])
            new = x509.load_pem_x509_certificate((await coordinator.hears(at, ann)).certificate)
            assert issued_at(new) == pytest.approx(coordinator.clock.now, abs=1) and invite_of(new) == "friends"
            with pytest.raises(RefusedError) as refused:
                await coordinator.hears(at, eve)
            assert refused.value.reason == Reason.BANNED.value

    asyncio.run(work())


def test_nobody_is_renewed_by_showing_the_certificate_of_somebody_else(coordinator: Coordinator) -> None:
    async def work() -> None:
        ann, eve = coordinator.admitted(), coordinator.admitted()
        async with coordinator.serving() as at:
            coordinator.clock.now += 0.6 * FRESH.total_seconds()
            with pytest.raises(RefusedError) as refused:
                await coordinator.hears(at, Credentials(eve.key, ann.certificate, eve.authority))
            assert refused.value.reason == Reason.NOT_A_MEMBER.value

    asyncio.run(work())
