"""How fast a line is found to be, over real connections on loopback; a limit on one side stands in for a slow line."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from peer import probing
from peer.probing import Probed, probe
from protocols.errors import RefusedError
from protocols.reasons import Reason
from protocols.round.records import Candidate
from protocols.transport.bulk import BulkStream, Kind
from protocols.transport.traffic import Traffic
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
        here = Traffic(max_upload_bytes_s=4 * MB, max_download_bytes_s=8 * MB)
        async with pair(tmp_path, serving(Probed()), here=here) as two:
            here.up.measured(1.0)
            await probe(two.links, [Candidate(two.peer, two.address)])
            assert here.up.bytes_s == pytest.approx(4 * MB, rel=0.3)
            assert here.down.bytes_s == pytest.approx(8 * MB, rel=0.3)

    run(work())


def test_a_fast_line_is_measured_with_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST_BYTES", 1 << 20)

    async def work() -> None:
        async with pair(tmp_path, serving(Probed())) as two:
            await probe(two.links, [Candidate(two.peer, two.address)])
            assert two.here.up.bytes_s > 8 * MB
            assert two.here.moved_bytes < 2.2 * (1 << 20)

    run(work())


def test_nobody_who_answers_leaves_the_rates_unknown(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, serving(Probed())) as two:
            await probe(two.links, [])
            await probe(two.links, [Candidate("bob", "127.0.0.1:1")])
            assert (two.here.up.bytes_s, two.here.down.bytes_s) == (0, 0)

    run(work())


def test_who_probes_all_the_time_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with pair(tmp_path, serving(Probed(clock=lambda: 5.0))) as two:
            await probe(two.links, [Candidate(two.peer, two.address)])
            with pytest.raises(RefusedError) as refused:
                async with two.to() as stream:
                    await stream.send_record(Kind.PROBE, pb.Probe(up=False))
                    await stream.header()
            assert refused.value.reason == Reason.BUSY.value

    run(work())
