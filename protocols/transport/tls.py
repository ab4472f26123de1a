"""Sockets for bulk.py: how they are dialled, what the kernel is told about them, and the TLS that both sides insist on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509

from protocols.errors import UnreachableError
from protocols.identity import Credentials
from protocols.transport.addresses import split

# What lies in the kernel without being on its way: little, so that a contribution does not queue before somebody's averages.
UNSENT_BYTES = 256 << 10
_READ_BYTES = 64 << 10
KEEPALIVE_S = 20
GONE_S = 30  # without an answer to what was sent

# Without it, OpenSSL writes all that it is given before it comes back, and not 16 KiB of it; pyOpenSSL has no name for it.
PARTIAL_WRITE = 0x1


async def connected_to(peer: str, address: str) -> socket.socket:
    """By whichever of the addresses that its name has answers. Raises UnreachableError."""
    loop = asyncio.get_running_loop()
    problem: Exception = ValueError("no address")
    try:
        host, port = split(address)
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as error:
        found, problem = [], error
    for family, kind, protocol, _, where in found:
        plain = socket.socket(family, kind, protocol)
        try:
            tune(plain)
            await loop.sock_connect(plain, where)
            return plain
        except OSError as error:
            plain.close()
            problem = error
        except BaseException:
            plain.close()
            raise
    raise UnreachableError(f"{peer[:8]} cannot be reached at {address} ({problem})") from problem


def tune(plain: socket.socket) -> None:
    plain.setblocking(False)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_S),
        ("TCP_KEEPINTVL", 5),
        ("TCP_USER_TIMEOUT", GONE_S * 1000),
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
    ):
        if hasattr(socket, name):
            plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def context(credentials: Credentials) -> SSL.Context:
    """For both sides: TLS 1.3 alone, and certificates of the run's authority alone."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_min_proto_version(SSL.TLS1_3_VERSION)
    made.clear_mode(PARTIAL_WRITE)
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    store = made.get_cert_store()
    assert store is not None
    store.add_cert(X509.from_cryptography(x509.load_pem_x509_certificate(credentials.authority)))
    made.use_certificate(x509.load_pem_x509_certificate(credentials.certificate))
    made.use_privatekey(credentials.key.private)
    return made


async def shown_certificates(host: str, port: int) -> list[x509.Certificate]:
    """What a server shows of itself, its own certificate first. Nothing is checked. Raises OSError or SSL.Error."""
    unchecked = SSL.Context(SSL.TLS_METHOD)
    unchecked.set_alpn_protos([b"h2"])  # gRPC servers end a handshake that does not offer HTTP/2
    connection = SSL.Connection(unchecked, None)
    connection.set_connect_state()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while not _is_shaken(connection):
            with contextlib.suppress(SSL.WantReadError):  # nothing to say
                writer.write(connection.bio_read(_READ_BYTES))
            if not (data := await reader.read(_READ_BYTES)):
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
            connection.bio_write(data)
    finally:
        writer.close()
    return connection.get_peer_cert_chain(as_cryptography=True) or []


def _is_shaken(connection: SSL.Connection) -> bool:
    """Whether the handshake is done: it goes on with what has come."""
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return False
    return True


def shown_by(connection: SSL.Connection) -> x509.Certificate:
    """The other side's certificate, of this run, whose key it has."""
    certificate = connection.get_peer_certificate(as_cryptography=True)
    assert certificate is not None  # the context insists
    return certificate
