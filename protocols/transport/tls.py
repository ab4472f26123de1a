"""Sockets for bulk.py: how they are dialled, what the kernel is told about them, and the TLS that both sides insist on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from protocols.errors import UnreachableError
from protocols.identity import Credentials

# What lies in the kernel without being on its way: little, so that a contribution does not queue before somebody's averages.
UNSENT_BYTES = 256 << 10
KEEPALIVE_S = 20
GONE_S = 30  # without an answer to what was sent


async def connected_to(peer: str, address: str) -> socket.socket:
    """By whichever of the addresses that its name has answers. Raises UnreachableError."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    problem: Exception = ValueError("no address")
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as error:
        found, problem = [], error
    for family, kind, protocol, _, where in found:
        plain = socket.socket(family, kind, protocol)
        plain.setblocking(False)
        try:
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


def context(credentials: Credentials, protocol: int) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=credentials.authority.decode())
    with _as_file(credentials.certificate + credentials.key.pem) as path:
        made.load_cert_chain(path)
    return made


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A file that only this user may read, for as long as OpenSSL needs one: it takes keys from nowhere else."""
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield path
    finally:
        Path(path).unlink()
