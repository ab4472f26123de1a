"""What a benchmark's links are called, and how fast they could average."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.bound import best_fractions, bound, equal_fractions, seconds
from benchmarks.links import Link, parse_links

V = 64_000_000


def test_a_group_of_links_is_read_as_that_many_peers() -> None:
    assert parse_links("20/100x2, 200/200x1a,12.5/50x1c") == (
        *[Link(20, 100)] * 2,
        Link(200, 200, auxiliary=True),
        Link(12.5, 50, client_mode=True),
    )
    assert parse_links("100/100x2")[0].upload_bytes_s == 12.5e6


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("100x4", "write up/down Mbit/s x peers"),
        ("100/100x4b", "write up/down"),
        ("0/100x4", "above 0"),
        ("100/100x0", "above 0"),
        ("100/100x1", "at least two peers"),
        ("100/100x1,100/100x4a", "at least two peers"),
        ("100/100x4c", "accept connections"),
        ("100/100x201", "at most 200"),
    ],
)
def test_links_that_make_no_swarm_are_refused_with_a_sentence(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_links(text)


@pytest.mark.parametrize("peers", [2, 4, 16])
def test_equal_links_are_bound_by_the_all_reduce(peers: int) -> None:
    assert bound(V, parse_links(f"100/100x{peers}")) == pytest.approx(2 * (peers - 1) / peers * V / 12.5e6)


def test_the_slower_direction_counts() -> None:
    assert bound(V, parse_links("20/100x4")) == pytest.approx(1.5 * V / 2.5e6)


def test_with_fast_links_the_slowest_peer_only_contributes() -> None:
    assert bound(V, parse_links("50/50x4,25/25x8,12/12x4")) == pytest.approx(V / 1.5e6)


def test_a_fast_auxiliary_peer_is_a_parameter_server() -> None:
    links = parse_links("100/100x4c,10000/10000x1a")
    assert best_fractions(links) == pytest.approx([0, 0, 0, 0, 1])
    assert bound(V, links) == pytest.approx(V / 12.5e6)  # up once, down once, at the same time


def test_a_slow_auxiliary_peer_is_bound_by_all_contributions() -> None:
    assert bound(V, parse_links("100/100x4c,100/100x1a")) == pytest.approx(4 * V / 12.5e6)


def test_no_fractions_are_faster_than_the_bound() -> None:
    links = parse_links("200/200x1,100/50x2,20/100x1,50/50x1a,100/100x1c")
    least = bound(V, links)
    steps = [fractions for fractions in itertools.product(range(9), repeat=5) if sum(fractions) == 8]
    found = min(seconds(V, links, [*(step / 8 for step in fractions), 0.0]) for fractions in steps)
    assert least <= found * (1 + 1e-9)
    assert found < 1.2 * least  # and the bound is no number far below what can be had
    assert least <= seconds(V, links, equal_fractions(links))
