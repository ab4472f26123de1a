"""Certificates are renewed in the middle of their week, shown on new connections, and refused when old; but only where the
coordinator was there to renew them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocols.ban_list import KnownBans
from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.identity import FRESH, Authority, Credentials, Key, invite_of, issued_at
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport import tls
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.freshness import RENEWED_WITHIN, Freshness
from protocols.transport.interface import Stream
from protocols.transport.network import NetworkTransport

RUN, LIMIT_S = "ab" * 32, 30.0
WEEK_S = FRESH.total_seconds()
PATIENCE_S = WEEK_S / RENEWED_WITHIN


class Clock:
    def __init__(self) -> None:
        self.now = time.time() - 2 * WEEK_S  # TLS, which reads the system's clock, is to find valid what is issued later

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.load_or_create(tmp_path, clock)


def admitted(authority: Authority, invite: str = "friends") -> Credentials:
    key = Key.generate()
    return Credentials(key, authority.admit(key.request(), invite), authority.pem)


def parsed(certificate: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate)


# -- issuing -------------------------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_from_half_a_week_on_for_the_same_key_and_invite(authority: Authority, clock: Clock) -> None:
    mine = admitted(authority)
    clock.now += WEEK_S / 2 - 60
    assert authority.renewed(mine.certificate) is None
    clock.now += 120
    new = authority.renewed(mine.certificate)
    assert new is not None and issued_at(parsed(new)) == pytest.approx(clock.now, abs=1)
    assert invite_of(parsed(new)) == "friends"
    mine.renew(new)
    assert mine.certificate == new


def test_nobody_takes_a_certificate_for_another_key_or_of_another_authority(authority: Authority, tmp_path: Path) -> None:
    mine, other = admitted(authority), admitted(authority)
    (tmp_path / "stranger").mkdir()
    stranger = Authority.load_or_create(tmp_path / "stranger").admit(mine.key.request())
    before = mine.certificate
    for certificate in (other.certificate, stranger, b"nonsense"):
        with pytest.raises(BadMessageError):
            mine.renew(certificate)
    assert mine.certificate == before


# -- refusing ------------------------------------------------------------------------------------------------------------------


def test_an_old_certificate_is_refused_only_after_the_coordinator_was_there_to_renew_it(
    authority: Authority, clock: Clock
) -> None:
    certificate, freshness = parsed(admitted(authority).certificate), Freshness(clock)
    freshness.answered(by_coordinator=True)
    clock.now += WEEK_S - 60
    assert not freshness.refuses(certificate)
    freshness.answered(by_coordinator=False)
    clock.now += 3 * WEEK_S
    assert not freshness.refuses(certificate), "nobody could renew it: training needs no coordinator"
    freshness.answered(by_coordinator=True)
    clock.now += PATIENCE_S - 60
    assert not freshness.refuses(certificate), "it is to be renewed just now"
    clock.now += 120
    assert freshness.refuses(certificate)
    freshness.answered(by_coordinator=False)
    assert not freshness.refuses(certificate)


def test_the_certificate_of_the_coordinator_that_runs_for_months_is_not_refused(authority: Authority, clock: Clock) -> None:
    certificate, freshness = parsed(authority.coordinator_credentials(Key.generate()).certificate), Freshness(clock)
    freshness.answered(by_coordinator=True)
    clock.now += 10 * WEEK_S
    assert not freshness.refuses(certificate)


# -- on real connections -------------------------------------------------------------------------------------------------------


class Echo:
    async def serve(self, stream: Stream, opening: Any) -> None:
        while (record := await stream.receive()) is not None:
            await stream.send(record)

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        await stream.send(Kind.DONE)


class Two:
    def __init__(self, here: NetworkTransport, there: NetworkTransport, ports: tuple[int, int]) -> None:
        self.here, self.there, self.ports = here, there, ports
        self.peer = Candidate(there.credentials.peer_id, f"127.0.0.1:{ports[0]}")

    async def calls(self) -> None:
        async with self.here.open(self.peer, KnownBans(1)) as stream:
            with contextlib.suppress(UnreachableError):  # a refusal may have ended the call: reading tells
                await stream.send(KnownBans(1))
            assert await stream.receive() == KnownBans(1)

    async def requests(self) -> None:
        async with self.here.bulk(self.peer.peer, f"127.0.0.1:{self.ports[1]}") as stream:
            await stream.send(Kind.PROBE)
            await stream.header()


@contextlib.asynccontextmanager
async def two(authority: Authority, clock: Clock) -> AsyncIterator[Two]:
    here, there = (NetworkTransport(admitted(authority), RUN) for _ in range(2))
    there.freshness._clock = clock
    ports = there.listen("127.0.0.1", 0)
    await there.serve(Echo())
    try:
        yield Two(here, there, ports)
    finally:
        await here.aclose()
        await there.aclose()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


def test_both_sides_show_a_renewed_certificate_on_new_connections_and_calls_under_way_go_on(
    authority: Authority, clock: Clock
) -> None:
    async def work() -> None:
        async with two(authority, clock) as pair, pair.here.open(pair.peer, KnownBans(1)) as under_way:
            await under_way.send(KnownBans(1))
            assert await under_way.receive() == KnownBans(1)
            await pair.requests()
            clock.now += 0.6 * WEEK_S
            for end in (pair.here, pair.there):
                await end.renew(authority.renewed(end.credentials.certificate) or b"")
            await pair.calls()
            await pair.requests()
            for port in pair.ports:
                (certificate, *_) = await tls.shown_certificates("127.0.0.1", port)
                assert certificate.public_bytes(Encoding.PEM) == pair.there.credentials.certificate
            await under_way.send(KnownBans(1))
            assert await under_way.receive() == KnownBans(1)

    run(work())


def test_both_servers_refuse_an_old_certificate_and_take_it_once_it_is_renewed(authority: Authority, clock: Clock) -> None:
    async def work() -> None:
        async with two(authority, clock) as pair:
            pair.there.freshness.answered(by_coordinator=True)
            for ask in (pair.calls, pair.requests):
                await ask()
            clock.now += 1.1 * WEEK_S
            await pair.here._channels.renew()  # connections that are open already are not asked again for bulk
            pair.here._connections.close()
            with pytest.raises(RefusedError) as refused:
                await pair.calls()
            assert refused.value.reason == Reason.OLD_CERTIFICATE.value
            with pytest.raises(RemoteError):
                await pair.requests()
            await pair.here.renew(authority.renewed(pair.here.credentials.certificate) or b"")
            for ask in (pair.calls, pair.requests):
                await ask()

    run(work())
