from __future__ import annotations

from peer.epoch.follower_streams import FollowerStreams
from protocols.round.leader import DETECTION_S, Leader
from protocols.round.records import Candidate, Hello


def test_the_stream_of_a_peer_that_was_taken_for_dead_ends_so_that_it_comes_again() -> None:
    me = Candidate("ann", "ann:1")
    leader = Leader(me, run_digest="ab" * 32, target_batch_size=8, elements=1024, codecs={"fp32": 4096}, max_epochs=None)
    leader.active = True
    desk = FollowerStreams()
    outboxes = {peer: desk.open(peer) for peer in ("bob", "cid")}
    for peer in outboxes:
        leader.joined(peer, Hello(1, False, f"{peer}:1", f"{peer}:2", peer), 0.0)
    for tick in range(1, 9):
        leader.heard("cid", tick * DETECTION_S / 4)
        leader.tick(tick * DETECTION_S / 4)
    desk.heartbeat(leader)
    assert desk.peers == ("cid",)
    assert outboxes["bob"].get_nowait() is None
    assert outboxes["cid"].empty()
