"""What waits for an observer is bounded, and so is how many there are."""

from __future__ import annotations

from contextlib import ExitStack

from peer.epoch.observers import MAX_OBSERVERS, MAX_WAITING, Observers
from protocols.observations import Swarm
from protocols.reasons import Reason
from protocols.round.records import Hello

HELLO = Hello(1, False, "", "", "ann")


def observers() -> Observers:
    return Observers(lambda: Swarm(None, 0, "training", (), None), (), lambda: 0.0)


def test_an_observer_that_does_not_read_is_told_nothing_more_and_the_others_are() -> None:
    told = observers()
    with told.subscribe("slow") as slow, told.subscribe("quick") as quick:
        for _ in range(MAX_WAITING + 1):
            told.joined("ann", HELLO)
            quick.inbox.get_nowait()
        assert slow.ended is Reason.UNREAD and slow.inbox.qsize() == MAX_WAITING
        assert quick.ended is None


def test_the_oldest_observer_makes_room_so_that_a_crowd_shuts_nobody_out() -> None:
    told = observers()
    with ExitStack() as stack:
        crowd = [stack.enter_context(told.subscribe(f"peer {number}")) for number in range(MAX_OBSERVERS)]
        assert not any(observer.ended for observer in crowd)
        coordinator = stack.enter_context(told.subscribe("coordinator"))
        assert [observer.ended for observer in crowd] == [Reason.BUSY] + [None] * (MAX_OBSERVERS - 1)
        assert coordinator.ended is None
