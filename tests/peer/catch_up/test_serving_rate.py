"""How fast state goes out, in virtual time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from peer.catch_up.serving_rate import MAX_BYTES_S, TRICKLE_S, ServingRate
from protocols.transport.bandwidth import Direction
from tests.peer.virtual import Net, Node

SIZE = 1 << 20


class Donor:
    def __init__(self, node: Node, max_upload: float | None = None) -> None:
        self.node, self.in_round = node, False
        self.upload = Direction(max_upload, node.loop.time)
        self.rate = ServingRate(lambda: self.in_round, self.upload, node.loop.time)

    async def sent(self, count: int, *, waits_for_rounds: bool = True) -> list[float]:
        """When each chunk went out, from now."""
        began = self.node.loop.time()
        parts = self.rate.parts(range(count), SIZE, waits_for_rounds=waits_for_rounds)
        return [self.node.loop.time() - began async for _ in parts]


@pytest.fixture
def donor(net: Net) -> Donor:
    return Donor(net.node("ann"))


def test_all_who_fetch_together_get_no_more_than_the_rate(donor: Donor) -> None:
    joiners = [donor.node.start(donor.sent(64)) for _ in range(3)]
    donor.node.play(all_of(joiners))
    assert donor.node.loop.time() >= 191 * SIZE / MAX_BYTES_S * 0.99


async def all_of(tasks: list[Any]) -> None:
    for task in tasks:
        await task


def test_a_volunteer_s_limit_holds_for_state_too(net: Net) -> None:
    donor = Donor(net.node("ann"), max_upload=1e6)
    assert donor.node.play(donor.sent(8))[-1] >= 7 * SIZE / 1e6 * 0.99


def test_state_takes_its_turns_with_whatever_else_goes_up(net: Net) -> None:
    donor = Donor(net.node("ann"), max_upload=1e6)

    async def reduce() -> None:
        for _ in range(8):
            await donor.upload.turn(SIZE)

    state, shards = donor.node.start(donor.sent(8)), donor.node.start(reduce())
    donor.node.play(all_of([state, shards]))
    assert donor.node.loop.time() >= 15 * SIZE / 1e6 * 0.99


def test_time_in_which_nobody_fetched_is_not_made_up_for(donor: Donor) -> None:
    donor.node.play(donor.sent(1))
    donor.node.world.run_until(100)
    assert donor.node.play(donor.sent(32))[-1] >= 31 * SIZE / MAX_BYTES_S * 0.9


def test_while_a_round_moves_bytes_only_life_signs_go_out(donor: Donor) -> None:
    donor.in_round = True
    times = donor.node.play(donor.sent(4))
    assert times[0] < 1.0 and all(later - earlier >= TRICKLE_S for earlier, later in itertools.pairwise(times))


def test_after_the_round_it_goes_on_at_full_rate(donor: Donor) -> None:
    async def play() -> float:
        donor.in_round, began = True, 0.0
        async for index in donor.rate.parts(range(20), SIZE, waits_for_rounds=True):
            if index == 1:
                donor.in_round, began = False, donor.node.loop.time()
        return donor.node.loop.time() - began

    assert donor.node.play(play()) < 1.0


def test_commits_do_not_wait_for_rounds(donor: Donor) -> None:
    donor.in_round = True
    assert donor.node.play(donor.sent(4, waits_for_rounds=False))[-1] < 1.0
