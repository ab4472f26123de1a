from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.round.planner import GRID, Present, equal_shards, slowest_paces, suppliers
from protocols.round.records import MAX_REDUCERS, Ballot, Candidate, Plan, ShardResult


def reducers(count: int) -> list[Candidate]:
    return [Candidate(f"p{index:03d}", f"h{index}:1") for index in range(count)]


@given(elements=st.integers(1, 300 * GRID), count=st.integers(1, 100))
def test_shards_cover_the_vector_once_on_the_grid_in_nearly_equal_parts(elements: int, count: int) -> None:
    shards = equal_shards(elements, reducers(count))
    assert shards[0].start == 0
    assert shards[-1].stop == elements
    assert all(left.stop == right.start for left, right in pairwise(shards))
    assert all(shard.start % GRID == 0 for shard in shards), "a cut off the grid would change a block codec's encoding"
    assert 1 <= len(shards) <= min(count, MAX_REDUCERS)
    assert len({shard.reducer for shard in shards}) == len(shards)
    sizes = [shard.stop - shard.start for shard in shards[:-1]]
    assert not sizes or max(sizes) - min(sizes) <= GRID
    assert not sizes or shards[-1].stop - shards[-1].start <= max(sizes) + GRID


def test_everybody_reduces_when_there_is_enough_for_everybody() -> None:
    assert len(equal_shards(5 * GRID, reducers(5))) == 5
    assert len(equal_shards(4 * GRID + 1, reducers(5))) == 5


def test_at_most_64_reduce_and_a_short_vector_has_one_shard() -> None:
    assert len(equal_shards(1000 * GRID, reducers(100))) == 64
    (only,) = equal_shards(3, reducers(100))
    assert (only.start, only.stop) == (0, 3)


def test_a_shard_carries_its_reducers_address() -> None:
    assert [shard.address for shard in equal_shards(2 * GRID, reducers(2))] == ["h0:1", "h1:1"]


def plan(shards: int, *, contributors: tuple[str, ...] = ("p000", "p001", "p002")) -> Plan:
    members = tuple(f"p{index:03d}" for index in range(3))
    return Plan(
        "ab" * 32, Ballot(1, "a" * 64, 1, "p000"), contributors, members, equal_shards(6 * GRID, reducers(shards)), "fp32", 4.0, 7
    )


def test_the_slowest_pace_is_half_of_what_the_longest_share_takes_at_measured_rates() -> None:
    """All three give and reduce a third each: V(1-w) + 2Vw = 4V/3 each way, at 4,000 bytes/s for the slowest."""
    present = {f"p{index:03d}": Present("x:1", 1, 1e6, 1e6) for index in range(3)} | {"p001": Present("x:1", 1, 4000.0, 1e6)}
    paces = slowest_paces(plan(3), present, 12_000)
    assert paces == {peer: pytest.approx(32_000 / 4.0 / 2) for peer in present}


def test_whoever_only_reduces_moves_the_vector_of_everybody_else() -> None:
    present = {f"p{index:03d}": Present("x:1", 1, 1000.0, 1000.0) for index in range(3)}
    paces = slowest_paces(plan(1, contributors=("p001", "p002")), present, 10_000)
    assert paces["p000"] == pytest.approx(500.0 + 500.0), "20 kB each way in 20 s"
    assert paces["p001"] == pytest.approx(250.0 + 250.0), "10 kB each way in the same time"


def test_without_everybodys_rates_no_pace_is_asked_for() -> None:
    present = {"p000": Present("x:1", 1, 1e6, 1e6), "p001": Present("x:1", 1), "p002": Present("x:1", 1, 1e6, 1e6)}
    assert slowest_paces(plan(3), present, 12_000) == {}


def test_averages_are_passed_on_by_all_their_holders_in_turn() -> None:
    averaged = [ShardResult(index * GRID, (index + 1) * GRID, "d" * 64, 1.0) for index in range(5)]
    shards = suppliers(averaged, reducers(2))
    assert [(shard.start, shard.stop) for shard in shards] == [(result.start, result.stop) for result in averaged]
    assert [shard.reducer for shard in shards] == ["p000", "p001", "p000", "p001", "p000"]
