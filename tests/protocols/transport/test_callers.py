"""How fast callers are read, and how many calls they may have open, on a manual clock."""

from __future__ import annotations

import asyncio

import pytest

from protocols.transport import callers
from protocols.transport.callers import (
    BURST_S,
    BYTES_S_OF_PEER,
    MAX_CALLS_OF_ADDRESS,
    MAX_CALLS_OF_PEER,
    RECORD_BYTES,
    REMEMBERED,
    Callers,
    Pace,
    network_of,
)


class Waits:
    """Stands in for sleeping, and notes how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waited_s = 0.0, 0.0
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waited_s += seconds
        self.now += seconds


def test_who_sends_without_end_is_read_at_its_pace_and_nobody_else_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    here = Callers(lambda: waits.now)

    async def work() -> None:
        for _ in range(5000):
            await here.turn("mallory", "192.0.2.1", 0)
        flooded_s, waits.waited_s = waits.waited_s, 0.0
        assert flooded_s == pytest.approx(5000 * RECORD_BYTES / BYTES_S_OF_PEER - BURST_S)
        await here.turn("ann", "192.0.2.1", 100)
        assert waits.waited_s == 0.0, "not even behind the same router"

    asyncio.run(work())


def test_many_identities_at_one_address_are_read_no_faster_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    here = Callers(lambda: waits.now)

    async def work() -> None:
        for number in range(5000):
            await here.turn(f"sybil {number % 50}", "192.0.2.1", 0)
        assert waits.waited_s == pytest.approx(5000 * RECORD_BYTES / callers.BYTES_S_OF_ADDRESS - BURST_S)

    asyncio.run(work())


def test_a_pace_forgets_callers_that_rested_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    pace = Pace(1000.0, lambda: waits.now)

    async def work() -> None:
        for number in range(REMEMBERED):
            await pace.turn(f"{number}", 1)
        waits.now += 2 * BURST_S
        await pace.turn("0", 1000)
        await pace.turn("a newcomer", 1)
        assert set(pace._limits) == {"0", "a newcomer"}

    asyncio.run(work())


def test_a_peer_has_so_many_calls_at_once_and_an_address_more() -> None:
    here = Callers(lambda: 0.0)
    open_calls = [here.calling("ann", "192.0.2.1") for _ in range(MAX_CALLS_OF_PEER)]
    assert [call.__enter__() for call in open_calls] == [""] * MAX_CALLS_OF_PEER
    with here.calling("ann", "192.0.2.2") as too_many, here.calling("bob", "192.0.2.1") as fine:
        assert "this peer" in too_many and fine == ""
    for call in open_calls:
        call.__exit__(None, None, None)
    with here.calling("ann", "192.0.2.1") as fine:
        assert fine == "" and len(here._calls) == 3
    crowd = [here.calling(f"sybil {number}", "192.0.2.1") for number in range(MAX_CALLS_OF_ADDRESS)]
    assert {call.__enter__() for call in crowd} == {""}
    with here.calling("one more", "192.0.2.1") as too_many, here.calling("elsewhere", "192.0.2.2") as fine:
        assert "others" in too_many and fine == ""


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_home_is_one_network(address: str, network: str) -> None:
    assert network_of(address) == network
