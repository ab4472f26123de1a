"""Announcements: how a peer says where it is, to the DHT and to the coordinator, in words that nobody can make larger, older or
another's."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from protocols.errors import BadMessageError
from protocols.identity import Credentials, verify_signature
from protocols.round.records import MAX_INCARNATION
from protocols.transport.addresses import is_loopback
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_bytes, parsed, to_bytes

ANNOUNCEMENT_S = 30.0  # how long one holds; it is made again three times in that span
# How far ahead an announcement's end may lie. The difference to ANNOUNCEMENT_S is what the clocks of two computers may differ.
MAX_AHEAD_S = 60.0
MAX_RECORD_BYTES = 4096  # of a signed announcement; a usual one has 1,100
MAX_NAME, MAX_HOST_AND_PORT, MAX_MULTIADDRESS = 64, 261, 320  # characters
MAX_ADDRESSES = 4  # DHT addresses of one node

_PEER = re.compile(r"[0-9a-f]{32}")
_MULTIADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]{1,253})/tcp/([0-9]{1,5})/p2p/(Qm[1-9A-HJ-NP-Za-km-z]{44})", re.ASCII)
_HOST_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SHA256 = bytes([0x12, 32])  # how the digest of a node's key begins: its kind, its length
_SIGNED = b"dugnad announcement "


@dataclass(frozen=True)
class Announcement:
    """How to reach a peer. `discovery`: its DHT multiaddresses; `address`: where its gRPC server listens (host:port), '' for
    a client-mode peer.

    Of two announcements of one peer, `order` says which holds; that reads no clock. `expires_ms` (since 1970) bounds how long
    the DHT keeps it, whoever stores it there.
    """

    peer: str
    incarnation: int
    address: str
    name: str
    auxiliary: bool
    discovery: tuple[str, ...]
    number: int = 0
    expires_ms: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for what no honest peer announces."""
        if not _PEER.fullmatch(self.peer):
            raise ValueError("a peer's id has 32 hex digits")
        if not 0 <= self.incarnation <= MAX_INCARNATION or not 0 <= self.number <= MAX_INCARNATION:
            raise ValueError("an incarnation and a count are numbers of 63 bits")
        if self.address and not _is_host_and_port(self.address):
            raise ValueError("an address is HOST:PORT")
        if len(self.name) > MAX_NAME or not self.name.isprintable():
            raise ValueError(f"a name has at most {MAX_NAME} printable characters")
        if len(self.discovery) > MAX_ADDRESSES or not all(map(is_node_address, self.discovery)):
            raise ValueError(f"at most {MAX_ADDRESSES} addresses of a DHT node, each as /ip4/HOST/tcp/PORT/p2p/ID")

    @property
    def order(self) -> tuple[int, int]:
        """The newest incarnation holds, and of that its last announcement."""
        return self.incarnation, self.number

    @property
    def expires(self) -> float:
        """Seconds since 1970."""
        return self.expires_ms / 1000


def expiry_ms() -> int:
    """The `expires_ms` of an announcement that is made now."""
    return int((time.time() + ANNOUNCEMENT_S) * 1000)


def sign_announcement(announcement: Announcement, credentials: Credentials) -> bytes:
    body = to_bytes(announcement)
    signature = credentials.key.sign(_SIGNED + body)
    signed = pb.SignedAnnouncement(announcement=body, signature=signature, certificate=credentials.certificate)
    return signed.SerializeToString()


def read_announcement(data: bytes, authority: bytes) -> Announcement:
    """Raises BadMessageError unless `data` is within bounds, and signed, under this run's authority, by the very peer that it
    announces."""
    if len(data) > MAX_RECORD_BYTES:
        raise BadMessageError(f"an announcement of {len(data)} bytes; {MAX_RECORD_BYTES} are allowed")
    signed = parsed(pb.SignedAnnouncement, data)
    announcement = from_bytes(Announcement, signed.announcement)
    signer = verify_signature(_SIGNED + signed.announcement, signed.signature, signed.certificate, authority)
    if signer != announcement.peer:
        raise BadMessageError(f"{signer} announces in the name of {announcement.peer}")
    return announcement


def printable(name: str) -> str:
    """A peer's own name as it may be announced."""
    return "".join(character for character in name if character.isprintable())[:MAX_NAME]


def is_node_address(text: str) -> bool:
    """Whether `text` is the multiaddress of a DHT node by TCP. libp2p's daemon does not start with one that is not."""
    if len(text) > MAX_MULTIADDRESS or (match := _MULTIADDRESS.fullmatch(text)) is None:
        return False
    kind, host, port, node = match.groups()
    try:
        is_host = ipaddress.ip_address(host).version == int(kind[2:]) and "%" not in host
    except ValueError:
        is_host = kind.startswith("dns") and _HOST_NAME.fullmatch(host) is not None
    return is_host and 0 < int(port) < 1 << 16 and _unbase58(node)[:2] == _SHA256


def usable_addresses(them: Iterable[str], most: int) -> tuple[str, ...]:
    """Those of `them` that can be a DHT node's, each once, at most `most`; those of this machine alone come last."""
    usable = dict.fromkeys(text for text in them if is_node_address(text))
    return tuple(sorted(usable, key=lambda text: is_loopback(text.split("/")[2])))[:most]


def _is_host_and_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    is_short = len(host) > 0 and len(text) <= MAX_HOST_AND_PORT
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16
    return is_short and text.isprintable() and " " not in text and is_port


def _unbase58(text: str) -> bytes:
    """34 bytes, or none for another length."""
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    return number.to_bytes(34, "big") if number < 1 << (8 * 34) else b""
