"""How fast is this peer's line? Asked when it joins, before its first round can tell; now and then, since rounds ask for what is
known already; and when a round took longer than planned, since somebody's line must have changed.

A second of traffic each way, with a few peers at once, so that no single one of their lines is what is measured. Whoever
receives counts: what a sender has handed to its system has not arrived yet.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from protocols.errors import BadMessageError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.bulk import BulkConnections, BulkStream, Kind, refuse
from protocols.transport.channels import Channels
from protocols.transport.state_transfer import ask_all
from protocols.wire import dugnad_pb2 as pb

MAX_PEERS = 4
PROBE_S = 0.75
MAX_BYTES = 32 << 20  # to or from each: on a fast line that takes less than PROBE_S
# A line is at its speed after this much of it: TCP begins slowly.
WARM_UP_SHARE = 0.3
PIECE = bytes(8 << 10)
# A peer is probed by another at most this often.
AGAIN_S = 10.0
# Who was put off because of a round is answered when it comes back within this time, round or not.
PUT_OFF_S = 300.0
LIMIT_S = 20 * PROBE_S  # what was queued in that time has to drain
# The line is measured again after this time, or this one when a round was late, or those asked were busy with one.
STALE_S, DOUBTED_S = 900.0, 60.0
LOOK_AGAIN_S = 10.0
# What the other side says that came is believed up to so many times what this side finds for the whole probe.
MAX_OF_OURS = 5.0
_log = logging.getLogger(__name__)


class BandwidthProbe:
    def __init__(self, channels: Channels, bulk: BulkConnections, peers: Callable[[], Sequence[Candidate]]) -> None:
        """`peers`: who can be called."""
        self._channels = channels
        self._bulk = bulk
        self._peers = peers
        self._measured_at = 0.0
        self._put_off = False

    async def measure(self) -> None:
        """Nobody there, nobody who answers: then the next round has to tell."""
        self._measured_at = time.monotonic()
        self._bulk.bandwidth.is_late = False
        try:
            found = await ask_all(self._channels, self._peers())
        except RemoteError as error:
            _log.info("nobody to measure the line with: %s", error)
            return
        others = [Candidate(it.peer.peer, it.bulk_address) for it in found if it.bulk_address]
        self._put_off = not await probe(self._bulk, others)

    async def watch(self) -> None:
        """Measures again when it is time, everybody at another moment."""
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * LOOK_AGAIN_S)
            if self._bulk.bandwidth.up.began_at is not None:
                continue  # a round has the line
            age_s = time.monotonic() - self._measured_at
            if age_s > STALE_S or ((self._bulk.bandwidth.is_late or self._put_off) and age_s > DOUBTED_S):
                await self.measure()


async def probe(channels: BulkConnections, others: Sequence[Candidate]) -> bool:
    """Sets the rates in `links.traffic` to what this line carries to and from `others`, who are named with their bulk addresses.
    Directions of which nobody can tell stay as they are. False when that is because somebody was busy."""
    answered = True
    for flow, direction in ((channels.bandwidth.up, _up), (channels.bandwidth.down, _down)):
        rates = await asyncio.gather(*(_rate(channels, other, direction) for other in others[:MAX_PEERS]))
        known = [rate for rate in rates if rate is not None]
        if (rates and all(rates)) or sum(known) > flow.bytes_s:  # some who do not answer leave room on the line
            flow.measured(sum(known))
        elif None in rates:
            answered = False
    return answered


async def _rate(channels: BulkConnections, other: Candidate, direction: Callable[[BulkStream], Awaitable[float]]) -> float | None:
    """0 when it cannot be told, None when the other is busy."""
    try:
        async with channels.to(other.peer, other.address) as stream:
            return await asyncio.wait_for(direction(stream), LIMIT_S)
    except (RemoteError, asyncio.TimeoutError) as error:
        _log.info("the line to %s could not be measured: %s", other.peer[:8], error)
        return None if isinstance(error, RefusedError) and error.reason == Reason.BUSY.value else 0.0


async def _up(stream: BulkStream) -> float:
    began = time.monotonic()
    await stream.send_record(Kind.PROBE, pb.Probe(up=True))
    sending = asyncio.create_task(_send(stream))
    try:
        answer = await stream.expect(Kind.DONE, pb.Probed)  # or a refusal, at once: then nothing more is sent
        sent = await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    if not 0 <= answer.bytes_s < MAX_OF_OURS * sent / (time.monotonic() - began):
        raise BadMessageError("a rate out of all bounds")
    return float(answer.bytes_s)


async def _down(stream: BulkStream) -> float:
    await stream.send_record(Kind.PROBE, pb.Probe(up=False))
    return await _receive(stream)


async def _send(stream: BulkStream) -> int:
    until, sent = time.monotonic() + PROBE_S, 0
    while time.monotonic() < until and sent < MAX_BYTES:
        await stream.send(Kind.CHUNK, PIECE)
        sent += len(PIECE)
    await stream.send(Kind.CHUNK)
    return sent


async def _receive(stream: BulkStream) -> float:
    """Bytes/s until an empty chunk comes, the beginning left out."""
    buffer, came = memoryview(bytearray(len(PIECE))), [(time.monotonic(), 0)]
    while True:
        kind, length = await stream.header()
        if kind is not Kind.CHUNK or length > len(PIECE):
            raise BadMessageError(f"{kind.name} of {length} bytes in a probe")
        if not length:
            break
        await stream.receive_into(buffer[:length])
        came.append((time.monotonic(), came[-1][1] + length))
        if came[-1][1] > MAX_BYTES:
            raise BadMessageError("a probe without an end")
    began, ended = came[0][0], came[-1][0]
    at, before = next(it for it in came if it[0] >= began + WARM_UP_SHARE * (ended - began))
    return (came[-1][1] - before) / (ended - at) if ended > at else 0.0


class Probed:
    """Answers other peers' probes; not during a round, which needs the line, unless it has put the same peer off before: in some
    swarms a round is always on."""

    def __init__(self, in_round: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_round = in_round
        self._clock = clock
        self._at: dict[tuple[str, bool], float] = {}
        self._put_off_at: dict[tuple[str, bool], float] = {}

    async def serve(self, stream: BulkStream, length: int) -> None:
        asked = await stream.record(pb.Probe, length)
        now, key = self._clock(), (stream.peer, asked.up)
        if now - self._at.get(key, float("-inf")) < AGAIN_S:
            await refuse(stream, Reason.BUSY, "this peer was probed a moment ago")
        self._put_off_at = {other: at for other, at in self._put_off_at.items() if now - at < PUT_OFF_S}
        if self._put_off_at.pop(key, None) is None and self._in_round():
            self._put_off_at[key] = now
            await refuse(stream, Reason.BUSY, "a round has the line")
        self._at = {other: at for other, at in self._at.items() if now - at < AGAIN_S} | {key: now}
        if asked.up:
            rate = await asyncio.wait_for(_receive(stream), LIMIT_S)
            await stream.send_record(Kind.DONE, pb.Probed(bytes_s=rate))
        else:
            await asyncio.wait_for(_send(stream), LIMIT_S)
