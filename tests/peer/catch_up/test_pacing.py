from __future__ import annotations

import asyncio
import itertools

from peer.catch_up.pacing import MAX_BYTES_PER_S, TRICKLE_S, Pace

SIZE = 1 << 20


class Time:
    """Passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 50.0
        self.in_round = False

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self) -> Pace:
        return Pace(lambda: self.in_round, clock=lambda: self.now, sleep=self.sleep)


async def sent(pace: Pace, time: Time, count: int, *, waits_for_rounds: bool = True) -> list[float]:
    """When each chunk went out, from now."""
    began = time.now
    return [time.now - began async for _ in pace.parts(range(count), SIZE, waits_for_rounds=waits_for_rounds)]


def test_all_who_fetch_together_get_no_more_than_the_rate() -> None:
    time = Time()
    pace = time.pace()
    for _ in range(3):  # one joiner after the other
        times = asyncio.run(sent(pace, time, 64))
        assert times[-1] >= 63 * SIZE / MAX_BYTES_PER_S * 0.999
    assert time.now - 50.0 >= 191 * SIZE / MAX_BYTES_PER_S * 0.999


def test_a_volunteer_s_limit_holds_for_state_too() -> None:
    time = Time()
    pace = Pace(lambda: False, max_bytes_s=1e6, clock=lambda: time.now, sleep=time.sleep)
    assert asyncio.run(sent(pace, time, 8))[-1] >= 7 * SIZE / 1e6 * 0.999


def test_time_in_which_nobody_fetched_is_not_made_up_for() -> None:
    time = Time()
    pace = time.pace()
    asyncio.run(sent(pace, time, 1))
    time.now += 100
    assert asyncio.run(sent(pace, time, 32))[-1] >= 31 * SIZE / MAX_BYTES_PER_S * 0.999


def test_while_a_round_moves_bytes_only_life_signs_go_out() -> None:
    time = Time()
    time.in_round = True
    times = asyncio.run(sent(time.pace(), time, 4))
    assert times[0] < 1.0 and all(later - earlier >= TRICKLE_S for earlier, later in itertools.pairwise(times))


def test_after_the_round_it_goes_on_at_full_rate() -> None:
    time = Time()

    async def play() -> None:
        time.in_round = True
        async for index in time.pace().parts(range(20), SIZE, waits_for_rounds=True):
            if index == 1:
                time.in_round, began = False, time.now
        assert time.now - began < 1.0

    asyncio.run(play())


def test_commits_do_not_wait_for_rounds() -> None:
    time = Time()
    time.in_round = True
    assert asyncio.run(sent(time.pace(), time, 4, waits_for_rounds=False))[-1] < 1.0
