import dataclasses
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.round.planner import (
    ALL_GIVE_EVERY,
    CHUNK_BLOCKS,
    GRID,
    STREAM_BLOCKS,
    WINDOW_BYTES,
    Layout,
    Present,
    Round,
    cut_shards,
    equal_fractions,
    fresh,
    min_rates,
    planned_seconds,
    suppliers,
)
from protocols.round.plans import Plan, member_plan_of
from protocols.round.records import MAX_REDUCERS, Ballot, Candidate, Shard, ShardResult

MBIT = 125_000.0
LARGE = 16_000_000  # elements: 244 chunks


def reducers(count: int) -> list[Candidate]:
    return [Candidate(f"p{index:03d}", f"h{index}:1") for index in range(count)]


def equal_shards(elements: int, them: list[Candidate]) -> tuple[Shard, ...]:
    fractions = equal_fractions(elements, {reducer.peer: 1.0 for reducer in them})
    return cut_shards(elements, them[: len(fractions)], fractions, dict.fromkeys(fractions, 4))


def assert_sound(shards: tuple[Shard, ...], elements: int) -> None:
    assert shards[0].start == 0
    assert shards[-1].stop == elements
    assert all(left.stop == right.start for left, right in pairwise(shards))
    assert all(shard.start % GRID == 0 for shard in shards), "a cut off the grid would change a block codec's encoding"
    assert [shard.reducer for shard in shards] == sorted(shard.reducer for shard in shards)
    assert len(shards) <= MAX_REDUCERS


@given(elements=st.integers(1, 300 * GRID), count=st.integers(1, 100))
def test_shards_cover_the_vector_once_on_the_grid_in_nearly_equal_parts(elements: int, count: int) -> None:
    shards = equal_shards(elements, reducers(count))
    assert_sound(shards, elements)
    assert len(shards) <= count
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


def due(elements: int = LARGE, *, target: int = 1000, epoch: int = 1) -> Round:
    return Round(epoch, elements, 4 * elements, target)


def line(up: float, down: float, *, samples: int = 100, **more: Any) -> Present:
    """A peer with this line, in Mbit/s, that draws ten samples a second."""
    address = more.pop("address", "h:1")
    return Present(address, samples, up * MBIT, down * MBIT, samples_per_second=10.0 if samples else 0.0, **more)


def laid_out(present: dict[str, Present], it: Round | None = None) -> Layout:
    layout = fresh(present, next(iter(present)), it or due())
    assert layout is not None
    assert_sound(layout.shards, (it or due()).elements)
    return layout


def shares(layout: Layout, elements: int = LARGE) -> dict[str, float]:
    found: dict[str, float] = {}
    for shard in layout.shards:
        found[shard.reducer] = found.get(shard.reducer, 0.0) + (shard.stop - shard.start) / elements
    return found


def test_before_any_rate_is_known_shards_are_equal() -> None:
    layout = laid_out({f"p{index}": Present("h:1", 5) for index in range(5)})
    assert shares(layout) == {f"p{index}": pytest.approx(0.2, abs=1e-3) for index in range(5)}
    assert layout.contributors == layout.members


def test_shards_follow_the_measured_rates() -> None:
    present = {"p0": line(80, 80), "p1": line(100, 100), "p2": line(100, 100), "p3": line(120, 120), "p4": line(120, 120)}
    share = shares(laid_out(present))
    assert share["p0"] < share["p1"] < share["p3"] < 2.5 * share["p1"]
    assert share["p1"] == pytest.approx(share["p2"], abs=1e-3)


def test_client_mode_peers_reduce_nothing_and_one_server_has_several_streams() -> None:
    present = {"aux": line(1000, 1000, samples=0)} | {f"h{i}": line(20, 100, address="") for i in range(8)}
    layout = laid_out(present)
    assert shares(layout) == {"aux": pytest.approx(1)}
    assert len(layout.shards) == 4
    assert layout.contributors == tuple(f"h{i}" for i in range(8))


def test_a_short_vector_is_not_cut_for_the_sake_of_streams() -> None:
    elements = 2 * STREAM_BLOCKS * GRID
    present = {"aux": line(1000, 1000, samples=0), "home": line(20, 100, address="")}
    assert len(laid_out(present, due(elements - GRID)).shards) == 1
    assert len(laid_out(present, due(elements)).shards) == 2


def test_a_shard_of_less_than_a_chunk_is_given_up_and_its_part_goes_to_the_others() -> None:
    present = {"p0": line(0.2, 100, samples=0)} | {f"p{index}": line(100, 100) for index in range(1, 6)}
    share = shares(laid_out(present))
    assert "p0" not in share
    assert share == {f"p{index}": pytest.approx(0.2, abs=1e-3) for index in range(1, 6)}


def test_of_a_vector_too_short_for_chunks_everybody_still_has_a_part() -> None:
    elements = 8 * GRID
    assert len(laid_out({f"p{index}": line(100, 100) for index in range(8)}, due(elements)).shards) == 8


def test_of_equals_among_whom_nobody_would_have_enough_some_stay() -> None:
    elements = 4 * GRID
    share = shares(laid_out({f"p{index}": line(100, 100) for index in range(7)}, due(elements)), elements)
    assert len(share) == 4


def test_at_most_64_of_the_fastest_reduce() -> None:
    present = {f"p{index:03}": line(10 + index, 10 + index) for index in range(100)}
    share = shares(laid_out(present, due(100 * CHUNK_BLOCKS * GRID)), 100 * CHUNK_BLOCKS * GRID)
    assert len(share) == 64
    assert min(share) == "p036"


@pytest.mark.parametrize("rate", [0.0, 100.0], ids=["before any rate is known", "at known rates"])
def test_nobody_reduces_more_than_it_has_the_memory_for(rate: float) -> None:
    """A reducer holds a window of each contributor's chunks, and its own averages of two epochs."""
    windows, vector_bytes = 4 * WINDOW_BYTES, due().vector_bytes
    present = {f"p{index}": line(rate, rate) for index in range(4)}
    present["p1"] = line(rate, rate, memory_bytes=windows)
    present["p2"] = line(rate, rate, memory_bytes=windows + int(0.2 * vector_bytes))
    share = shares(laid_out(present))
    assert share.keys() == {"p0", "p2", "p3"}
    assert share["p2"] == pytest.approx(0.1, rel=1e-2)
    assert share["p0"] == pytest.approx(share["p3"], rel=1e-2)
    scarce = {peer: dataclasses.replace(there, memory_bytes=1) for peer, there in present.items()}
    assert len(shares(laid_out(scarce))) == 4, "slowly rather than not at all"
    some = {peer: dataclasses.replace(there, memory_bytes=windows + vector_bytes // 10) for peer, there in present.items()}
    assert list(shares(laid_out(some)).values()) == [pytest.approx(0.25, rel=1e-2)] * 4, "each lacks as much as the others"


def test_a_reducer_has_no_more_streams_than_it_has_memory_for() -> None:
    memory_bytes = 2 * WINDOW_BYTES + 2 * due().vector_bytes
    present = {"aux": line(1000, 1000, samples=0, memory_bytes=memory_bytes), "home": line(20, 100, address="")}
    assert len(laid_out(present).shards) == 2


HELD_UP = {f"p{index}": line(100, 100) for index in range(5)} | {"slow": line(0.5, 100)}


def test_a_slow_uploader_stays_a_member_and_gives_nothing() -> None:
    layout = laid_out(HELD_UP)
    assert "slow" in layout.members
    assert layout.too_slow == ("slow",)
    assert layout.contributors == tuple(f"p{index}" for index in range(5))


def test_it_gives_all_the_same_now_and_then() -> None:
    gave = [epoch for epoch in range(1, 3 * ALL_GIVE_EVERY) if not laid_out(HELD_UP, due(epoch=epoch)).too_slow]
    assert gave == [ALL_GIVE_EVERY, 2 * ALL_GIVE_EVERY]


def test_without_known_speeds_nobody_is_left_out() -> None:
    present = {peer: dataclasses.replace(there, samples_per_second=0.0) for peer, there in HELD_UP.items()}
    assert laid_out(present).too_slow == ()


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(0, 50), st.booleans()), min_size=1, max_size=80),
    st.integers(1, 3000 * GRID),
)
@settings(deadline=None, max_examples=60)
def test_every_layout_is_sound(peers: list[tuple[float, float, int, bool]], elements: int) -> None:
    present = {
        f"p{index:03}": Present("h:1" if reachable or not index else "", samples + (not index), up, down, samples_per_second=1.0)
        for index, (up, down, samples, reachable) in enumerate(peers)
    }
    layout = laid_out(present, due(elements))
    assert layout == laid_out(dict(reversed(present.items())), due(elements)), "whatever the order of the reports"
    assert all(present[shard.reducer].address for shard in layout.shards)
    assert set(layout.contributors) | set(layout.too_slow) == {peer for peer, there in present.items() if there.samples}


def plan(shards: int, *, contributors: tuple[str, ...] = ("p000", "p001", "p002")) -> Plan:
    members = tuple(f"p{index:03d}" for index in range(3))
    return Plan(
        "ab" * 32, Ballot(1, "a" * 64, 1, "p000"), contributors, members, equal_shards(6 * GRID, reducers(shards)), "fp32", 4.0, 7
    )


@pytest.mark.parametrize("rate", [1e-6, 60.0])
def test_nobody_waits_for_days_for_one_member_whose_line_is_next_to_nothing(rate: float) -> None:
    present = {f"p{index:03d}": Present("x:1", 1, 1e6, 1e6) for index in range(3)} | {"p001": Present("x:1", 1, rate, 1e6)}
    assert planned_seconds(plan(3), present, 100_000_000) == 0, "as if it was not known: no pace"


def test_who_only_receives_holds_nobody_up() -> None:
    present = {f"p{index:03d}": Present("x:1", 1, 1e6, 1e6) for index in range(3)} | {"p002": Present("", 0, 1.0, 1.0)}
    assert planned_seconds(plan(2, contributors=("p000", "p001")), present, 12_000) < 1


def test_a_plan_s_pace_is_its_bytes_in_its_time_and_none_for_what_has_no_bytes() -> None:
    part = member_plan_of(dataclasses.replace(plan(3), planned_s=4.0), "p001")
    assert (part.rate_of(1000), part.rate_of(0)) == (250.0, None)
    assert member_plan_of(plan(3), "p001").rate_of(1000) is None
    assert member_plan_of(dataclasses.replace(plan(3), planned_s=0.1), "p001").rate_of(1000) is None, "too short to be paced"
    for planned_s in (-1.0, 5e-324, 1e5, float("nan")):
        with pytest.raises(ValueError, match="takes its time"):
            dataclasses.replace(plan(3), planned_s=planned_s)


def test_the_slowest_pace_is_half_of_what_the_longest_share_takes_at_measured_rates() -> None:
    """All three give and reduce a third each: V(1-w) + 2Vw = 4V/3 each way, at 4,000 bytes/s for the slowest."""
    present = {f"p{index:03d}": Present("x:1", 1, 1e6, 1e6) for index in range(3)} | {"p001": Present("x:1", 1, 4000.0, 1e6)}
    seconds = planned_seconds(plan(3), present, 12_000)
    assert seconds == pytest.approx(4.0)
    paces = min_rates(plan(3), present, 12_000, seconds)
    assert paces == {peer: pytest.approx(32_000 / 4.0 / 2) for peer in present}


def test_whoever_only_reduces_moves_the_vector_of_everybody_else() -> None:
    present = {f"p{index:03d}": Present("x:1", 1, 1000.0, 1000.0) for index in range(3)}
    only = plan(1, contributors=("p001", "p002"))
    seconds = planned_seconds(only, present, 10_000)
    assert seconds == pytest.approx(20.0)
    paces = min_rates(only, present, 10_000, seconds)
    assert paces["p000"] == pytest.approx(500.0 + 500.0), "20 kB each way in 20 s"
    assert paces["p001"] == pytest.approx(250.0 + 250.0), "10 kB each way in the same time"


def test_without_everybodys_rates_no_pace_is_asked_for() -> None:
    present = {"p000": Present("x:1", 1, 1e6, 1e6), "p001": Present("x:1", 1), "p002": Present("x:1", 1, 1e6, 1e6)}
    assert planned_seconds(plan(3), present, 12_000) == 0
    assert min_rates(plan(3), present, 12_000, 0.0) == {}


def test_whoever_reduces_more_is_expected_to_move_more() -> None:
    """Of three contributors one reduces three quarters of the vector, and another a quarter."""
    shards = (Shard("p000", "h:1", 0, 3 * GRID), Shard("p001", "h:1", 3 * GRID, 4 * GRID))
    paces = min_rates(
        dataclasses.replace(plan(1), shards=shards), dict.fromkeys(("p000", "p001", "p002"), line(1, 1)), 1000, 10.0
    )
    up_and_down = {"p000": 1.75 + 1.75, "p001": 1.25 + 1.25, "p002": 1 + 1}
    assert paces == {peer: pytest.approx(moved * 1000 / 10 / 2) for peer, moved in up_and_down.items()}


def test_averages_are_passed_on_by_all_their_holders_in_turn() -> None:
    averaged = [ShardResult(index * GRID, (index + 1) * GRID, "d" * 64, 1.0) for index in range(5)]
    shards = suppliers(averaged, reducers(2))
    assert [(shard.start, shard.stop) for shard in shards] == [(result.start, result.stop) for result in averaged]
    assert [shard.reducer for shard in shards] == ["p000", "p001", "p000", "p001", "p000"]
