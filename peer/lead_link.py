"""The control stream from this peer to the lead that it follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from protocols.errors import BadMessageError, RefusedError
from protocols.reasons import Reason
from protocols.round.lead import DETECTION_S
from protocols.round.records import Candidate, Hello
from protocols.transport.links import END, Links, translate
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

# The first answer of a lead includes the TLS handshake, which a busy home computer may take its time for.
FIRST_ANSWER_S = 3 * DETECTION_S
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Departure:
    """Why the stream ended; `led` tells whether that peer ever acted as a lead, `follows` whom it named instead of itself.

    `able`: it is there, follows nobody, and may yet find that it is to lead.
    """

    reason: Reason
    led: bool
    follows: str = ""
    able: bool = False


class LeadLink:
    def __init__(self, links: Links, hello: Hello, receive: Callable[[Candidate, pb.LeadMessage], None]) -> None:
        self._links = links
        self._hello = hello
        self._receive = receive
        self._to = ""
        self._outbox: asyncio.Queue[pb.MemberMessage] = asyncio.Queue()
        self._ended = asyncio.Event()

    async def say_goodbye(self) -> None:
        """Tell the lead that this peer leaves; it ends the stream once it has heard."""
        if self._to:
            self.send(pb.MemberMessage(leave=pb.Leave()))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), DETECTION_S)

    def send(self, message: pb.MemberMessage, to: str = "") -> None:
        """To the lead at the other end; dropped if there is none, or if it is not `to`: what it answers is over then."""
        if self._to and to in ("", self._to):
            self._outbox.put_nowait(message)

    async def follow(self, lead: Candidate, opened: Callable[[], None], goes_on: Callable[[], bool]) -> Departure | None:
        """Until the stream ends; None once `goes_on()` is false: somebody else leads. `opened` is called after the hello.

        Raises RefusedError when the lead is of another run.
        """
        self._to, self._outbox = lead.peer, asyncio.Queue()
        self._ended.clear()
        call = PeerStub(self._links.to(lead.peer, lead.address)).Control(metadata=self._links.metadata)
        writing = asyncio.create_task(_write_all(call, self._outbox))
        self.send(pb.MemberMessage(hello=to_wire(self._hello)))
        opened()
        led, limit_s = False, FIRST_ANSWER_S
        try:
            while goes_on():
                message = await asyncio.wait_for(call.read(), limit_s)
                limit_s = DETECTION_S
                if message is END:
                    return Departure(Reason.CONNECTION_LOST, led)
                if message.WhichOneof("kind") == "not_lead":
                    no = message.not_lead
                    return Departure(Reason.NOT_THE_LEAD, led, no.follows, no.able and not no.follows)
                led = True
                self._receive(lead, message)
            return None
        except asyncio.TimeoutError:
            return Departure(Reason.SILENT, led)
        except grpc.RpcError as error:
            problem = translate(error, f"lead {lead.peer[:8]}")
            if isinstance(problem, RefusedError) and problem.reason == Reason.OTHER_RUN.value:
                raise problem from error
            return Departure(Reason.CONNECTION_LOST, led)
        except asyncio.InvalidStateError:  # the call is closed already
            return Departure(Reason.CONNECTION_LOST, led)
        except BadMessageError as error:
            _log.warning("lead %s breaks the protocol: %s", lead.peer[:8], error)
            return Departure(Reason.BAD_CHUNK, led)
        finally:
            self._to = ""
            self._ended.set()
            writing.cancel()
            call.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def _write_all(call: Any, outbox: asyncio.Queue[pb.MemberMessage]) -> None:
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reading side notices too, and says so
        while True:
            await call.write(await outbox.get())
