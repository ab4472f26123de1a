from __future__ import annotations

from typing import Any

from peer.epoch.follower_streams import FollowerStreams
from protocols.messages import Heartbeat
from protocols.round.leader import DETECTION_S, Leader
from protocols.round.records import Candidate, Hello, Tip


class Stream:
    """Keeps what was posted to `peer`."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.posted: list[Any] = []
        self.room = 1000

    def post(self, record: Any) -> bool:
        self.posted.append(record)
        return len(self.posted) <= self.room

    async def send(self, record: Any) -> None:
        raise AssertionError("a leader waits for nobody")

    async def receive(self) -> Any:
        raise AssertionError("the service reads")


def leader_of(*peers: str) -> Leader:
    me = Candidate("ann", "ann:1")
    leader = Leader(me, run_digest="ab" * 32, target_batch_size=8, elements=1024, codecs={"fp32": 4096}, max_epochs=None)
    leader.active = True
    for peer in peers:
        leader.joined(peer, Hello(1, False, f"{peer}:1", f"{peer}:2", peer), 0.0)
    return leader


def test_the_stream_of_a_peer_that_was_taken_for_dead_ends_so_that_it_comes_again() -> None:
    leader, desk = leader_of("bob", "cid"), FollowerStreams()
    streams = {peer: desk.open(Stream(peer)) for peer in ("bob", "cid")}
    for tick in range(1, 9):
        leader.heard("cid", tick * DETECTION_S / 4)
        leader.tick(tick * DETECTION_S / 4)
    desk.heartbeat(leader)
    assert desk.peers == ("cid",)
    assert streams["bob"].closed.is_set()
    assert not streams["cid"].closed.is_set()


def test_a_heartbeat_says_how_the_swarm_stands_once_the_leader_has_state() -> None:
    leader, desk = leader_of("bob"), FollowerStreams()
    stream = Stream("bob")
    desk.open(stream)
    assert desk.heartbeat(leader) is None and stream.posted == []
    leader.tip = Tip.genesis("ab" * 32, "00" * 32, Candidate("ann", "ann:1"), "fp32")
    beat = desk.heartbeat(leader)
    assert stream.posted == [beat] == [Heartbeat(leader.tip.standing, 0, 0.0, 0)], "nobody has reported yet"


def test_a_peer_that_comes_again_has_one_stream_and_the_end_of_the_earlier_one_is_no_news() -> None:
    desk = FollowerStreams()
    earlier, later = desk.open(Stream("bob")), desk.open(Stream("bob"))
    assert earlier.closed.is_set() and len(desk) == 1
    assert not desk.gone(earlier)
    assert desk.gone(later) and desk.peers == ()
    assert not desk.gone(later)


def test_records_go_to_those_who_are_connected_and_to_nobody_else() -> None:
    desk, streams = FollowerStreams(), {peer: Stream(peer) for peer in ("bob", "cid")}
    for stream in streams.values():
        desk.open(stream)
    desk.send(("bob", "dag"), "a record")
    assert (streams["bob"].posted, streams["cid"].posted) == (["a record"], [])
    desk.close_all()
    desk.send(("bob", "cid"), "too late")
    assert (streams["bob"].posted, streams["cid"].posted) == (["a record"], [])


def test_the_stream_of_a_follower_that_does_not_read_ends_and_the_others_get_theirs() -> None:
    desk, streams = FollowerStreams(), [Stream("bob"), Stream("cid")]
    bob, cid = (desk.open(stream) for stream in streams)
    streams[0].room = 1
    for _ in range(3):
        desk.send(("bob", "cid"), "a record")
    assert bob.closed.is_set() and bob.is_full
    assert not cid.closed.is_set() and len(streams[1].posted) == 3
    assert desk.gone(bob), "the leader is told that it is gone"
