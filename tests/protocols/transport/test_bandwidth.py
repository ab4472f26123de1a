"""Rates estimated from transfers, and the limits on them; the clock is passed in."""

from __future__ import annotations

import asyncio

import pytest

from protocols.transport.bandwidth import FALL_SHARE, LATE, RISE_SHARE, Bandwidth, Direction
from tests.peer.virtual import Node, in_virtual_time


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def transfer(flow: Direction | Bandwidth, clock: Clock, *pieces: tuple[float, int], planned_s: float = 0.0) -> None:
    """(seconds, bytes that moved in them)"""
    flow.begin()
    for seconds, size in pieces:
        clock.now += seconds
        (flow.up if isinstance(flow, Bandwidth) else flow).moved(size)
    flow.end(planned_s)


def test_the_first_transfer_sets_the_rate_and_later_ones_move_it() -> None:
    clock = Clock()
    flow = Direction(None, clock)
    assert flow.bytes_s == 0
    transfer(flow, clock, (0.5, 500))
    assert flow.bytes_s == pytest.approx(1000)
    transfer(flow, clock, (0.5, 1000))
    assert flow.bytes_s == pytest.approx(1000 + RISE_SHARE * 1000)
    transfer(flow, clock, (0.5, 250))
    assert flow.bytes_s == pytest.approx(1500), "so short a transfer is mostly waiting"
    transfer(flow, clock, (2.0, 1000))
    assert flow.bytes_s == pytest.approx(1500 - FALL_SHARE * 1000)


def test_a_line_that_was_not_asked_for_more_is_not_held_to_be_slower() -> None:
    clock = Clock()
    flow = Direction(None, clock)
    flow.measured(1000.0)
    transfer(flow, clock, (10.0, 2000), planned_s=9.0)
    assert flow.bytes_s == 1000
    transfer(flow, clock, (10.0, 2000), planned_s=5.0)
    assert flow.bytes_s == pytest.approx(1000 - FALL_SHARE * 800), "it took twice as long as planned: perhaps this line did"


def test_a_transfer_that_took_much_longer_than_planned_is_told() -> None:
    clock = Clock()
    bandwidth = Bandwidth(clock=clock)
    for seconds, planned_s, late in ((10.0, 9.0, False), (10.0, 10.0 / LATE - 0.1, True), (0.9, 0.1, True), (10.0, 9.0, False)):
        transfer(bandwidth, clock, (seconds, 1000), planned_s=planned_s)
        assert bandwidth.is_late is late, "what was planned to take no time tells nothing"


def test_waiting_for_others_does_not_count_against_the_line() -> None:
    clock = Clock()
    flow = Direction(None, clock)
    transfer(flow, clock, (5.0, 10), (1.0, 4000), (9.0, 10))
    assert flow.bytes_s == pytest.approx(4000)


def test_a_transfer_that_was_given_up_says_nothing() -> None:
    clock = Clock()
    flow = Direction(None, clock)
    flow.begin()
    clock.now += 3
    transfer(flow, clock, (1.0, 700))
    assert flow.bytes_s == pytest.approx(700)
    flow.end()
    assert flow.bytes_s == pytest.approx(700)


def test_what_moves_between_transfers_is_counted_and_not_timed() -> None:
    clock = Clock()
    flow = Direction(None, clock)
    flow.moved(10**9)
    transfer(flow, clock, (1.0, 500))
    assert (flow.moved_bytes, flow.bytes_s) == (10**9 + 500, pytest.approx(500))


def test_no_more_than_the_limit_is_promised() -> None:
    clock = Clock()
    flow = Direction(300.0, clock)
    flow.measured(1000.0)
    assert flow.bytes_s == 300


def test_a_limit_holds_back_what_would_go_faster() -> None:
    async def send(node: Node) -> float:
        direction = Direction(1e6, node.loop.time)
        for _ in range(10):
            await direction.turn(50_000)
        return node.loop.time()

    assert in_virtual_time(send) == pytest.approx(0.45), "500 kB at 1 MB/s, of which 50 ms may pass at once"


def test_whoever_asks_first_passes_first_and_all_share_one_limit() -> None:
    async def send(node: Node) -> tuple[list[int], float]:
        direction, passed = Direction(1e6, node.loop.time), list[int]()

        async def piece(number: int) -> None:
            await direction.turn(100_000)
            passed.append(number)

        await asyncio.gather(*(piece(number) for number in range(5)))
        return passed, node.loop.time()

    passed, seconds = in_virtual_time(send)
    assert passed == [0, 1, 2, 3, 4] and seconds == pytest.approx(0.45)


def test_without_a_limit_nobody_waits() -> None:
    async def send(node: Node) -> float:
        await Direction(None, node.loop.time).turn(10**12)
        return node.loop.time()

    assert in_virtual_time(send) == 0.0


def test_the_two_directions_have_a_limit_each() -> None:
    async def both(node: Node) -> float:
        line = Bandwidth(max_upload_bytes_s=1e6, max_download_bytes_s=1e6, clock=node.loop.time)
        await asyncio.gather(line.up.turn(1_000_000), line.down.turn(1_000_000))
        return node.loop.time()

    assert in_virtual_time(both) == pytest.approx(0.95)
