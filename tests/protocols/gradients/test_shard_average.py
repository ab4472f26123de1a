from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadMessageError
from protocols.gradients.aggregation import weighted_mean
from protocols.gradients.codecs import CODECS, Codec
from protocols.gradients.shard_average import WINDOW_CHUNKS, Chunking, ShardAverage, ShardRelay, shard_average_of
from protocols.round.planner import GRID
from protocols.round.plans import Plan
from protocols.round.records import Averages, Ballot, Contribution, Shard
from tests import factories

WEIGHTS = {"ann": 1, "bob": 7, "cid": 100}
ELEMENTS = 2 * GRID + 300  # three chunks, the last one shorter


def plan(*, codec: str = "fp32", start: int = 0) -> Plan:
    shards = (Shard("ann", "a:1", start, start + ELEMENTS),)
    if start:
        shards = (Shard("bob", "b:1", 0, start), *shards)
    return Plan("ab" * 32, Ballot(1, factories.PARENT, 1, "ann"), tuple(WEIGHTS), tuple(WEIGHTS), shards, codec, 4.0, 7)


def contribution(peer: str, **change: Any) -> Contribution:
    return factories.contribution(peer, **{"first": 5, "end": 5 + WEIGHTS.get(peer, 1), **change})


def values(peer: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *peer.encode()]).standard_normal(ELEMENTS).astype(np.float32)


def chunks(encoded: bytes, codec: Codec) -> list[bytes]:
    size = codec.encoded_bytes(GRID)
    return [encoded[at : at + size] for at in range(0, len(encoded), size)]


def reduction(codec: str = "fp32") -> ShardAverage:
    return ShardAverage(plan(codec=codec), 0, CODECS[codec], weighted_mean, GRID)


def opened(codec: str = "fp32") -> ShardAverage:
    it = reduction(codec)
    for peer in WEIGHTS:
        it.open(peer, contribution(peer))
    return it


def run(order: list[str], codec: str = "fp32") -> ShardAverage:
    """Each entry feeds that peer's next chunk; a peer opens just before its first."""
    it = reduction(codec)
    queues = {peer: chunks(CODECS[codec].encode(values(peer)), CODECS[codec]) for peer in WEIGHTS}
    for peer in order:
        if len(queues[peer]) == 3:
            it.open(peer, contribution(peer))
        it.feed(peer, queues[peer].pop(0))
    return it


IN_TURN = [peer for _ in range(3) for peer in WEIGHTS]


@pytest.mark.parametrize(("codec", "tolerance"), [("fp64", 1e-15), ("fp32", 4e-7), ("fp16", 5e-3)])
def test_the_average_is_the_mean_over_all_samples(codec: str, tolerance: float) -> None:
    it = run(IN_TURN, codec)
    sent = {peer: CODECS[codec].decode(CODECS[codec].encode(values(peer)), ELEMENTS).astype(np.float64) for peer in WEIGHTS}
    exact = sum(weight * sent[peer] for peer, weight in WEIGHTS.items()) / sum(WEIGHTS.values())
    averaged = CODECS[codec].decode(b"".join(it.averaged), ELEMENTS).astype(np.float64)
    assert np.abs(averaged - exact).max() <= tolerance
    equal = sum(sent.values()) / len(sent)
    assert np.abs(averaged - equal).max() > 100 * tolerance, "equal weights would be somewhere else"


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
def test_the_average_is_off_by_its_own_encoding_and_the_chunks_do_not_matter(codec: Codec) -> None:
    sent = {peer: codec.decode(codec.encode(values(peer)), ELEMENTS) for peer in WEIGHTS}
    exact = sum(weight * sent[peer].astype(np.float64) for peer, weight in WEIGHTS.items()) / sum(WEIGHTS.values())
    averaged = b"".join(run(IN_TURN, codec.name).averaged)
    assert bool((np.abs(codec.decode(averaged, ELEMENTS) - exact) <= codec.max_error(exact) + 4e-7).all())
    assert averaged == codec.encode(weighted_mean(list(sent.values()), list(WEIGHTS.values()), []))


@given(order=st.permutations(IN_TURN))
def test_the_bytes_do_not_depend_on_who_was_faster(order: list[str]) -> None:
    expected, actual = run(IN_TURN), run(order)
    assert actual.averaged == expected.averaged
    assert actual.result == expected.result
    assert actual.contributions == expected.contributions


@given(order=st.permutations(IN_TURN))
def test_a_chunk_comes_out_as_soon_as_everybodys_piece_is_there_and_never_before(order: list[str]) -> None:
    it, fed = reduction(), dict.fromkeys(WEIGHTS, 0)
    queues = {peer: chunks(CODECS["fp32"].encode(values(peer)), CODECS["fp32"]) for peer in WEIGHTS}
    for peer in order:
        if not fed[peer]:
            it.open(peer, contribution(peer))
        it.feed(peer, queues[peer][fed[peer]])
        fed[peer] += 1
        assert len(it.averaged) == min(fed.values())
        assert (it.result is not None) == (min(fed.values()) == 3)


def test_the_result_names_the_bytes_and_their_squares() -> None:
    it = run(IN_TURN)
    whole = b"".join(it.averaged)
    result = it.result
    assert result is not None
    assert (result.start, result.stop) == (0, ELEMENTS)
    assert result.digest == blake3(whole).hexdigest()
    exact = float((np.frombuffer(whole, "<f4").astype(np.float64) ** 2).sum())
    assert result.sum_of_squares == pytest.approx(exact, rel=1e-12)
    assert it.averaged_bytes == it.shard_bytes == len(whole)


def test_a_shard_in_the_middle_of_the_vector_counts_offsets_from_its_own_start() -> None:
    it = ShardAverage(plan(start=GRID), 1, CODECS["fp32"], weighted_mean, GRID)
    for peer in WEIGHTS:
        it.open(peer, contribution(peer))
        for data in chunks(CODECS["fp32"].encode(values(peer)), CODECS["fp32"]):
            it.feed(peer, data)
    assert it.result is not None
    assert (it.result.start, it.result.stop) == (GRID, GRID + ELEMENTS)
    assert it.averaged == run(IN_TURN).averaged


def test_contributions_are_told_once_all_are_known_in_the_order_of_ids() -> None:
    it = reduction()
    for peer in ("cid", "ann"):
        it.open(peer, contribution(peer))
        assert it.contributions is None
    it.open("bob", contribution("bob"))
    assert it.contributions is not None
    assert [c.peer for c in it.contributions] == ["ann", "bob", "cid"]


@pytest.mark.parametrize(
    ("peer", "given_contribution"),
    [
        ("zoe", contribution("zoe")),
        ("ann", contribution("bob")),
    ],
)
def test_who_is_not_planned_or_claims_to_be_another_is_not_let_in(peer: str, given_contribution: Contribution) -> None:
    it = reduction()
    with pytest.raises(BadMessageError):
        it.open(peer, given_contribution)
    assert it.contributions is None


def test_nobody_contributes_twice() -> None:
    it = opened()
    with pytest.raises(BadMessageError, match="twice"):
        it.open("ann", contribution("ann"))


def first(peer: str = "ann") -> bytes:
    return chunks(CODECS["fp32"].encode(values(peer)), CODECS["fp32"])[0]


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda it: it.feed("zoe", first()), id="unknown contributor"),
        pytest.param(lambda it: it.feed("ann", first()[:-4]), id="short chunk"),
        pytest.param(lambda it: it.feed("ann", first() + b"\0" * 4), id="long chunk"),
        pytest.param(lambda it: it.feed("ann", b""), id="empty chunk"),
        pytest.param(
            lambda it: [it.feed("ann", data) for data in [*chunks(bytes(4 * ELEMENTS), CODECS["fp32"]), b"\0" * 4]],
            id="surplus",
        ),
        pytest.param(
            lambda it: [it.feed("ann", data) for data in [*chunks(bytes(4 * ELEMENTS), CODECS["fp32"]), b""]],
            id="empty surplus",
        ),
    ],
)
def test_bytes_that_do_not_fit_are_refused_and_average_nothing(break_it: Callable[[ShardAverage], Any]) -> None:
    it = opened()
    with pytest.raises(BadMessageError):
        break_it(it)
    assert it.averaged == []


def test_who_did_not_open_cannot_feed() -> None:
    with pytest.raises(BadMessageError, match="opened"):
        reduction().feed("ann", first())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", [("bob", "ann", "cid"), ("ann", "bob", "cid"), ("ann", "cid", "bob")])
def test_a_value_that_is_not_finite_is_blamed_on_its_sender_whoever_comes_last(order: tuple[str, ...], bad: float) -> None:
    it = opened()
    spoilt = np.frombuffer(first("bob"), "<f4").copy()
    spoilt[17] = bad
    for peer in order:
        if peer == "bob":
            with pytest.raises(BadMessageError, match="finite"):
                it.feed(peer, spoilt.tobytes())
        else:
            it.feed(peer, first(peer))
    assert it.averaged == []


def test_a_fast_contributor_has_no_room_until_the_slowest_comes_closer() -> None:
    elements = (WINDOW_CHUNKS + 1) * GRID
    shards = (Shard("ann", "a:1", 0, elements),)
    it = ShardAverage(dataclasses.replace(plan(), shards=shards), 0, CODECS["fp32"], weighted_mean, GRID)
    for peer in WEIGHTS:
        it.open(peer, contribution(peer))
    for data in chunks(bytes(4 * elements), CODECS["fp32"])[:WINDOW_CHUNKS]:
        assert it.has_room("ann")
        it.feed("ann", data)
    assert not it.has_room("ann")
    for peer in ("bob", "cid"):
        assert it.has_room(peer)
        it.feed(peer, first(peer))
    assert it.has_room("ann")


def test_a_shard_has_many_chunks_unless_they_would_be_tiny_or_huge() -> None:
    sizes = {elements: Chunking().elements(Shard("ann", "a:1", 0, elements)) for elements in (1, 10**5, 10**6, 10**8)}
    assert sizes == {1: 4 * GRID, 10**5: 4 * GRID, 10**6: 16 * GRID, 10**8: 64 * GRID}
    small = Chunking(chunks_of_shard=2, max_elements=3 * GRID, min_elements=GRID)
    sizes = {elements: small.elements(Shard("ann", "a:1", 0, elements)) for elements in (1, 4 * GRID, 100 * GRID)}
    assert sizes == {1: GRID, 4 * GRID: 2 * GRID, 100 * GRID: 3 * GRID}


def test_large_runs_of_random_chunk_orders_agree() -> None:
    seed = 7
    print(f"seed {seed}")
    draw = random.Random(seed)
    seen = set()
    for _ in range(20):
        order = IN_TURN.copy()
        draw.shuffle(order)
        seen.add(b"".join(run(order, "fp16").averaged))
    assert len(seen) == 1


def finished(*, by: tuple[str, ...] = ()) -> tuple[ShardAverage, ShardRelay]:
    """A reduction that came to its end, and the relay of a later plan that passes its averages on, brought by `by`."""
    first = run(IN_TURN)
    assert first.contributions is not None and first.result is not None
    finishes = Averages(first.contributions, (first.result,))
    second = dataclasses.replace(plan(), contributors=by, finishes=finishes, ballot=Ballot(1, factories.PARENT, 2, "bob"))
    relay = shard_average_of(second, 0, CODECS["fp32"], weighted_mean, GRID)
    assert isinstance(relay, ShardRelay)
    return first, relay


@pytest.mark.parametrize("giver", ["ann", "cid"], ids=["the reducer holds them", "a member brings them"])
def test_averages_that_are_passed_on_come_out_as_they_were(giver: str) -> None:
    first, relay = finished(by=() if giver == "ann" else (giver,))
    relay.open(giver, None)
    for data in chunks(b"".join(first.averaged), CODECS["fp32"]):
        assert relay.result is None
        relay.feed(giver, data)
    assert relay.averaged == first.averaged
    assert (relay.result, relay.contributions) == (first.result, first.contributions)


def test_averages_other_than_those_to_be_finished_are_refused_before_their_last_chunk_goes_out() -> None:
    first, relay = finished()
    data = bytearray(b"".join(first.averaged))
    data[0] ^= 1
    relay.open("ann", None)
    pieces = chunks(bytes(data), CODECS["fp32"])
    for piece in pieces[:-1]:
        relay.feed("ann", piece)
    with pytest.raises(BadMessageError, match="other averages"):
        relay.feed("ann", pieces[-1])
    assert len(relay.averaged) == len(pieces) - 1
    assert relay.result is None


def test_a_vector_longer_than_its_contributor_said_is_refused_while_it_comes() -> None:
    codec, said = CODECS["fp32"], float(np.linalg.norm(values("ann")))
    for factor, refused in ((1.0, False), (1.1, True), (-10.0, True)):
        it = reduction()
        it.open("ann", contribution("ann", norm=said))
        sent = chunks(codec.encode(values("ann") * np.float32(factor)), codec)
        if not refused:
            for chunk in sent:
                it.feed("ann", chunk)
            continue
        with pytest.raises(BadMessageError, match="longer vector than it named"):
            for chunk in sent:
                it.feed("ann", chunk)


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda relay, data: relay.open("dag", None), id="a stranger"),
        pytest.param(lambda relay, data: relay.open("cid", contribution("cid")), id="a contribution"),
        pytest.param(lambda relay, data: (relay.open("cid", None), relay.open("cid", None)), id="twice"),
        pytest.param(lambda relay, data: relay.feed("cid", data[0]), id="without opening"),
        pytest.param(lambda relay, data: (relay.open("cid", None), relay.feed("cid", data[2])), id="the last chunk first"),
        pytest.param(lambda relay, data: (relay.open("cid", None), relay.feed("cid", data[0][:-4])), id="a short chunk"),
        pytest.param(lambda relay, data: (relay.open("cid", None), relay.feed("bob", data[0])), id="somebody else"),
    ],
)
def test_whoever_is_not_to_bring_averages_or_brings_them_wrongly_is_refused(
    break_it: Callable[[ShardRelay, list[bytes]], Any],
) -> None:
    first, relay = finished(by=("cid",))
    with pytest.raises(BadMessageError):
        break_it(relay, first.averaged)
    assert relay.averaged == []
