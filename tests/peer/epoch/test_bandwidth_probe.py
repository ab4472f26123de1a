"""How fast a line is found to be, over real connections on loopback; a limit on one side stands in for a slow line."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peer.epoch import bandwidth_probe as probing
from peer.epoch.bandwidth_probe import Probed, probe
from protocols.errors import RefusedError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import BulkStream, Kind
from protocols.wire import dugnad_pb2 as pb
from tests.protocols.transport.test_bulk import pair

MB = 1e6


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def serving(answers: Probed) -> Any:
    async def serve(stream: BulkStream, kind: Kind, length: int) -> None:
        assert kind is Kind.PROBE
        await answers.serve(stream, length)

    return serve


def test_each_direction_is_measured_by_itself(tmp_path: Path) -> None:
    async def work() -> None:
        here = Bandwidth(max_upload_bytes_s=4 * MB, max_download_bytes_s=8 * MB)
        async with pair(tmp_path, serving(Probed()), here=here) as two:
            here.up.measured(1.0)
            await probe(two.channels, [Candidate(two.peer, two.address)])
            assert here.up.bytes_s == pytest.approx(4 * MB, rel=0.3)
            assert here.down.bytes_s == pytest.approx(8 * MB, rel=0.3)

    run(work())


def test_a_fast_line_is_measured_with_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MAX_BYTES", 1 << 20)

    async def work() -> None:
        async with pair(tmp_path, serving(Probed())) as two:
            await probe(two.channels, [Candidate(two.peer, two.address)])
            assert two.here.up.bytes_s > 8 * MB
            assert two.here.moved_bytes < 2.2 * (1 << 20)

    run(work())


def test_nobody_who_answers_leaves_the_rates_as_they_are(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, serving(Probed())) as two:
            two.here.up.measured(7.0)
            await probe(two.channels, [])
            await probe(two.channels, [Candidate("bob", "127.0.0.1:1")])
            assert (two.here.up.bytes_s, two.here.down.bytes_s) == (7.0, 0)

    run(work())


def test_who_probes_all_the_time_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, serving(Probed(clock=lambda: 5.0))) as two:
            await probe(two.channels, [Candidate(two.peer, two.address)])
            with pytest.raises(RefusedError) as refused:
                async with two.to() as stream:
                    await stream.send_record(Kind.PROBE, pb.Probe(up=False))
                    await stream.header()
            assert refused.value.reason == Reason.BUSY.value

    run(work())


def test_a_probe_during_a_round_is_put_off_once_for_each_direction(tmp_path: Path) -> None:
    """The round needs the line; but where a round is always on, a line must be measured some time."""
    rounds = iter([True] * 4)

    async def work() -> None:
        async with pair(tmp_path, serving(Probed(lambda: next(rounds), clock=lambda: 5.0))) as two:
            others = [Candidate(two.peer, two.address)]
            two.here.up.measured(7.0)
            assert await probe(two.channels, others) is False
            assert (two.here.up.bytes_s, two.here.down.bytes_s) == (7.0, 0.0)
            assert two.here.moved_bytes < probing.MAX_BYTES / 4, "who hears that it is refused sends no more"
            assert await probe(two.channels, others) is True
            assert two.here.up.bytes_s > MB and two.here.down.bytes_s > MB
            assert next(rounds), "who was put off is not asked about again"

    run(work())


def test_who_was_put_off_long_ago_may_be_again(tmp_path: Path) -> None:
    now = [0.0]

    async def work() -> None:
        async with pair(tmp_path, serving(Probed(lambda: True, clock=lambda: now[0]))) as two:
            for _ in range(3):
                assert await probe(two.channels, [Candidate(two.peer, two.address)]) is False
                now[0] += probing.PUT_OFF_S + 1

    run(work())


def test_a_line_that_could_not_be_measured_for_rounds_is_measured_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, probed, slept = iter([False, True]), list[float](), [0.0]

    async def sleep(seconds: float) -> None:
        slept[0] += seconds
        if slept[0] > probing.STALE_S / 2:
            raise asyncio.CancelledError

    async def everybody(*_: Any) -> list[Any]:
        return []

    async def probing_(*_: Any) -> bool:
        probed.append(slept[0])
        return next(answers)

    monkeypatch.setattr(probing, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(probing, "time", SimpleNamespace(monotonic=lambda: slept[0]))
    monkeypatch.setattr(probing, "ask_all", everybody)
    monkeypatch.setattr(probing, "probe", probing_)

    async def work() -> None:
        line = probing.BandwidthProbe(None, SimpleNamespace(bandwidth=Bandwidth()), list)  # type: ignore[arg-type]
        await line.measure()
        with pytest.raises(asyncio.CancelledError):
            await line.watch()

    asyncio.run(work())
    assert len(probed) == 2 and probed[0] == 0 and probing.DOUBTED_S < probed[1] < probing.DOUBTED_S + 2 * probing.LOOK_AGAIN_S
