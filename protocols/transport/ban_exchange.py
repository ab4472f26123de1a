"""Comparing ban lists with another peer: whoever has the newer one gives it. The caller's side and the callee's."""

from __future__ import annotations

import asyncio
from typing import Any

from protocols.ban_list import KnownBans, SignedBanList
from protocols.errors import BadMessageError, UnreachableError
from protocols.round.records import Candidate
from protocols.transport.interface import Stream, Transport, receive_within


async def exchange(transport: Transport, peer: Candidate, mine: SignedBanList, limit_s: float) -> SignedBanList | None:
    """Call `peer`. Gives its list, whose signature is not checked, if that is newer than `mine`.

    Raises RemoteError: UnreachableError after `limit_s` seconds, BadMessageError for a list that is not newer.
    """

    async def compare() -> SignedBanList | None:
        async with transport.open(peer, KnownBans(mine.bans.version)) as stream:
            answer = await stream.receive()
            if isinstance(answer, SignedBanList):
                return newer(answer, mine.bans.version, peer.peer)
            if not isinstance(answer, KnownBans):
                raise BadMessageError(f"{peer.peer[:8]} does not say how new its ban list is")
            if answer.version < mine.bans.version:
                await stream.send(mine)
                await stream.receive()  # or the end of this call could overtake it
            return None

    try:
        return await asyncio.wait_for(compare(), limit_s)
    except asyncio.TimeoutError as error:
        raise UnreachableError(f"peer {peer.peer[:8]} does not answer within {limit_s:g} s") from error


async def answer(stream: Stream, opening: KnownBans, mine: SignedBanList, limit_s: float) -> SignedBanList | None:
    """The other side of `exchange`, up to the point where the caller has given its list. Raises as that does."""
    version = mine.bans.version
    if opening.version < version:
        await stream.send(mine)
        return None
    await stream.send(KnownBans(version))
    if opening.version == version:
        return None
    record: Any = await receive_within(stream, limit_s)
    return newer(record, version, stream.peer) if isinstance(record, SignedBanList) else None


def newer(signed: SignedBanList, than: int, peer: str) -> SignedBanList:
    """`signed`, unless `peer` sent a list that is no newer than `than`, which it was told. Raises BadMessageError."""
    if signed.bans.version <= than:
        raise BadMessageError(f"{peer[:8]} sent ban list {signed.bans.version} to somebody with {than}")
    return signed
