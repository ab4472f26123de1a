from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocols.round.planner import GRID, equal_shards
from protocols.round.records import MAX_REDUCERS, Candidate


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
