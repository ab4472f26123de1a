"""Who fetches which chunk of a snapshot: no sockets, no clocks."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import BadMessageError
from protocols.messages import Manifest
from protocols.snapshot.chunks import MAX_CHUNKS_A_RANGE, MAX_FETCHERS, Download

CHUNK = 8


def snapshot(*words: int) -> bytes:
    """A chunk for each number; equal numbers, equal chunks."""
    return b"".join(word.to_bytes(CHUNK, "big") for word in words)


def manifest(data: bytes, epoch: int = 3) -> Manifest:
    digests = tuple(hashlib.sha256(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK))
    return Manifest(epoch, "c" * 64, len(data), CHUNK, digests)


def aimed_at(data: bytes, *sources: str) -> Download:
    download = Download()
    download.aim(manifest(data))
    for kept_state in sources:
        download.join(kept_state)
    return download


def give(download: Download, kept_state: str, data: bytes, index: int) -> bool:
    return download.received(kept_state, index, data[index * CHUNK : (index + 1) * CHUNK])


def serve(download: Download, kept_state: str, data: bytes, most: int = 1 << 30) -> list[int]:
    """Let `donor` fetch one range, or the first `most` chunks of it; the indices that came."""
    wanted = download.next(kept_state)
    came = list(range(wanted.first, wanted.first + wanted.count))[:most] if wanted is not None else []
    for index in came:
        give(download, kept_state, data, index)
    return came


def test_one_donor_brings_everything_in_order() -> None:
    data = snapshot(*range(10))
    download = aimed_at(data, "ann")
    came: list[int] = []
    while not download.done:
        came += serve(download, "ann", data)
    assert came == list(range(10))
    assert download.snapshot() == data and download.bytes_done == len(data)


def test_donors_that_are_equally_fast_bring_equally_much() -> None:
    data = snapshot(*range(300))
    sources = ("ann", "bob", "cyd")
    download = aimed_at(data, *sources)
    todo: dict[str, list[int]] = {kept_state: [] for kept_state in sources}
    while not download.done:
        for kept_state in sources:  # one chunk each, in turn
            if not todo[kept_state] and not download.done:
                wanted = download.next(kept_state)
                todo[kept_state] = list(range(wanted.first, wanted.first + wanted.count)) if wanted is not None else []
            if todo[kept_state] and download.owes(kept_state):
                give(download, kept_state, data, todo[kept_state].pop(0))
    assert all(90 <= download.verified_by[kept_state] <= 110 for kept_state in sources), download.verified_by


def test_no_two_donors_fetch_one_chunk_while_there_are_others() -> None:
    data = snapshot(*range(40))
    download = aimed_at(data, "ann", "bob", "cyd")
    spans = [download.next(kept_state) for kept_state in ("ann", "bob", "cyd")]
    indices = [index for span in spans if span is not None for index in range(span.first, span.first + span.count)]
    assert len(indices) == len(set(indices)) and len(indices) < 40, "some are left for who is done first"


def test_an_idle_donor_fetches_the_tail_of_what_a_slow_one_owes() -> None:
    data = snapshot(*range(8))
    download = aimed_at(data, "slow")
    owed = download.next("slow")
    assert owed is not None and (owed.first, owed.count) == (0, 4)
    download.join("fast")
    while not download.done:
        assert serve(download, "fast", data), "there is always something to do for it"
    assert download.verified_by == {"fast": 8}
    assert not download.owes("slow"), "what still comes from the slow one is of no use"


def test_at_the_end_a_chunk_is_on_its_way_from_two_donors_at_most() -> None:
    data = snapshot(0)
    download = aimed_at(data, "ann", "bob", "cyd")
    assert [download.next(kept_state) is not None for kept_state in ("ann", "bob", "cyd")] == [True, True, False]
    download.leave("ann")
    assert download.next("cyd") is not None, "one of them left"


def test_what_a_lost_donor_owed_is_fetched_from_another_and_what_it_brought_stays() -> None:
    data = snapshot(*range(12))
    download = aimed_at(data, "ann", "bob")
    came = serve(download, "ann", data, most=2)
    download.leave("ann")
    later: list[int] = []
    while not download.done:
        later += serve(download, "bob", data)
    assert sorted(came + later) == list(range(12))
    assert download.snapshot() == data


def test_a_chunk_with_another_digest_is_refused_and_still_missing() -> None:
    data = snapshot(*range(4))
    download = aimed_at(data, "ann")
    download.next("ann")
    with pytest.raises(BadMessageError, match="chunk 0 has another digest"):
        download.received("ann", 0, data[CHUNK : 2 * CHUNK])
    assert download.bytes_done == 0 and download.owes("ann")


def test_a_chunk_that_was_not_asked_for_is_refused() -> None:
    data = snapshot(*range(12))
    download = aimed_at(data, "ann", "bob")
    download.next("ann")
    for kept_state, index in (("ann", 11), ("bob", 0), ("stranger", 0)):
        with pytest.raises(BadMessageError, match="not asked for"):
            give(download, kept_state, data, index)


def test_a_chunk_that_comes_twice_counts_once() -> None:
    data = snapshot(0)
    download = aimed_at(data, "ann", "bob")
    download.next("ann"), download.next("bob")
    assert give(download, "ann", data, 0) and not give(download, "bob", data, 0)
    assert download.bytes_done == len(data) and download.verified_by == {"ann": 1}


def test_equal_chunks_are_fetched_once() -> None:
    data = snapshot(7, 0, 0, 0, 0, 0, 0, 8)
    download = aimed_at(data, "ann")
    came = 0
    while not download.done:
        came += len(serve(download, "ann", data))
    assert came < 8 and download.snapshot() == data
    assert download.verified_by == {"ann": 3}


def test_a_new_target_keeps_the_chunks_that_match() -> None:
    before, after = snapshot(1, 2, 3, 4, 5, 6), snapshot(9, 2, 8, 3, 7)
    download = aimed_at(before, "ann")
    while not download.done:
        serve(download, "ann", before)
    download.aim(manifest(after, epoch=4))
    assert download.bytes_done == 2 * CHUNK
    download.join("bob")
    came: list[int] = []
    while not download.done:
        came += serve(download, "bob", after)
    assert came == [0, 2, 4]
    assert download.snapshot() == after


def test_aiming_again_at_the_same_snapshot_loses_nothing() -> None:
    data = snapshot(*range(6))
    download = aimed_at(data, "ann")
    came = serve(download, "ann", data)
    download.aim(manifest(data))
    assert download.bytes_done == len(came) * CHUNK and download.verified_by == {"ann": len(came)}


def test_a_donor_is_never_asked_for_too_much_at_a_time() -> None:
    data = snapshot(*range(1000))
    wanted = aimed_at(data, "ann").next("ann")
    assert wanted is not None and wanted.count == MAX_CHUNKS_A_RANGE


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_bytes": 0},
        {"chunk_bytes": 1 << 30},
        {"total_bytes": 0},
        {"total_bytes": 3 * CHUNK + 1},
        {"chunk_sha256": (b"x" * 32,) * 2},
        {"chunk_sha256": (b"x" * 32, b"x" * 32, b"x" * 31)},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(wrong: dict[str, int]) -> None:
    right = {"epoch": 1, "lineage": "c" * 64, "total_bytes": 3 * CHUNK, "chunk_bytes": CHUNK, "chunk_sha256": (b"x" * 32,) * 3}
    Manifest(**right)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Manifest(**{**right, **wrong})  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    data=st.data(), words=st.lists(st.integers(0, 12), min_size=1, max_size=40), others=st.lists(st.integers(0, 12), min_size=1)
)
def test_whatever_donors_do_every_chunk_comes_and_none_that_is_here_is_asked_for_again(
    data: st.DataObject, words: list[int], others: list[int]
) -> None:
    """Donors come, send, lie, go, and the target changes once: the download ends, whole, as long as one honest donor stays."""
    targets = [snapshot(*words), snapshot(*others)]
    content = targets[0]
    download = aimed_at(content, "honest")
    under_way: dict[str, list[int]] = {"honest": []}
    verified: set[bytes] = set()
    for _ in range(data.draw(st.integers(0, 60))):
        kept_state = data.draw(st.sampled_from(["honest", "ann", "bob", "cyd"]))
        act = data.draw(st.sampled_from(["next", "next", "send", "send", "send", "lie", "leave", "aim"]))
        if act == "aim" and content is targets[0]:
            content = targets[1]
            download.aim(manifest(content))
            under_way = {}
            verified &= set(manifest(content).chunk_sha256)
        elif act == "leave" and kept_state != "honest":
            download.leave(kept_state)
            under_way.pop(kept_state, None)
        elif act == "next" and not download.done:
            wanted = download.next(kept_state)
            under_way[kept_state] = list(range(wanted.first, wanted.first + wanted.count)) if wanted is not None else []
            fetchers = Counter(index for indices in under_way.values() for index in indices)
            for index in under_way[kept_state]:
                assert manifest(content).chunk_sha256[index] not in verified
                assert fetchers[index] <= MAX_FETCHERS
        elif act in ("send", "lie") and under_way.get(kept_state):
            index = under_way[kept_state].pop(0)
            if act == "send":
                fresh = give(download, kept_state, content, index)
                digest = manifest(content).chunk_sha256[index]
                assert fresh == (digest not in verified)
                verified.add(digest)
            else:
                with pytest.raises(BadMessageError):
                    download.received(kept_state, index, b"lie")
                download.leave(kept_state)
                under_way.pop(kept_state)
        assert download.bytes_done == CHUNK * sum(digest in verified for digest in manifest(content).chunk_sha256)
    for kept_state in ("ann", "bob", "cyd"):
        download.leave(kept_state)
    for _ in range(len(content)):
        if download.done:
            break
        assert serve(download, "honest", content), "there is something to fetch while something is missing"
    assert download.snapshot() == content
