"""Asking peers where they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from protocols.errors import RefusedError, RemoteError
from protocols.messages import AskReply, AskRequest
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate
from protocols.transport.interface import Transport, call

_ANOTHER_SWARM = (Reason.OTHER_RUN.value, Reason.OTHER_VERSION.value)


@dataclass(frozen=True)
class Whereabouts(AskReply):
    """Where `peer` says that it stands."""

    peer: Candidate


async def ask(transport: Transport, peer: Candidate, limit_s: float = DETECTION_S) -> Whereabouts:
    """Raises UnreachableError, RefusedError (another run) or BadMessageError."""
    reply = await call(transport, peer, AskRequest(), limit_s)
    return Whereabouts(**vars(reply), peer=peer)


async def ask_all(
    transport: Transport, peers: Iterable[Candidate], random: Random, limit_s: float = DETECTION_S
) -> list[Whereabouts]:
    """Those of `peers` that answer and are caught up, the furthest first; equals in random order, so that donors share the load.

    Raises RefusedError when nobody is left and somebody refused because it is of another run or version.
    """
    answers = await asyncio.gather(*(ask(transport, peer, limit_s) for peer in peers), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, RemoteError):
            raise answer
    found = [answer for answer in answers if isinstance(answer, Whereabouts) and answer.caught_up]
    foreign = [answer for answer in answers if isinstance(answer, RefusedError) and answer.reason in _ANOTHER_SWARM]
    if not found and foreign:
        raise foreign[0]
    random.shuffle(found)
    return sorted(found, key=lambda answer: (-answer.standing.total_samples, answer.standing.lineage))
