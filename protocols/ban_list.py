"""The ban list: which peers take no part. The run's authority signs it, so that any peer can pass it on while the coordinator is
away.

Versions only grow. Nobody reads a clock to tell which of two lists holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.errors import BadMessageError
from protocols.identity import authority_signed
from protocols.round.records import MAX_INCARNATION, require

MAX_BANNED = 4096
_SIGNED = b"dugnad bans "


@dataclass(frozen=True)
class BanList:
    """`peers` take no part. Of two lists, the one of the larger `version` holds; 0 is that of who has heard of none."""

    version: int
    peers: tuple[str, ...] = field(metadata={"max_bytes": 64, "max_items": MAX_BANNED})

    def __post_init__(self) -> None:
        require(0 <= self.version <= MAX_INCARNATION, "the version of a ban list is a number of 63 bits")
        require(len(self.peers) <= MAX_BANNED, f"at most {MAX_BANNED} peers are banned")


@dataclass(frozen=True)
class SignedBanList:
    bans: BanList
    signature: bytes = field(metadata={"max_bytes": 80})


@dataclass(frozen=True)
class KnownBans:
    """The version of the ban list that the sender has."""

    version: int

    def __post_init__(self) -> None:
        require(0 <= self.version <= MAX_INCARNATION, "the version of a ban list is a number of 63 bits")


NO_BANS = SignedBanList(BanList(0, ()), b"")


def ban_list_message(bans: BanList) -> bytes:
    """What the authority signs. No certificate begins like this."""
    return _SIGNED + "\n".join((str(bans.version), *bans.peers)).encode()


def check_ban_list(signed: SignedBanList, authority: bytes) -> None:
    """Raises BadMessageError unless the authority (a certificate, PEM) signed it."""
    if not authority_signed(ban_list_message(signed.bans), signed.signature, authority):
        raise BadMessageError("a ban list that the run's authority has not signed")
