from __future__ import annotations

import itertools
import random

import pytest

from protocols.gradients.slices import LONGEST_PERIOD, MIN_BLOCKS, Slices
from protocols.round.planner import GRID, cut_shards, equal_fractions
from protocols.round.records import Candidate


@pytest.mark.parametrize("elements", [1, 7, GRID, GRID + 1, 31 * GRID, 32 * GRID, 100 * GRID + 13, 3000 * GRID - 1])
def test_every_element_has_its_turn_once_a_period(elements: int) -> None:
    slices = Slices.of(elements)
    for first in (2, 5):
        carried = sorted(r for epoch in range(first, first + slices.period) for r in slices.at(epoch))
        assert carried[0][0] == 0 and carried[-1][1] == elements
        assert all(left[1] == right[0] for left, right in itertools.pairwise(carried))


def test_a_slice_is_the_sum_of_its_shards_parts_whatever_the_plan() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(50):
        elements = draw.randrange(1, 300 * GRID)
        slices, epoch = Slices.of(elements), draw.randrange(1, 100)
        fractions = equal_fractions(elements, {str(index): 1.0 for index in range(draw.randrange(1, 20))})
        shards = cut_shards(elements, [Candidate(peer, "a:1") for peer in fractions], fractions, dict.fromkeys(fractions, 1))
        parts = tuple(part for shard in shards for part in slices.at(epoch, shard.start, shard.stop))
        assert parts == slices.at(epoch)


def test_the_share_is_a_thousandth_of_a_large_vector_and_a_few_blocks_of_a_small_one() -> None:
    large = Slices.of(10**9)
    assert large.period == LONGEST_PERIOD
    for epoch in (2, 3, 1024, 1025):
        assert sum(stop - start for start, stop in large.at(epoch)) == pytest.approx(10**9 / LONGEST_PERIOD, rel=0.002)
    small = Slices.of(400_000)
    assert small.period == 24
    assert all(MIN_BLOCKS <= len(small.at(epoch)) <= 2 * MIN_BLOCKS for epoch in range(2, 30))
    assert small.at(1) == (), "everybody has the genesis"
    assert Slices.of(5000).period == 1


def test_a_slice_is_as_old_as_its_last_turn_or_as_the_run() -> None:
    slices = Slices.of(400_000)
    assert [slices.age(epoch) for epoch in (1, 2, 10)] == [0, 1, 9]
    for epoch in range(1, 100):
        turns = [earlier for earlier in range(1, epoch) if slices.at(earlier) == slices.at(epoch)]
        assert slices.age(epoch) == (epoch - turns[-1] if turns else epoch - 1)
