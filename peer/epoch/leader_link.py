"""The control stream from this peer to the leader that it follows."""

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
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Hello
from protocols.transport.channels import END, Channels, translate
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

# The first answer of a leader includes the TLS handshake, which a busy home computer may take its time for.
FIRST_ANSWER_S = 3 * DETECTION_S
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Departure:
    """Why the stream ended; `led` tells whether that peer ever acted as a leader, `follows` whom it named instead of itself.

    `able`: it is there, follows nobody, and may yet find that it is to lead.
    """

    reason: Reason
    led: bool
    follows: str = ""
    able: bool = False


class LeaderLink:
    def __init__(self, channels: Channels, hello: Hello, receive: Callable[[Candidate, pb.LeaderMessage], None]) -> None:
        self._channels = channels
        self._hello = hello
        self._receive = receive
        self._to = ""
        self._outbox: asyncio.Queue[pb.MemberMessage] = asyncio.Queue()
        self._ended = asyncio.Event()

    async def say_goodbye(self) -> None:
        """Tell the leader that this peer leaves; it ends the stream once it has heard."""
        if self._to:
            self.send(pb.MemberMessage(leave=pb.Leave()))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), DETECTION_S)

    def send(self, message: pb.MemberMessage, to: str = "") -> None:
        """To the leader at the other end; dropped if there is none, or if it is not `to`: what it answers is over then."""
        if self._to and to in ("", self._to):
            self._outbox.put_nowait(message)

    async def follow(self, leader: Candidate, opened: Callable[[], None], goes_on: Callable[[], bool]) -> Departure | None:
        """Until the stream ends; None once `goes_on()` is false: somebody else leads. `opened` is called after the hello.

        Raises RefusedError when the leader is of another run.
        """
        self._to, self._outbox = leader.peer, asyncio.Queue()
        self._ended.clear()
        call = PeerStub(self._channels.to(leader.peer, leader.address)).Control(metadata=self._channels.metadata)
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
                if message.WhichOneof("kind") == "not_leader":
                    no = message.not_leader
                    return Departure(Reason.NOT_THE_LEADER, led, no.follows, no.able and not no.follows)
                led = True
                self._receive(leader, message)
            return None
        except asyncio.TimeoutError:
            return Departure(Reason.SILENT, led)
        except grpc.RpcError as error:
            problem = translate(error, f"leader {leader.peer[:8]}")
            if isinstance(problem, RefusedError) and problem.reason == Reason.OTHER_RUN.value:
                raise problem from error
            return Departure(Reason.CONNECTION_LOST, led)
        except asyncio.InvalidStateError:  # the call is closed already
            return Departure(Reason.CONNECTION_LOST, led)
        except BadMessageError as error:
            _log.warning("leader %s breaks the protocol: %s", leader.peer[:8], error)
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
