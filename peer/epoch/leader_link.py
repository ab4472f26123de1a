"""The stream from this peer to the leader that it follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.messages import Leave, NotLeader
from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Hello
from protocols.transport.interface import Stream, Transport

# A leader's first answer includes the TLS handshake, for which a busy home computer may need some time.
FIRST_ANSWER_S = 3 * DETECTION_S
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Departure:
    """Why the stream ended."""

    reason: Reason
    led: bool  # that peer acted as the leader
    follows: str = ""  # whom it named instead of itself
    able: bool = False  # it follows nobody, and may find yet that it is to lead


class LeaderLink:
    """At most one stream at a time. `receive` is called with the leader and each record that it sends."""

    def __init__(self, transport: Transport, hello: Callable[[], Hello], receive: Callable[[Candidate, Any], None]) -> None:
        self._transport = transport
        self._hello = hello
        self._receive = receive
        self._stream: Stream | None = None
        self._ended = asyncio.Event()
        self._moved = False  # since the stream was opened
        self._is_full = False  # the leader does not read what it is sent

    def moved(self) -> None:
        """This machine has another address. If the stream falls silent now, the leader is not to blame."""
        self._moved = True

    async def say_goodbye(self) -> None:
        """Tell the leader that this peer leaves. The leader ends the stream once it has heard."""
        if self._stream is not None:
            self.send(Leave())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), DETECTION_S)

    def send(self, record: Any, to: str = "") -> None:
        """To the leader at the other end. Dropped if there is none, or if it is not `to`: the plan of another leader is over."""
        if self._stream is not None and to in ("", self._stream.peer):
            self._is_full |= not self._stream.post(record)

    async def follow(self, leader: Candidate, opened: Callable[[], None], goes_on: Callable[[], bool]) -> Departure | None:
        """Until the stream ends; None once `goes_on()` is false, since somebody else leads, and if a move broke the stream.

        `opened` is called after the hello.

        Raises RefusedError when the leader is of another run.
        """
        self._ended.clear()
        led = self._moved = self._is_full = False
        try:
            async with self._transport.open(leader, self._hello()) as stream:
                self._stream = stream
                opened()
                while goes_on():
                    record = await asyncio.wait_for(stream.receive(), DETECTION_S if led else FIRST_ANSWER_S)
                    if self._is_full:
                        return Departure(Reason.UNREAD, led)
                    if record is None:
                        return Departure(Reason.CONNECTION_LOST, led)
                    if isinstance(record, NotLeader):
                        able = record.able and not record.follows
                        return Departure(Reason.NOT_THE_LEADER, led, record.follows, able)
                    led = True
                    self._receive(leader, record)
                return None
        except asyncio.TimeoutError:
            return None if self._moved else Departure(Reason.SILENT, led)
        except BadMessageError as error:
            _log.warning("leader %s breaks the protocol: %s", leader.peer[:8], error)
            return Departure(Reason.BAD_CHUNK, led)
        except RemoteError as error:
            if isinstance(error, RefusedError) and error.reason == Reason.OTHER_RUN.value:
                raise
            return None if self._moved else Departure(Reason.CONNECTION_LOST, led)
        finally:
            self._stream = None
            self._ended.set()
