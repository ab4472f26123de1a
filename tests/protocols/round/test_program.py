from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.round.program import NEGLIGIBLE, Link, fastest, measured, prepare, round_seconds, worth_waiting_for

MB = 1e6
SOLVER_TOLERANCE = 1e-6  # HiGHS keeps each constraint to 1e-7; the least round time is 1 or more of its units
MBIT = 125_000.0


def links(**speeds: tuple[float, float]) -> dict[str, Link]:
    """Links from (up, down) in Mbit/s. A peer named aux... gives nothing, and a peer named home... reduces nothing."""
    return {
        peer: Link(up * MBIT, down * MBIT, sends=not peer.startswith("aux"), reduces=not peer.startswith("home"))
        for peer, (up, down) in speeds.items()
    }


def min_by_bisection(lines: Mapping[str, Link], vector_bytes: float) -> float:
    """The least round time by bisection: in a given time, can the reducers together take exactly the whole vector?"""
    senders = sum(link.sends for link in lines.values())

    def enough(seconds: float) -> bool:
        min_sum = max_sum = 0.0
        for link in lines.values():
            least, most = 0.0, link.most if link.reduces else 0.0
            none, whole = link.load(0, len(lines), senders), link.load(1, len(lines), senders)
            for start, end, rate in zip(none, whole, (link.upload_bytes_s, link.download_bytes_s), strict=True):
                may, slope = seconds * rate / vector_bytes - start, end - start
                if slope > 0:
                    most = min(most, may / slope)
                elif slope < 0:
                    least = max(least, may / slope)
                elif may < 0:
                    return False
            if most < least - 1e-12 or most < 0:
                return False
            min_sum, max_sum = min_sum + least, max_sum + most
        return min_sum <= 1 <= max_sum

    low, high = 0.0, 1.0
    while not enough(high):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def test_equal_links_make_an_all_reduce() -> None:
    split = fastest(links(ann=(100, 100), bob=(100, 100), cid=(100, 100), dot=(100, 100)), 100 * MB)
    assert split.fractions == {peer: pytest.approx(0.25) for peer in ("ann", "bob", "cid", "dot")}
    assert split.seconds == pytest.approx(100 * MB * 2 * 3 / 4 / (100 * MBIT))


def test_one_fast_reachable_peer_among_client_mode_peers_is_a_parameter_server() -> None:
    homes = {f"home{index}": (20, 100) for index in range(8)}
    split = fastest(links(aux=(1000, 1000), **homes), 100 * MB)
    assert split.fractions == {"aux": 1.0}
    assert split.seconds == pytest.approx(100 * MB / (20 * MBIT)), "what a home line takes for its contribution"


def paper(auxiliary: int) -> dict[str, Link]:
    servers = {f"s{index}": (200, 200) for index in range(4)}
    workstations = {f"w{index}": (100, 100) for index in range(8)}
    slow = {f"x{index}": (50, 50) for index in range(4)}
    aux = {f"aux{index}": (200, 200) for index in range(auxiliary)}
    return links(**servers, **workstations, **slow, **aux)


def test_the_papers_mix_is_a_hybrid_that_beats_both_corners() -> None:
    lines, vector_bytes = paper(0), 64 * MB
    split = fastest(lines, vector_bytes)
    share = split.fractions
    assert share["s0"] > 1.5 * share["w0"] > 0
    assert share["w0"] > 1.5 * share["x0"]
    equal = round_seconds(lines, dict.fromkeys(lines, 1 / 16), vector_bytes)
    server = round_seconds(lines, {"s0": 1.0}, vector_bytes)
    assert split.seconds < equal / 1.3
    assert split.seconds < server / 3


def test_auxiliary_peers_take_most() -> None:
    split = fastest(paper(4), 64 * MB)
    auxiliary = [fraction for peer, fraction in split.fractions.items() if peer.startswith("aux")]
    assert min(auxiliary) > 1.1 * max(fraction for peer, fraction in split.fractions.items() if not peer.startswith("aux"))
    assert sum(auxiliary) > 0.4, "four peers of twenty"
    with_them, without = ({p: link for p, link in paper(count).items() if p[0] != "x"} for count in (4, 0))
    assert fastest(with_them, 64 * MB).seconds < 0.9 * fastest(without, 64 * MB).seconds


def test_what_a_line_has_to_spare_is_used_evenly_when_another_line_makes_the_round_long() -> None:
    split = fastest(links(home=(5, 50), ann=(100, 100), bob=(100, 100), cid=(50, 50)), 10 * MB)
    assert split.seconds == pytest.approx(10 * MB / (5 * MBIT)), "nobody can relieve a contributor of its own upload"
    assert split.fractions["ann"] == pytest.approx(split.fractions["bob"])
    assert 0.1 < split.fractions["cid"] < split.fractions["ann"]


def test_the_order_of_the_members_does_not_matter() -> None:
    lines = paper(4)
    backwards = dict(reversed(lines.items()))
    assert fastest(backwards, 64 * MB).fractions == pytest.approx(fastest(lines, 64 * MB).fractions)


def test_nobody_reduces_more_than_it_has_the_memory_for_unless_all_together_lack_it() -> None:
    lines = links(ann=(100, 100), bob=(100, 100), cid=(100, 100))
    lines["ann"] = replace(lines["ann"], most=0.1)
    assert fastest(lines, MB).fractions == {
        "ann": pytest.approx(0.1),
        "bob": pytest.approx(0.45),
        "cid": pytest.approx(0.45),
    }
    scarce = {peer: replace(link, most=0.1 if peer == "ann" else 0.2) for peer, link in lines.items()}
    assert fastest(scarce, MB).fractions == {"ann": pytest.approx(0.2), "bob": pytest.approx(0.4), "cid": pytest.approx(0.4)}


# Uniform over the rates, and uniform over their exponents: the first alone hardly ever draws a slow line.
rates = st.one_of(st.floats(1e2, 1e10), st.floats(2, 10).map(lambda exponent: float(10.0**exponent)))
rooms = st.one_of(st.just(1.0), st.floats(0.01, 1.0))
FAST, SLOW = 100300004.0, 100.0


@settings(deadline=None, max_examples=600)
@given(st.lists(st.builds(Link, rates, rates, st.booleans(), st.booleans(), rooms), min_size=2, max_size=12))
# The error of two dropped fractions is a little above their sum.
@example(
    [
        Link(5000156.0, 5000156.0, False, False),
        Link(10000311.0, 5000156.0, False, True, 0.99999),
        Link(SLOW, 5000156.0, False, False),
    ]
)
# The longest transfer is a download of a member that does not reduce.
@example(
    [
        Link(FAST, 1880651.0, False, False),
        Link(SLOW, FAST, False, False),
        Link(SLOW, FAST, False, False),
        Link(7522501.0, FAST, False, True),
        Link(SLOW, FAST, False, False),
    ]
)
# Both reducers are far slower than all transfers that no split can spare.
@example([Link(1e10, 1e10, True, False), Link(1e2, 1e10, False, True), Link(1e4, 1e10, False, True)])
# The same, beside a fast reducer that has the memory for half of the vector.
@example(
    [Link(1e10, 1e10, True, False), Link(1e2, 1e10, False, True), Link(1e9, 1e10, False, True, 0.5), Link(1e4, 1e10, False, True)]
)
def test_no_split_is_faster(lines: list[Link]) -> None:
    """Both bounds are the error that `fastest` may make: it drops fractions up to NEGLIGIBLE, and the others take them over.

    That is to first order, hence the 1.01.
    """
    lines = list(lines)
    lines[0] = replace(lines[0], sends=True)
    lines[-1] = replace(lines[-1], reduces=True)
    if sum(link.most for link in lines if link.reduces) < 1.1:
        lines = [replace(link, most=1.0) for link in lines]
    named = {f"p{index}": link for index, link in enumerate(lines)}
    split = fastest(named, 64 * MB)
    dropped = len(lines) * NEGLIGIBLE + SOLVER_TOLERANCE
    assert sum(split.fractions.values()) == pytest.approx(1)
    assert all(0 <= fraction <= named[peer].most * (1 + 1.01 * dropped) for peer, fraction in split.fractions.items())
    assert split.fractions.keys() == {peer for peer, link in named.items() if link.reduces}
    assert split.seconds == pytest.approx(min_by_bisection(named, 64 * MB), rel=1.01 * dropped)


def test_one_member_alone_takes_no_time() -> None:
    assert fastest(links(ann=(1, 1)), MB).seconds == 0


def test_an_unmeasured_rate_counts_as_the_median() -> None:
    assert measured({"ann": (1000, 4000), "bob": (3000, 0), "cid": (0, 2000), "dot": (2000, 0)}) == {
        "ann": (1000, 4000),
        "bob": (3000, 3000),
        "cid": (2000, 2000),
        "dot": (2000, 3000),
    }


@pytest.mark.parametrize("nothing", [{}, {"ann": (0.0, 0.0)}, {"ann": (5.0, 0.0), "bob": (7.0, 0.0)}])
def test_nothing_is_known_before_both_ways_were_measured(nothing: dict[str, tuple[float, float]]) -> None:
    assert measured(nothing) is None


FOUR = {"ann": (100.0, 100.0), "bob": (100.0, 100.0), "cid": (100.0, 100.0), "home": (1.0, 100.0)}


def worth(speeds: dict[str, tuple[float, float]], samples: dict[str, int], gather_s: float) -> set[str]:
    return set(worth_waiting_for(links(**speeds), samples, gather_s, 10 * MB))


def test_samples_behind_a_line_that_would_hold_up_everybody_are_not_waited_for() -> None:
    """The round takes 80 s with these 100 samples, and 1 s without them."""
    assert worth(FOUR, dict.fromkeys(FOUR, 100), 4.0) == {"ann", "bob", "cid"}


def test_they_are_waited_for_when_gathering_takes_much_longer_anyway() -> None:
    assert worth(FOUR, dict.fromkeys(FOUR, 100), 600.0) == set(FOUR)


def test_they_are_waited_for_when_they_are_most_of_the_batch() -> None:
    assert worth(FOUR, dict.fromkeys(FOUR, 100) | {"home": 100_000}, 4.0) == set(FOUR)


def test_a_gain_of_a_tenth_is_not_worth_leaving_somebody_out() -> None:
    speeds = {"ann": (100.0, 100.0), "bob": (100.0, 100.0), "home": (45.0, 100.0)}
    assert worth(speeds, {"ann": 450, "bob": 450, "home": 100}, 6.0) == set(speeds)


@pytest.mark.parametrize(("peers", "max_s"), [(16, 0.02), (256, 1.0)])
def test_a_plans_splits_are_found_in_time(peers: int, max_s: float) -> None:
    """`max_s` is for a machine that does nothing else, so the test allows five times as much."""
    prepare()
    lines = {f"p{i:03}": Link((1 + i * 7 % 97) * MBIT, (1 + i * 5 % 89) * MBIT, i % 9 != 0, i % 3 != 1) for i in range(peers)}
    began = time.perf_counter()
    worth_waiting_for(lines, dict.fromkeys(lines, 100), 10.0, 64 * MB)
    assert time.perf_counter() - began < 5 * max_s


def test_a_limit_on_memory_that_does_not_bind_changes_nothing() -> None:
    free = links(a=(800, 800), b=(800, 800), c=(800, 800), home=(10, 10))
    limited = {**free, "b": replace(free["b"], most=0.87), "c": replace(free["c"], most=0.34)}
    assert fastest(limited, 400 * MB).fractions == pytest.approx(fastest(free, 400 * MB).fractions)


def test_what_one_has_no_memory_for_is_spread_evenly_over_the_others() -> None:
    free = links(a=(800, 800), b=(800, 800), c=(800, 800), home=(10, 10))
    split = fastest({**free, "c": replace(free["c"], most=0.1)}, 400 * MB)
    assert split.fractions == pytest.approx({"a": 0.45, "b": 0.45, "c": 0.1})
