"""Joining a run with nothing but its ticket: check the coordinator's certificate, get one's own, fetch the run spec and its
files."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from OpenSSL import SSL

from protocols.ban_list import SignedBanList
from protocols.errors import BadMessageError, DugnadError, RefusedError, RemoteError, TicketError, UnreachableError
from protocols.identity import Credentials, Key, Ticket
from protocols.observations import Evaluation
from protocols.reasons import Reason
from protocols.round.records import Candidate, Standing, Tip
from protocols.run_spec import MAX_ASSETS_BYTES, RunSpec
from protocols.transport import tls
from protocols.transport.addresses import joined
from protocols.transport.channels import PROTOCOL_VERSION, coordinator_channel, translated
from protocols.transport.interface import News
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire
from protocols.wire.dugnad_pb2_grpc import EnrolmentStub

CONNECT_S = 10.0
TRY_S = 3.0
ASSET_S = 120.0
MAX_NAMED, MAX_NAME = 1024, 64  # peers of whom a coordinator tells, characters of a name
_REMEDY = "Check that the coordinator runs and that its ports are open; if it moved, ask the organiser for a new ticket."


@dataclass(frozen=True)
class Genesis:
    """Where the run began: the peer that leads first, and the digest of the first parameters."""

    leader: str
    parameters_sha256: str

    def tip(self, run_digest: str, codec: str) -> Tip:
        """`codec`: of the first plan."""
        return Tip.genesis(run_digest, self.parameters_sha256, Candidate(self.leader, ""), codec)


@dataclass(frozen=True)
class Enrolment:
    """What a newcomer holds once it is admitted."""

    credentials: Credentials
    spec: RunSpec
    genesis: Genesis
    discovery: tuple[str, ...]
    peers: tuple[Candidate, ...]
    coordinator: str  # host:port that answered
    standing: Standing | None = None  # where the coordinator's own auxiliary peer stood just now


async def enrol(ticket: Ticket, key: Key) -> Enrolment:
    """Raises TicketError for a ticket that this coordinator does not accept, UnreachableError when none of its hosts answers."""
    problem: DugnadError = UnreachableError("the ticket names no host", remedy=_REMEDY)
    for host in ticket.hosts:
        address = joined(host, ticket.port)
        try:
            authority = await _pinned_authority(host, ticket.port, ticket.fingerprint)
            return await _enrol_at(address, authority, ticket, key)
        except UnreachableError as error:
            problem = error
    raise problem


async def fetch_assets(enrolment: Enrolment, ticket: Ticket, missing: list[str], take: Callable[[str, bytes], None]) -> None:
    """Fetch the files named in `missing` and hand each, whole, to `take`, which checks its digest."""
    async with coordinator_channel(enrolment.coordinator, enrolment.credentials.authority) as channel:
        stub = EnrolmentStub(channel)
        for name in missing:
            content = bytearray()
            with translated(f"coordinator {enrolment.coordinator}"):
                request = pb.AssetRequest(secret=ticket.secret, name=name)
                async for part in stub.Asset(request, timeout=ASSET_S):
                    content += part.data
                    if len(content) > MAX_ASSETS_BYTES:
                        raise BadMessageError(f"the coordinator's file {name} is larger than any asset may be")
            take(name, bytes(content))


async def announce_to(coordinator: str, authority: bytes, signed: bytes, bans_version: int = 0) -> News:
    """Tell the coordinator where this peer is, and hear what is new. `signed` is a serialised SignedAnnouncement; a ban list of
    `bans_version` is known.

    Raises RemoteError.
    """
    async with coordinator_channel(coordinator, authority) as channel:
        with translated(f"the coordinator at {coordinator}"):
            request = pb.SignedAnnouncement.FromString(signed)
            request.bans_version = bans_version
            reply = await EnrolmentStub(channel).Announce(request, timeout=CONNECT_S)
    return News(
        peers=tuple(from_wire(Candidate, peer) for peer in reply.peers[:MAX_NAMED]),
        held_out=from_wire(Evaluation, reply.held_out) if reply.HasField("held_out") else None,
        standing=from_wire(Standing, reply.standing) if reply.HasField("standing") else None,
        certificate=reply.certificate,
        bans=from_wire(SignedBanList, reply.bans) if reply.HasField("bans") else None,
        names={peer: reply.names[peer][:MAX_NAME] for peer in itertools.islice(reply.names, MAX_NAMED)},
    )


async def _pinned_authority(host: str, port: int, fingerprint: bytes) -> bytes:
    """The certificate (PEM) that the ticket pins, which the enrolment endpoint shows behind its own.

    Nothing is trusted before that comparison, and after it nothing but a certificate which this one has issued: gRPC checks that.
    """
    where = joined(host, port)
    try:
        shown = await asyncio.wait_for(tls.shown_certificates(host, port), CONNECT_S)
    except (OSError, SSL.Error, asyncio.TimeoutError) as error:
        code = getattr(error, "errno", None)
        cause = os.strerror(code).lower() if code and code > 0 else str(error) or "no answer"
        raise UnreachableError(f"the coordinator at {where} cannot be reached: {cause}", remedy=_REMEDY) from error
    for certificate in shown:
        if certificate.fingerprint(hashes.SHA256()) == fingerprint:
            return certificate.public_bytes(serialization.Encoding.PEM)
    raise TicketError(
        f"whoever answers at {where} is not the coordinator that made this ticket",
        remedy="Ask the organiser for a new ticket, and whether the coordinator was set up again.",
    )


async def _enrol_at(address: str, authority: bytes, ticket: Ticket, key: Key) -> Enrolment:
    request = pb.EnrolRequest(protocol=PROTOCOL_VERSION, secret=ticket.secret, request=key.request())
    whom = f"the coordinator at {address}"
    async with coordinator_channel(address, authority) as channel:
        try:
            with translated(whom):
                reply = await EnrolmentStub(channel).Enrol(request, timeout=CONNECT_S)
        except RefusedError as error:
            raise _explained(error) from error
        except RemoteError as error:
            raise UnreachableError(str(error), remedy=_REMEDY) from error
    try:
        spec = RunSpec.from_toml(reply.run_toml)
    except DugnadError as error:
        raise BadMessageError(
            f"{whom} sent a run spec that cannot be used: {error}", remedy="Install its version of dugnad."
        ) from error
    return Enrolment(
        credentials=Credentials(key, reply.certificate, authority),
        spec=spec,
        genesis=from_wire(Genesis, reply.genesis),
        discovery=tuple(reply.discovery),
        peers=tuple(from_wire(Candidate, peer) for peer in reply.peers),
        coordinator=address,
        standing=from_wire(Standing, reply.standing) if reply.HasField("standing") else None,
    )


def _explained(error: RefusedError) -> DugnadError:
    if error.reason == Reason.BAD_TICKET.value:
        return TicketError(
            f"the coordinator does not accept this ticket: {error.sentence}", remedy="Ask the organiser for a new one."
        )
    if error.reason == Reason.BANNED.value:
        return TicketError(error.sentence, remedy="Ask the organiser.")
    if error.reason == Reason.OTHER_VERSION.value:
        return TicketError(f"the coordinator speaks another version: {error.sentence}", remedy="Install its version of dugnad.")
    return error


@dataclass(frozen=True)
class Way:
    """One address of the coordinator, and what was met when it was tried."""

    kind: str  # IPv4, IPv6, or DNS for a name that is not known
    address: str
    problem: str  # '' if it answers


async def ways_to(ticket: Ticket) -> list[Way]:
    """Try each address of each of the ticket's hosts, by TCP alone. Raises nothing."""
    ways = []
    for host in ticket.hosts:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, ticket.port, type=socket.SOCK_STREAM)
        except OSError as error:
            ways.append(Way("DNS", host, f"the name is not known ({error.strerror})"))
            continue
        for family, _, _, _, where in found:
            kind = "IPv6" if family is socket.AF_INET6 else "IPv4"
            ways.append(Way(kind, joined(str(where[0]), ticket.port), await _tried(str(where[0]), ticket.port)))
    return ways


async def _tried(host: str, port: int) -> str:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), TRY_S)
    except asyncio.TimeoutError:
        return f"no answer within {TRY_S:g} s"
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error)).lower()
    writer.close()
    return ""


def missing_assets(spec: RunSpec, folder: Path) -> list[str]:
    """Names of the run's files that are not, whole, in `folder`/assets."""

    def there(name: str, digest: str) -> bool:
        path = folder / "assets" / name
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest

    return [name for name, digest in spec.assets.items() if not there(name, digest)]
