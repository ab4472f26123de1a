"""How fast is this peer's line? It is measured by sending for a moment each way, with a few peers at once.

A peer measures when it joins, since its first round cannot tell; now and then, since rounds ask for no more than is known; and
when a round took longer than planned, since somebody's line must have changed. Several peers take part, so that no single one of
their lines is what is measured. The receiver counts: bytes that a sender handed to its system have not arrived yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from peer.environment import Environment
from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.messages import Probe, Probed
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.frames import FrameStream, Kind, refuse
from protocols.transport.whereabouts import ask_all

MAX_PEERS = 4
MAX_BYTES = 32 << 20  # to or from each: on a fast line that takes less than `Sizes.probe_s`
# A line is at its speed after this share of the probe: TCP begins slowly.
WARM_UP_SHARE = 0.3
PIECE = bytes(8 << 10)
# A peer is probed by another at most this often.
AGAIN_S = 10.0
# A peer that was put off because of a round is answered when it comes back within this time, round or not.
PUT_OFF_S = 300.0
# A probe has so many times its sending time: bytes that were queued in that time have to drain.
DRAIN_TIMES = 20
# The line is measured again after the first time; after the second when a round was late, or when the peers asked were busy.
STALE_S, DOUBTED_S = 900.0, 60.0
LOOK_AGAIN_S = 10.0
# The other side's measurement is believed up to so many times what this side finds for the whole probe.
MAX_OF_OURS = 5.0
_log = logging.getLogger(__name__)


class BandwidthProbe:
    """Measures this peer's line, and sets the rates in the transport's `bandwidth`."""

    def __init__(self, environment: Environment, peers: Callable[[], Sequence[Candidate]]) -> None:
        """`peers`: those that can be called now."""
        self._environment = environment
        self._transport = environment.transport
        self._peers = peers
        self._measured_at = 0.0
        self._put_off = False

    async def measure(self) -> None:
        """With nobody there who answers, the next round has to tell."""
        self._measured_at = self._environment.clock()
        self._transport.bandwidth.is_late = False
        try:
            found = await ask_all(self._transport, self._peers(), self._environment.random)
        except RemoteError as error:
            _log.info("nobody to measure the line with: %s", error)
            return
        self._put_off = not await self.probe([Candidate(it.peer.peer, it.bulk_address) for it in found if it.bulk_address])

    async def watch(self) -> None:
        """Measures again when it is time, each peer at another moment."""
        bandwidth = self._transport.bandwidth
        while True:
            await asyncio.sleep(self._environment.random.uniform(0.5, 1.5) * LOOK_AGAIN_S)
            if bandwidth.up.began_at is not None:
                continue  # a round has the line
            age_s = self._environment.clock() - self._measured_at
            if age_s > STALE_S or ((bandwidth.is_late or self._put_off) and age_s > DOUBTED_S):
                await self.measure()

    async def probe(self, others: Sequence[Candidate]) -> bool:
        """Measure with `others`, named with their bulk addresses. A direction of which nobody can tell keeps its rate.

        False when that is because somebody was busy.
        """
        answered, bandwidth = True, self._transport.bandwidth
        for direction, measured in ((bandwidth.up, self._up), (bandwidth.down, self._down)):
            rates = await asyncio.gather(*(self._rate(other, measured) for other in others[:MAX_PEERS]))
            known = [rate for rate in rates if rate is not None]
            if (rates and all(rates)) or sum(known) > direction.bytes_s:  # peers that do not answer leave room on the line
                direction.measured(sum(known))
            elif None in rates:
                answered = False
        return answered

    async def _rate(self, other: Candidate, measured: Callable[[FrameStream], Awaitable[float]]) -> float | None:
        """In bytes/s; 0 when it cannot be told, None when the other is busy."""
        try:
            async with self._transport.bulk(other.peer, other.address) as stream:
                return await asyncio.wait_for(measured(stream), DRAIN_TIMES * self._environment.sizes.probe_s)
        except (RemoteError, asyncio.TimeoutError) as error:
            _log.info("the line to %s could not be measured: %s", other.peer[:8], error)
            return None if isinstance(error, RefusedError) and error.reason == Reason.BUSY.value else 0.0

    async def _up(self, stream: FrameStream) -> float:
        clock = self._environment.clock
        began = clock()
        await stream.send_record(Kind.PROBE, Probe(up=True))
        sending = asyncio.get_running_loop().create_task(_send(stream, self._environment))
        try:
            answer = await stream.expect(Kind.DONE, Probed)  # or a refusal, at once: then nothing more is sent
            sent = await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if answer.bytes_s >= MAX_OF_OURS * sent / max(clock() - began, 1e-9):
            raise BadMessageError("a rate out of all bounds")
        return answer.bytes_s

    async def _down(self, stream: FrameStream) -> float:
        await stream.send_record(Kind.PROBE, Probe(up=False))
        return await _receive(stream, self._environment.clock)


async def _send(stream: FrameStream, environment: Environment) -> int:
    until, sent = environment.clock() + environment.sizes.probe_s, 0
    while environment.clock() < until and sent < MAX_BYTES:
        await stream.send(Kind.CHUNK, PIECE)
        sent += len(PIECE)
    await stream.send(Kind.CHUNK)
    return sent


async def _receive(stream: FrameStream, clock: Callable[[], float]) -> float:
    """Bytes/s until an empty chunk comes, the beginning left out."""
    buffer, came = memoryview(bytearray(len(PIECE))), [(clock(), 0)]
    while True:
        kind, length = await stream.header()
        if kind is not Kind.CHUNK or length > len(PIECE):
            raise BadMessageError(f"{kind.name} of {length} bytes in a probe")
        if not length:
            break
        await stream.receive_into(buffer[:length])
        came.append((clock(), came[-1][1] + length))
        if came[-1][1] > MAX_BYTES:
            raise BadMessageError("a probe without an end")
    began, ended = came[0][0], came[-1][0]
    at, before = next(it for it in came if it[0] >= began + WARM_UP_SHARE * (ended - began))
    return (came[-1][1] - before) / (ended - at) if ended > at else 0.0


class ProbeServer:
    """Answers other peers' probes.

    During a round, which needs the line, a peer is put off once. In some swarms a round is always on, so the second time counts.
    """

    def __init__(self, environment: Environment, in_round: Callable[[], bool]) -> None:
        self._environment = environment
        self._in_round = in_round
        self._at: dict[tuple[str, bool], float] = {}
        self._put_off_at: dict[tuple[str, bool], float] = {}

    async def serve(self, stream: FrameStream, length: int) -> None:
        asked = await stream.record(Probe, length)
        now, key = self._environment.clock(), (stream.peer, asked.up)
        if now - self._at.get(key, float("-inf")) < AGAIN_S:
            await refuse(stream, Reason.BUSY, "this peer was probed a moment ago")
        self._put_off_at = {other: at for other, at in self._put_off_at.items() if now - at < PUT_OFF_S}
        if self._put_off_at.pop(key, None) is None and self._in_round():
            self._put_off_at[key] = now
            await refuse(stream, Reason.BUSY, "a round has the line")
        self._at = {other: at for other, at in self._at.items() if now - at < AGAIN_S} | {key: now}
        limit_s = DRAIN_TIMES * self._environment.sizes.probe_s
        if asked.up:
            rate = await asyncio.wait_for(_receive(stream, self._environment.clock), limit_s)
            await stream.send_record(Kind.DONE, Probed(rate))
        else:
            await asyncio.wait_for(_send(stream, self._environment), limit_s)
