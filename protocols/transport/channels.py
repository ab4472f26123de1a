"""gRPC between machines: mutual TLS, the handshake's metadata, and the translation of gRPC's failures into ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
import grpc.aio
from cryptography import x509

from protocols.errors import PortInUseError, RefusedError, RemoteError, UnreachableError
from protocols.identity import COORDINATOR_NAME, Credentials, holder_of, server_name
from protocols.reasons import Reason
from protocols.round.records import MAX_PEERS
from protocols.transport.addresses import joined
from protocols.transport.callers import MAX_CALLS_OF_PEER, network_of
from protocols.transport.freshness import OLD_CERTIFICATE, Freshness
from protocols.wire.calls import STATE_BYTES

PROTOCOL_VERSION = 2
MAX_MESSAGE_BYTES = STATE_BYTES  # of the largest kind: so much of a message that is not whole yet is held for each call
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.enable_http_proxy", 0),
]
# Ports are never shared: two processes that listen on one would each get half of the connections.
# Who connects has ten seconds to show a certificate. A connection carries as many calls at once as one peer may make.
# Twice as many connections as a run has peers may stand. Others are closed at once, so that descriptors are left.
MAX_CONNECTIONS = 2 * MAX_PEERS
ENROLMENT_BYTES = 64 << 10  # of what strangers send
_SERVER_OPTIONS: list[tuple[str, Any]] = [
    *_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", MAX_CALLS_OF_PEER),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
]
# A peer that comes back must be found again within about a second, not after gRPC's default of up to two minutes.
_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


class Channels:
    """This process's channels to other peers, one each, opened when first used."""

    def __init__(self, credentials: Credentials, run_digest: str) -> None:
        self.metadata = (("dugnad-protocol", str(PROTOCOL_VERSION)), ("dugnad-run", run_digest))
        self._credentials = credentials
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._calls: Counter[grpc.aio.Channel] = Counter()

    @contextlib.asynccontextmanager
    async def to(self, peer: str, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """For one call. TLS itself checks that whoever answers at `address` holds the certificate of `peer`."""
        channel = self._channels.get((peer, address))
        if channel is None:
            channel = self._channels[peer, address] = self._opened(peer, address)
        self._calls[channel] += 1
        try:
            yield channel
        finally:
            self._calls[channel] -= 1
            await self._close_unused(channel)

    async def renew(self) -> None:
        """Calls from now on go over new connections, which show the certificate of now. Those under way keep theirs."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await self._close_unused(channel)

    async def _close_unused(self, channel: grpc.aio.Channel) -> None:
        if not self._calls[channel]:
            del self._calls[channel]
            if channel not in self._channels.values():
                await channel.close(None)

    async def dial(self, peer: str, address: str, limit_s: float) -> None:
        """Make a new connection and close it: a kept channel may stand, or wait after a failure. Raises UnreachableError."""

        async def connected(channel: grpc.aio.Channel) -> None:
            state = channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise UnreachableError(f"{peer[:8]} takes no connection at {address}")
                await channel.wait_for_state_change(state)
                state = channel.get_state()

        async with self._opened(peer, address) as channel:
            try:
                await asyncio.wait_for(connected(channel), limit_s)
            except asyncio.TimeoutError as error:
                raise UnreachableError(f"{peer[:8]} at {address} does not answer within {limit_s:.1f} s") from error

    def _opened(self, peer: str, address: str) -> grpc.aio.Channel:
        options = [*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", server_name(peer))]
        mine = self._credentials
        tls = grpc.ssl_channel_credentials(
            root_certificates=mine.authority, private_key=mine.key.pem, certificate_chain=mine.certificate
        )
        return grpc.aio.secure_channel(address, tls, options=options)

    async def aclose(self) -> None:
        channels, self._channels = {*self._channels.values(), *self._calls}, {}
        await asyncio.gather(*(channel.close(None) for channel in channels))


def coordinator_channel(address: str, authority: bytes) -> grpc.aio.Channel:
    """To the enrolment endpoint. `authority` is the pinned certificate, which has issued that endpoint's own."""
    tls = grpc.ssl_channel_credentials(root_certificates=authority)
    return grpc.aio.secure_channel(address, tls, options=[*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", COORDINATOR_NAME)])


def peer_server(credentials: Credentials, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """A server for peers of the run, and the port that it is bound to (`port` unless that was 0). Raises PortInUseError."""
    shown = credentials.certificate

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(credentials.key.pem, credentials.certificate)], root_certificates=credentials.authority
        )

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """At each handshake, on a thread of gRPC's."""
        nonlocal shown
        if shown == credentials.certificate:
            return None
        shown = credentials.certificate
        return configuration()

    tls = grpc.dynamic_ssl_server_credentials(
        configuration(),
        renewed,  # type: ignore[arg-type]  # None: as before
        require_client_authentication=True,
    )
    return _bound_server(tls, host, port)


def enrolment_server(credentials: Credentials, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """A server for whoever knows the authority's certificate, which it shows behind its own; and the port that it is bound to.
    Raises PortInUseError."""
    limit = ("grpc.max_receive_message_length", ENROLMENT_BYTES)
    return _bound_server(
        grpc.ssl_server_credentials([(credentials.key.pem, credentials.certificate + credentials.authority)]), host, port, limit
    )


def _bound_server(tls: grpc.ServerCredentials, host: str, port: int, *more: tuple[str, Any]) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[*(it for it in _SERVER_OPTIONS if it[0] not in dict(more)), *more])
    where = joined(host, port)
    problem = PortInUseError(f"cannot listen on {where}: the port is in use", remedy="Choose another --port.")
    try:
        bound = server.add_secure_port(where, tls)
    except RuntimeError as error:
        raise problem from error
    if bound == 0:
        raise problem
    return server, bound


def network(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Where this call comes from, as `network_of` names it."""
    return network_of(unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]"))


async def admit(context: grpc.aio.ServicerContext[Any, Any], run_digest: str, freshness: Freshness) -> str:
    """The caller's peer id, from the certificate that TLS verified, once its handshake names this protocol and this run; ends the
    call otherwise."""
    said = {str(key): value for key, value in context.invocation_metadata() or ()}
    if said.get("dugnad-protocol") != str(PROTOCOL_VERSION):
        await refuse(context, Reason.OTHER_VERSION, f"this peer speaks protocol {PROTOCOL_VERSION}")
    if said.get("dugnad-run") != run_digest:
        await refuse(context, Reason.OTHER_RUN, f"this peer trains run {run_digest[:12]}, not {str(said.get('dugnad-run'))[:12]}")
    (pem,) = context.auth_context()["x509_pem_cert"]
    certificate = x509.load_pem_x509_certificate(pem)
    if freshness.refuses(certificate):
        await refuse(context, Reason.OLD_CERTIFICATE, OLD_CERTIFICATE)
    return holder_of(certificate)


async def refuse(context: grpc.aio.ServicerContext[Any, Any], reason: Reason, sentence: str) -> NoReturn:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{reason.value}: {sentence}")
    raise AssertionError("abort raises")


@contextlib.contextmanager
def translated(whom: str) -> Iterator[None]:
    """Raises our errors for what fails, within, in a call with `whom`."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translation(error, whom) from error
    except (asyncio.InvalidStateError, grpc.aio.InternalError) as error:  # written to a call that ended meanwhile
        raise UnreachableError(f"the call with {whom} is over") from error


def _translation(error: grpc.RpcError, whom: str) -> RemoteError:
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
    details = (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else str(error)
    if code is grpc.StatusCode.FAILED_PRECONDITION and ": " in details:
        reason, sentence = details.split(": ", 1)
        return RefusedError(f"{whom} refused: {sentence}", reason=reason, sentence=sentence)
    return UnreachableError(f"{whom} cannot be reached ({code.name.lower() if code else 'error'}: {details[:200]})")
