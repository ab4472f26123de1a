from __future__ import annotations

import pytest

from benchmarks.bound import bound
from benchmarks.links import Link, parse_links
from benchmarks.planner import SETTINGS
from benchmarks.splits import SPLITS, seconds, shards

ELEMENTS, VECTOR_BYTES = 4_000_000, 16_000_000


@pytest.mark.parametrize("setting", SETTINGS.values())
@pytest.mark.parametrize("name", SPLITS)
def test_every_split_shares_the_whole_vector_among_those_who_can_be_dialled_and_none_beats_ours(name: str, setting: str) -> None:
    links = parse_links(setting)
    fractions = SPLITS[name](links, ELEMENTS, VECTOR_BYTES)
    assert sum(fractions) == pytest.approx(1)
    assert all(not fraction or not link.client_mode for fraction, link in zip(fractions, links, strict=True))
    ours = seconds(links, SPLITS["ours"](links, ELEMENTS, VECTOR_BYTES), VECTOR_BYTES)
    took = seconds(links, fractions, VECTOR_BYTES)
    assert bound(VECTOR_BYTES, links) <= took * (1 + 1e-9)
    assert ours <= took * 1.03, "but for what is lost by giving up shards that are too small"


@pytest.mark.parametrize("name", SPLITS)
def test_lines_that_are_not_shaped_are_taken_for_alike(name: str) -> None:
    fractions = SPLITS[name]((Link(),) * 4, ELEMENTS, VECTOR_BYTES)
    assert fractions == ([1.0, 0.0, 0.0, 0.0] if name == "server" else pytest.approx([0.25] * 4))


def test_a_splits_shards_have_its_fractions() -> None:
    reducers = {"ann": "a:1", "bob": "b:1", "cid": "c:1", "dot": "d:1"}
    cut = shards(ELEMENTS, reducers, {"ann": 0.5, "bob": 0.25, "cid": 0.25, "dot": 0.0})
    assert [shard.reducer for shard in cut] == ["ann", "bob", "cid"]
    assert cut[0].stop == pytest.approx(ELEMENTS / 2, abs=1024)
    assert cut[-1].stop == ELEMENTS
