"""Whom a newcomer trusts that has a ticket and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import DugnadError, RefusedError, TicketError, UnreachableError
from protocols.identity import Authority, Credentials, Key, Ticket
from protocols.reasons import Reason
from protocols.transport.channels import enrolment_server, refuse
from protocols.transport.enrolling import enrol
from protocols.wire.dugnad_pb2_grpc import EnrolmentServicer, add_EnrolmentServicer_to_server

SECRET = b"s" * 16


class Coordinator(EnrolmentServicer):  # type: ignore[misc]  # generated without types
    """Notes the secrets that it is shown, and refuses them all."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []

    async def Enrol(self, request: Any, context: Any) -> None:
        self.shown.append(request.secret)
        await refuse(context, Reason.BUSY, "not now")


@asynccontextmanager
async def serving(credentials: Credentials, fingerprint: bytes) -> AsyncIterator[tuple[Coordinator, Ticket]]:
    server, port = enrolment_server(credentials, "127.0.0.1", 0)
    service = Coordinator()
    add_EnrolmentServicer_to_server(service, server)
    await server.start()
    try:
        yield service, Ticket(("127.0.0.1",), port, fingerprint, SECRET)
    finally:
        await server.stop(None)


def enrolling(credentials: Credentials, fingerprint: bytes) -> tuple[DugnadError, list[bytes]]:
    """What comes of it, and the secrets that the server was shown."""

    async def go() -> tuple[DugnadError, list[bytes]]:
        async with serving(credentials, fingerprint) as (service, ticket):
            with pytest.raises(DugnadError) as caught:
                await enrol(ticket, Key.generate())
            return caught.value, service.shown

    return asyncio.run(go())


def test_the_endpoint_has_a_key_of_its_own_and_the_ticket_pins_the_authority(authority: Authority) -> None:
    credentials = authority.coordinator_credentials(Key.generate())
    error, shown = enrolling(credentials, authority.fingerprint)
    assert isinstance(error, RefusedError) and error.sentence == "not now" and shown == [SECRET]


def test_another_runs_coordinator_is_never_shown_the_secret(authority: Authority, tmp_path: Path) -> None:
    other = Authority.load_or_create(tmp_path)
    error, shown = enrolling(other.coordinator_credentials(Key.generate()), authority.fingerprint)
    assert isinstance(error, TicketError) and "is not the coordinator" in str(error) and not shown


@pytest.mark.parametrize("who", ["an outsider", "an admitted peer"])
def test_the_authoritys_certificate_behind_ones_own_makes_nobody_the_coordinator(
    authority: Authority, tmp_path: Path, who: str
) -> None:
    """Everybody can show it: it is no secret."""
    key = Key.generate()
    if who == "an outsider":
        credentials = Authority.load_or_create(tmp_path).coordinator_credentials(key)
    else:
        credentials = Credentials(key, authority.admit(key.request()), authority.pem)
    error, shown = enrolling(replace(credentials, authority=authority.pem), authority.fingerprint)
    assert isinstance(error, UnreachableError) and not shown


def test_a_server_that_ends_the_handshake_cannot_be_reached() -> None:
    async def go() -> None:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(UnreachableError, match="reset"):
                await enrol(Ticket(("127.0.0.1",), port, bytes(32), SECRET), Key.generate())

    asyncio.run(go())


def test_noise_instead_of_a_handshake_cannot_be_reached() -> None:
    async def go() -> None:
        async def noise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(noise, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(UnreachableError, match="cannot be reached"):
                await enrol(Ticket(("127.0.0.1",), port, bytes(32), SECRET), Key.generate())

    asyncio.run(go())
